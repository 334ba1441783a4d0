"""What each baseline subtracts, by hand; that it leaves the gradient unbiased is shown in `test_estimators`."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from logderiv.estimators.baselines import CreditBatch, NoBaseline, averages, biased
from logderiv.estimators.baselines.averages import MovingAverageState
from logderiv.estimators.baselines.base import Stateless
from logderiv.estimators.baselines.biased import own_sample_factor
from logderiv.estimators.baselines.optimal import Optimal, fold_moments
from logderiv.estimators.baselines.values import LearnedValue, Value
from logderiv.estimators.declaration import Bias

from . import oracle
from .zoo import GIVEN, table_value, wrong_values

NAN = jnp.nan
VALID = jnp.array([[True, True, True], [True, True, False], [True, False, False]])
CREDIT = jnp.array([[6.0, 5.0, 4.0], [3.0, 1.0, 0.0], [9.0, 0.0, 0.0]])
RATIOS = jnp.array([[1.0, 2.0, 3.0], [1.0, 0.5, 0.5], [4.0, 4.0, 4.0]])
POWERS = jnp.array([[1.0, 0.5, 0.25]])
STATES = jnp.array([[0, 1, 0], [1, 0, 7], [0, 7, 7]])  # the garbage in the padding would be clipped to state 1
TAUS = ld.Trajectory(
    STATES, jnp.zeros((3, 3), int), jnp.where(VALID, 1.0, NAN), jnp.ones((3, 3)), VALID, jnp.zeros((3, 3)), jnp.array([1, 1, 0])
)  # fmt: skip
BATCH = CreditBatch(CREDIT, RATIOS, POWERS, targets=jnp.where(VALID, 2.0, 0.0))
ON_POLICY = BATCH._replace(ratios=jnp.ones((3, 3)))


def values(baseline, batch=ON_POLICY, state=None):
    state = baseline.init(None) if state is None else state
    return baseline.values(state, TAUS, batch)


def test_constant():
    np.testing.assert_array_equal(values(ld.baseline_constant(3), BATCH), 3 * RATIOS)
    np.testing.assert_array_equal(values(ld.baseline_constant(3.0, per="step"), BATCH), 3 * RATIOS * POWERS)
    np.testing.assert_array_equal(values(ld.baseline_none(), BATCH), np.zeros((3, 3)))


def test_leave_one_out_per_trajectory():
    expected = np.array([[6.0] * 3, [7.5] * 3, [4.5] * 3])
    np.testing.assert_array_equal(values(ld.baseline_leave_one_out(per="trajectory")), expected)
    off = values(ld.baseline_leave_one_out(per="trajectory"), BATCH)
    np.testing.assert_array_equal(off, expected * np.asarray(RATIOS))


def test_leave_one_out_per_step_averages_survivors_and_spares_the_last():
    """At step 2 the first trajectory is alone: its baseline is 0, not its own credit."""
    expected = np.array([[6.0, 1.0, 0.0], [7.5, 5.0, 4.0], [4.5, 3.0, 4.0]])
    np.testing.assert_array_equal(values(ld.baseline_leave_one_out()), expected)


def test_batch_mean_drops_the_last_survivor():
    """The same batch: the biased mean subtracts the lone survivor's credit from itself."""
    per_step = values(ld.baseline_biased_batch_mean(per="step"))
    np.testing.assert_array_equal(per_step[0], [6.0, 3.0, 4.0])
    assert (ON_POLICY.credit - per_step)[0, 2] == 0
    np.testing.assert_array_equal(values(ld.baseline_biased_batch_mean()), np.full((3, 3), 6.0))
    assert [own_sample_factor(n) for n in (1, 2, 4)] == [0.0, 0.5, 0.75]


def test_moving_average_uses_the_old_value_and_is_not_fed_back():
    """A constant return of 1: the first baseline is 0, every later one is exactly 1.

    optax's removed `moving_avg_baseline` feeds the corrected value back and runs 1, 50.3, 1675, ... on the same input.
    """
    baseline = ld.baseline_moving_average(0.99)
    ones = ON_POLICY._replace(credit=jnp.ones((3, 3)))
    state, seen = baseline.init(None), []
    for _ in range(4):
        seen.append(float(values(baseline, ones, state)[0, 0]))
        state = baseline.update(state, TAUS, ones)
    np.testing.assert_allclose(seen, [0.0, 1.0, 1.0, 1.0], rtol=1e-14)
    state = MovingAverageState(jnp.array(0.8), jnp.array(0.5))
    np.testing.assert_array_equal(values(baseline, BATCH, state), 1.6 * RATIOS)
    new = baseline.update(state, TAUS, BATCH)
    np.testing.assert_allclose(new, [0.99 * 0.8 + 0.01 * 6.0, 0.99 * 0.5 + 0.01], rtol=1e-14)


