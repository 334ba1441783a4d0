"""What each baseline subtracts, by hand; that it leaves the gradient unbiased is shown in `test_estimators`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from logderiv._core.pytrees import pytree
from logderiv.advantages import GAE, Batch, Grouped, Return, Standardized, ToGo, VTrace
from logderiv.baselines import MovingAverageState
from logderiv.estimators.baselines import own_sample
from logderiv.estimators.batch import evaluate_value, prepare
from logderiv.estimators.declaration import Declaration, Structure

from . import oracle
from .worlds import trajectory
from .zoo import GIVEN, table_value, wrong_values

NAN = jnp.nan
VALID = jnp.array([[True, True, True], [True, True, False], [True, False, False]])
CREDIT = jnp.array([[6.0, 5.0, 4.0], [3.0, 1.0, 0.0], [9.0, 0.0, 0.0]])
RATIOS = jnp.array([[1.0, 2.0, 3.0], [1.0, 0.5, 0.5], [4.0, 4.0, 4.0]])
POWERS = jnp.array([[1.0, 0.5, 0.25]])
STATES = jnp.array([[0, 1, 0], [1, 0, 7], [0, 7, 7]])  # the garbage in the padding would be clipped to state 1
TAUS = trajectory(
    rewards=jnp.where(VALID, 1.0, NAN), observations=STATES, valid=VALID, final_observation=jnp.array([1, 1, 0])
)
ONES, ONE = jnp.ones((3, 3)), jnp.ones(())
ON_POLICY = Batch(
    TAUS,
    VALID,
    jnp.where(VALID, 1.0, 0),
    ONES,
    ONE,
    ONE,
    ONES * POWERS,
    None,
    None,
    None,
    jnp.zeros(2),
    ld.shared_softmax,
)
BATCH = ON_POLICY._replace(log_ratios=jnp.log(RATIOS), log_scale=jnp.log(RATIOS), log_step_ratios=0 * ONES)
TARGETS = jnp.where(VALID, 2.0, 0.0)


def values(baseline, batch=ON_POLICY, state=None, credit=CREDIT):
    """What is subtracted, multiplied by γ^t and the ratio as an advantage does it."""
    found = baseline.values(baseline.init(None) if state is None else state, credit, batch)
    found = batch.powers * found if baseline.discounted else found
    return found if batch.log_ratios is None else found * RATIOS


@pytree
class Given(ld.advantages.Advantage):
    """The credit above as weights."""

    def __call__(self, params, state, batch):
        return CREDIT, TARGETS, state


def weights(advantage, batch=ON_POLICY):
    return advantage((), advantage.init(None), batch)[0]


RETURNS = np.array([[6.0] * 3, [7.5] * 3, [4.5] * 3])  # of the others, on average


@pytest.mark.parametrize(
    ("baseline", "batch", "expected"),
    [
        (ld.baselines.Constant(3), BATCH, 3 * RATIOS),
        (ld.baselines.Constant(3.0, per="step"), BATCH, 3 * RATIOS * POWERS),
        (ld.baselines.LeaveOneOut(per="trajectory"), ON_POLICY, RETURNS),
        (ld.baselines.LeaveOneOut(per="trajectory"), BATCH, RETURNS * np.asarray(RATIOS)),
        # at step 2 the first trajectory is alone: its baseline is 0, not its own credit; the biased mean subtracts it from itself
        (ld.baselines.LeaveOneOut(), ON_POLICY, [[6.0, 1.0, 0.0], [7.5, 5.0, 4.0], [4.5, 3.0, 4.0]]),
        (ld.baselines.BatchMean(per="step"), ON_POLICY, [[6.0, 3.0, 4.0]] * 3),
        (ld.baselines.BatchMean(), ON_POLICY, np.full((3, 3), 6.0)),
    ],
)
def test_what_is_subtracted_by_hand(baseline, batch, expected):
    np.testing.assert_array_equal(values(baseline, batch), expected)


@pytest.mark.parametrize(
    ("per", "expected"),
    [
        ("step", [[4.5, 3.5, 2.5], [4.5, 3.5, 2.5], [6.0, 3.0, 4.0], [6.0, 3.0, 4.0]]),
        ("trajectory", [4.5, 4.5, 6.0, 6.0]),
    ],
)
def test_pairs_are_left_out_together(per, expected):
    """Credit 8, 5, 4 and 4, 1 | 6, 5, 5 and 3, 2: each pair gets the mean of the other, of those that are alive."""
    credit = jnp.array([[8.0, 5.0, 4.0], [4.0, 1.0, 0.0], [6.0, 5.0, 2.5], [3.0, 2.0, 0.0]])
    valid = jnp.array([[True, True, True], [True, True, False]] * 2)
    steps = trajectory(rewards=credit, valid=valid)
    pairs = ld.baselines.LeaveOneOut(per, group_size=2)
    found = pairs.values((), credit, ON_POLICY._replace(steps=steps, valid=valid))
    np.testing.assert_array_equal(found, np.reshape(expected, (4, -1)) * np.ones(3))
    assert pairs.structure == Structure(min_trajectories=4, degree=None, symmetric=False)


def test_the_mean_with_its_own_sample_is_short_by_one_over_n():
    assert [own_sample(n) for n in (1, 2, 4)] == [0.0, 0.5, 0.75]


def test_moving_average_uses_the_old_value_and_is_not_fed_back():
    """A constant return of 1: the first baseline is 0, every later one is exactly 1.

    optax's removed `moving_avg_baseline` feeds the corrected value back and runs 1, 50.3, 1675, ... on the same input.
    """
    baseline = ld.baselines.MovingAverage(0.99)
    state, seen = baseline.init(ONE), []
    for _ in range(4):
        seen.append(float(values(baseline, ON_POLICY, state, ONES)[0, 0]))
        state = baseline.update(state, ONES, TARGETS, ON_POLICY)
    np.testing.assert_allclose(seen, [0.0, 1.0, 1.0, 1.0], rtol=1e-14)
    state = MovingAverageState(jnp.array(0.8), jnp.array(0.5))
    np.testing.assert_array_equal(values(baseline, BATCH, state), 1.6 * RATIOS)
    new = baseline.update(state, CREDIT, TARGETS, BATCH)
    np.testing.assert_allclose(new, [0.99 * 0.8 + 0.01 * 6.0, 0.99 * 0.5 + 0.01], rtol=1e-14)
    of_two = baseline.update(state, CREDIT[:2], TARGETS[:2], BATCH)
    np.testing.assert_allclose(of_two[0], 0.99 * 0.8 + 0.01 * 4.5, rtol=1e-14)


def test_given_value_of_the_state():
    now, then = GIVEN.state_values(wrong_values(None), ON_POLICY)
    v = [0.7, -0.3]
    np.testing.assert_array_equal(now, [[v[0], v[1], v[0]], [v[1], v[0], 0], [v[0], 0, 0]])
    np.testing.assert_array_equal(then, [[v[1], v[0], v[1]], [v[0], v[1], 0], [v[0], 0, 0]])  # ends in the final state
    np.testing.assert_array_equal(values(GIVEN, BATCH), RATIOS * POWERS * now)
    plain = ld.baselines.Value(lambda s: table_value(jnp.array(v), s))
    np.testing.assert_array_equal(values(plain, BATCH), values(GIVEN, BATCH))


def test_learned_value_steps_down_the_mean_squared_error_after_use():
    """One step of size 1/2 on the mean over valid steps: v(s) moves by (share of steps in s) * (mean target - v(s))."""
    baseline = ld.baselines.LearnedValue(table_value, wrong_values, optax.sgd(0.5))
    state = baseline.init(ONE)
    np.testing.assert_array_equal(values(baseline, BATCH, state), values(GIVEN, BATCH))
    new, _ = jax.jit(lambda s: baseline.update(s, CREDIT, TARGETS, BATCH))(state)
    old = np.array([0.7, -0.3])
    shares = np.array([4, 2]) / 6
    np.testing.assert_allclose(new, old + shares * (2.0 - old), rtol=1e-14)
    many = dataclasses.replace(baseline, num_steps=200)
    new, _ = jax.jit(lambda s: many.update(s, CREDIT, TARGETS, BATCH))(state)
    np.testing.assert_allclose(new, [2.0, 2.0], rtol=1e-12)


@pytest.mark.usefixtures("standard_promotion")
def test_learned_value_finds_the_values_of_a_task():
    """Fitted to all trajectories by their probability it becomes the true value of each state."""
    world = oracle.ending()
    every, probabilities = oracle.trajectories(world)
    counts = np.round(probabilities / np.min(probabilities) * 40).astype(int)
    batch = jax.tree.map(lambda x: jnp.asarray(np.repeat(x, counts, axis=0)), every)
    baseline = ld.baselines.LearnedValue(table_value, wrong_values, optax.adam(0.02), num_steps=1500)
    estimator = ld.ScoreFunction(ld.advantages.ToGo(baseline), discount=world.discount)
    _, (learned, _) = jax.jit(estimator.advantages)(world.params, baseline.init(world.params), oracle.POLICY, batch)

    exact = ld.exact.state_values(world.params, oracle.POLICY, world.mdp, horizon=3, discount=world.discount)[0, :2]
    np.testing.assert_allclose(learned, exact, atol=5e-3)


@pytest.mark.parametrize("advantage", [ToGo(), Return()], ids=["to go", "whole return"])
def test_targets_are_what_a_state_value_should_predict(advantage):
    """No gamma^t: the return from step t on, and off policy with the ratios from t on; of the whole return, too, whose credit is that of step 0."""
    world = oracle.cut(3)
    every, _ = oracle.trajectories(world, off_policy=True)
    per = "step" if isinstance(advantage, ToGo) else "trajectory"
    estimator = ld.ScoreFunction(advantage, discount=0.9, importance=ld.importance.Importance(per=per))
    targets = jax.jit(lambda e: estimator.weigh(world.params, (), oracle.POLICY, e)[1])(every)
    logs = np.asarray(jax.jit(ld.importance.log_ratios)(world.params, oracle.POLICY, every))
    rewards = np.where(every.valid, every.rewards, 0)
    y = np.zeros(len(rewards))
    for t in (2, 1, 0):
        y = np.exp(logs[:, t]) * (rewards[:, t] + 0.9 * y)
        y = np.where(every.valid[:, t], y, 0)
        np.testing.assert_allclose(targets[:, t], y, rtol=0, atol=1e-14)


def test_in_groups_the_weights_are_those_of_each_group_alone():
    """Returns 6, 3 | 9, 12 in groups of two: leave-one-out subtracts the other's."""
    pair = lambda x: jnp.concatenate([x, x[:1]])  # noqa: E731
    rewards = jnp.array([6.0, 3.0, 9.0, 12.0])[:, None] * jnp.array([[1.0, 0.0, 0.0]])
    parts = {"valid": pair(VALID), "discounts": pair(ONES), "powers": pair(ON_POLICY.powers)}
    batch = ON_POLICY._replace(steps=jax.tree.map(pair, TAUS), rewards=rewards, **parts)
    inner = ld.baselines.LeaveOneOut(per="trajectory")
    grouped = weights(Grouped(Return(inner), 2), batch)
    np.testing.assert_array_equal(grouped[:, 0], [3.0, -3.0, -3.0, 3.0])
    to_go = weights(Grouped(ToGo(inner), 2), batch)
    np.testing.assert_array_equal(to_go[:, 1:], [[-3.0, -3.0], [-6.0, 0], [0, 0], [-9.0, -9.0]])
    advantage = Grouped(Return(ld.baselines.BatchMean()), 2)
    assert advantage.declaration.factor(8) == 0.5
    assert not advantage.structure.symmetric


