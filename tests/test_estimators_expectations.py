"""Every declaration of every public estimator, held against exact enumeration."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv._core.pytrees import pytree
from logderiv.advantages import GAE, Credit, ToGo
from logderiv.baselines import BatchMean, MovingAverage, Value
from logderiv.estimators.importance import log_ratios
from logderiv.importance import Importance

from . import by_hand, oracle
from .worlds import cast, trajectory
from .zoo import DISCOUNT, GIVEN, ending, off_policy, possible_numbers, seen, zoo

ZOO = zoo()
EXACT = 1e-12
OF_EVERY_KIND = ["PPO, leave one out", "learned value", "per decision, given value"]
OF_EVERY_KIND += ["optimal per parameter, 2 folds", "moving average"]


def _world(estimator):
    return oracle.ending() if ending(estimator) else oracle.cut(3)


def _numbers(estimator):
    """What is possible up to 4; with a degree d it is d and 3, from which the others follow."""
    degree = estimator.structure.degree
    return possible_numbers(estimator, 4) if degree is None else [degree, 3]


@functools.cache
def _together(ends, off, number):
    """Name to the estimates from every batch, for all estimators that take such batches; in one program."""
    world = oracle.ending() if ends else oracle.cut(3)
    params = world.params
    alike = {name: e for name, e in ZOO.items() if (ending(e), off_policy(e)) == (ends, off) and number in _numbers(e)}

    def of_batch(batch):
        estimates = {n: e.estimate(params, seen(e, params), oracle.POLICY, batch)[0] for n, e in alike.items()}
        return {name: estimate.grads for name, estimate in estimates.items()}

    return oracle.over_tuples(of_batch, [world], number, off_policy=off)[0][0]


def _estimates(name):
    """The estimate of every tuple of N trajectories, shape `(K,) * N + (D,)`, for some N; and the probabilities `(K,)`."""
    kind = ending(ZOO[name]), off_policy(ZOO[name])
    probabilities = oracle.trajectories(_world(ZOO[name]), off_policy=kind[1])[1]
    found = {n: _together(*kind, n)[name] for n in _numbers(ZOO[name])}
    return [np.reshape(x, (len(probabilities),) * n + (-1,)) for n, x in found.items()], probabilities


@pytest.mark.parametrize("name", ZOO)
def test_declared_bias_is_the_exact_one(name):
    declared, exact = ZOO[name].declaration, oracle.gradient(_world(ZOO[name]))
    estimates, probabilities = _estimates(name)
    assert np.min(np.abs(exact)) > 0.05
    assert declared.order >= 1 or declared.reasons
    assert declared.unbiased == (declared.order >= 1)
    for mean in estimates:
        n = mean.ndim - 1
        for _ in range(n):
            mean = np.tensordot(probabilities, mean, axes=1)
        factor = declared.factor(n)
        assert (factor == 1) == declared.unbiased
        if factor is not None:
            np.testing.assert_allclose(mean, factor * exact, rtol=0, atol=EXACT)
        else:
            assert np.max(np.abs(mean - exact)) > 1e-3, f"declared biased, unbiased at N = {n}"
            if n <= 2:
                np.testing.assert_allclose(mean, by_hand.expected(name, n), rtol=0, atol=EXACT)


def test_every_estimator_without_a_factor_is_written_out():
    """So that none of them is only known to be wrong by something."""
    assert {name for name, estimator in ZOO.items() if estimator.declaration.factor(2) is None} == set(by_hand.BIASED)


@pytest.mark.parametrize("name", ZOO)
def test_degree_and_symmetry_are_as_declared(name):
    """With degree d every estimate of three is the mean over its subsets of d; a symmetric one ignores the order."""
    structure = ZOO[name].structure
    estimates, _ = _estimates(name)
    last = estimates[-1]
    axes = range(last.ndim - 1)
    turned = np.transpose(last, (*axes[1:], 0, last.ndim - 1))
    swapped = np.transpose(last, (1, 0, *axes[2:], last.ndim - 1))
    spread = max(np.max(np.abs(last - turned)), np.max(np.abs(last - swapped)))
    assert (spread < 1e-11) == structure.symmetric
    if structure.degree is not None:
        assert structure.degree in (1, 2)
        subsets = [(1, 2), (0, 2), (0, 1)] if structure.degree == 1 else [2, 1, 0]  # the axes that are left out
        mean = sum(np.expand_dims(estimates[0], axes) for axes in subsets) / 3
        np.testing.assert_allclose(last, np.broadcast_to(mean, last.shape), rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", [n for n, estimator in ZOO.items() if estimator.structure.min_trajectories > 1])
def test_below_the_minimum_it_raises(name):
    estimator, world = ZOO[name], oracle.cut()
    batch = oracle.batch(world, estimator.structure.min_trajectories - 1)
    with pytest.raises(ValueError, match="this estimator needs as many"):
        estimator.estimate(world.params, estimator.init(world.params), oracle.POLICY, batch)


@pytest.mark.parametrize("name", ["learned value", "moving average"])
def test_learned_state_after_an_update_is_still_unbiased_for_the_next_batch(name):
    """The state that one batch leaves behind knows nothing of the next."""
    world, estimator = oracle.cut(), ZOO[name]
    start = estimator.init(world.params)
    _, state = estimator.estimate(world.params, start, oracle.POLICY, oracle.trajectories(world)[0])
    mean = oracle.expected_gradient(estimator, world, 2, state=state)
    assert max(jax.tree.leaves(jax.tree.map(lambda a, b: np.max(np.abs(a - b)), start, state))) > 0.01
    np.testing.assert_allclose(mean, oracle.gradient(world), rtol=0, atol=EXACT)


def test_gae_with_the_true_values_is_unbiased_for_every_lambda():
    """In the ending world the state tells the time, so the exact value is a function of it."""
    world = oracle.ending()
    every = ld.exact.state_values(world.params, oracle.POLICY, world.mdp, horizon=3, discount=DISCOUNT)
    values = every[0, :2]
    zero, half, wrong = (
        oracle.expected_gradient(ld.ScoreFunction(GAE(lambda_, GIVEN), discount=DISCOUNT), world, 1, state=v)
        for lambda_, v in ((0.0, values), (0.5, values), (0.5, values + 0.3))
    )
    np.testing.assert_allclose([zero, half], [oracle.gradient(world)] * 2, rtol=0, atol=EXACT)
    assert np.max(np.abs(wrong - oracle.gradient(world))) > 1e-3


def test_ratio_after_credit_and_unweighted_baseline_are_rejected():
    """The two usual ways to put importance weights in the wrong place."""

    @pytree
    class AfterCredit(ToGo):
        def __call__(self, params, state, batch):
            ones = jnp.zeros_like(batch.log_ratios)
            weights, targets, state = super().__call__(params, state, batch._replace(log_scale=ones, log_ratios=ones))
            return weights * jnp.exp(batch.log_ratios), targets, state

    @pytree(static=("function", "start"))
    class Unweighted(Value):
        def values(self, state, credit, batch):
            return super().values(state, credit, batch) * jnp.exp(-batch.log_ratios)

    unweighted = ToGo(Unweighted(GIVEN.function, GIVEN.start))
    right, *wrong = (
        oracle.expected_gradient(ld.ScoreFunction(a, discount=DISCOUNT, importance=Importance()), oracle.cut(3), 1)
        for a in (ToGo(GIVEN), AfterCredit(GIVEN), unweighted)
    )
    exact = oracle.gradient(oracle.cut(3))
    np.testing.assert_allclose(right, exact, rtol=0, atol=EXACT)
    assert min(np.max(np.abs(mean - exact)) for mean in wrong) > 1e-2


def test_wrong_code_of_the_field_is_rejected():
    """optax's old moving average takes the batch in before it subtracts; a surrogate is easily summed twice."""

    @pytree
    class BatchFirst(MovingAverage):
        def values(self, state, credit, batch):
            return super().values(self.update(state, credit, credit, batch), credit, batch)

    def doubled(log_factors, weights):
        return 2 * ld.estimators.Score()(log_factors, weights)

    twice = ld.ScoreFunction(discount=DISCOUNT, surrogate=doubled)
    first, own = (ld.ScoreFunction(ToGo(b), discount=DISCOUNT) for b in (BatchFirst(0.9), BatchMean()))
    world = oracle.cut()
    for estimator, factor in ((first, 0.5), (twice, 2), (own, 0.5)):  # at the first batch the average is its mean
        mean = oracle.expected_gradient(estimator, world, 2, state=estimator.init(world.params))
        np.testing.assert_allclose(mean, factor * oracle.gradient(world), rtol=0, atol=EXACT)
    assert twice.declaration.order == 0
    assert "unknown part 'doubled'" in twice.declaration.reasons[0]


