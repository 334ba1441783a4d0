"""Every declaration of every public estimator, held against exact enumeration."""

import dataclasses
import functools
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.estimators.batch import prepare
from logderiv.estimators.importance import log_ratios

from . import by_hand, oracle
from .zoo import DISCOUNT, GIVEN, LOO, zoo

ZOO = zoo()
EXACT = 1e-12


def _state(entry, world):
    return None if entry.state is None else entry.state(world.params)


def _world(entry):
    return oracle.ending() if entry.ending else oracle.cut(3)


def _numbers(estimator):
    """Batch sizes from the minimum to 4 that the groups divide; with a degree d it and 3: the others follow."""
    if (degree := estimator.structure.degree) is not None:
        return [degree, 3]
    size = getattr(getattr(estimator, "advantage", None), "group_size", 1)
    return [n for n in range(estimator.structure.min_trajectories, 5) if n % size == 0]


@functools.cache
def _estimates(name):
    """N to the estimate of every tuple of N trajectories, shape `(K,) * N + (D,)`, and the probabilities `(K,)`."""
    entry = ZOO[name]
    world, state = _world(entry), _state(entry, _world(entry))
    estimator, off_policy = entry.estimator, entry.off_policy
    probabilities = oracle.trajectories(world, off_policy=off_policy)[1]
    estimates = []
    for n in _numbers(estimator):
        gradients, _ = oracle.every_gradient(estimator, world, n, state=state, off_policy=off_policy)
        estimates.append(np.reshape(gradients, (len(probabilities),) * n + (-1,)))
    return estimates, probabilities


@pytest.mark.parametrize("name", ZOO)
def test_declared_bias_is_the_exact_one(name):
    declared, exact = ZOO[name].estimator.declaration, oracle.gradient(_world(ZOO[name]))
    estimates, probabilities = _estimates(name)
    assert np.min(np.abs(exact)) > 0.05
    assert declared.order >= 1 or declared.reasons
    assert declared.unbiased == (declared.order >= 1)
    for mean in estimates:
        n = mean.ndim - 1
        for _ in range(n):
            mean = np.tensordot(probabilities, mean, axes=1)
        if declared.unbiased:
            assert declared.factor(n) == 1
            np.testing.assert_allclose(mean, exact, rtol=0, atol=EXACT)
        elif (factor := declared.factor(n)) is not None:
            assert factor != 1
            np.testing.assert_allclose(mean, factor * exact, rtol=0, atol=EXACT)
        else:
            assert np.max(np.abs(mean - exact)) > 1e-3, f"declared biased, unbiased at N = {n}"
            if n <= 2:
                np.testing.assert_allclose(mean, by_hand.expected(name, n), rtol=0, atol=EXACT)


def test_every_estimator_without_a_factor_is_written_out():
    """So that none of them is only known to be wrong by something."""
    without = {name for name, entry in ZOO.items() if entry.estimator.declaration.factor(2) is None}
    assert without == set(by_hand.BIASED)


