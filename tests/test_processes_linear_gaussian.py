"""Linear-quadratic control: values by forward moments, gradients by exact Gaussian expectations, optimum by scipy's Riccati solver."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

import logderiv as ld
from logderiv.processes import LinearPolicyParams, LinearQuadratic
from tests.quadrature import gauss_hermite, normal_logpdf
from tests.worlds import trajectory

WORLD = LinearQuadratic(
    transition=jnp.array([[0.9, 0.2], [-0.1, 0.7]]),
    control=jnp.array([[0.5], [1.0]]),
    noise=jnp.array([[0.3, 0.0], [0.1, 0.2]]),
    state_cost=jnp.array([[1.0, 0.3], [0.3, 0.5]]),
    control_cost=jnp.array([[0.2]]),
    initial_mean=jnp.array([1.0, -0.5]),
    initial_noise=jnp.array([[0.4, 0.0], [-0.2, 0.3]]),
)
PARAMS = LinearPolicyParams(jnp.array([[-0.4, 0.2]]), jnp.array([-0.7]))
GAMMA = 0.9


def test_value_by_forward_moments():
    """E[x x'] and E[u u'] forwards in place of V_t backwards."""
    a, b, c, q, r = (
        np.asarray(x) for x in (WORLD.transition, WORLD.control, WORLD.noise, WORLD.state_cost, WORLD.control_cost)
    )
    gain, sigma = np.asarray(PARAMS.gain), np.diag(np.exp(2 * np.asarray(PARAMS.log_std)))
    mean, noise = np.asarray(WORLD.initial_mean), np.asarray(WORLD.initial_noise)
    square, total = np.outer(mean, mean) + noise @ noise.T, 0.0
    for t in range(5):
        total -= GAMMA**t * (np.trace(q @ square) + np.trace(r @ (gain @ square @ gain.T + sigma)))
        square = (a + b @ gain) @ square @ (a + b @ gain).T + b @ sigma @ b.T + c @ c.T
    value, values = jax.jit(lambda p, w: [f(p, horizon=5, discount=GAMMA) for f in (w.value, w.quadratics)])(
        PARAMS, WORLD
    )
    np.testing.assert_allclose(value, total, rtol=1e-12)
    assert values.matrix.shape == (6, 2, 2)
    assert values.at(jnp.int32(5), WORLD.initial_mean) == 0


def weighted_scores(horizon):
    """Nodes of all randomness of `horizon` steps: trajectories, their weights, their scores."""
    # start, then control and transition; the last one is not paid for
    nodes, weights = gauss_hermite(3 * horizon, 3)

    def one(noise):
        x, rows = WORLD.initial_mean + WORLD.initial_noise @ noise[:2], []
        for t in range(horizon):
            u = PARAMS.gain @ x + jnp.exp(PARAMS.log_std) * noise[2 + 3 * t : 3 + 3 * t]
            rows.append((x, u, -(x @ WORLD.state_cost @ x + u @ WORLD.control_cost @ u)))
            later = noise[3 + 3 * t : 5 + 3 * t]
            x = WORLD.transition @ x + WORLD.control @ u + (WORLD.noise @ later if later.size else 0 * x)
        states, actions, rewards = (jnp.stack(xs) for xs in zip(*rows, strict=True))
        tau = trajectory(observations=states, actions=actions, rewards=rewards, final_observation=x)
        return tau, jax.grad(ld.log_prob)(PARAMS, WORLD.policy, tau)

    return jnp.asarray(weights), *jax.vmap(one)(jnp.asarray(nodes))


@pytest.mark.parametrize("horizon", [1, 2])
def test_expected_return_times_score_is_the_gradient_of_the_value(horizon):
    @jax.jit
    def run():
        weights, taus, scores = weighted_scores(horizon)
        returns = taus.rewards @ GAMMA ** jnp.arange(horizon, dtype=float)

        def average(weights):
            return jax.tree.map(lambda s: jnp.tensordot(weights, s, axes=1), scores)

        exact = jax.grad(lambda p: WORLD.value(p, horizon=horizon, discount=GAMMA))(PARAMS)
        return average(weights * returns), average(weights), exact

    estimate, mean_score, exact = run()
    chex.assert_trees_all_close(estimate, exact, rtol=1e-8)
    chex.assert_trees_all_close(mean_score, jax.tree.map(jnp.zeros_like, mean_score), atol=1e-12)


@pytest.mark.slow
def test_sampled_gradient_agrees_with_the_exact_one_and_not_with_a_wrong_one():
    estimator = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()), discount=GAMMA)

    @jax.jit
    @jax.vmap
    def estimates(keys):
        taus = ld.rollout(PARAMS, keys, WORLD.policy, WORLD, horizon=4)
        return estimator.estimate(PARAMS, (), WORLD.policy, taus)[0].grads

    samples = estimates(jax.random.split(jax.random.key(0), (3000, 16)))
    exact = jax.jit(jax.grad(lambda p: WORLD.value(p, horizon=4, discount=GAMMA)))(PARAMS)
    ld.testing.assert_unbiased(samples, exact, resolution=0.8)
    with pytest.raises(AssertionError, match="BIASED"):
        ld.testing.assert_unbiased(samples, exact._replace(gain=exact.gain + 1.0), resolution=0.8)


def test_gradient_vanishes_at_the_optimal_gain_of_a_riccati_solver():
    """Of the discounted problem without end; no noise in the start, so that one gain is best everywhere."""
    scale = np.sqrt(GAMMA)
    a, b = scale * np.asarray(WORLD.transition), scale * np.asarray(WORLD.control)
    p = scipy.linalg.solve_discrete_are(a, b, np.asarray(WORLD.state_cost), np.asarray(WORLD.control_cost))
    best = jnp.asarray(-np.linalg.solve(np.asarray(WORLD.control_cost) + b.T @ p @ b, b.T @ p @ a))
    grad = jax.jit(jax.grad(lambda params: WORLD.value(params, horizon=400, discount=GAMMA)))
    np.testing.assert_allclose(grad(PARAMS._replace(gain=best)).gain, 0, atol=1e-9)
    assert jnp.max(jnp.abs(grad(PARAMS._replace(gain=1.01 * best)).gain)) > 1e-3


def test_densities_of_a_trajectory_against_scipy():
    tau = jax.jit(lambda key: ld.rollout(PARAMS, key, WORLD.policy, WORLD, horizon=3))(jax.random.key(3))
    states = np.concatenate([tau.observations, tau.final_observation[None]])
    start, noise = np.asarray(WORLD.initial_noise), np.asarray(WORLD.noise)
    expected = normal_logpdf(states[0], WORLD.initial_mean, start @ start.T)
    for x, u, new in zip(states[:-1], np.asarray(tau.actions), states[1:], strict=True):
        expected += scipy.stats.norm.logpdf(u, PARAMS.gain @ x, np.exp(PARAMS.log_std)).sum()
        expected += normal_logpdf(new, WORLD.transition @ x + WORLD.control @ u, noise @ noise.T)
    logp = jax.jit(lambda tau: ld.log_prob(PARAMS, WORLD.policy, tau, environment=WORLD))(tau)
    np.testing.assert_allclose(logp, expected, rtol=1e-10)
