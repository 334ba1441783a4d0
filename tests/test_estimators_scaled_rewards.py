"""Rewards over a scale: the declared factor and the running one, by enumeration; the running deviation by hand, of streams too."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.advantages import GAE, Grouped, Return, ScaledRewards, Standardized, ToGo
from logderiv.baselines import LeaveOneOut, MovingAverage
from logderiv.policies import RunningMoments
from tests import oracle
from tests.worlds import trajectory
from tests.zoo import DISCOUNT, SPREAD, seen

WORLD = oracle.cut(2)


def score(advantage, **options):
    return ld.ScoreFunction(advantage, discount=DISCOUNT, **options)


def derivatives(estimator, state, number=2):
    """E of the first and second derivative over all batches of two, and those of the objective."""

    def of_batch(batch):
        weights, _ = estimator.advantages(WORLD.params, state, oracle.POLICY, batch)
        return oracle.derivatives(lambda p: estimator.objective(p, oracle.POLICY, batch, weights), WORLD.params)[:2]

    return oracle.expectation(of_batch, WORLD, number), oracle.derivatives(oracle.value(WORLD), WORLD.params)[:2]


@pytest.mark.parametrize("scale", [None, 0.4])
def test_given_the_state_both_derivatives_are_those_of_the_return_over_the_scale(scale):
    advantage = ScaledRewards(ToGo(LeaveOneOut()), scale)
    estimator = score(advantage, surrogate=ld.estimators.DiCE())
    state = seen(estimator, WORLD.params)
    assert advantage.scale_of(state) == (SPREAD if scale is None else scale)
    for found, exact in zip(*derivatives(estimator, state), strict=True):
        np.testing.assert_allclose(found, exact / advantage.scale_of(state), rtol=0, atol=1e-12)


def test_after_any_batch_the_scale_is_a_factor_of_the_next_and_its_own_batch_would_turn_it():
    """The twin divides by the deviation with the batch taken in: its mean is no multiple of the gradient, as declared."""
    advantage = ScaledRewards(ToGo(MovingAverage(0.5)))
    estimator, exact = score(advantage), oracle.gradient(WORLD)
    start = seen(estimator, WORLD.params)
    _, state = estimator.estimate(WORLD.params, start, oracle.POLICY, oracle.batch(WORLD, 5))
    scale = float(advantage.scale_of(state))
    assert abs(scale - SPREAD) > 0.1
    np.testing.assert_allclose(oracle.expected_gradient(estimator, WORLD, 2, state=state), exact / scale, atol=1e-12)

    def own(batch):
        first = estimator.init(WORLD.params)
        _, after = estimator.estimate(WORLD.params, first, oracle.POLICY, batch)
        return estimator.estimate(WORLD.params, after, oracle.POLICY, batch)[0].grads

    ratios = oracle.expectation(own, WORLD, 2) / exact
    assert np.ptp(ratios) > 0.01


def test_declarations():
    fixed, running = (score(ScaledRewards(ToGo(), scale)).declaration for scale in (4.0, None))
    assert (fixed.factor(3), fixed.order, fixed.unbiased) == (0.25, 0, False)
    assert (running.factor(3), running.order) == (None, 0)
    assert "divided by 4.0" in fixed.reasons[0]
    assert "that the state decides" in running.reasons[0]
    assert score(ScaledRewards(ToGo(), 1.0)).declaration == score(ToGo()).declaration
    both = score(ScaledRewards(Return(ld.baselines.BatchMean()), 2.0)).declaration
    assert both.factor(4) == 0.375


REWARDS, VALID = [[2.0, 4.0, 1.0], [3.0, jnp.nan, jnp.inf]], [[True] * 3, [True, False, False]]


def test_the_running_deviation_by_hand():
    """γ = 0.5: an episode has paid 2, 5, 3.5 so far, the other one 3; their variance is 1.171875."""
    discounts = jnp.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    taus = trajectory(rewards=jnp.array(REWARDS), valid=jnp.array(VALID), discounts=discounts)
    estimator = ld.ScoreFunction(ScaledRewards(Return()), discount=0.5)
    params = jnp.zeros(2)
    first, state = estimator.advantages(params, estimator.init(params), ld.shared_softmax, taus)
    np.testing.assert_array_equal(first, 0 * first)  # nothing was measured before
    np.testing.assert_allclose(jax.tree.leaves(state), [4, 3.375, 1.171875], rtol=1e-14)
    again, _ = estimator.advantages(params, state, ld.shared_softmax, taus)
    np.testing.assert_allclose(again, np.array([[4.25] * 3, [3, 0, 0]]) / np.sqrt(1.171875), rtol=1e-14)


def test_in_a_stream_the_sums_start_anew_with_each_episode_and_an_actor_critic_has_its_targets_in_the_scale():
    """Rewards 1, 2, 4 with an end after the second: 1, 2.5, 4, variance 1.5. The targets of values that are 0 are the returns over it."""
    shape = (1, 3, 1)
    steps = trajectory(
        rewards=jnp.array([1.0, 2.0, 4.0]).reshape(shape), discounts=jnp.array([1.0, 0.0, 1.0]).reshape(shape)
    )
    stream = ld.types.Stream(steps, jnp.array([[False, True, False]]), jnp.array([[0, 1, 0]]), jnp.ones((1, 3)))
    actor = ld.PPO(Standardized(ScaledRewards(GAE(1.0))), discount=0.5)
    estimator, params = ld.ActorCritic(actor, lambda params, o: 0.0 * jnp.sum(params)), jnp.zeros(2)
    _, state = estimator.advantages(params, estimator.init(params), ld.shared_softmax, stream)
    np.testing.assert_allclose(state[1].variance, 1.5, rtol=1e-14)
    (weights, targets), _ = estimator.advantages(params, state, ld.shared_softmax, stream)
    np.testing.assert_allclose(np.ravel(targets), np.array([2, 2, 4]) / np.sqrt(1.5), rtol=1e-14)
    np.testing.assert_allclose(np.ravel(weights), np.array([-1, -4, 5]) / np.sqrt(14), rtol=1e-7)  # whatever the scale


def test_equal_sums_say_nothing_and_a_batch_that_is_not_finite_leaves_the_scale_as_it_was():
    advantage = ScaledRewards(ToGo())
    estimator, params = ld.ScoreFunction(advantage), jnp.zeros(2)
    ones = trajectory(rewards=jnp.full((3, 1), 1e4 / 3))
    _, state = estimator.estimate(params, estimator.init(params), ld.shared_softmax, ones)
    assert state[1].num_steps == 3
    assert advantage.scale_of(state) == np.inf
    poor = ones._replace(rewards=ones.rewards.at[0, 0].set(jnp.inf))
    grads, after = estimator.estimate(params, state, ld.shared_softmax, poor)
    assert np.isnan(grads.grads).all()
    np.testing.assert_array_equal(jax.tree.leaves(after), jax.tree.leaves(state))


def test_float32_rewards_have_weights_in_float32_and_scales_may_be_mapped_over():
    taus = trajectory(rewards=jnp.ones((2, 3), jnp.float32))
    params = jnp.zeros(2, jnp.float32)

    def weights(scale: Any):
        estimator = ld.ScoreFunction(ScaledRewards(ToGo(), scale))
        return estimator.advantages(params, estimator.init(params), ld.shared_softmax, taus)[0]

    plain = weights(1.0)
    assert plain.dtype == weights(None).dtype == jnp.float32
    mapped = jax.jit(jax.vmap(weights))(jnp.array([1.0, 4.0]))
    np.testing.assert_allclose(mapped, np.array([plain, np.asarray(plain) / 4]), rtol=1e-6)


def test_bad_input_is_named():
    for scale in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="scale: expected a positive number"):
            ScaledRewards(ToGo(), scale)
    with pytest.raises(ValueError, match="scale: expected a finite number"):
        ScaledRewards(ToGo(), np.inf)
    unmade: Any = ToGo
    with pytest.raises(TypeError, match=r"advantage: .*the class ToGo; call it"):
        ScaledRewards(unmade)
    with pytest.raises(ValueError, match="expected one without state in groups"):
        ld.ScoreFunction(Grouped(ScaledRewards(Return()), 2)).init(jnp.zeros(2))
    state: Any = RunningMoments.start(jnp.zeros(2))
    with pytest.raises(ValueError, match="state: expected"):
        ld.ScoreFunction(ScaledRewards(ToGo())).estimate(jnp.zeros(2), state, ld.shared_softmax, oracle.batch(WORLD, 2))