@pytest.mark.parametrize("name", ZOO)
def test_it_is_equal_and_hashed_alike_when_rebuilt(name):
    rebuilt = jax.tree.map(lambda setting: setting, ZOO[name])
    assert rebuilt is not ZOO[name]
    assert (rebuilt, hash(rebuilt)) == (ZOO[name], hash(ZOO[name]))


def test_unknown_credit_is_refused():
    """One that is declared is believed: "credit of one's own" in the zoo."""

    def sparse(rewards, discounts):
        return ld.advantages.reward_to_go(rewards, discounts)

    refused = ld.ScoreFunction(Credit(sparse))
    assert (refused.declaration.order, refused.declaration.factor(1), refused.structure.degree) == (0, None, None)
    assert "unknown part 'sparse'" in refused.declaration.reasons[0]
    known = ZOO["credit of one's own"]
    assert (known.declaration, known.structure) == (ZOO["reward-to-go"].declaration, ZOO["reward-to-go"].structure)


@pytest.mark.parametrize(
    "name", ["per decision, gae(1)", "learned value", "biased: V-trace", "optimal per parameter, 2 folds", "GRPO"]
)
def test_the_estimate_does_not_depend_on_what_padding_holds(name):
    """The enumerated padding holds NaN; zeros give the same bits."""
    world, state = oracle.ending(), seen(ZOO[name], oracle.ending().params)
    dirty = oracle.batch(world, 4, off_policy=True)
    rewards, logs = (np.where(dirty.valid, x, 0) for x in (dirty.rewards, dirty.behavior_log_probs))
    clean = dirty._replace(rewards=rewards, behavior_log_probs=logs)
    found, expected = (ZOO[name].estimate(world.params, state, oracle.POLICY, x) for x in (dirty, clean))
    assert np.isnan(dirty.rewards).any()
    assert np.isfinite(found[0].grads).all()
    jax.tree.map(np.testing.assert_array_equal, (found[0].grads, found[1]), (expected[0].grads, expected[1]))