def test_standardized_weights_have_mean_zero_and_deviation_one():
    alive = weights(Standardized(Given(), epsilon=0.0))[VALID]
    np.testing.assert_allclose([jnp.mean(alive), jnp.std(alive)], [0, 1], atol=1e-14)
    batch = ON_POLICY._replace(rewards=CREDIT)
    shifted, plain = (Standardized(Return(b), epsilon=0.0) for b in (ld.baselines.Constant(100.0), None))
    np.testing.assert_allclose(weights(shifted, batch), weights(plain, batch), atol=1e-12)  # a shift is undone
    grouped = Grouped(Standardized(Given(), per="trajectory", ddof=1, epsilon=0.0), 3)
    np.testing.assert_allclose(weights(grouped)[:, 0], [0.0, -1.0, 1.0], atol=1e-14)
    nothing = weights(Standardized(ToGo(), epsilon=0.0), ON_POLICY._replace(rewards=0 * ONES))
    assert not np.asarray(nothing).any()  # and nothing is divided by 0
    equal = ON_POLICY._replace(rewards=jnp.array([[1.0, 0.0, 0.0]] * 3))
    same = weights(Grouped(Standardized(Return(), "trajectory", 1, 1e-4), 3), equal)
    np.testing.assert_allclose(same, np.zeros((3, 3)), atol=1e-11)