@pytest.mark.parametrize("name", ZOO)
def test_degree_and_symmetry_are_as_declared(name):
    """With degree d every estimate of three is the mean over its subsets of d; a symmetric one ignores the order."""
    structure = ZOO[name].estimator.structure
    estimates, _ = _estimates(name)
    last = estimates[-1]
    axes = range(last.ndim - 1)
    turned = np.transpose(last, (*axes[1:], 0, last.ndim - 1))
    swapped = np.transpose(last, (1, 0, *axes[2:], last.ndim - 1))
    spread = max(np.max(np.abs(last - turned)), np.max(np.abs(last - swapped)))
    assert (spread < 1e-11) == structure.symmetric
    if structure.degree is not None:
        h = estimates[0]
        if structure.degree == 1:
            mean = (h[:, None, None] + h[None, :, None] + h[None, None, :]) / 3
        else:
            assert structure.degree == 2
            mean = (h[:, :, None] + h[:, None, :] + h[None, :, :]) / 3
        np.testing.assert_allclose(last, mean, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", [n for n, entry in ZOO.items() if entry.estimator.structure.min_trajectories > 1])
def test_below_the_minimum_it_raises(name):
    entry, world = ZOO[name], oracle.cut()
    every, _ = oracle.trajectories(world)
    batch = jax.tree.map(lambda x: x[: entry.estimator.structure.min_trajectories - 1], every)
    with pytest.raises(ValueError, match="expected at least"):
        jax.eval_shape(
            lambda: entry.estimator.estimate(world.params, entry.estimator.init(world.params), oracle.POLICY, batch)
        )


def test_learned_state_after_an_update_is_still_unbiased_for_the_next_batch():
    """The state that one batch leaves behind knows nothing of the next."""
    world = oracle.cut()
    for name in ("learned value", "moving average"):
        entry = ZOO[name]
        every, _ = oracle.trajectories(world)

        start = entry.estimator.init(world.params)
        _, state = jax.jit(entry.estimator.estimate)(world.params, start, oracle.POLICY, every)
        mean = oracle.expected_gradient(entry.estimator, world, 2, state=state)
        moved = [jnp.max(jnp.abs(a - b)) for a, b in zip(jax.tree.leaves(start), jax.tree.leaves(state), strict=True)]
        assert max(moved) > 0.01
        np.testing.assert_allclose(mean, oracle.gradient(world), rtol=0, atol=EXACT)


def test_gae_with_the_true_values_is_unbiased_for_every_lambda():
    """In the ending world the state tells the time, so the exact value is a function of it."""
    world = oracle.ending()

    @jax.jit
    def value_of(initial):
        mdp = dataclasses.replace(world.mdp, initial=initial)
        return ld.exact.value(world.params, oracle.POLICY, mdp, horizon=world.horizon, discount=DISCOUNT)

    values = jnp.stack([value_of(jnp.eye(3)[s]) for s in range(2)])
    exact = oracle.gradient(world)
    zero, half, wrong = (
        oracle.expected_gradient(
            ld.ScoreFunction(ld.advantages.GAE(lambda_, GIVEN), discount=DISCOUNT), world, 1, state=v
        )
        for lambda_, v in ((0.0, values), (0.5, values), (0.5, values + 0.3))
    )
    np.testing.assert_allclose(zero, exact, rtol=0, atol=EXACT)
    np.testing.assert_allclose(half, exact, rtol=0, atol=EXACT)
    assert jnp.max(jnp.abs(wrong - exact)) > 1e-3


def test_ratio_after_credit_and_unweighted_baseline_are_rejected():
    """The two usual ways to put importance weights in the wrong place."""
    world = oracle.cut(3)
    right = ld.ScoreFunction(ld.advantages.ToGo(GIVEN), discount=DISCOUNT, importance=ld.importance.Importance())

    @jax.tree_util.register_static
    @dataclasses.dataclass(frozen=True)
    class AfterCredit(type(right)):
        def weigh(self, params, state, policy, trajectories: Any, value: Any = None):
            plain = dataclasses.replace(right, importance=None)
            weights, targets, state = plain.weigh(params, state, policy, trajectories, value)
            return weights * prepare(self, params, policy, trajectories).ratios, targets, state

    @jax.tree_util.register_static
    @dataclasses.dataclass(frozen=True)
    class UnweightedBaseline(type(right)):
        def weigh(self, params, state, policy, trajectories: Any, value: Any = None):
            plain = dataclasses.replace(right, advantage=ld.advantages.ToGo())
            credit, targets, _ = plain.weigh(params, (), policy, trajectories)
            batch = prepare(self, params, policy, trajectories)
            unweighted = GIVEN.values(state, credit, batch._replace(scale=batch.scale / batch.ratios))
            return jnp.where(trajectories.valid, credit - unweighted, 0), targets, state

    fields = {f.name: getattr(right, f.name) for f in dataclasses.fields(right)}
    candidates = (right, AfterCredit(**fields), UnweightedBaseline(**fields))
    exact = oracle.gradient(world)
    means = [oracle.expected_gradient(g, world, 1, off_policy=True) for g in candidates]
    errors = [float(jnp.max(jnp.abs(m - exact))) for m in means]
    assert errors[0] < EXACT
    assert errors[1] > 1e-2
    assert errors[2] > 1e-2


def test_wrong_code_of_the_field_is_rejected():
    """optax's old moving average takes the batch in before it subtracts; a surrogate is easily summed twice."""
    world = oracle.cut()
    moving = ld.baselines.MovingAverage(0.9)

    @jax.tree_util.register_static
    @dataclasses.dataclass(frozen=True)
    class BatchFirst(type(moving)):
        def values(self, state, credit, batch):
            return super().values(self.update(state, credit, credit, batch), credit, batch)

    def doubled(log_factors, weights):
        return 2 * ld.estimators.Score()(log_factors, weights)

    twice = ld.ScoreFunction(discount=DISCOUNT, surrogate=doubled)
    first = ld.ScoreFunction(ld.advantages.ToGo(BatchFirst(0.9)), discount=DISCOUNT)
    own = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.BatchMean()), discount=DISCOUNT)
    exact = oracle.gradient(world)
    batch_first, two, mean = (oracle.expected_gradient(g, world, 2) for g in (first, twice, own))
    np.testing.assert_allclose(batch_first, 0.5 * exact, rtol=0, atol=EXACT)  # at the first batch b is its mean
    np.testing.assert_allclose(two, 2 * exact, rtol=0, atol=EXACT)
    np.testing.assert_allclose(mean, 0.5 * exact, rtol=0, atol=EXACT)
    assert twice.declaration.order == 0
    assert "unknown part 'doubled'" in twice.declaration.reasons[0]