def test_given_value_of_the_state():
    now, then = GIVEN.state_values(wrong_values(None), TAUS)
    v = [0.7, -0.3]
    np.testing.assert_array_equal(now, [[v[0], v[1], v[0]], [v[1], v[0], 0], [v[0], 0, 0]])
    np.testing.assert_array_equal(then, [[v[1], v[0], v[1]], [v[0], v[1], 0], [v[0], 0, 0]])  # ends in the final state
    np.testing.assert_array_equal(values(GIVEN, BATCH), RATIOS * POWERS * now)
    plain = ld.baseline_value(lambda s: table_value(jnp.array(v), s))
    np.testing.assert_array_equal(values(plain, BATCH), values(GIVEN, BATCH))


def test_learned_value_steps_down_the_mean_squared_error_after_use():
    """One step of size 1/2 on the mean over valid steps: v(s) moves by (share of steps in s) * (mean target - v(s))."""
    baseline = ld.baseline_learned_value(table_value, wrong_values, optax.sgd(0.5))
    state = baseline.init(None)
    np.testing.assert_array_equal(values(baseline, BATCH, state), values(GIVEN, BATCH))
    new, _ = jax.jit(lambda s: baseline.update(s, TAUS, BATCH))(state)
    old = np.array([0.7, -0.3])
    shares = np.array([4, 2]) / 6
    np.testing.assert_allclose(new, old + shares * (2.0 - old), rtol=1e-14)
    many = dataclasses.replace(baseline, num_steps=200)
    new, _ = jax.jit(lambda s: many.update(s, TAUS, BATCH))(state)
    np.testing.assert_allclose(new, [2.0, 2.0], rtol=1e-12)


@pytest.mark.usefixtures("standard_promotion")
def test_learned_value_finds_the_values_of_a_task():
    """Fitted to all trajectories by their probability it becomes the true value of each state."""
    world = oracle.ending()
    every, probabilities = oracle.trajectories(world)
    counts = np.round(probabilities / np.min(probabilities) * 40).astype(int)
    batch = jax.tree.map(lambda x: jnp.asarray(np.repeat(x, counts, axis=0)), every)
    baseline = ld.baseline_learned_value(table_value, wrong_values, optax.adam(0.02), num_steps=1500)
    estimator = ld.score_function(baseline=baseline, discount=world.discount)
    _, (learned, _) = jax.jit(estimator.weigh)(world.params, baseline.init(None), oracle.POLICY, batch)

    @jax.jit
    @jax.vmap
    def exact(initial):
        mdp = dataclasses.replace(world.mdp, initial=initial)
        return ld.exact.value(world.params, oracle.POLICY, mdp, horizon=3, discount=world.discount)

    np.testing.assert_allclose(learned, exact(jnp.eye(3)[:2]), atol=5e-3)


def test_targets_are_what_a_state_value_should_predict():
    """No gamma^t: the return from step t on, and off policy with the ratios from t on."""
    world = oracle.cut(3)
    every, _ = oracle.trajectories(world, off_policy=True)
    estimator = ld.score_function(discount=0.9, importance=ld.importance_per_decision())
    targets = jax.jit(lambda e: estimator.credit_batch(world.params, (), oracle.POLICY, e).targets)(every)
    logs = np.asarray(jax.jit(ld.log_ratios)(world.params, oracle.POLICY, every))
    rewards = np.where(every.valid, every.rewards, 0)
    y = np.zeros(len(rewards))
    for t in (2, 1, 0):
        y = np.exp(logs[:, t]) * (rewards[:, t] + 0.9 * y)
        y = np.where(every.valid[:, t], y, 0)
        np.testing.assert_allclose(targets[:, t], y, rtol=0, atol=1e-14)


