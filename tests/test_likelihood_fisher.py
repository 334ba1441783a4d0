"""Fisher products against explicit matrices, an enumerated table, and natural gradients in closed form."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import logderiv as ld
from logderiv._core import blocks
from logderiv.likelihood import fisher
from logderiv.testing.padding import fill
from tests.mostly import slow
from tests.worlds import TERMINATING_LOGITS, TWO_STATES_LOGITS, batch, cast, terminating, trajectory, two_states

# E[score score^T] of the two-state world: diagonal blocks of [[f, -f], [-f, f]] for each state, f = p(0|s) p(1|s) times the
# expected number of visits to s.
PER = ("step", "trajectory")
TABLE = {2: (0.2856094668379328, 0.20739705388233032), 3: (0.4261136214086897, 0.3134424400460357)}


@pytest.mark.parametrize(("horizon", "per"), [(2, "trajectory"), (3, "step")])
def test_exact_fisher_matrix_is_the_tabulated_one(horizon, per):
    mdp, policy = two_states(), ld.tabular_softmax
    taus = ld.exact.enumerate_trajectories(mdp, horizon=horizon)

    @jax.jit
    def run(params):
        probs = ld.prob(params, policy, taus, environment=mdp)
        return fisher.fisher_matrix(params, policy, taus, per=per, probabilities=probs)

    first, second = (f * np.array([[1, -1], [-1, 1]]) for f in TABLE[horizon])
    expected = np.block([[first, np.zeros((2, 2))], [np.zeros((2, 2)), second]])
    np.testing.assert_allclose(run(TWO_STATES_LOGITS), expected, atol=1e-14)


def test_exact_fisher_with_early_ends_by_three_routes():
    """Per step, per trajectory, and minus the expected Hessian of log P."""
    mdp, policy = terminating(), ld.tabular_softmax
    taus = ld.exact.enumerate_trajectories(mdp, horizon=3)

    @jax.jit
    def run(params):
        probs = ld.prob(params, policy, taus, environment=mdp)
        hessian = jax.hessian(lambda p: jnp.sum(probs * ld.log_prob(p, policy, taus)))(params).reshape((6, 6))
        return [fisher.fisher_matrix(params, policy, taus, per=per, probabilities=probs) for per in PER], -hessian

    matrices, bartlett = run(TERMINATING_LOGITS)
    for matrix in matrices:
        np.testing.assert_allclose(matrix, bartlett, atol=1e-13)
    assert np.linalg.norm(bartlett) > 0.3


def _network_batch():
    policy = ld.MLP(3, hidden=())
    taus = batch(jax.random.key(0), (6, 5), actions=3)
    lengths = jnp.arange(6) % 5 + 1
    taus = taus._replace(valid=jnp.arange(5)[None] < lengths[:, None])
    return policy.init(jax.random.key(1), jnp.zeros(4)), policy, taus


@pytest.mark.parametrize("per", PER)
def test_products_on_a_batch_equal_the_explicit_outer_products(per, monkeypatch):
    monkeypatch.setitem(blocks._ROWS, "cpu", 4)
    params, policy, taus = _network_batch()
    theta, unravel = ravel_pytree(params)
    vector = jnp.linspace(-1, 2, theta.size)

    @jax.jit
    def run(params):
        scores = jax.jacrev(lambda p: ld.log_factors(unravel(p), policy, taus))(theta)  # (N, T, D)
        rows = scores.reshape((-1, theta.size)) if per == "step" else scores.sum(axis=1)
        product = fisher.fisher_vector_product(params, policy, taus, per=per)
        return rows.T @ (rows @ vector) / 6, ravel_pytree(product(unravel(vector)))[0]

    explicit, product = run(params)
    np.testing.assert_allclose(product, explicit, atol=1e-12)


@pytest.mark.parametrize("policy", [ld.MLP(3, hidden=(2,)), slow(ld.GRU(3, hidden=2))], ids=["mlp", "gru"])
def test_padding_changes_no_product(policy, monkeypatch):
    monkeypatch.setitem(blocks._ROWS, "cpu", 7)
    _, _, taus = _network_batch()
    params = policy.init(jax.random.key(1), jnp.zeros(4))
    run = jax.jit(lambda taus: fisher.fisher_vector_product(params, policy, taus)(params))
    jax.tree.map(np.testing.assert_array_equal, *(run(fill(taus, kind)) for kind in ("NaN", "largest")))


@pytest.mark.usefixtures("blocks_of_a_cpu")
def test_memory_is_not_that_of_all_scores():
    policy = ld.MLP(2, hidden=(512,))
    params = cast(policy.init(jax.random.key(0), jnp.zeros(4)), jnp.float32)
    taus = batch(jax.random.key(1), (4096, 2), dtype=jnp.float32)
    run = jax.jit(lambda p, taus: fisher.fisher_vector_product(p, policy, taus)(p))
    analysis: Any = run.lower(params, taus).compile().memory_analysis()
    scores = 4096 * sum(x.size for x in jax.tree.leaves(params)) * 4
    assert analysis.temp_size_in_bytes < scores / 2


# Natural gradient


def _bandit():
    """One state, one step: a batch whose empirical frequencies are exactly the policy's, and the exact gradient."""
    p, r = np.array([0.5, 0.35, 0.15]), np.array([0.0, 1.0, 4.0])
    actions = np.repeat(np.arange(3), [10, 7, 3])[:, None]
    taus = trajectory(actions=jnp.asarray(actions), rewards=jnp.asarray(r[actions]))
    return jnp.log(jnp.asarray(p)), taus, jnp.asarray(p * (r - p @ r))