@pytest.mark.parametrize("name", OF_EVERY_KIND)
def test_float32_is_kept_over_seeds_by_vmap_and_in_a_scan(name):
    """The state keeps its structure and dtypes, so that any estimator can be trained."""
    estimator, world = ZOO[name], oracle.cut()
    every, seeds = cast((oracle.trajectories(world)[0], jnp.stack([world.params, world.behavior])), jnp.float32)

    @jax.jit
    @jax.vmap
    def run(params):
        def step(state, _):
            estimate, state = estimator.estimate(params, state, oracle.POLICY, every)
            return state, estimate.grads

        start = estimator.init(params)
        return start, *jax.lax.scan(step, start, None, length=3)

    start, state, grads = run(seeds)
    assert (grads.shape, grads.dtype) == ((2, 3, 2), jnp.float32)
    assert [x.dtype for x in jax.tree.leaves(state)] == [x.dtype for x in jax.tree.leaves(start)]
    assert np.isfinite(grads).all()


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bfloat16])
@pytest.mark.parametrize("name", ["PPO, leave one out", "per decision, gae(1)", "biased: V-trace"])
def test_rewards_of_few_bits_do_not_round_the_discount(name, dtype):
    """In integers a discount below 1 would be 0, in bfloat16 0.99 is 0.988; the same rewards in float32 give the same."""
    world, batch = oracle.cut(), oracle.batch(oracle.cut(), 4)
    few = jnp.round(3 * np.where(batch.valid, batch.rewards, 0)).astype(dtype)
    many = few.astype(float if dtype == jnp.int32 else jnp.float32)
    (grads, info), (expected, other) = (
        ZOO[name].estimate(world.params, seen(ZOO[name], world.params), oracle.POLICY, batch._replace(rewards=r))[0]
        for r in (few, many)
    )
    assert jnp.abs(expected).max() > 1e-3
    np.testing.assert_array_equal(grads, expected)
    assert info.mean_return == other.mean_return