def test_per_group_is_the_inner_baseline_in_each_group():
    four = jax.tree.map(lambda x: jnp.concatenate([x, x[:1]]), TAUS)
    credit = jnp.concatenate([CREDIT, 2 * CREDIT[:1]])
    batch = CreditBatch(credit, jnp.ones((4, 3)), POWERS)
    inner = ld.baseline_leave_one_out(per="trajectory")
    grouped = ld.baseline_per_group(inner, 2).values((), four, batch)
    np.testing.assert_array_equal(grouped[:, 0], [3.0, 6.0, 12.0, 9.0])
    bias = ld.baseline_per_group(ld.baseline_biased_batch_mean(), 2).bias
    assert bias.factor is not None
    assert bias.factor(8) == 0.5
    assert not bias.symmetric


def test_standardized_weights_have_mean_zero_and_deviation_one():
    baseline = ld.baseline_biased_standardized(epsilon=0.0)
    weights = (CREDIT - values(baseline))[VALID]
    np.testing.assert_allclose([jnp.mean(weights), jnp.std(weights)], [0, 1], atol=1e-14)
    inner = ld.baseline_biased_standardized(ld.baseline_constant(100.0), epsilon=0.0)
    np.testing.assert_allclose(CREDIT - values(inner), CREDIT - values(baseline), atol=1e-12)  # a shift is undone
    grouped = ld.baseline_biased_group_normalized(3, ddof=1, epsilon=0.0)
    weights = CREDIT - values(grouped)
    np.testing.assert_allclose(weights[:, 0], [0.0, -1.0, 1.0], atol=1e-14)
    equal = ON_POLICY._replace(credit=jnp.ones((3, 3)))
    np.testing.assert_array_equal(
        equal.credit - values(ld.baseline_biased_group_normalized(3), equal), np.zeros((3, 3))
    )


def test_optimal_baselines_are_the_ratios_of_score_moments():
    """Against scores written out; per parameter and scalar, cross-fitted and in sample."""
    world = oracle.cut(3)
    every, _ = oracle.trajectories(world)
    taus = jax.tree.map(lambda x: jnp.asarray(x)[jnp.array([0, 3, 7, 10, 5])], every)
    weigher = ld.score_function(discount=0.9)

    @jax.jit
    def run(params):
        batch = weigher.credit_batch(params, (), oracle.POLICY, taus)
        jacobian = jax.jacobian(lambda p: ld.log_factors(p, oracle.POLICY, taus))(params)
        scalar = ld.baseline_optimal().values((), taus, batch)
        own = ld.baseline_biased_optimal_in_sample().values((), taus, batch)
        per_parameter, _ = ld.optimal_per_parameter(discount=0.9, folds=2).weigh(params, (), oracle.POLICY, taus)
        gradient = ld.optimal_per_parameter(discount=0.9, folds=2).estimate(params, (), oracle.POLICY, taus)[0].grads
        return batch.credit, jacobian, scalar, own, per_parameter[2], gradient

    credit, jacobian, scalar, own, per_parameter, gradient = jax.tree.map(np.asarray, run(world.params))
    h, d = np.einsum("nt,ntd->nd", credit, jacobian), np.sum(jacobian, axis=1)
    parts = [np.array([0, 2, 4]), np.array([1, 3])]
    np.testing.assert_allclose(own, np.full((5, 3), np.sum(h * d) / np.sum(d * d)), rtol=1e-13)
    expected = np.zeros(2)
    for k, part in enumerate(parts):
        other = parts[1 - k]
        np.testing.assert_allclose(scalar[part], np.sum((h * d)[other]) / np.sum((d * d)[other]), rtol=1e-13)
        optimum = np.sum((h * d)[other], axis=0) / np.sum((d * d)[other], axis=0)
        np.testing.assert_allclose(per_parameter[k], optimum, rtol=1e-13)
        expected += np.sum(h[part] - optimum * d[part], axis=0) / 5
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)


def test_an_unseen_score_gives_no_baseline_and_nan_stays_nan():
    from logderiv.estimators.baselines.optimal import ratio

    assert ratio(jnp.array([0.0, 6.0]), jnp.array([0.0, 2.0])).tolist() == [0.0, 3.0]
    assert jnp.isnan(ratio(jnp.array(1.0), jnp.array(NAN)))