def test_natural_gradient_of_a_softmax_bandit_is_the_centred_reward():
    """pinv(F) grad J = r - mean(r), whatever the policy; for r = (0, 1, 4): (-5/3, -2/3, 7/3)."""
    params, taus, grads = _bandit()
    optimizer: Any = fisher.natural_gradient(ld.shared_softmax, damping=0.0, tolerance=1e-14)
    updates, state = jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p, trajectories=taus))(grads, params)
    np.testing.assert_allclose(updates, [-5 / 3, -2 / 3, 7 / 3], atol=1e-12)
    assert state.residual < 1e-12


def test_natural_gradient_is_the_damped_solve_and_too_few_iterations_show_in_the_state():
    params, policy, taus = _network_batch()
    theta, unravel = ravel_pytree(params)
    grads = jnp.sin(jnp.linspace(1.0, 20.0, theta.size))

    @jax.jit
    def run(params):
        def update(**options):
            optimizer: Any = fisher.natural_gradient(policy, **options)
            updates, state = optimizer.update(unravel(grads), optimizer.init(params), params, trajectories=taus)
            return ravel_pytree(updates)[0], state.residual

        solved = update(damping=0.1, iterations=60, tolerance=1e-13)
        return solved, update(damping=1e-4, iterations=1)[1], fisher.fisher_matrix(params, policy, taus)

    (updates, residual), too_few, matrix = run(params)
    np.testing.assert_allclose(updates, np.linalg.solve(matrix + 0.1 * np.eye(theta.size), grads), rtol=1e-8)
    assert residual < 1e-10
    assert 0.05 < too_few < 10


def test_the_natural_gradient_does_not_depend_on_the_parametrization():
    """With theta = A phi, the step in theta is the same; a plain gradient step is not."""
    params, taus, grads = _bandit()
    basis = jnp.array([[2.0, 0.3, 0.0], [0.1, 0.5, -0.4], [0.7, 0.0, 1.5]])
    mixed = ld.FunctionPolicy(lambda phi, observation: ld.shared_softmax.apply(basis @ phi, observation))
    optimizer: Any = fisher.natural_gradient(mixed, damping=0.0, tolerance=1e-14)
    phi = jnp.linalg.solve(basis, params)
    update = jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p, trajectories=taus)[0])
    step = basis @ update(basis.T @ grads, phi)
    np.testing.assert_allclose(step - step.mean(), [-5 / 3, -2 / 3, 7 / 3], atol=1e-10)
    plain = basis @ (basis.T @ grads)
    assert np.abs(plain / np.linalg.norm(plain) - np.array(grads) / np.linalg.norm(grads)).max() > 0.1


