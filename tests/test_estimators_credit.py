"""Credit by hand, by identity and against rlax."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.estimators.batch import prepare
from logderiv.estimators.declaration import Declaration
from logderiv.estimators.returns import (
    Scaled,
    generalized_advantages,
    lambda_returns,
    reward_to_go,
    scaled_sums,
    td_residuals,
    times_exp,
    total_return,
    vtrace,
)

from .worlds import trajectory

REWARDS = jnp.array([1.0, 2.0, 3.0])
HALVES = jnp.full(3, 0.5)
VALUES = jnp.array([10.0, 20.0, 40.0])
NEXT = jnp.array([20.0, 40.0, 80.0])  # the last is the value of the final observation


def random_arrays(seed, terminated=False, dtype: Any = float):
    """Rewards, discounts, values now and then, lambdas and ratios of seven steps."""
    random = np.random.default_rng(seed)
    discounts = np.where(terminated & (np.arange(7) == 3), 0, 0.9)
    rewards, values, ratios = random.normal(size=7), random.normal(size=8), np.exp(random.normal(size=7))
    found = rewards, discounts, values[:-1], values[1:], random.uniform(size=7), ratios
    return tuple(jnp.asarray(x, dtype) for x in found)


def test_reward_to_go_and_total_return_by_hand():
    assert reward_to_go(REWARDS, HALVES).tolist() == [1 + 0.5 * (2 + 0.5 * 3), 2 + 0.5 * 3, 3]
    assert total_return(REWARDS, HALVES).tolist() == [2.75, 2.75, 2.75]
    cut_apart = jnp.array([0.5, 0.0, 0.5])
    assert reward_to_go(REWARDS, cut_apart).tolist() == [2.0, 2.0, 3.0]


def test_td_residuals_by_hand():
    assert td_residuals(REWARDS, HALVES, VALUES, NEXT).tolist() == [1 + 10 - 10, 2 + 20 - 20, 3 + 40 - 40]


@pytest.mark.parametrize("unknown", [jnp.inf, -jnp.inf, jnp.nan])
def test_what_follows_the_end_counts_for_nothing_and_else_is_seen(unknown):
    ended, following = HALVES.at[2].set(0.0), NEXT.at[2].set(unknown)
    assert td_residuals(REWARDS, ended, VALUES, following).tolist() == [1.0, 2.0, 3 - 40]
    assert lambda_returns(REWARDS, ended, following, lambda_=0.0).tolist() == [1 + 10, 2 + 20, 3]
    assert not np.isfinite(td_residuals(REWARDS, HALVES, VALUES, following)[2])
    assert not np.isfinite(td_residuals(REWARDS, HALVES, VALUES, NEXT.at[0].set(unknown))[0])


def test_v_trace_by_hand():
    ratios = jnp.array([4.0, 0.5, 2.0])
    plain = vtrace(REWARDS, HALVES, VALUES, NEXT, ratios)
    assert plain.targets.tolist() == [10 + 1 + 0.5 * 1.75, 20 + 0.5 * 2 + 0.25 * 3, 40 + 3]
    assert plain.advantages.tolist() == [1 + 0.5 * 1.75, 0.5 * (2 + 0.5 * 3), 3]
    assert plain.q_values.tolist() == [1 + 10 + 0.5 * 1.75, 2 + 20 + 0.5 * 3, 3 + 40]
    clipped = vtrace(REWARDS, HALVES, VALUES, NEXT, ratios, lambda_=0.5, clip_rho=3.0, clip_c=2.0, clip_pg=1.5)
    assert clipped.targets.tolist() == [10 + 3 + 0.25 * 2 * 1.75, 20 + 1 + 0.25 * 0.5 * 6, 40 + 6]
    assert clipped.advantages.tolist() == [1.5 * (1 + 0.25 * 1.75), 0.5 * (2 + 0.25 * 6), 1.5 * 3]


@pytest.mark.parametrize("lambda_", [-0.5, 1.5])
def test_lambda_is_between_0_and_1(lambda_):
    with pytest.raises(ValueError, match="lambda_"):
        generalized_advantages(REWARDS, HALVES, VALUES, NEXT, lambda_=lambda_)


def test_arrays_are_of_one_trajectory():
    for discounts in (HALVES[:2], HALVES[None]):
        with pytest.raises(ValueError, match=r"all of shape \(T,\), received"):
            reward_to_go(REWARDS, discounts)
    with pytest.raises(ValueError, match=r"received rewards \(1, 3\); use jax.vmap"):
        reward_to_go(REWARDS[None], HALVES[None])


def test_products_beyond_the_range_of_floating_point():
    """x e^l, where e^l has no number: in float32 e^88 is the largest, in float64 e^709."""
    for dtype, log in ((jnp.float32, 150.0), (jnp.float64, 1200.0)):
        x = jnp.asarray([np.exp(-log / 2), np.exp(log / 2), 2, -3, 0, 0, 5], dtype)
        logs = jnp.asarray([log, -log, np.log(3), 0, np.inf, -np.inf, -np.inf], dtype)
        expected = [np.exp(log / 2), np.exp(-log / 2), 6, -3, 0, 0, 0]
        np.testing.assert_allclose(times_exp(x, logs), expected, rtol=2e3 * float(jnp.finfo(dtype).eps))
    assert times_exp(jnp.ones(1), jnp.full(1, jnp.inf)).tolist() == [np.inf]


def scaled(mantissa, log=None):
    return Scaled(jnp.asarray(mantissa), None if log is None else jnp.asarray(log))


def test_sums_of_numbers_beyond_the_range_of_floating_point():
    def total(first, second):
        return float(scaled(*first).plus(*scaled(*second)).value)

    np.testing.assert_allclose(total((2.0, 0.0), (3.0, 2.0)), 2 + 3 * np.exp(2), rtol=1e-15)
    np.testing.assert_allclose(total((2.0, None), (3.0, 2.0)), 2 + 3 * np.exp(2), rtol=1e-15)
    np.testing.assert_allclose(total((2.0, 2.0), (3.0, None)), 3 + 2 * np.exp(2), rtol=1e-15)
    assert total((2.0, None), (3.0, None)) == 5
    assert total((2.0, 1000.0), (-2.0, 1000.0)) == 0
    assert total((0.0, np.inf), (7.0, 0.0)) == total((7.0, 0.0), (0.0, 1000.0)) == 7  # 0 whatever its logarithm
    assert np.isnan(total((0.0, np.nan), (7.0, 0.0)))
    np.testing.assert_allclose(total((-1.0, 0.0), (4.0, 0.0)), 3, rtol=1e-15)


def test_scans_of_numbers_beyond_the_range_of_floating_point():
    """y_t = x_t + c_t y_{t+1}: against a loop where everything has a number, and by hand where nothing has."""
    x, c, logs = (
        np.random.default_rng(i).uniform(*given, (2, 7)) for i, given in enumerate(((-1, 1), (0, 1), (-3, 3)))
    )
    for log_x, log_c in ((logs, logs[::-1]), (logs, None), (None, None)):
        found = scaled_sums(scaled(x, log_x), scaled(c, log_c))
        terms, factors = (m if log is None else m * np.exp(log) for m, log in ((x, log_x), (c, log_c)))
        expected = np.zeros((2, 8))
        for t in range(6, -1, -1):
            expected[:, t] = terms[:, t] + factors[:, t] * expected[:, t + 1]
        np.testing.assert_allclose(found.value, expected[:, :7], rtol=1e-12)
    terms, factors = (
        scaled([[1.0, 2.0, 3.0]], [[0.0, 500.0, 1000.0]]),
        scaled([[0.5, 0.25, 0.0]], [[-500.0, -490.0, 7.0]]),
    )
    found = scaled_sums(terms, factors)
    logs = np.log(np.asarray(found.mantissa)) + found.log
    expected = [np.log(2 + 0.375 * np.exp(10)), 510 + np.log(0.75 + 2 * np.exp(-10)), 1000 + np.log(3)]
    np.testing.assert_allclose(logs[0], expected, rtol=1e-14)


def test_truncation_bootstraps_and_termination_does_not():
    """The same rewards, cut after two steps or terminated there; what follows is padding with garbage."""
    valid = jnp.array([True, True, False])
    bad = jnp.array([1.0, 2.0, jnp.nan])
    cut = lambda_returns(bad, HALVES, NEXT, valid=valid)
    ended = lambda_returns(bad, HALVES.at[1].set(0.0), NEXT.at[2].set(jnp.inf), valid=valid)
    assert cut.tolist() == [1 + 0.5 * (2 + 0.5 * 40), 2 + 0.5 * 40, 0.0]
    assert ended.tolist() == [2.0, 2.0, 0.0]
    advantages = generalized_advantages(bad, HALVES, VALUES.at[2].set(jnp.nan), NEXT, valid=valid)
    assert advantages.tolist() == [1 + 0.5 * (2 + 0.5 * 40) - 10, 2 + 0.5 * 40 - 20, 0.0]


def test_padding_has_no_derivative_either():
    valid = jnp.array([True, True, False])
    bad = jnp.array([1.0, 2.0, jnp.nan])

    def total(rewards, discounts, values, next_values):
        returns = lambda_returns(rewards, discounts, next_values, lambda_=0.7, valid=valid)
        return jnp.sum(
            returns + generalized_advantages(rewards, discounts, values, next_values, lambda_=0.7, valid=valid)
        )

    grads = jax.grad(total, argnums=(0, 1, 2, 3))(bad, bad * 0.5, VALUES * bad, NEXT * bad)
    assert all(jnp.isfinite(g).all() for g in grads)
    assert all(g[2] == 0 for g in grads)
    assert all((g[:2] != 0).all() for g in (grads[0], grads[2]))


def recursions(rewards, discounts, values, next_values, lambdas):
    """Lambda-returns and advantages by a loop from the end; as in rlax, each takes the lambda of its own step."""
    returns, advantages = np.zeros(len(rewards)), np.zeros(len(rewards))
    following, running = float(next_values[-1]), 0.0
    for t in reversed(range(len(rewards))):
        r, gamma, now, then, mixing = (float(x[t]) for x in (rewards, discounts, values, next_values, lambdas))
        returns[t] = following = r + gamma * ((1 - mixing) * then + mixing * following)
        advantages[t] = running = r + gamma * then - now + gamma * mixing * running
    return returns, advantages


@pytest.mark.parametrize("terminated", [False, True])
def test_lambda_identities(terminated):
    rewards, discounts, now, then, lambdas, _ = random_arrays(0, terminated)
    for lambda_ in (0.0, 0.4, 1.0, lambdas):
        returns = lambda_returns(rewards, discounts, then, lambda_=lambda_)
        advantages = generalized_advantages(rewards, discounts, now, then, lambda_=lambda_)
        if isinstance(lambda_, float):
            np.testing.assert_allclose(returns - now, advantages, rtol=0, atol=1e-13)
        by_hand = recursions(rewards, discounts, now, then, np.broadcast_to(lambda_, rewards.shape))
        np.testing.assert_allclose((returns, advantages), by_hand, rtol=0, atol=1e-13)
    one_step = lambda_returns(rewards, discounts, then, lambda_=0.0)
    np.testing.assert_allclose(one_step, rewards + discounts * then, rtol=0, atol=1e-15)
    final = jnp.zeros_like(rewards).at[-1].set(discounts[-1] * then[-1])
    bootstrapped = reward_to_go(rewards + final, discounts)
    np.testing.assert_allclose(lambda_returns(rewards, discounts, then), bootstrapped, rtol=0, atol=1e-13)


def test_float32_keeps_seven_digits_over_a_million_steps():
    """A float32 scan of ones is off by a percent where sums of 1/3 pass 2^18."""
    rewards = jnp.full(10**6, 1 / 3, jnp.float32)
    first = jax.jit(reward_to_go)(rewards, jnp.ones_like(rewards))[0]
    assert first.dtype == jnp.float32
    np.testing.assert_allclose(first, 10**6 * float(rewards[0]), rtol=1e-6)


def test_gamma_t_is_kept_unless_left_out_by_name():
    taus, returns = trajectory(rewards=jnp.stack([REWARDS, REWARDS])), np.array([2.75, 3.5, 3.0])
    for kept, powers in ((True, [1, 0.5, 0.25]), (False, [1, 1, 1])):
        estimator = ld.ScoreFunction(discount=0.5, gamma_t=kept)
        found, _ = estimator.advantages(REWARDS, (), ld.shared_softmax, taus)
        np.testing.assert_array_equal(found, [returns * powers] * 2)


@pytest.mark.usefixtures("nans_are_errors")
def test_powers_of_a_discount_of_zero_are_logarithms_off_policy():
    """γ^t = 1, 0, 0 has no logarithm at the first step, where 0 log 0 would be NaN, and 0 is exp(−inf)."""
    estimator = ld.ScoreFunction(discount=0.0, importance=ld.importance.Importance())
    taus = trajectory(rewards=REWARDS[None], behavior_log_probs=jnp.log(jnp.full((1, 3), 0.25)))
    batch = prepare(estimator, jnp.zeros(2), ld.shared_softmax, taus)
    np.testing.assert_array_equal(batch.powers, [[1, 1, 1]])
    np.testing.assert_allclose(batch.log_scale, [[np.log(2), -np.inf, -np.inf]], rtol=1e-14)
    np.testing.assert_allclose(estimator.advantages(jnp.zeros(2), (), ld.shared_softmax, taus)[0], [[2, 0, 0]])


def test_weights_and_targets_of_gae_off_policy_by_hand():
    """Ratios of 2, λ = γ = 1/2, δ = 1, 2, 3: w_t = γ^t ρ_{≤t} δ_t + λ w_{t+1}, and targets v_t + e_t, e_t = ρ_t (δ_t + γ λ e_{t+1})."""
    gae = ld.advantages.GAE(0.5, ld.baselines.Value(lambda observation: observation))
    estimator = ld.ScoreFunction(gae, discount=0.5, importance=ld.importance.Importance())
    taus = trajectory(
        rewards=REWARDS[None],
        observations=VALUES[None],
        final_observation=NEXT[2:],
        behavior_log_probs=jnp.log(jnp.full((1, 3), 0.25)),
    )
    weights, targets, _ = jax.jit(lambda: estimator.weigh(jnp.zeros(2), (), ld.shared_softmax, taus))()
    np.testing.assert_allclose(weights, [[2 + 7 / 2, 4 + 6 / 2, 6]], rtol=1e-14)
    np.testing.assert_allclose(targets, [[10 + 2 * (1 + 7 / 4), 20 + 2 * (2 + 6 / 4), 40 + 2 * 3]], rtol=1e-14)


def test_declarations():
    orders = [ld.advantages.GAE(lambda_).declaration.order for lambda_ in (1.0, 0.99)]
    assert orders == [np.inf, 0]
    assert ld.advantages.ToGo().declaration == ld.advantages.Return().declaration == Declaration()


@pytest.mark.parametrize("terminated", [False, True])
def test_equal_to_rlax(terminated, rlax):
    for seed in range(3):
        rewards, discounts, now, then, lambdas, _ = random_arrays(seed, terminated, jnp.float32)
        values = jnp.append(now, then[-1])
        for lambda_ in (0.0, 0.3, 1.0):
            ours = lambda_returns(rewards, discounts, then, lambda_=lambda_)
            np.testing.assert_allclose(ours, rlax.lambda_returns(rewards, discounts, then, lambda_), atol=1e-6)
            ours = generalized_advantages(rewards, discounts, now, then, lambda_=lambda_)
            theirs = rlax.truncated_generalized_advantage_estimation(rewards, discounts, lambda_, values)
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
        ours = lambda_returns(rewards, discounts, then, lambda_=lambdas)
        np.testing.assert_allclose(ours, rlax.lambda_returns(rewards, discounts, then, lambdas), atol=1e-6)
        ours = td_residuals(rewards, discounts, now, then)
        theirs = jax.vmap(rlax.td_learning)(now, rewards, discounts, then)
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
        theirs = rlax.discounted_returns(rewards, discounts, jnp.zeros_like(then))
        np.testing.assert_allclose(reward_to_go(rewards, discounts), theirs, atol=1e-6)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_policy_gradient_loss_of_rlax_is_ours_divided_by_t(rlax):
    logits = jax.random.normal(jax.random.key(0), (5, 3), jnp.float32)
    actions = jnp.array([0, 2, 1, 1, 0])
    weights = jnp.arange(5, dtype=jnp.float32)

    def ours(logits):
        logs = jax.vmap(lambda x, a: ld.Categorical(x).log_prob(a))(logits, actions)
        return ld.estimators.Score()(logs, weights)

    theirs = jax.grad(lambda x: rlax.policy_gradient_loss(x, actions, weights, jnp.ones_like(weights)))(logits)
    np.testing.assert_allclose(jax.grad(ours)(logits), -5 * theirs, atol=1e-6)
