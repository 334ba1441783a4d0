"""Exact moments of estimators: against sums written out, closed forms, published numbers, and each other."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from benchmarks.variance_laws import COIN, COINS, logit
from logderiv.estimators import Structure
from tests.listed import DISCOUNT, PARAMS, POLICY, TWO_STATES_VARIANCES, listed, mean_and_covariance, ravel, shifted
from tests.mostly import mostly_slow, slow
from tests.worlds import TERMINATING_LOGITS, TWO_STATES_LOGITS, cast, terminating, two_states

LOO = ld.ScoreFunction(ld.advantages.Return(ld.baselines.LeaveOneOut(per="trajectory")), discount=DISCOUNT)
TWO_STEPS: Any = {"horizon": 2, "credit": ld.advantages.total_return, "discount": DISCOUNT}
TO_GO_LOO = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()))


def moments(estimator: Any, **options: Any) -> ld.exact.Moments:
    arguments = {"params": PARAMS, "policy": POLICY, "environment": terminating()} | options
    return ld.exact.moments(estimator=estimator, **arguments)


def weighting(weigh):
    """A user's estimator: the mean over the batch of `weigh(returns)` times the score."""

    def estimate(params, policy, trajectories):
        rewards = jnp.where(trajectories.valid, trajectories.rewards, 0)
        returns = rewards @ DISCOUNT ** jnp.arange(rewards.shape[-1], dtype=rewards.dtype)
        weights = weigh(returns)
        return jax.grad(lambda p: jnp.mean(weights * ld.log_prob(p, policy, trajectories)))(params)

    return estimate


def batch_mean(returns):
    return returns - jnp.mean(returns)


def folds(returns):
    """The first serves as the baseline of the others, the second as that of the first: unbiased, but not symmetric."""
    return returns - jnp.concatenate([returns[1:2], jnp.broadcast_to(returns[:1], (len(returns) - 1,))])


# --- any estimator, by enumeration


def test_one_trajectory_against_the_sum_written_out():
    probabilities, scores, rewards, _ = listed(2)
    to_go = np.cumsum(rewards[:, ::-1], axis=1)[:, ::-1]
    for advantage, weights in ((ld.advantages.Return(), to_go[:, :1] + 0 * to_go), (ld.advantages.ToGo(), to_go)):
        mean, covariance = mean_and_covariance(probabilities, np.einsum("kt,ktd->kd", weights, scores))
        ours = moments(ld.ScoreFunction(advantage, discount=DISCOUNT), horizon=2, num_trajectories=1)
        assert jax.tree.structure(ours.mean) == jax.tree.structure(PARAMS)
        np.testing.assert_allclose(ravel(ours.mean), mean, atol=1e-14)
        np.testing.assert_allclose(ours.covariance, covariance, atol=1e-14)
        np.testing.assert_allclose(ravel(ours.bias), 0, atol=1e-14)
        assert ours.method == "degree"
        assert ours.num_evaluations == 47