def test_in_bfloat16_the_system_is_solved_in_float32_and_the_solution_cast_back():
    """To the rounding of bfloat16, 4e-3; iterated in bfloat16 it would be off by several times as much."""
    params = jnp.linspace(-1, 1, 8).astype(jnp.bfloat16)
    actions = jax.random.categorical(jax.random.key(0), params.astype(jnp.float32), shape=(64, 4))
    taus = trajectory(actions=actions, rewards=jnp.ones((64, 4), jnp.float32))
    grads = jnp.sin(jnp.arange(8.0)).astype(jnp.bfloat16)
    optimizer: Any = fisher.natural_gradient(ld.shared_softmax, damping=1e-2, iterations=50)

    @jax.jit
    def run(grads, params):
        updates, state = optimizer.update(grads, optimizer.init(params), params, trajectories=taus)
        return updates, state.residual, fisher.fisher_matrix(params, ld.shared_softmax, taus)

    updates, residual, matrix = run(grads, params)
    exact = np.linalg.solve(np.asarray(matrix, float) + 1e-2 * np.eye(8), np.asarray(grads, float))
    assert (updates.dtype, residual.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(updates.astype(float), exact, rtol=4e-3)
    assert residual < 1e-5


def test_vectors_and_gradients_unlike_the_parameters_are_named():
    _, taus, _ = _bandit()
    policy = ld.FunctionPolicy(lambda params, _: ld.Categorical(params["w"]))
    params: Any = {"w": jnp.zeros(3)}
    product, optimizer = fisher.fisher_vector_product(params, policy, taus), fisher.natural_gradient(policy)
    for wrong, message in (
        (jnp.zeros(3), "expected a pytree of the structure"),
        ({"w": jnp.zeros(2)}, r"\['w'\]: expected shape \(3,\), received \(2,\)"),
        ({"w": jnp.zeros(())}, r"\['w'\]: expected shape \(3,\), received \(\)"),
    ):
        with pytest.raises(ValueError, match=f"^vector.*{message}"):
            product(wrong)
        with pytest.raises(ValueError, match=f"^updates.*{message}"):
            optimizer.update(wrong, optimizer.init(params), params, trajectories=taus)


@pytest.mark.slow
def test_it_passes_through_chain_and_maximize_and_learns_in_float32():
    mdp = ld.environments.short_corridor(dtype=jnp.float32)
    estimator = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()))
    natural = fisher.natural_gradient(ld.shared_softmax, damping=1e-2)
    optimizer: Any = ld.maximize(optax.chain(natural, optax.scale_by_learning_rate(0.02)))

    def step(carry, key):
        params, opt_state = carry
        taus = ld.rollout(params, jax.random.split(key, 32), ld.shared_softmax, mdp, horizon=100)
        estimate, _ = estimator.estimate(params, (), ld.shared_softmax, taus)
        updates, opt_state = optimizer.update(estimate.grads, opt_state, params, trajectories=taus)
        return (optax.apply_updates(params, updates), opt_state), estimate.info.mean_return

    start = jnp.array([2.5, 0.0], jnp.float32)  # mostly left: about -50 within 100 steps
    run = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), jax.random.split(jax.random.key(0), 30)))
    (params, _), returns = run(start)
    assert params.dtype == jnp.float32
    assert returns[:2].mean() < -35
    assert returns[-5:].mean() > -14  # the best is -11.66