def test_optimal_baseline_has_the_least_variance_of_constants():
    """Exact variances in the enumerated world: the ideal constant beats its neighbors, b* = E<h, d> / E|d|^2."""
    world = oracle.cut(3)
    every, probabilities = oracle.trajectories(world)
    weigher = ld.score_function(discount=0.9)

    @jax.jit
    def scores(params):
        credit = weigher.credit_batch(params, (), oracle.POLICY, every).credit
        jacobian = jax.jacobian(lambda p: ld.log_factors(p, oracle.POLICY, every))(params)
        return jnp.einsum("nt,ntd->nd", credit, jacobian), jnp.sum(jacobian, axis=1)

    h, d = (np.asarray(x) for x in scores(world.params))

    def variance(b):
        g = h - b * d
        mean = probabilities @ g
        return probabilities @ np.sum((g - mean) ** 2, axis=1)

    best = probabilities @ np.sum(h * d, axis=1) / (probabilities @ np.sum(d * d, axis=1))
    assert variance(best) < min(variance(best - 0.1), variance(best + 0.1), variance(0.0))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: ld.baseline_leave_one_out(per=cast("Any", "batch")),
            "per: expected 'step' or 'trajectory', received 'batch'",
        ),
        (lambda: ld.baseline_constant(1.0, per=cast("Any", "batch")), "per: expected"),
        (lambda: ld.baseline_biased_batch_mean(per=cast("Any", "batch")), "per: expected"),
        (lambda: ld.baseline_moving_average(1.0), r"decay: expected a number in \[0, 1\)"),
        (lambda: ld.baseline_optimal(folds=1), "folds: expected a whole number >= 2, received 1"),
        (lambda: ld.baseline_per_group(ld.baseline_moving_average(), 2), "expected a baseline without state"),
        (lambda: ld.baseline_per_group(ld.baseline_leave_one_out(), 1), "group_size: expected at least 2"),
        (lambda: ld.baseline_learned_value(table_value, wrong_values, optax.sgd(0.1), num_steps=0), "num_steps"),
        (lambda: values(ld.baseline_value(lambda s: jnp.ones(2))), r"expected a scalar.*received shape \(2,\)"),
        (lambda: values(ld.baseline_per_group(ld.baseline_leave_one_out(), 2)), "multiple of group_size = 2"),
    ],
)
def test_bad_input(build, message):
    with pytest.raises(ValueError, match=message):
        build()


TWO_LEAVES = ld.FunctionPolicy(
    lambda params, state: ld.Bernoulli(jnp.where(state == 0, params["left"], params["right"]))
)
LOGITS = {"left": jnp.zeros(()), "right": jnp.zeros(())}  # scores are +-1/2, one leaf per state


def two_steps(ratios, credit):
    """Trajectories through the states 0, 1 and what a baseline sees of them."""
    num = len(credit)
    ones = jnp.ones((num, 2))
    taus = ld.Trajectory(
        jnp.tile(jnp.arange(2), (num, 1)), jnp.arange(2 * num).reshape(num, 2) % 3 % 2, ones, ones, ones > 0, 0 * ones, jnp.zeros(num, int)
    )  # fmt: skip
    return taus, CreditBatch(
        jnp.array(credit), jnp.array(ratios), jnp.ones((1, 2)), targets=ones, params=LOGITS, policy=TWO_LEAVES
    )


@pytest.mark.parametrize("folds", [2, 3, 4])
def test_cross_fitted_optimum_off_policy(folds):
    """Squared scores are all 1/4 and each leaf has its own, so that b* = sum C rho / sum rho^2 over the other folds."""
    ratios = np.array([[1.0, 2.0], [0.5, 1.0], [3.0, 1.0], [1.0, 0.25]])
    credit = np.array([[4.0, 1.0], [2.0, -3.0], [1.0, 5.0], [0.5, 2.0]])
    taus, batch = two_steps(ratios, credit)
    found = jax.jit(lambda: ld.baseline_optimal(folds=folds).values((), taus, batch))()
    for n in range(4):
        others = np.arange(4) % folds != n % folds
        best = np.sum((credit * ratios)[others]) / np.sum((ratios**2)[others])
        np.testing.assert_allclose(found[n], ratios[n] * best, rtol=1e-14)
    for k, (cross, square) in enumerate(jax.jit(lambda: fold_moments(taus, batch, folds))()):
        own = np.arange(4) % folds == k
        for state, leaf in enumerate(("left", "right")):
            np.testing.assert_allclose(cross[leaf], np.sum((credit * ratios)[own, state]) / 4, rtol=1e-14)
            np.testing.assert_allclose(square[leaf], np.sum((ratios**2)[own, state]) / 4, rtol=1e-14)