def test_leave_one_out_against_pairs_written_out_by_every_method():
    probabilities, scores, rewards, _ = listed(2)
    returns, whole = rewards.sum(axis=1), scores.sum(axis=1)
    pairs = 0.5 * (returns[:, None] - returns)[..., None] * (whole[:, None] - whole)
    both = np.outer(probabilities, probabilities).ravel()
    mean, covariance = mean_and_covariance(both, pairs.reshape(len(both), -1))
    for method, number in (("degree", 47**2), ("multisets", 47 * 48 // 2), ("tuples", 47**2)):
        ours = moments(LOO, horizon=2, num_trajectories=2, method=method)
        assert (ours.method, ours.num_evaluations) == (method, number)
        np.testing.assert_allclose(ravel(ours.mean), mean, atol=1e-14)
        np.testing.assert_allclose(ours.covariance, covariance, atol=1e-14)
        np.testing.assert_allclose(ravel(ours.bias), 0, atol=1e-14)


def test_the_declared_degree_predicts_larger_batches():
    by_degree = moments(LOO, horizon=2, num_trajectories=3)
    directly = moments(LOO, horizon=2, num_trajectories=3, method="tuples")
    assert (by_degree.method, by_degree.num_evaluations) == ("degree", 47**2)
    assert directly.num_evaluations == 47**3
    np.testing.assert_allclose(by_degree.covariance, directly.covariance, atol=1e-14)
    np.testing.assert_allclose(ravel(by_degree.mean), ravel(directly.mean), atol=1e-14)
    gradient = ld.exact.gradient(PARAMS, POLICY, terminating(), horizon=2, discount=DISCOUNT)
    np.testing.assert_allclose(ravel(directly.exact), ravel(gradient), atol=1e-15)


class Users:
    """A user's class, not hashable, as they often are: the mean over the batch of `weigh(returns)` times the score."""

    __hash__ = None  # pyright: ignore[reportAssignmentType]
    weigh: Any
    scale: float

    def __init__(self, weigh, **attributes):
        vars(self).update(weigh=weigh, **attributes)

    def estimate(self, params, state, policy, trajectories):
        grads = weighting(self.weigh)(params, policy, trajectories)
        return ld.types.Estimate(grads, ld.types.batch_info(trajectories)), state


def triples(returns):
    """Of degree 3: the mean over ordered triples of R_i R_j R_k score_k, which estimates J^2 grad J."""
    others, squares = jnp.sum(returns) - returns, jnp.sum(returns**2) - returns**2
    return returns * (others**2 - squares) / ((len(returns) - 1) * (len(returns) - 2))


def test_degree_three_by_a_users_class():
    estimator = Users(triples, structure=Structure(min_trajectories=3, degree=3), discount=DISCOUNT)
    by_degree = moments(estimator, horizon=1, num_trajectories=5)
    directly = moments(estimator, horizon=1, num_trajectories=5, method="multisets")
    assert (by_degree.num_evaluations, directly.num_evaluations) == (11**3, math.comb(15, 5))
    np.testing.assert_allclose(by_degree.covariance, directly.covariance, atol=1e-14)
    value = ld.exact.value(PARAMS, POLICY, terminating(), horizon=1)
    np.testing.assert_allclose(ravel(by_degree.mean), value**2 * ravel(by_degree.exact), atol=1e-14)
    np.testing.assert_allclose(ravel(by_degree.mean), ravel(directly.mean), atol=1e-14)


def test_a_wrong_degree_does_not_survive_the_other_methods():
    """A mean that contains its own sample is short by 1/N; degree 2 would make that 1/2 at every N."""
    misdeclared = Users(batch_mean, structure=Structure(min_trajectories=2, degree=2))
    claimed, computed = (
        moments(misdeclared, horizon=1, num_trajectories=3, method=method) for method in ("degree", "multisets")
    )
    np.testing.assert_allclose(ravel(claimed.mean), ravel(claimed.exact) / 2, atol=1e-14)
    np.testing.assert_allclose(ravel(computed.mean), ravel(computed.exact) * 2 / 3, atol=1e-14)


def test_an_estimator_that_depends_on_the_order_is_found_out():
    estimate = weighting(folds)
    with pytest.raises(ValueError, match="changes with the order"):
        moments(estimate, horizon=1, num_trajectories=3)
    setattr(estimate, "symmetric", False)  # noqa: B010, the type checker knows no attributes of functions
    ours = moments(estimate, horizon=1, num_trajectories=3, discount=DISCOUNT)
    assert (ours.method, ours.num_evaluations) == ("tuples", 11**3)
    np.testing.assert_allclose(ravel(ours.bias), 0, atol=1e-14)
    with pytest.raises(ValueError, match="needs an estimator that is symmetric"):
        moments(estimate, horizon=1, num_trajectories=3, method="multisets")


class FromState(Users):
    """Subtracts its state; mutable."""

    def init(self, params):
        del params
        return jnp.array(0.5)

    def estimate(self, params, state, policy, trajectories):
        moved = Users(lambda returns: self.scale * (returns - state))
        return moved.estimate(params, state, policy, trajectories)


def test_the_state_counts_and_a_changed_object_is_not_remembered():
    estimator: Any = FromState(None, scale=1.0)

    def covariance(state=None):
        return moments(estimator, horizon=2, num_trajectories=1, state=state, discount=DISCOUNT).covariance

    def programmed(baseline):
        found = ld.exact.weighted_score_moments(PARAMS, POLICY, terminating(), baseline=baseline, **TWO_STEPS)
        return found.covariance

    np.testing.assert_allclose(covariance(), programmed(0.5), atol=1e-14)
    estimator.scale = 3.0
    np.testing.assert_allclose(covariance(jnp.array(2.0)), 9 * programmed(2.0), atol=1e-13)


def ratio(params, policy, trajectories):
    steps = ld.log_factors(params, policy, trajectories) - trajectories.behavior_log_probs
    return jnp.exp(jnp.sum(steps, axis=-1))


def test_off_policy_ratio_has_the_variance_of_its_closed_form():
    """E[w] = 1 and E[w^2] = (p^2/q + (1-p)^2/(1-q))^T: variance 1.04^10 - 1 at p = 0.6, q = 0.5, T = 10."""
    sizes: dict[str, Any] = {"horizon": 10, "num_trajectories": 1, "behavior_params": logit(0.5)}
    ours = ld.exact.moments(logit(0.6), COIN, COINS, lambda *arguments: jnp.mean(ratio(*arguments)), **sizes)
    np.testing.assert_allclose(ours.mean, 1, rtol=1e-13)
    np.testing.assert_allclose(ours.covariance, [[0.48024428491834437]], rtol=1e-12)
    assert ours.num_evaluations == 2**10


def test_off_policy_batches_are_drawn_from_the_behavior_and_say_so():
    def weighted(params, policy, trajectories):
        weights = ratio(params, policy, trajectories) * jnp.sum(trajectories.rewards, axis=-1)
        return jax.grad(lambda p: jnp.mean(weights * ld.log_prob(p, policy, trajectories)))(params)

    uniform = ld.FunctionPolicy(lambda params, state: ld.Categorical(0.0 * params["any"][state]))
    off = {"behavior_params": {"any": TERMINATING_LOGITS}, "behavior_policy": uniform}
    ours = moments(weighted, horizon=2, num_trajectories=1, **off)
    np.testing.assert_allclose(ravel(ours.bias), 0, atol=1e-14)
    plain = ld.ScoreFunction(ld.advantages.Return(), discount=DISCOUNT)
    unweighted = moments(plain, discount=1.0, horizon=2, num_trajectories=1, **off)
    assert np.abs(ravel(unweighted.bias)).max() > 0.01


def test_a_choice_that_is_never_made_has_no_part_in_the_expectation():
    def masked(params, state):
        return ld.Categorical(jnp.where((state == 0) & (jnp.arange(2) == 1), -jnp.inf, shifted(params, state).logits))

    def undefined_there(params, policy, trajectories):
        impossible = jnp.any((trajectories.observations == 0) & (trajectories.actions == 1) & trajectories.valid)
        grads = weighting(lambda returns: returns)(params, policy, trajectories)
        return jax.tree.map(lambda g: jnp.where(impossible, jnp.nan, g), grads)

    ours = moments(undefined_there, policy=masked, horizon=2, num_trajectories=1, discount=DISCOUNT)
    np.testing.assert_allclose(ravel(ours.bias), 0, atol=1e-14)
    programmed = ld.exact.weighted_score_moments(PARAMS, masked, terminating(), **TWO_STEPS)
    np.testing.assert_allclose(programmed.covariance, ours.covariance, atol=1e-14)
    assert ours.num_evaluations < 47


def test_a_plain_function_is_compiled_once_for_all_chunks(monkeypatch):
    """Traced for its expectation and nothing else, however many chunks the batches come in."""
    traces = []

    def plain(params, policy, trajectories):
        traces.append(1)
        return jax.grad(lambda p: jnp.mean(ld.log_prob(p, policy, trajectories)))(params)

    monkeypatch.setattr("logderiv.exact.batches._STEPS", 64)
    found = moments(plain, horizon=2, num_trajectories=2)
    assert found.num_evaluations > 10 * 64 // 4
    assert len(traces) <= 2


def test_nan_stays_nan():
    ours = moments(lambda params, *_: jax.tree.map(lambda x: jnp.nan * x, params), horizon=1, num_trajectories=2)
    assert np.isnan(ravel(ours.mean)).all()
    assert np.isnan(ours.covariance).all()
    assert np.isfinite(ravel(ours.exact)).all()


def test_sums_are_float64_whatever_the_parameters():
    with jax.enable_x64(False):
        params, mdp = cast((TWO_STATES_LOGITS, two_states()), jnp.float32)
        estimator = ld.ScoreFunction(discount=0.9)
        ours = ld.exact.moments(params, ld.tabular_softmax, mdp, estimator, horizon=3, num_trajectories=1)
    assert ours.mean.dtype == ours.covariance.dtype == np.float64
    np.testing.assert_allclose(ours.bias, 0, atol=1e-6)
    np.testing.assert_allclose(np.trace(ours.covariance), TWO_STATES_VARIANCES[3]["reward_to_go"].sum() * 2, rtol=1e-5)


TOO_MANY = r"of 9 out of 47 trajectories \(multisets\) are about 10\^10 evaluations.*structure.*weighted_score_moments"
TALL = r"gradient\['table'\]: expected shape \(3, 2\), received \(2, 3, 2\)"
BAD: list[tuple[Any, str, Any, dict[str, Any]]] = [
    (ValueError, TOO_MANY, TO_GO_LOO, {"num_trajectories": 9}),
    (ValueError, r"out of 47 trajectories \(degree\) are 2209 evaluations.*limit=2208", LOO, {"limit": 2208}),
    (ValueError, r"2 actions have at least \d+ trajectories of 30 steps", LOO, {"horizon": 30}),
    (ValueError, ">= 2, received 1; this estimator needs", LOO, {"num_trajectories": 1}),
    (
        ValueError,
        "num_trajectories: expected a whole number >= 1, received 0",
        ld.ScoreFunction(),
        {"num_trajectories": 0},
    ),
    (ValueError, "gradient: expected a pytree of the structure", lambda params, *_: params["table"], {}),
    (ValueError, TALL, lambda params, *_: params | {"table": jnp.stack([params["table"]] * 2)}, {}),
    (TypeError, "estimator: expected estimate", "REINFORCE", {}),
    (ValueError, "method: expected 'degree'", LOO, {"method": "pairs"}),
    (ValueError, "structure.degree = None", TO_GO_LOO, {"method": "degree"}),
    (ValueError, "all trajectories sum to", LOO, {"behavior_policy": lambda p, s: ld.Categorical(jnp.zeros(3))}),
    (ValueError, r"discount: expected a number in \[0, 1\]", LOO, {"discount": 1.5}),
    (TypeError, "expected a floating-point array", LOO, {"params": jnp.zeros((3, 2), int)}),
    (ValueError, "order: expected a whole number >= 1, received 0", LOO, {"order": 0}),
    (TypeError, "advantages and objective, received function", weighting(folds), {"order": 2}),
]


@pytest.mark.parametrize(("error", "message", "estimator", "options"), BAD, ids=[row[1] for row in BAD])
def test_bad_input_is_named(error, message, estimator, options):
    with pytest.raises(error, match=message):
        moments(estimator, **{"horizon": 2, "num_trajectories": 2} | options)


@pytest.mark.parametrize("name", ["full_return", "reward_to_go"])
def test_variances_of_the_two_state_process_by_enumeration(name):
    advantage = ld.advantages.Return() if name == "full_return" else ld.advantages.ToGo()
    arguments = (TWO_STATES_LOGITS, ld.tabular_softmax, two_states(), ld.ScoreFunction(advantage, discount=0.9))
    ours = ld.exact.moments(*arguments, horizon=3, num_trajectories=5)
    np.testing.assert_allclose(5 * np.diag(ours.covariance)[::2], TWO_STATES_VARIANCES[3][name], rtol=1e-12)
    np.testing.assert_allclose(ours.bias, 0, atol=1e-14)


# --- derivatives of the objective


def test_dice_with_leave_one_out_is_exact_at_higher_orders():
    estimator = dataclasses.replace(TO_GO_LOO, discount=DISCOUNT, surrogate=ld.estimators.DiCE())
    arguments = (TERMINATING_LOGITS, ld.tabular_softmax, terminating(), estimator)
    for order in (2, 3):
        ours = ld.exact.moments(*arguments, horizon=2, num_trajectories=2, order=order)
        assert (ours.method, ours.exact.shape, ours.covariance) == ("multisets", (6,) * order, None)
        np.testing.assert_allclose(ours.bias, 0, atol=1e-14)
        assert np.abs(ours.exact).max() > 0.005


# The corners (0, 0), (0, 2) and (2, 2) of the Hessian of the two-state process, and of E[R d^2 log P] alone, which lacks E[R dlog P
# dlog P^T]: every trajectory enumerated by another program, in float64.
PLAIN = {
    1: ((-0.03275656556001866, 0.0, 0.008720895205027501), (-0.0530470295336212, -0.10785877048428763)),
    2: (
        (-0.00520447139818736, 0.015636764737870394, -0.015442959857532634),
        (-0.3374866431093107, -0.28144949895418714),
    ),
}


@pytest.mark.parametrize("horizon", mostly_slow(PLAIN, (2,)))
def test_the_plain_surrogate_lacks_a_known_part_of_the_hessian(horizon):
    estimator = ld.ScoreFunction(ld.advantages.Return(), discount=0.9)
    arguments = (TWO_STATES_LOGITS, ld.tabular_softmax, two_states(), estimator)
    ours = ld.exact.moments(*arguments, horizon=horizon, num_trajectories=3, order=2)
    block, ((a, b, d), (first, last)) = np.array([[1.0, -1.0], [-1.0, 1.0]]), PLAIN[horizon]
    np.testing.assert_allclose(ours.mean, np.kron([[first, 0], [0, last]], block), atol=1e-14)
    np.testing.assert_allclose(ours.exact, np.kron([[a, b], [b, d]], block), atol=1e-14)
    assert (ours.method, ours.num_evaluations) == ("degree", 2 * 4**horizon)


def in_numpy(params, policy, trajectories):
    """Reward-to-go in plain loops, which nothing can trace: Σ_t Σ_{s≥t} r_s ∇ log π(a_t|s_t) of a softmax, mean over trajectories."""
    probs = np.exp(params) / np.sum(np.exp(params))
    total = np.zeros(2)
    for actions, rewards, valid in zip(trajectories.actions, trajectories.rewards, trajectories.valid, strict=True):
        for t in range(len(rewards)):
            if bool(valid[t]):
                total += float(np.sum(np.where(valid[t:], rewards[t:], 0))) * (np.eye(2)[int(actions[t])] - probs)
    return total / len(trajectories.valid)


@pytest.mark.parametrize("num_trajectories", [1, slow(2)])
def test_an_estimator_that_cannot_be_traced_is_called_batch_by_batch(num_trajectories):
    params = jnp.array([0.3, -0.2])
    moments = partial(ld.exact.moments, params, ld.shared_softmax, ld.environments.short_corridor())
    options: Any = {"horizon": 4, "num_trajectories": num_trajectories, "method": "multisets"}
    expected = moments(ld.ScoreFunction(ld.advantages.ToGo()), **options)
    found = moments(in_numpy, **options, traced=False)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.covariance, expected.covariance, rtol=0, atol=1e-12)
    assert np.abs(found.bias).max() < 1e-12
    summed = moments(lambda *a: 2 * in_numpy(*a), **options, traced=False)
    assert np.abs(summed.bias).max() > 1e-2
    with pytest.raises(TypeError, match="traced=False"):
        moments(in_numpy, **options)
    with pytest.raises(ValueError, match=r"traced.*order = 2"):
        moments(ld.ScoreFunction(), horizon=3, num_trajectories=1, order=2, traced=False)