@pytree
class Subtracted(ld.advantages.Advantage):
    """The credit above minus a baseline."""

    baseline: Any

    def init(self, params):
        return self.baseline.init(params)

    def __call__(self, params, state, batch):
        return jnp.where(VALID, CREDIT - self.baseline.values(state, CREDIT, batch), 0), TARGETS, state


def test_standardized_weights_by_hand():
    """Inner values and epsilon in their place: A = C - b, then (A - mean) / (std + epsilon) over valid steps."""
    advantages = np.asarray(CREDIT) - np.asarray(GIVEN.values(wrong_values(None), CREDIT, BATCH))
    alive = advantages[np.asarray(VALID)]
    for ddof in (0, 1):
        expected = np.where(VALID, (advantages - np.mean(alive)) / (np.std(alive, ddof=ddof) + 1.0), 0)
        inner = Subtracted(GIVEN)
        np.testing.assert_allclose(weights(Standardized(inner, "step", ddof, 1.0), BATCH), expected, rtol=1e-13)
    firsts = np.array([6.0, 3.0, 9.0])
    whole = weights(Standardized(Given(), per="trajectory", ddof=1, epsilon=1.0))
    np.testing.assert_allclose(whole[:, 0], (firsts - 6.0) / (np.std(firsts, ddof=1) + 1.0))