@pytest.mark.parametrize(("num", "turns"), [(2, 1), (30, 1), (32, 1), (34, 17), (64, 2), (68, 17)])
def test_optimal_baseline_holds_at_most_sixteen_scores(num, turns):
    """Folds of `num / 2`: taken in as few equal turns of at most 16 trajectories as there are."""
    taus, batch = two_steps(np.ones((num, 2)), np.ones((num, 2)))
    jaxpr = jax.make_jaxpr(lambda: ld.baseline_optimal().values((), taus, batch))()
    lengths = [e.params["length"] for e in jaxpr.eqns if e.primitive.name == "scan"]
    assert lengths == [turns] * 2


def test_ratio_is_safe_to_differentiate_where_nothing_was_seen():
    from logderiv.estimators.baselines.optimal import ratio

    assert ratio(jnp.array([3.0, 3.0]), jnp.array([1.0, -1.0])).tolist() == [3.0, -3.0]
    assert jax.grad(ratio, argnums=(0, 1))(jnp.array(1.0), jnp.array(0.0)) == (0.0, 0.0)


def test_standardized_weights_by_hand():
    """Inner values and epsilon in their place: A = C - b, then (A - mean) / (std + epsilon) over valid steps."""
    advantages = np.asarray(CREDIT) - np.asarray(values(GIVEN, BATCH))
    alive = advantages[np.asarray(VALID)]
    for ddof in (0, 1):
        baseline = ld.baseline_biased_standardized(GIVEN, ddof=ddof, epsilon=1.0)
        expected = (advantages - np.mean(alive)) / (np.std(alive, ddof=ddof) + 1.0)
        np.testing.assert_allclose(CREDIT - values(baseline, BATCH), expected, rtol=1e-13)
    whole = ld.baseline_biased_standardized(per="trajectory", ddof=1, epsilon=1.0)
    firsts = np.array([6.0, 3.0, 9.0])
    np.testing.assert_allclose((CREDIT - values(whole))[:, 0], (firsts - 6.0) / (np.std(firsts, ddof=1) + 1.0))


def test_batches_with_hardly_a_step():
    """One valid step, or none: means of nothing are 0, not NaN; one step is its own mean."""
    one = TAUS._replace(valid=jnp.zeros((3, 3), bool).at[0, 0].set(True))
    none = TAUS._replace(valid=jnp.zeros((3, 3), bool))
    batch = ON_POLICY._replace(credit=jnp.zeros((3, 3)).at[0, 0].set(6.0), targets=jnp.full((3, 3), 2.0))
    empty = batch._replace(credit=jnp.zeros((3, 3)))
    two = ld.baseline_biased_standardized(per="trajectory", ddof=1, epsilon=0.0)
    pair = batch._replace(credit=jnp.array([[0.0] * 3, [2.0] * 3]), ratios=jnp.ones((2, 3)))
    weights = pair.credit - two.values((), jax.tree.map(lambda x: x[:2], TAUS), pair)
    np.testing.assert_allclose(weights[:, 0], [-(0.5**0.5), 0.5**0.5], rtol=1e-14)
    for ddof in (0, 1):
        baseline = ld.baseline_biased_standardized(ddof=ddof)
        assert baseline.values((), one, batch)[0, 0] == 6.0
        np.testing.assert_array_equal(baseline.values((), none, empty), np.zeros((3, 3)))
    for baseline in (ld.baseline_biased_batch_mean(per="step"), ld.baseline_leave_one_out()):
        np.testing.assert_array_equal(baseline.values((), none, empty), np.zeros((3, 3)))
    learned = ld.baseline_learned_value(table_value, wrong_values, optax.sgd(0.5))
    np.testing.assert_allclose(learned.update(learned.init(None), one, batch)[0], [2.0, -0.3], rtol=1e-14)
    np.testing.assert_array_equal(learned.update(learned.init(None), none, batch)[0], [0.7, -0.3])


def test_next_values_are_those_of_the_same_trajectory():
    """Every state another number, the final ones negative."""
    seen = TAUS._replace(observations=jnp.arange(9.0).reshape(3, 3), final_observation=jnp.array([-1.0, -2.0, -3.0]))
    now, then = ld.baseline_value(lambda o: o).state_values((), seen)
    np.testing.assert_array_equal(now, [[0, 1, 2], [3, 4, 0], [6, 0, 0]])
    np.testing.assert_array_equal(then, [[1, 2, -1], [4, -2, 0], [-3, 0, 0]])