def test_weights_of_a_published_example():
    """8 answers, 3 of them right: RLOO +.7143 / -.4286; mean-centered +.6250 / -.3750; divided by the std +1.2076 / -.7246.

    The numbers are those of issue 174 of redai-studio/Relax. Dr. GRPO is RLOO times its declared factor.
    """
    rewards = jnp.array([1.0, 0, 1, 0, 0, 1, 0, 0])[:, None]
    arguments: Any = (None, (), None, trajectory(rewards=rewards))
    rloo, dr_grpo = ld.RLOO(group_size=8), ld.estimators.DrGRPO(group_size=8)
    estimators = rloo, dr_grpo, ld.GRPO(group_size=8, epsilon=0.0)
    weights = jax.jit(lambda: [e.advantages(*arguments)[0] for e in estimators])()
    for found, wrong, right in zip(weights, (-0.4286, -0.3750, -0.7246), (0.7143, 0.6250, 1.2076), strict=True):
        np.testing.assert_allclose(found, jnp.where(rewards == 1, right, wrong), rtol=0, atol=5e-5)
    np.testing.assert_allclose(weights[1], dr_grpo.declaration.factor(8) * weights[0], rtol=0, atol=EXACT)


def test_a_term_of_the_score_function_by_hand():
    """w log π of any weight; an impossible choice of weight 0 counts as nothing."""
    weights, term = jnp.array([0.0, 1.0, -1.0, 2.0]), ld.ScoreFunction().term
    for log, expected in ((-0.5, [0, -0.5, 0.5, -1]), (-np.inf, [0, -np.inf, np.inf, -np.inf])):
        log_probs = jnp.full(4, log)
        np.testing.assert_array_equal(term((), None, None, log_probs, weights), expected)  # pyright: ignore


def test_the_mean_is_over_all_leading_axes():
    """Of trajectories in rows and columns, and of the steps of a stream, `(E, T, 1)`; on a coin whose score is a − 1/2."""
    rng = np.random.default_rng(0)
    actions, weights = rng.integers(0, 2, 8), rng.normal(size=8)
    policy = ld.FunctionPolicy(lambda params, o: ld.Bernoulli(params))
    for shape in ((2, 4, 1), (8, 1), (2, 2, 2)):
        taken, given = (jnp.asarray(x.reshape(shape)) for x in (actions, weights))
        found = jax.grad(ld.ScoreFunction().objective)(jnp.zeros(()), policy, trajectory(actions=taken), given)
        np.testing.assert_allclose(found, weights @ (actions - 0.5) / np.prod(shape[:-1]), rtol=1e-13)


def test_ppo_takes_many_gradients_and_stops_at_the_clip():
    """One action with a positive weight: its probability rises until the ratio reaches 1 + clip, then the gradient is 0."""
    world, batch = oracle.cut(), oracle.batch(oracle.cut(), 1)
    estimator = ld.PPO(discount=DISCOUNT, clip=0.1)

    @jax.jit
    def climb(params):
        weights, _ = estimator.advantages(params, (), oracle.POLICY, batch)
        gradient = jax.grad(lambda p: estimator.objective(p, oracle.POLICY, batch, jnp.abs(weights) + 1))
        params = jax.lax.fori_loop(0, 400, lambda _, p: p + 0.01 * gradient(p), params)
        return gradient(params), jnp.exp(log_ratios(params, oracle.POLICY, batch))

    last, ratios = climb(world.params)
    assert (last == 0).all()
    assert 1.1 < jnp.max(ratios) < 1.15