@pytest.mark.usefixtures("nans_are_errors")
def test_batches_with_hardly_a_step():
    """One valid step, or none: means of nothing are 0, not NaN; one step is its own mean."""
    no_step = jnp.zeros((3, 3), bool)
    masks = no_step.at[0, 0].set(True), no_step
    one, none = (ON_POLICY._replace(steps=TAUS._replace(valid=v), valid=v) for v in masks)
    credit, empty, targets = jnp.zeros((3, 3)).at[0, 0].set(6.0), jnp.zeros((3, 3)), jnp.full((3, 3), 2.0)
    two = Standardized(Return(), per="trajectory", ddof=1, epsilon=0.0)
    first = lambda x: np.asarray(x)[:2]  # noqa: E731, NumPy cuts NaN, too
    pair = BATCH._replace(
        steps=jax.tree.map(first, TAUS),
        valid=VALID[:2],
        rewards=jnp.array([[0.0] * 3, [2.0, 0, 0]]),
        **dict.fromkeys(("discounts", "powers"), ONES[:2]),
        **dict.fromkeys(("log_scale", "log_ratios", "log_step_ratios"), 0 * ONES[:2]),
    )
    np.testing.assert_allclose(weights(two, pair)[:, 0], [-(0.5**0.5), 0.5**0.5], rtol=1e-14)
    for ddof in (0, 1):
        for batch in (one, none):
            rewarded = batch._replace(rewards=jnp.where(batch.valid, 6.0, 0))
            np.testing.assert_array_equal(weights(Standardized(ToGo(), ddof=ddof), rewarded), empty)
    for baseline in (ld.baselines.BatchMean(per="step"), ld.baselines.LeaveOneOut()):
        np.testing.assert_array_equal(baseline.values((), empty, none), empty)
    assert ld.baselines.BatchMean(per="step").values((), credit, one)[0, 0] == 6.0
    learned = ld.baselines.LearnedValue(table_value, wrong_values, optax.sgd(0.5))
    start = learned.init(ONE)
    np.testing.assert_allclose(learned.update(start, credit, targets, one)[0], [2.0, -0.3], rtol=1e-14)
    np.testing.assert_array_equal(learned.update(start, empty, targets, none)[0], [0.7, -0.3])