def test_unknown_credit_is_refused_and_a_declared_one_believed():
    def sparse(rewards, discounts):
        return ld.advantages.reward_to_go(rewards, discounts)

    refused = ld.ScoreFunction(ld.advantages.Credit(sparse))
    assert refused.declaration.order == 0
    assert refused.declaration.factor(1) is None
    assert "unknown part 'sparse'" in refused.declaration.reasons[0]
    assert refused.structure.degree is None
    setattr(sparse, "declaration", ld.estimators.Declaration())  # noqa: B010
    known = ld.ScoreFunction(ld.advantages.Credit(sparse))
    assert (known.declaration, known.structure) == (ld.ScoreFunction().declaration, ld.ScoreFunction().structure)


def test_the_estimate_does_not_depend_on_what_padding_holds():
    """The enumerated padding holds NaN; zeros give the same bits."""
    for name in ("per decision, gae(1)", "learned value", "biased: V-trace", "optimal per parameter, 2 folds", "GRPO"):
        entry, world = ZOO[name], oracle.ending()
        dirty, _ = oracle.trajectories(world, off_policy=True)
        clean = dirty._replace(
            rewards=jnp.where(dirty.valid, dirty.rewards, 0),
            behavior_log_probs=jnp.where(dirty.valid, dirty.behavior_log_probs, 0),
        )
        run = jax.jit(
            lambda batch, entry=entry, world=world: entry.estimator.estimate(
                world.params,
                entry.estimator.init(world.params) if entry.state is None else _state(entry, world),
                oracle.POLICY,
                batch,
            )
        )
        four = [jax.tree.map(lambda x: x[:4], batch) for batch in (dirty, clean)]
        (first, state), (second, other) = run(four[0]), run(four[1])
        assert jnp.isnan(dirty.rewards).any()
        assert (first.grads == second.grads).all()
        assert jnp.isfinite(first.grads).all()
        assert all((a == b).all() for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize(
    "name", ["PPO, leave one out", "learned value", "per decision, given value", "optimal per parameter, 2 folds"]
)
def test_dtypes_are_kept(name, dtype):
    entry, world = ZOO[name], oracle.cut()
    cast = lambda tree: jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)  # noqa: E731
    every = cast(oracle.trajectories(world)[0])
    params = cast(world.params)
    state = cast(entry.estimator.init(params) if entry.state is None else entry.state(params))
    estimate, new = jax.jit(entry.estimator.estimate)(params, state, oracle.POLICY, every)
    assert estimate.grads.dtype == dtype
    assert [x.dtype for x in jax.tree.leaves(new)] == [x.dtype for x in jax.tree.leaves(state)]
    assert jnp.isfinite(estimate.grads).all()


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bfloat16])
@pytest.mark.parametrize("name", ["PPO, leave one out", "per decision, gae(1)", "biased: V-trace"])
def test_rewards_of_few_bits_do_not_round_the_discount(name, dtype):
    """In integers a discount below 1 would be 0, in bfloat16 0.99 is 0.988; the same rewards in float32 give the same."""
    entry, world = ZOO[name], oracle.cut()
    batch = jax.tree.map(lambda x: x[:4], oracle.trajectories(world)[0])
    few = batch._replace(rewards=jnp.round(3 * jnp.where(batch.valid, batch.rewards, 0)).astype(dtype))
    many = few._replace(rewards=few.rewards.astype(float if dtype == jnp.int32 else jnp.float32))
    state = entry.estimator.init(world.params) if entry.state is None else entry.state(world.params)
    run = jax.jit(lambda batch: entry.estimator.estimate(world.params, state, oracle.POLICY, batch)[0])
    (grads, info), (expected, other) = run(few), run(many)
    assert jnp.abs(expected).max() > 1e-3
    np.testing.assert_array_equal(grads, expected)
    assert info.mean_return == other.mean_return


def test_gradients_over_seeds_by_vmap_and_in_a_scan():
    """The state keeps its structure and dtypes, so that any estimator can be trained."""
    world = oracle.cut()
    every, _ = oracle.trajectories(world)
    for name in ("moving average", "learned value", "biased: standardized gae"):
        entry = ZOO[name]

        @jax.jit
        def run(entry=entry):
            def one(params):
                def step(state, _):
                    estimate, state = entry.estimator.estimate(params, state, oracle.POLICY, every)
                    return state, estimate.grads

                return jax.lax.scan(step, entry.estimator.init(params), None, length=3)[1]

            return jax.vmap(one)(jnp.stack([world.params, world.behavior]))

        assert run().shape == (2, 3, 2)