def test_values_of_vector_observations():
    seen = TAUS._replace(
        observations=jax.nn.one_hot(jnp.minimum(STATES, 1), 2), final_observation=jax.nn.one_hot(jnp.array([1, 1, 0]), 2)
    )  # fmt: skip
    linear = ld.baseline_value(lambda o: o @ jnp.array([0.7, -0.3]))
    for ours, table in zip(linear.state_values((), seen), GIVEN.state_values(wrong_values(None), TAUS), strict=True):
        np.testing.assert_array_equal(ours, table)


def test_declarations():
    whole, step = ld.baseline_leave_one_out(per="trajectory"), ld.baseline_leave_one_out()
    assert whole.bias == Bias(min_trajectories=2, degree=2)
    assert step.bias == Bias(min_trajectories=2, degree=None)
    assert ld.baseline_optimal(folds=3).bias == Bias(min_trajectories=3, degree=None, symmetric=False)
    assert ld.baseline_biased_batch_mean().bias.factor is own_sample_factor
    assert ld.baseline_biased_batch_mean(per="step").bias.factor is None
    for build in (
        ld.baseline_biased_batch_mean, ld.baseline_biased_standardized, ld.baseline_biased_optimal_in_sample,
    ):  # fmt: skip
        bias = build().bias
        assert (bias.order, bias.min_trajectories, bias.degree, bias.symmetric) == (0, 2, None, True)
    assert ld.baseline_per_group(ld.baseline_constant(1.0), 3).bias == Bias(min_trajectories=3)
    assert ld.baseline_per_group(whole, 3).bias == Bias(min_trajectories=3, degree=None, symmetric=False)


def test_defaults_are_those_of_the_classes_and_of_the_papers():
    """Equal and hashed alike when rebuilt, as static arguments of `jit` must be."""
    sgd = optax.sgd(0.1)
    learned = (table_value, wrong_values, sgd)
    for build, of_class in (
        (ld.baseline_none, NoBaseline),
        (lambda: ld.baseline_constant(2), lambda: averages.Constant(2.0)),
        (ld.baseline_leave_one_out, averages.LeaveOneOut),
        (ld.baseline_moving_average, averages.MovingAverage),
        (lambda: ld.baseline_per_group(ld.baseline_none(), 2), lambda: averages.PerGroup(NoBaseline(), 2)),
        (lambda: ld.baseline_per_group(ld.baseline_biased_batch_mean(), 2).bias, lambda: averages.PerGroup(biased.BatchMean(), 2).bias),
        (ld.baseline_biased_batch_mean, biased.BatchMean),
        (lambda: ld.baseline_biased_standardized(GIVEN), lambda: biased.Standardized(GIVEN)),
        (ld.baseline_biased_optimal_in_sample, biased.OptimalInSample),
        (ld.baseline_optimal, Optimal),
        (lambda: ld.baseline_value(table_value), lambda: Value(table_value)),
        (lambda: ld.baseline_learned_value(*learned), lambda: LearnedValue(*learned)),
    ):  # fmt: skip
        assert build() == of_class()
        assert hash(build()) == hash(of_class())
    assert isinstance(ld.baseline_biased_standardized(), Stateless)
    assert ld.baseline_moving_average().decay == 0.99
    assert ld.baseline_optimal().folds == 2
    assert ld.baseline_biased_optimal_in_sample().folds == 1
    assert ld.baseline_learned_value(*learned).num_steps == 1
    group, usual = ld.baseline_biased_group_normalized(2).baseline, ld.baseline_biased_standardized()
    assert (group.ddof, group.epsilon) == (1, 1e-4)  # pyright: ignore[reportAttributeAccessIssue]
    assert (usual.ddof, usual.epsilon) == (0, 1e-8)


def test_limits_that_are_allowed_and_just_beyond():
    assert ld.baseline_moving_average(0.0).decay == 0.0
    assert ld.baseline_per_group(ld.baseline_leave_one_out(), 3).group_size == 3
    with pytest.raises(ValueError, match=r"received -0\.01"):
        ld.baseline_moving_average(-0.01)
    with pytest.raises(ValueError, match=r"received 2\.5"):
        ld.baseline_optimal(folds=cast("Any", 2.5))
    with pytest.raises(TypeError):
        cast("Any", biased.OptimalInSample)(folds=2)