@pytest.mark.parametrize("baseline", [ld.baselines.BatchMean(per="step"), ld.baselines.LeaveOneOut()])
def test_a_mean_has_a_number_where_the_sum_has_none(baseline):
    """Seven trajectories of one step."""
    credit, valid = jnp.full((7, 1), 1e38, jnp.float32), jnp.ones((7, 1), bool)
    batch = ON_POLICY._replace(steps=trajectory(rewards=jnp.ones((7, 1), jnp.float32), valid=valid), valid=valid)
    np.testing.assert_allclose(baseline.values((), credit, batch), credit, rtol=1e-6)


def test_next_values_are_those_of_the_same_trajectory():
    """Every state another number, the final ones negative."""
    seen = TAUS._replace(observations=jnp.arange(9.0).reshape(3, 3), final_observation=jnp.array([-1.0, -2.0, -3.0]))
    now, then = ld.baselines.Value(lambda o: o).state_values((), ON_POLICY._replace(steps=seen))
    np.testing.assert_array_equal(now, [[0, 1, 2], [3, 4, 0], [6, 0, 0]])
    np.testing.assert_array_equal(then, [[1, 2, -1], [4, -2, 0], [-3, 0, 0]])


def test_values_of_more_leading_axes_are_those_of_each_row():
    rows = trajectory(observations=jnp.arange(12.0).reshape(4, 3), valid=jnp.concatenate([VALID, VALID[1:2]]))
    grid = jax.tree.map(lambda x: x.reshape((2, 2, *x.shape[1:])), rows)
    for found, expected in zip(*(evaluate_value(lambda _, o: o + 1, (), x) for x in (grid, rows)), strict=True):
        np.testing.assert_array_equal(found.reshape(4, 3), expected)


