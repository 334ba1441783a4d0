"""Rewards that are alike say nothing: no rounding error of a mean becomes a weight of size one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.advantages import Return, Standardized
from logderiv.estimators.objectives.advantages import CENTERED
from logderiv.objectives import Centered, advantages
from tests.worlds import trajectory

LEFT = [pair for pair in CENTERED if pair not in [(None, None), ("greedy", None)]]  # what subtracts a mean
MASK = np.arange(5) < np.array([5, 2, 3, 1, 4, 2, 5])[:, None]


@partial(jax.jit, static_argnums=1)
def _advantages(rewards, pair):
    kind = Centered(*pair)
    return advantages(rewards, jnp.zeros(rewards.size, int), num_groups=1, kind=kind, mask=MASK[: rewards.size])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("pair", LEFT, ids=str)
def test_equal_rewards_have_no_advantage(pair, dtype):
    """The wrong twin subtracts the rounded mean and divides by what that leaves for a deviation: 1 or -1 for every answer."""
    twins = []
    for size in (3, 6, 7):
        for reward in (0.1, 0.3, 5.3, 100.1, -1 / 3):
            assert not np.asarray(_advantages(jnp.full(size, reward, dtype), pair)).any()
            equal = np.full(size, reward, dtype)
            left = equal - np.add.accumulate(equal)[-1] / dtype(size)
            twins.append(np.abs(left / np.where(left == 0, 1, np.sqrt(np.mean(left**2)))).min())
    assert np.isclose(max(twins), 1)


@pytest.mark.parametrize("pair", LEFT, ids=str)
def test_rewards_far_from_zero_keep_their_digits(pair):
    """Those of 10⁶ + 0 .. 6 are those of 0 .. 6, in float32 too; no mean of the former is a number of float32."""
    small = jnp.arange(7.0)
    found = _advantages((1e6 + small).astype(jnp.float32), pair)
    np.testing.assert_allclose(found, _advantages(small, pair), rtol=0, atol=5e-7 * np.abs(found).max())


def test_equal_rewards_beside_others_are_what_masking_them_gives():
    """Of a bandit that pays 0.1, 0.1 and 0.4: groups whose rewards agree weigh nothing, in their mean and in their covariance."""
    start, end = jnp.ones(1), jnp.zeros(1, bool)
    world = ld.environments.TabularMDP(start, jnp.ones((1, 3, 1)), jnp.array([[0.1, 0.1, 0.4]]), end)
    recipe = ld.objectives.Recipe(Centered("group", "group"))
    moments = [
        ld.exact.group_moments(
            jnp.array([[0.2, -0.1, 0.3]]),
            ld.tabular_softmax,
            world,
            recipe,
            horizon=1,
            size=6,
            equal_rewards=what,
        )
        for what in ("keep", "mask")
    ]
    kept, masked = moments
    np.testing.assert_allclose(kept.mean, masked.mean, rtol=0, atol=1e-14)
    np.testing.assert_allclose(kept.trace, masked.trace, rtol=0, atol=1e-14)


def _weights(rewards, **settings):
    taus = trajectory(rewards=rewards)
    estimator = ld.ScoreFunction(Standardized(Return(), "trajectory", **settings))
    return np.asarray(estimator.advantages(jnp.zeros((1, 2)), (), ld.tabular_softmax, taus)[0])[:, 0]


@pytest.mark.parametrize("epsilon", [0.0, 1e-8, 1e-3])
def test_returns_that_differ_by_their_rounding_are_equal(epsilon):
    """Seven payments of 0.1 at different times: 0.7 and 0.70000005; the wrong twin divides the difference by 10⁻⁸ and its own deviation."""
    order = np.argsort(np.random.default_rng(0).random((8, 12)))
    rewards = jnp.where(order < 7, jnp.float32(0.1), jnp.float32(0))
    totals = np.asarray(jax.jit(jax.vmap(ld.advantages.total_return))(rewards, jnp.ones_like(rewards)))[:, 0]
    assert len(set(totals.tolist())) == 2
    assert not _weights(rewards, epsilon=epsilon).any()
    twin = (totals - totals.mean()) / (totals.std() + np.float32(1e-8))
    assert np.abs(twin).max() > 0.5


def test_returns_far_from_zero_are_standardized_to_all_digits():
    """10⁶ + 0 .. 7 in float32; with the rounded mean the weights of 64 such returns have a mean of −0.08."""
    returns = jnp.arange(8.0)
    found = _weights((1e6 + returns)[:, None].astype(jnp.float32), epsilon=0.0)
    np.testing.assert_allclose(found, (returns - 3.5) / np.std(returns), rtol=3e-7)


@pytest.mark.parametrize("size", [1e-37, 1.0, 1e38, 3e38])
def test_standardized_weights_of_any_size(size):
    found = _weights(jnp.array([-1.0, 0.0, 1.0], jnp.float32)[:, None] * jnp.float32(size), epsilon=0.0)
    np.testing.assert_allclose(found, [-np.sqrt(1.5), 0, np.sqrt(1.5)], rtol=0, atol=3e-7)
