"""Off-policy weights by hand, exactly 1 on policy, and V-trace against rlax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.estimators.declaration import Structure
from logderiv.estimators.importance import effective_sample_size, log_ratios, with_behavior
from logderiv.estimators.returns import generalized_advantages, lambda_returns, vtrace

from . import oracle
from .test_credit import random_arrays
from .zoo import GIVEN

PER_STEP, PER_TRAJECTORY = ld.importance.Importance(), ld.importance.Importance(per="trajectory")
LOGS = jnp.log(jnp.array([[2.0, 3.0, 1.0], [0.5, 1.0, 4.0]]))


def _weigh(estimator, world, every, *, off_policy=False):
    """Weights of the batch, compiled; on policy its behavior log-probabilities are refreshed in the same program."""

    @jax.jit
    def run(params, every):
        every = every if off_policy else with_behavior(params, oracle.POLICY, every)
        return estimator.advantages(params, estimator.init(params), oracle.POLICY, every)[0]

    return run(world.params, every)


def test_products_by_hand():
    np.testing.assert_allclose(PER_STEP.ratios(LOGS), [[2, 6, 6], [0.5, 0.5, 2]], rtol=1e-15)
    np.testing.assert_allclose(PER_TRAJECTORY.ratios(LOGS), [[6, 6, 6], [2, 2, 2]], rtol=1e-15)


def test_leading_axes_are_a_batch():
    """One trajectory, a batch, and batches of batches: time is the last axis."""
    deep = jnp.stack([LOGS, 2 * LOGS, -LOGS])
    for ratios in (PER_STEP.ratios, PER_TRAJECTORY.ratios):
        one_by_one = [[ratios(row) for row in rows] for rows in deep]
        np.testing.assert_allclose(ratios(deep), one_by_one, rtol=1e-15)


def test_self_normalized_weights_have_mean_one_and_are_at_most_n():
    weights = ld.importance.Importance(normalize=True).ratios(LOGS)
    np.testing.assert_allclose(weights, [[1.6, 12 / 6.5, 1.5], [0.4, 1 / 6.5, 0.5]], rtol=1e-14)
    whole = ld.importance.Importance(per="trajectory", normalize=True).ratios(LOGS)
    np.testing.assert_allclose(whole, [[1.5] * 3, [0.5] * 3], rtol=1e-14)
    huge = ld.importance.Importance(normalize=True).ratios(LOGS + jnp.array([[2000.0], [0.0]]))  # exp overflows
    np.testing.assert_allclose(huge, [[2.0] * 3, [0.0] * 3], atol=1e-300)


def test_truncated_weights():
    np.testing.assert_allclose(
        ld.importance.Importance(truncate=2.0).ratios(LOGS), [[2, 2, 2], [0.5, 0.5, 2]], rtol=1e-15
    )
    whole = ld.importance.Importance(truncate=3.0, per="trajectory").ratios(LOGS)
    np.testing.assert_allclose(whole, [[3] * 3, [2] * 3], rtol=1e-15)


def test_truncation_that_never_bites_is_unbiased():
    """The declaration of order 0 is about what is cut off, and only that."""
    world = oracle.cut()
    plain = ld.ScoreFunction(discount=0.9, importance=ld.importance.Importance())
    wide = ld.ScoreFunction(discount=0.9, importance=ld.importance.Importance(truncate=100.0))
    every, _ = oracle.trajectories(world, off_policy=True)
    weights = [_weigh(e, world, every, off_policy=True) for e in (plain, wide)]
    assert (weights[0] == weights[1]).all()


def test_weights_are_exactly_one_on_policy():
    """Rollout and `log_factors` may round differently; refreshed, the ratios are 1 to the last bit, in and out of `jit`."""
    policy = ld.MLP(3, hidden=(16,))
    params = policy.init(jax.random.key(0), jnp.zeros(4))
    params = jax.tree.map(lambda x: (3 * x).astype(jnp.float32), params)
    observations = jax.random.normal(jax.random.key(1), (64, 50, 4), jnp.float32)
    actions = jax.random.randint(jax.random.key(2), (64, 50), 0, 3)
    ones = jnp.ones((64, 50), jnp.float32)
    lengths = jnp.arange(64)[:, None] % 50
    taus = ld.Trajectory(
        observations, actions, ones, ones, jnp.arange(50)[None] <= lengths, jnp.nan * ones, observations[:, 0]
    )

    def ratios(taus):
        logs = log_ratios(params, policy, with_behavior(params, policy, taus))
        kinds = (
            ld.importance.Importance(),
            ld.importance.Importance(per="trajectory"),
            ld.importance.Importance(normalize=True),
            ld.importance.Importance(truncate=1.0),
        )
        return [kind.ratios(logs) for kind in kinds]

    assert all((r == 1).all() for r in jax.jit(ratios)(taus))
    taus = with_behavior(params, policy, taus)
    assert (log_ratios(params, policy, taus) == 0).all()
    # the wrong twin: stored log-probabilities that are off by a rounding are seen
    off = taus._replace(behavior_log_probs=taus.behavior_log_probs * (1 + 1e-6))
    assert (PER_STEP.ratios(log_ratios(params, policy, off)) != 1).any()


def test_on_policy_importance_changes_nothing():
    """With refreshed behavior log-probabilities the weights are those of the plain estimator, bit for bit."""
    world = oracle.cut(3)
    every, _ = oracle.trajectories(world)
    for importance in (
        ld.importance.Importance(),
        ld.importance.Importance(per="trajectory"),
        ld.importance.Importance(normalize=True),
    ):
        plain = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()), discount=0.9)
        weighted = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()), discount=0.9, importance=importance)
        weights = [_weigh(e, world, every) for e in (plain, weighted)]
        assert (weights[0] == weights[1]).all()


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
    estimator = ld.ScoreFunction(importance=ld.importance.Importance())
    weigh = jax.jit(jax.jacobian(lambda p: estimator.advantages(p, (), oracle.POLICY, every)[0]))
    assert (weigh(world.params) == 0).all()


def test_effective_sample_size():
    assert effective_sample_size(jnp.full(7, -900.0)) == 7
    assert effective_sample_size(jnp.array([0.0, -jnp.inf, -jnp.inf])) == 1
    np.testing.assert_allclose(effective_sample_size(jnp.log(jnp.array([3.0, 1.0])) + 1000), 16 / 10, rtol=1e-12)
    assert jnp.isnan(effective_sample_size(jnp.array([-jnp.inf, -jnp.inf])))
    rows = jnp.array([[[0.0, 0.0]], [[0.0, -jnp.inf]], [[1000.0, 1000.0]]])  # each row by its own largest
    assert effective_sample_size(rows).tolist() == [[2.0], [1.0], [2.0]]


def test_declarations():
    """Equal when rebuilt, as static arguments of `jit` must be; only the plain products are unbiased, the choices covered."""
    for build in (
        ld.importance.Importance,
        lambda: ld.importance.Importance(per="trajectory"),
        lambda: ld.importance.Importance(normalize=True),
        lambda: ld.importance.Importance(truncate=0.5),
    ):
        assert build() == build()
        assert hash(build()) == hash(build())
        assert len(build().declaration.assumes) == 2
    for exact in (PER_STEP, PER_TRAJECTORY):
        assert (exact.declaration.order, exact.structure) == (np.inf, Structure())
    normalized, cut = ld.importance.Importance(normalize=True), ld.importance.Importance(truncate=0.5)
    assert (normalized.declaration.order, normalized.structure) == (0, Structure(2, None))
    assert (cut.declaration.order, cut.declaration.factor(1), cut.structure) == (0, None, Structure())


def test_vtrace_on_policy_is_gae_and_the_bootstrapped_return():
    rewards, discounts, values, _, _ = random_arrays(2, terminated=True)
    now, then = values[:-1], values[1:]
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
        rewards, discounts, values, _, ratios = (
            x.astype(jnp.float32) for x in random_arrays(seed, terminated=terminated)
        )
        now, then = values[:-1], values[1:]
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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ld.importance.Importance(truncate=0.0), "truncate: expected a positive number, received 0.0"),
        (lambda: ld.importance.Importance(per="decision"), "per: expected 'step' or 'trajectory', received 'decision'"),  # pyright: ignore
        (
            lambda: vtrace(jnp.ones(3), jnp.ones(3), jnp.ones(3), jnp.ones(3), jnp.ones(2)),
            r"received rewards \(3,\), ratios \(2,\)",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