def test_what_an_advantage_sees_of_padding_by_hand():
    """Rewards of 0 and discounts of 1, whatever stands there; γ^t goes on."""
    garbage = TAUS._replace(discounts=jnp.where(VALID, jnp.array([1.0, 1.0, 0.0]), NAN))
    batch = prepare(ld.ScoreFunction(discount=0.5), jnp.zeros(2), ld.shared_softmax, garbage)
    np.testing.assert_array_equal(batch.rewards, [[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(batch.discounts, [[1, 1, 0], [1, 1, 1], [1, 1, 1]])
    np.testing.assert_array_equal(batch.powers, [[1, 0.5, 0.25]] * 3)


def test_weights_and_targets_of_padding_are_zero_and_no_others():
    advantages = [ToGo(), Return(GIVEN), GAE(0.5, GIVEN), VTrace(GIVEN), Grouped(ToGo(), 3), Standardized(ToGo(GIVEN))]
    batch = BATCH._replace(rewards=jnp.where(VALID, 5.0, 0))
    every = jax.jit(lambda: [a((), a.init(None), batch)[:2] for a in advantages])()
    for found in jax.tree.leaves(every):
        np.testing.assert_array_equal(found != 0, VALID)


def test_values_of_vector_observations():
    states = (TAUS.observations, TAUS.final_observation)
    observed = [jax.nn.one_hot(jnp.minimum(x, 1), 2) for x in states]
    seen = TAUS._replace(observations=observed[0], final_observation=observed[1])
    linear = ld.baselines.Value(lambda o: o @ jnp.array([0.7, -0.3]))
    ours = linear.state_values((), ON_POLICY._replace(steps=seen))
    np.testing.assert_array_equal(ours, GIVEN.state_values(wrong_values(None), ON_POLICY))


def test_declarations():
    whole, step = ld.baselines.LeaveOneOut(per="trajectory"), ld.baselines.LeaveOneOut()
    assert whole.structure == Structure(min_trajectories=2, degree=2)
    assert step.structure == Structure(min_trajectories=2, degree=None)
    assert whole.declaration == step.declaration == ld.baselines.Optimal().declaration == Declaration()
    assert ld.baselines.Optimal(folds=3).structure == Structure(min_trajectories=3, degree=None, symmetric=False)
    assert ld.baselines.BatchMean().declaration.objectives == {"return": own_sample}
    assert ld.baselines.BatchMean(per="step").declaration.objectives == {}
    for part in (ld.baselines.BatchMean(), Standardized(ToGo()), ld.baselines.Optimal(in_sample=True)):
        assert part.declaration.order == 0
        assert part.structure == Structure(min_trajectories=2, degree=None)
    assert Grouped(Return(ld.baselines.Constant(1.0)), 3).structure == Structure(min_trajectories=3, group_size=3)
    grouped = Grouped(Return(whole), 3)
    assert grouped.structure == Structure(min_trajectories=3, degree=None, symmetric=False, group_size=3)
    assert Standardized(grouped).structure.group_size == ld.GRPO(3).structure.group_size == 3


def test_defaults_are_those_of_the_papers():
    grouped: Any = ld.GRPO(group_size=2).advantage
    group, usual = grouped.advantage, Standardized(ToGo())
    assert (group.ddof, group.epsilon, usual.ddof, usual.epsilon) == (1, 1e-4, 0, 1e-8)
    assert (ld.baselines.MovingAverage().decay, ld.baselines.Optimal().folds) == (0.99, 2)
    assert ld.baselines.MovingAverage(0.0).decay == 0.0
    assert ld.baselines.LearnedValue(table_value, wrong_values, optax.sgd(0.1)).num_steps == 1
    trace, apart = ld.advantages.VTrace(), ld.estimators.OptimalPerParameter()
    assert (trace.lambda_, trace.clip_rho, trace.clip_c, trace.clip_pg) == (1, 1, 1, 1)
    assert (apart.discount, apart.folds, apart.in_sample, apart.gamma_t) == (1, 2, False, True)
    assert (ld.ScoreFunction().discount, ld.ScoreFunction().gamma_t) == (1, True)
    assert (ld.PPO().discount, ld.PPO().clip, ld.PPO().gamma_t) == (1, 0.2, True)
    assert ld.PPO(clip=None).clip is None
    synchronous: Any = ld.A2C(table_value)
    proximal: Any = ld.PPOActorCritic(table_value)
    for made in (synchronous, proximal):
        assert (made.actor.discount, made.actor.gamma_t, made.value_weight, made.entropy_weight) == (
            0.99,
            False,
            0.5,
            0.01,
        )
    assert (synchronous.actor.advantage.lambda_, proximal.actor.clip) == (1, 0.2)
    assert proximal.actor.advantage == Standardized(ld.advantages.GAE(0.95))
    bare = ld.estimators.ActorCritic(ld.ScoreFunction(), table_value)
    assert (bare.value_weight, bare.entropy_weight) == (0.5, None)