def test_rloo_is_dr_grpo_up_to_its_declared_factor():
    world = oracle.cut()
    every, _ = oracle.trajectories(world)
    for size in (2, 3):
        ours = ld.RLOO(group_size=size, discount=DISCOUNT)
        theirs = ld.estimators.DrGRPO(group_size=size, discount=DISCOUNT)
        both = jax.jit(lambda *pair: [g.estimate(world.params, (), oracle.POLICY, every)[0].grads for g in pair])
        grads = both(ours, theirs)
        factor = theirs.declaration.factor(6)
        assert factor == 1 - 1 / size
        np.testing.assert_allclose(factor * grads[0], grads[1], rtol=0, atol=EXACT)


def test_rloo_weights_of_a_published_example():
    """8 answers, 3 of them right: weights +.7143 / -.4286; mean-centered +.6250 / -.3750; divided by the std +1.2076 / -.7246.

    The numbers are those of issue 174 of redai-studio/Relax.
    """
    rewards = jnp.array([1.0, 0, 1, 0, 0, 1, 0, 0])[:, None]
    ones = jnp.ones_like(rewards)
    taus = ld.Trajectory(0 * ones, 0 * ones, rewards, ones, ones > 0, 0 * ones, jnp.zeros(8))

    def check(estimator, wrong, right):
        weights, _ = estimator.advantages(None, (), None, taus)
        np.testing.assert_allclose(weights, jnp.where(rewards == 1, right, wrong), rtol=0, atol=5e-5)

    check(ld.RLOO(group_size=8), -0.4286, 0.7143)
    check(ld.estimators.DrGRPO(group_size=8), -0.3750, 0.6250)
    check(ld.GRPO(group_size=8, epsilon=0.0), -0.7246, 1.2076)


def test_ppo_takes_many_gradients_and_stops_at_the_clip():
    """One action with a positive weight: its probability rises until the ratio reaches 1 + clip, then the gradient is 0."""
    world = oracle.cut()
    every, _ = oracle.trajectories(world)
    batch = jax.tree.map(lambda x: x[:1], every)
    estimator = ld.PPO(discount=DISCOUNT, clip=0.1)
    weights, _ = estimator.advantages(world.params, (), oracle.POLICY, batch)
    gradient = jax.jit(jax.grad(lambda p: estimator.objective(p, oracle.POLICY, batch, jnp.abs(weights) + 1)))
    params = world.params
    for _ in range(400):
        params = params + 0.01 * gradient(params)
    ratios = jnp.exp(log_ratios(params, oracle.POLICY, batch))
    assert (gradient(params) == 0).all()
    assert jnp.max(ratios) > 1.1
    assert jnp.max(ratios) < 1.15


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ld.ScoreFunction(discount=1.5), r"discount: expected a number in \[0, 1\], received 1.5"),
        (lambda: ld.ScoreFunction(discount=math.nan), "discount: expected"),
        (lambda: ld.advantages.GAE(0.5, cast("Any", None)), "bootstraps from values.*received NoneType"),
        (
            lambda: ld.ScoreFunction(ld.advantages.Standardized(ld.advantages.GAE(0.5, cast("Any", LOO)))),
            "bootstraps from values.*received LeaveOneOut",
        ),
        (
            lambda: ld.ScoreFunction(ld.advantages.VTrace(GIVEN), importance=ld.importance.Importance()),
            "importance: expected None, since VTrace weighs off-policy steps itself",
        ),
        (lambda: ld.ScoreFunction(ld.advantages.VTrace(cast("Any", LOO))), "bootstraps from values"),
        (lambda: ld.ScoreFunction(ld.advantages.VTrace(GIVEN, lambda_=2.0)), "lambda_: expected"),
        (lambda: ld.advantages.GAE(-0.1), "lambda_: expected"),
        (lambda: ld.PPO(clip=0.0), "clip: expected a positive number"),
        (lambda: ld.PPO(normalizer="per_batch"), "normalizer: expected 'per_trajectory'"),  # pyright: ignore
        (lambda: ld.RLOO(group_size=1), "group_size: expected at least 2"),
        (lambda: ld.estimators.OptimalPerParameter(folds=1), "folds: expected a whole number >= 2"),
        (lambda: ld.ScoreFunction(discount=2.0, gamma_t=False), "discount: expected"),
    ],
)
def test_bad_choices_are_refused_when_built(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_groups_must_divide_the_batch():
    world = oracle.cut()
    every, _ = oracle.trajectories(world)
    batch = jax.tree.map(lambda x: x[:5], every)
    with pytest.raises(ValueError, match="multiple of group_size = 2, received 5"):
        ld.RLOO(group_size=2).estimate(world.params, (), oracle.POLICY, batch)
