"""Markov chains: scores are counts minus expected counts, values come by hand, and all of `ld.exact` applies."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.processes import MarkovChain, MarkovChainParams
from tests.worlds import rollout, trajectory

PARAMS = MarkovChainParams(
    jnp.array([0.3, -0.2, 0.5]), jnp.array([[0.1, 0.9, -0.4], [0.0, 0.7, 0.2], [-1.0, 0.4, 0.6]])
)
REWARD = jnp.array([1.0, -0.5, 2.0])
TRANSITION_REWARD = jnp.array([[0.0, 1.0, -1.0], [0.5, 0.0, 2.0], [1.5, -0.5, 0.0]])


def probabilities(params=PARAMS):
    """Start and kernel, by numpy alone."""
    start, kernel = (np.exp(np.asarray(x)) for x in params)
    return start / start.sum(), kernel / kernel.sum(1, keepdims=True)


def path(chain, states):
    """The trajectory that visits the given states."""
    states = jnp.asarray(states, jnp.int32)
    return trajectory(observations=jnp.roll(states, 1).at[0].set(chain.num_actions), actions=states)


def test_score_of_a_path_is_counts_minus_expected_counts():
    """0 1 1 2 0 1: twice 0 -> 1, once each 1 -> 1, 1 -> 2, 2 -> 0."""
    chain = MarkovChain(REWARD)
    tau = path(chain, [0, 1, 1, 2, 0, 1])
    counts = np.array([[0, 2, 0], [0, 1, 1], [1, 0, 0]])
    start, kernel = probabilities()
    logp, score = jax.jit(jax.value_and_grad(ld.log_prob))(PARAMS, chain.policy, tau)
    np.testing.assert_allclose(logp, np.log(start[0]) + np.sum(counts * np.log(kernel)), rtol=1e-12)
    np.testing.assert_allclose(score.initial, np.eye(3)[0] - start, rtol=1e-8)
    np.testing.assert_allclose(score.transition, counts - counts.sum(1, keepdims=True) * kernel, rtol=1e-8, atol=1e-15)


@pytest.mark.parametrize("reward", [REWARD, TRANSITION_REWARD], ids=["states", "transitions"])
def test_value_by_matrix_powers_and_gradient_by_every_path(reward):
    chain, gamma, horizon = MarkovChain(reward), 0.9, 4
    start, kernel = probabilities()
    visits, value = start, 0.0
    for t in range(horizon):
        if reward.ndim == 1:
            value += gamma**t * visits @ np.asarray(reward)
        else:
            value += gamma ** (t + 1) * (t + 1 < horizon) * np.sum(visits[:, None] * kernel * np.asarray(reward))
        visits = visits @ kernel

    @jax.jit
    def run(params):
        options = {"horizon": horizon, "discount": gamma}
        gradients = [
            ld.exact.gradient(params, chain.policy, chain, **options, method=m) for m in ("dynamic", "enumeration")
        ]
        return ld.exact.value(params, chain.policy, chain, **options), gradients

    found, gradients = run(PARAMS)
    np.testing.assert_allclose(found, value, rtol=1e-12)
    chex.assert_trees_all_close(*gradients, rtol=1e-8, atol=1e-14)


def test_an_estimator_of_the_library_is_exactly_unbiased_on_a_chain():
    chain = MarkovChain(TRANSITION_REWARD)
    estimator = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()))
    moments = ld.exact.moments(PARAMS, chain.policy, chain, estimator, horizon=3, num_trajectories=2)
    exact = jax.jit(lambda p: ld.exact.gradient(p, chain.policy, chain, horizon=3))(PARAMS)
    chex.assert_trees_all_close(moments.mean, exact, atol=1e-13)


def test_expected_hitting_time_by_a_linear_system():
    """From 0 or 1 until 2 is entered: (I - P) t = 1 on the first two states."""
    chain = MarkovChain(jnp.ones(3), terminal=[False, False, True])
    start, kernel = probabilities()
    times = np.linalg.solve(np.eye(2) - kernel[:2, :2], np.ones(2))
    value = jax.jit(lambda p: ld.exact.value(p, chain.policy, chain, horizon=500))(PARAMS)
    np.testing.assert_allclose(value, 1 + start[:2] @ times, rtol=1e-10)


def test_rollout_draws_states_and_pays_for_them():
    chain = MarkovChain(REWARD, horizon=5)
    taus = rollout(PARAMS, jax.random.split(jax.random.key(0), 4), chain.policy, chain)
    assert (taus.observations[:, 0] == 3).all()
    np.testing.assert_array_equal(taus.observations[:, 1:], taus.actions[:, :-1])
    np.testing.assert_array_equal(taus.rewards, REWARD[taus.actions])


def test_a_forbidden_transition_has_probability_zero_and_a_finite_score():
    forbids = PARAMS._replace(transition=PARAMS.transition.at[0, 1].set(-jnp.inf))
    chain = MarkovChain(REWARD)
    run = jax.jit(jax.value_and_grad(ld.log_prob))
    assert run(forbids, chain.policy, path(chain, [0, 1, 2]))[0] == -jnp.inf
    chex.assert_tree_all_finite(run(forbids, chain.policy, path(chain, [0, 2, 2])))


@pytest.mark.parametrize("outside", [-1, 4, 99])
def test_a_state_outside_the_chain_has_no_law_and_the_start_keeps_its_own(outside):
    """Number S is the start, and no other: the wrong twin, an index that is clamped or counts from the end, takes them for it."""
    chain, (start, kernel) = MarkovChain(REWARD), probabilities()
    laws = jax.jit(jax.vmap(lambda s: chain.policy.apply(PARAMS, s).prob(jnp.arange(3))))(jnp.arange(4))
    np.testing.assert_allclose(laws, np.vstack([kernel, start]), rtol=1e-12)
    right = path(chain, [0, 1, 2])
    wrong = right._replace(observations=right.observations.at[2].set(outside))
    run = jax.jit(jax.value_and_grad(lambda p, tau: ld.log_prob(p, chain.policy, tau)))
    value, score = run(PARAMS, wrong)
    assert np.isnan(value)
    assert np.isnan(np.concatenate([score.initial, *score.transition])).any()
    chex.assert_tree_all_finite(run(PARAMS, right))
    chex.assert_tree_all_finite(run(PARAMS, wrong._replace(valid=jnp.array([True, True, False]))))
    twin = ld.FunctionPolicy(lambda p, s: ld.Categorical(jnp.concatenate([p.transition, p.initial[None]])[s]))
    assert np.isfinite(jax.jit(lambda tau: ld.log_prob(PARAMS, twin, tau))(wrong))
