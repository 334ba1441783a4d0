"""Off-policy weights by hand, exactly 1 on policy, and V-trace against rlax."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.estimators.declaration import Structure
from logderiv.estimators.importance import Importance, effective_sample_size, log_ratios, with_behavior
from logderiv.estimators.returns import generalized_advantages, lambda_returns, vtrace

from . import oracle
from .test_estimators_credit import random_arrays
from .worlds import batch
from .zoo import GIVEN, LOO

PER_STEP, PER_TRAJECTORY = Importance(), Importance(per="trajectory")
NORMALIZED, CUT = Importance(normalize=True), Importance(truncate=2.0)
LOGS = jnp.log(jnp.array([[2.0, 3.0, 1.0], [0.5, 1.0, 4.0]]))


def _weigh(estimator, world, every, *, off_policy=False):
    """Weights of the batch, compiled; on policy its behavior log-probabilities are refreshed in the same program."""

    @jax.jit
    def run(params, every):
        every = every if off_policy else with_behavior(params, oracle.POLICY, every)
        return estimator.advantages(params, estimator.init(params), oracle.POLICY, every)[0]

    return run(world.params, every)


@pytest.mark.parametrize(
    ("importance", "expected"),
    [
        (PER_STEP, [[2, 6, 6], [0.5, 0.5, 2]]),
        (PER_TRAJECTORY, [[6, 6, 6], [2, 2, 2]]),
        (NORMALIZED, [[1.6, 12 / 6.5, 1.5], [0.4, 1 / 6.5, 0.5]]),
        (Importance(per="trajectory", normalize=True), [[1.5] * 3, [0.5] * 3]),
        (CUT, [[2, 2, 2], [0.5, 0.5, 2]]),
        (Importance(per="trajectory", truncate=3.0), [[3] * 3, [2] * 3]),
    ],
)
def test_ratios_by_hand(importance, expected):
    np.testing.assert_allclose(importance.ratios(LOGS), expected, rtol=1e-14)


def test_leading_axes_are_a_batch():
    """One trajectory, a batch, and batches of batches: time is the last axis."""
    deep = jnp.stack([LOGS, 2 * LOGS, -LOGS])
    for ratios in (PER_STEP.ratios, PER_TRAJECTORY.ratios):
        np.testing.assert_allclose(ratios(deep), jax.vmap(jax.vmap(ratios))(deep), rtol=1e-15)


def test_self_normalized_weights_do_not_overflow():
    huge = NORMALIZED.ratios(LOGS + jnp.array([[2000.0], [0.0]]))
    np.testing.assert_allclose(huge, [[2.0] * 3, [0.0] * 3], atol=1e-300)


def test_truncation_that_never_bites_is_unbiased():
    """The declaration of order 0 is about what is cut off, and only that."""
    world, every = oracle.cut(), oracle.trajectories(oracle.cut(), off_policy=True)[0]
    estimators = [ld.ScoreFunction(discount=0.9, importance=kind) for kind in (PER_STEP, Importance(truncate=100.0))]
    np.testing.assert_array_equal(*(_weigh(e, world, every, off_policy=True) for e in estimators))


def test_weights_are_exactly_one_on_policy():
    """Rollout and `log_factors` may round differently; refreshed, the ratios are 1 to the last bit, in and out of `jit`."""
    policy = ld.MLP(3, hidden=(16,))
    params = policy.init(jax.random.key(0), jnp.zeros(4))
    params = jax.tree.map(lambda x: (3 * x).astype(jnp.float32), params)
    taus = batch(jax.random.key(1), (64, 50), actions=3, dtype=jnp.float32)
    short = jnp.arange(50)[None] <= jnp.arange(64)[:, None] % 50
    taus = taus._replace(valid=short, behavior_log_probs=jnp.nan * taus.rewards)

    def ratios(taus):
        logs = log_ratios(params, policy, with_behavior(params, policy, taus))
        return [kind.ratios(logs) for kind in (PER_STEP, PER_TRAJECTORY, NORMALIZED, Importance(truncate=1.0))]

    assert all((r == 1).all() for r in jax.jit(ratios)(taus))
    taus = with_behavior(params, policy, taus)
    assert (log_ratios(params, policy, taus) == 0).all()
    # the wrong twin: stored log-probabilities that are off by a rounding are seen
    off = taus._replace(behavior_log_probs=taus.behavior_log_probs * (1 + 1e-6))
    assert (PER_STEP.ratios(log_ratios(params, policy, off)) != 1).any()


@pytest.mark.parametrize("importance", [PER_STEP, PER_TRAJECTORY, NORMALIZED])
def test_on_policy_importance_changes_nothing(importance):
    """With refreshed behavior log-probabilities the weights are those of the plain estimator, bit for bit."""
    world, every = oracle.cut(3), oracle.trajectories(oracle.cut(3))[0]
    plain = ld.ScoreFunction(ld.advantages.ToGo(LOO), discount=0.9)
    estimators = plain, dataclasses.replace(plain, importance=importance)
    np.testing.assert_array_equal(*(_weigh(e, world, every) for e in estimators))


def test_ratios_of_long_trajectories_do_not_lose_their_digits():
    """log P = -7e4 in float32: a difference of sums is off by 1e-3, a sum of differences is not."""
    logs = -jax.random.uniform(jax.random.key(0), (10**5,), jnp.float32, jnp.float32(0.2), jnp.float32(1.2))
    behavior = logs - jax.random.normal(jax.random.key(1), logs.shape, jnp.float32) * 1e-4
    exact = np.sum(np.asarray(logs, np.float64) - np.asarray(behavior, np.float64))
    ours = float(jnp.log(PER_TRAJECTORY.ratios((logs - behavior)[None])[0, 0]))
    naive = float(jnp.sum(logs) - jnp.sum(behavior))
    assert abs(ours - exact) < 1e-6
    assert abs(naive - exact) > 1e-4


def test_no_gradient_flows_through_the_weights():
    world = oracle.cut()
    every, _ = oracle.trajectories(world, off_policy=True)
    estimator = ld.ScoreFunction(importance=Importance())
    weigh = jax.jit(jax.jacobian(lambda p: estimator.advantages(p, (), oracle.POLICY, every)[0]))
    assert (weigh(world.params) == 0).all()


def test_effective_sample_size():
    assert effective_sample_size(jnp.full(7, -900.0)) == 7
    assert effective_sample_size(jnp.array([0.0, -jnp.inf, -jnp.inf])) == 1
    np.testing.assert_allclose(effective_sample_size(jnp.log(jnp.array([3.0, 1.0])) + 1000), 16 / 10, rtol=1e-12)
    assert jnp.isnan(effective_sample_size(jnp.array([-jnp.inf, -jnp.inf])))
    rows = jnp.array([[[0.0, 0.0]], [[0.0, -jnp.inf]], [[1000.0, 1000.0]]])  # each row by its own largest
    assert effective_sample_size(rows).tolist() == [[2.0], [1.0], [2.0]]


@pytest.mark.parametrize(
    ("importance", "order", "factor", "structure"),
    [
        (PER_STEP, np.inf, 1.0, Structure()),
        (PER_TRAJECTORY, np.inf, 1.0, Structure()),
        (NORMALIZED, 0, None, Structure(2, None)),
        (CUT, 0, None, Structure()),
    ],
)
def test_declarations(importance, order, factor, structure):
    """Only the plain products are unbiased, the choices covered."""
    declared = importance.declaration
    assert (declared.order, declared.factor(1), importance.structure) == (order, factor, structure)
    assert len(declared.assumes) == 2


def test_vtrace_on_policy_is_gae_and_the_bootstrapped_return():
    rewards, discounts, now, then, *_ = random_arrays(2, True)
    for lambda_ in (0.0, 0.6, 1.0):
        result = vtrace(rewards, discounts, now, then, jnp.ones(7), lambda_=lambda_)
        advantages = generalized_advantages(rewards, discounts, now, then, lambda_=lambda_)
        np.testing.assert_allclose(result.advantages, advantages, rtol=0, atol=1e-13)
        returns = lambda_returns(rewards, discounts, then, lambda_=lambda_)
        np.testing.assert_allclose(result.targets, returns, rtol=0, atol=1e-13)


def test_vtrace_by_hand():
    """Three steps with the temporal differences 2, 4 and -2 and the ratios 3, 2 and 1/2; each clip has a number of its own.

    Errors of the values, from the end: e_2 = 1/2 (-2) = -1; e_1 = 1.5 x 4 + 1/2 x 1/2 x 1.25 x (-1); e_0 likewise.
    """
    rewards, values, following = jnp.array([3.0, 6.0, 0.0]), jnp.array([4.0, 6.0, 8.0]), jnp.array([6.0, 8.0, 12.0])

    def run(**options):
        return vtrace(rewards, jnp.full(3, 0.5), values, following, jnp.array([3.0, 2.0, 0.5]), **options)

    result = run(lambda_=0.5, clip_rho=1.5, clip_c=1.25, clip_pg=1.75)
    second = 1.5 * 4 + 0.5 * 0.5 * 1.25 * -1
    first = 1.5 * 2 + 0.5 * 0.5 * 1.25 * second
    np.testing.assert_allclose(result.targets, [4 + first, 6 + second, 8 - 1], rtol=1e-15)
    later = np.array([0.5 * 0.5 * second, 0.5 * 0.5 * -1, 0])
    np.testing.assert_allclose(result.q_values, np.array([3 + 0.5 * 6, 6 + 0.5 * 8, 0.5 * 12]) + later, rtol=1e-15)
    np.testing.assert_allclose(result.advantages, [1.75 * (2 + later[0]), 1.75 * (4 + later[1]), 0.5 * -2], rtol=1e-15)
    unclipped = run(lambda_=0.5, clip_rho=10.0, clip_c=10.0, clip_pg=10.0)
    for name in ("clip_rho", "clip_c", "clip_pg"):  # each of them alone moves what it should, and nothing else
        clips = {"clip_rho": 10.0, "clip_c": 10.0, "clip_pg": 10.0, name: 1.0}
        moved = [not np.allclose(a, b) for a, b in zip(run(lambda_=0.5, **clips), unclipped, strict=True)]
        assert moved == ([False, True, False] if name == "clip_pg" else [True, True, True])


@pytest.mark.parametrize("terminated", [False, True])
def test_vtrace_equals_rlax(terminated, rlax):
    for seed in range(3):
        rewards, discounts, now, then, _, ratios = random_arrays(seed, terminated, jnp.float32)
        for lambda_, rho, pg in ((1.0, 1.0, 1.0), (0.7, 2.0, 1.5)):
            ours = vtrace(rewards, discounts, now, then, ratios, lambda_=lambda_, clip_rho=rho, clip_pg=pg)
            theirs = rlax.vtrace_td_error_and_advantage(
                now, then, rewards, discounts, ratios, lambda_, rho, pg, stop_target_gradients=False
            )
            np.testing.assert_allclose(ours.targets - now, theirs.errors, atol=1e-6)
            np.testing.assert_allclose(ours.advantages, theirs.pg_advantage, atol=1e-6)
            np.testing.assert_allclose(ours.q_values, theirs.q_estimate, atol=1e-6)


def test_vtrace_gradient_on_policy_is_gae_one():
    world = oracle.ending()
    every, _ = oracle.trajectories(world)
    ours = _weigh(ld.ScoreFunction(ld.advantages.VTrace(GIVEN), discount=0.9), world, every)
    theirs = _weigh(ld.ScoreFunction(ld.advantages.GAE(1.0, GIVEN), discount=0.9), world, every)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-14)
