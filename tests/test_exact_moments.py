"""Exact moments of estimators: against sums written out, closed forms, published numbers, and each other."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import logderiv as ld
from benchmarks import variance_laws
from benchmarks.variance_laws import COIN, COINS, logit
from logderiv.estimators.declaration import Bias
from tests.worlds import TERMINATING_LOGITS, TWO_STATES_LOGITS, terminating, two_states

DISCOUNT = 0.8
PARAMS = {"table": TERMINATING_LOGITS, "shift": jnp.array([0.1, -0.2])}
LOO = ld.score_function(credit=ld.total_return, baseline=ld.baseline_leave_one_out(per="trajectory"), discount=DISCOUNT)


def shifted(params, state):
    return ld.Categorical(params["table"][state] + params["shift"])


POLICY = ld.FunctionPolicy(shifted)


def moments(estimator: Any, **options: Any) -> ld.exact.Moments:
    arguments = {"params": PARAMS, "policy": POLICY, "mdp": terminating()} | options
    return ld.exact.estimator_moments(estimator, **arguments)


def ravel(tree) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@functools.cache
def listed(horizon: int):
    """Probabilities (K,), scores of the steps (K, T, D), discounted rewards (K, T) and the trajectories, for `PARAMS`."""
    every = ld.exact.enumerate_trajectories(terminating(), horizon=horizon)
    flat, unravel = ravel_pytree(PARAMS)
    probabilities, scores = jax.jit(
        lambda flat: (
            ld.prob(unravel(flat), POLICY, every, environment=terminating()),
            jax.jacfwd(lambda flat: ld.log_factors(unravel(flat), POLICY, every))(flat),
        )
    )(flat)
    rewards = np.where(every.valid, every.rewards, 0) * DISCOUNT ** np.arange(horizon)
    return np.asarray(probabilities), np.asarray(scores), rewards, jax.tree.map(np.asarray, every)


def mean_and_covariance(probabilities, values):
    mean = probabilities @ values
    return mean, (probabilities[:, None] * (values - mean)).T @ (values - mean)


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
    for credit, weights in ((ld.total_return, to_go[:, :1] + 0 * to_go), (ld.reward_to_go, to_go)):
        mean, covariance = mean_and_covariance(probabilities, np.einsum("kt,ktd->kd", weights, scores))
        ours = moments(ld.score_function(credit=credit, discount=DISCOUNT), horizon=2, num_trajectories=1)
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
    gradient = jax.jit(lambda p: ld.exact.gradient(p, POLICY, terminating(), horizon=2, discount=DISCOUNT))(PARAMS)
    np.testing.assert_allclose(ravel(directly.gradient), ravel(gradient), atol=1e-15)


class Triples:
    """A user's class, of degree 3: the mean over ordered triples of R_i R_j R_k score_k, which estimates J^2 grad J."""

    bias = Bias(min_trajectories=3, degree=3, order=0)
    discount = DISCOUNT

    def estimate(self, params, state, policy, trajectories):
        def weigh(returns):
            others, squares = jnp.sum(returns) - returns, jnp.sum(returns**2) - returns**2
            return returns * (others**2 - squares) / ((len(returns) - 1) * (len(returns) - 2))

        grads = weighting(weigh)(params, policy, trajectories)
        return ld.Estimate(grads, ld.batch_info(trajectories)), state


def test_degree_three_by_a_users_class():
    by_degree = moments(Triples(), horizon=1, num_trajectories=5)
    directly = moments(Triples(), horizon=1, num_trajectories=5, method="multisets")
    assert (by_degree.num_evaluations, directly.num_evaluations) == (11**3, math.comb(15, 5))
    np.testing.assert_allclose(by_degree.covariance, directly.covariance, atol=1e-14)
    value = jax.jit(lambda p: ld.exact.value(p, POLICY, terminating(), horizon=1))(PARAMS)
    np.testing.assert_allclose(ravel(by_degree.mean), value**2 * ravel(by_degree.gradient), atol=1e-14)
    np.testing.assert_allclose(ravel(by_degree.mean), ravel(directly.mean), atol=1e-14)


@dataclasses.dataclass
class Misdeclared:
    """A batch mean with its own sample that claims to be of degree 2. Not hashable, as users' classes often are not."""

    bias: Bias = dataclasses.field(default_factory=lambda: Bias(degree=2, min_trajectories=2))

    def estimate(self, params, state, policy, trajectories):
        grads = weighting(batch_mean)(params, policy, trajectories)
        return ld.Estimate(grads, ld.batch_info(trajectories)), state


def test_a_wrong_degree_does_not_survive_the_other_methods():
    """A mean that contains its own sample is short by 1/N; degree 2 would make that 1/2 at every N."""
    claimed, computed = (
        moments(Misdeclared(), horizon=1, num_trajectories=3, method=method) for method in ("degree", "multisets")
    )
    np.testing.assert_allclose(ravel(claimed.mean), ravel(claimed.gradient) / 2, atol=1e-14)
    np.testing.assert_allclose(ravel(computed.mean), ravel(computed.gradient) * 2 / 3, atol=1e-14)


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


class FromState:
    """Subtracts its state; mutable."""

    scale = 1.0

    def init(self, params):
        del params
        return jnp.array(0.5)

    def estimate(self, params, state, policy, trajectories):
        grads = weighting(lambda returns: self.scale * (returns - state))(params, policy, trajectories)
        return ld.Estimate(grads, ld.batch_info(trajectories)), state


def test_the_state_counts_and_a_changed_object_is_not_remembered():
    estimator = FromState()

    def covariance(state=None):
        return moments(estimator, horizon=2, num_trajectories=1, state=state, discount=DISCOUNT).covariance

    @jax.jit
    def programmed(baseline):
        return ld.exact.weighted_score_moments(
            PARAMS,
            POLICY,
            terminating(),
            horizon=2,
            credit=ld.total_return,
            baseline=baseline,
            discount=DISCOUNT,
        ).covariance

    np.testing.assert_allclose(covariance(), programmed(0.5), atol=1e-14)
    estimator.scale = 3.0
    np.testing.assert_allclose(covariance(jnp.array(2.0)), 9 * programmed(2.0), atol=1e-13)


def ratio(params, policy, trajectories):
    steps = ld.log_factors(params, policy, trajectories) - trajectories.behavior_log_probs
    return jnp.exp(jnp.sum(steps, axis=-1))


def test_off_policy_ratio_has_the_variance_of_its_closed_form():
    """Shared truths, horizon_laws, trajectory_importance_ratio: p = 0.6, q = 0.5, T = 10."""
    ours = ld.exact.estimator_moments(
        lambda *arguments: jnp.mean(ratio(*arguments)),
        logit(0.6),
        COIN,
        COINS,
        horizon=10,
        num_trajectories=1,
        behavior_params=logit(0.5),
    )
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
    unweighted = moments(
        ld.score_function(credit=ld.total_return, discount=DISCOUNT),
        discount=1.0,
        horizon=2,
        num_trajectories=1,
        **off,
    )
    assert np.abs(ravel(unweighted.bias)).max() > 0.01


def test_a_choice_that_is_never_made_has_no_part_in_the_expectation():
    def masked(params, state):
        return ld.Categorical(jnp.where((state == 0) & (jnp.arange(2) == 1), -jnp.inf, shifted(params, state).logits))

    def undefined_there(params, policy, trajectories):
        impossible = jnp.any((trajectories.observations == 0) & (trajectories.actions == 1) & trajectories.valid)
        grads = weighting(lambda returns: returns)(params, policy, trajectories)
        return jax.tree.map(lambda g: jnp.where(impossible, jnp.nan, g), grads)

    ours = ld.exact.estimator_moments(
        undefined_there, PARAMS, masked, terminating(), horizon=2, num_trajectories=1, discount=DISCOUNT
    )
    np.testing.assert_allclose(ravel(ours.bias), 0, atol=1e-14)
    programmed = jax.jit(
        lambda params: ld.exact.weighted_score_moments(
            params, masked, terminating(), horizon=2, credit=ld.total_return, discount=DISCOUNT
        )
    )(PARAMS)
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
    assert np.isfinite(ravel(ours.gradient)).all()


def test_sums_are_float64_whatever_the_parameters():
    with jax.enable_x64(False):
        mdp = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype != bool else x, two_states())
        ours = ld.exact.estimator_moments(
            ld.score_function(discount=0.9),
            TWO_STATES_LOGITS.astype(jnp.float32),
            ld.tabular_softmax,
            mdp,
            horizon=3,
            num_trajectories=1,
        )
    assert ours.mean.dtype == ours.covariance.dtype == np.float64
    np.testing.assert_allclose(ours.bias, 0, atol=1e-6)
    np.testing.assert_allclose(np.trace(ours.covariance), TWO_STATES[3]["reward_to_go"].sum() * 2, rtol=1e-5)


def _bad(error, message, estimator: Any, **options):
    return pytest.param(error, message, estimator, {"horizon": 2, "num_trajectories": 2} | options, id=message)


@pytest.mark.parametrize(
    ("error", "message", "estimator", "options"),
    [
        _bad(
            ValueError,
            r"batches of 9 out of 47 trajectories \(multisets\) are about 10\^9 evaluations.*bias\.degree.*weighted_score_moments",
            ld.score_function(baseline=ld.baseline_leave_one_out()),
            num_trajectories=9,
        ),
        _bad(ValueError, r"out of 47 trajectories \(degree\) are 2209 evaluations.*limit=2208", LOO, limit=2208),
        _bad(ValueError, r"2 actions have about 10\^18 trajectories of 30 steps", LOO, horizon=30),
        _bad(ValueError, "expected at least 2 for this estimator, received 1", LOO, num_trajectories=1),
        _bad(
            ValueError,
            "expected at least 1 for this estimator, received 0",
            ld.score_function(),
            num_trajectories=0,
        ),
        _bad(ValueError, r"gradient of the structure of params", lambda params, *_: params["table"]),
        _bad(
            ValueError,
            r"gradient of shape \(3, 2\) for params\['table'\], received \(2, 3, 2\)",
            lambda params, *_: params | {"table": jnp.stack([params["table"]] * 2)},
        ),
        _bad(TypeError, "estimator: expected estimate", "REINFORCE"),
        _bad(ValueError, "method: expected 'degree'", LOO, method="pairs"),
        _bad(
            ValueError,
            "bias.degree = None",
            ld.score_function(baseline=ld.baseline_leave_one_out()),
            method="degree",
        ),
        _bad(
            ValueError,
            "probabilities of all trajectories sum to",
            LOO,
            behavior_policy=lambda p, s: ld.Categorical(jnp.zeros(3)),
        ),
        _bad(ValueError, r"discount: expected a number in \[0, 1\]", LOO, discount=1.5),
        _bad(TypeError, "expected a floating-point array", LOO, params=jnp.zeros((3, 2), int)),
    ],
)
def test_bad_input_is_named(error, message, estimator, options):
    with pytest.raises(error, match=message):
        moments(estimator, **options)


# --- derivatives of the objective


def test_dice_with_leave_one_out_is_exact_at_higher_orders():
    estimator = ld.score_function(baseline=ld.baseline_leave_one_out(), discount=DISCOUNT, surrogate=ld.dice_surrogate)
    for order in (2, 3):
        ours = ld.exact.surrogate_derivatives(
            estimator,
            TERMINATING_LOGITS,
            ld.tabular_softmax,
            terminating(),
            horizon=2,
            num_trajectories=2,
            order=order,
        )
        assert ours.method == "multisets"
        assert ours.exact.shape == (6,) * order
        np.testing.assert_allclose(ours.bias, 0, atol=1e-14)
        assert np.abs(ours.exact).max() > 0.005


def test_the_plain_surrogate_lacks_a_known_part_of_the_hessian():
    """Shared truths, decision_problems, enumerated_mdp: naive_surrogate_hessian_E and hessian at T = 2."""
    arguments = (
        ld.score_function(credit=ld.total_return, discount=0.9),
        TWO_STATES_LOGITS,
        ld.tabular_softmax,
        two_states(),
    )
    ours = ld.exact.surrogate_derivatives(*arguments, horizon=2, num_trajectories=3, order=2)
    block, zero = np.array([[1.0, -1.0], [-1.0, 1.0]]), np.zeros((2, 2))
    naive = np.block([[-0.3374866431093107 * block, zero], [zero, -0.28144949895418714 * block]])
    a, b, d = -0.00520447139818736, 0.015636764737870394, -0.015442959857532634
    np.testing.assert_allclose(ours.mean, naive, atol=1e-14)
    np.testing.assert_allclose(ours.exact, np.block([[a * block, b * block], [b * block, d * block]]), atol=1e-14)
    assert (ours.method, ours.num_evaluations) == ("degree", 32)


def test_derivatives_name_their_bad_input():
    arguments: Any = (PARAMS, POLICY, terminating())
    with pytest.raises(ValueError, match="order: expected a whole number >= 1, received 0"):
        ld.exact.surrogate_derivatives(LOO, *arguments, horizon=1, num_trajectories=2, order=0)
    with pytest.raises(TypeError, match="weigh and objective, received function"):
        ld.exact.surrogate_derivatives(weighting(folds), *arguments, horizon=1, num_trajectories=2, order=1)


# --- weighted scores, by dynamic programming

# Variances of single-trajectory estimators of the two-state process, discount 0.9, as (logits of state 0, of state 1), both
# entries of a pair equal; and the optimal constant baselines: shared truths, decision_problems, enumerated_mdp.
TWO_STATES = {
    1: {
        "full_return": np.array([0.03507723390872625, 0.18195671914546013]),
        "reward_to_go": np.array([0.03507723390872625, 0.18195671914546013]),
        "rtg_minus_V": np.array([0.03958577127071423, 0.046470923992467834]),
        "full_minus_J": np.array([0.07059672561301944, 0.0725981420109102]),
        "full_minus_bstar_per_param": np.array([0.03227032772353252, 0.04570848092538086]),
        "full_minus_bstar_scalar": np.array([0.05778600781524245, 0.08322724218269253]),
        "bstar_per_param": (0.1383362247825115, 1.1687135780881452),
        "bstar_scalar": 0.5554221599955693,
    },
    2: {
        "full_return": np.array([0.6230780071612214, 0.5200689593781544]),
        "reward_to_go": np.array([0.2791591680796186, 0.4207115202267186]),
        "rtg_minus_V": np.array([0.1175022286245741, 0.10150227565359195]),
        "full_minus_J": np.array([0.23886998079711555, 0.17905291366972587]),
        "full_minus_bstar_per_param": np.array([0.2364961376613823, 0.1788901551588507]),
        "full_minus_bstar_scalar": np.array([0.23721407653987803, 0.17987883911781238]),
        "bstar_per_param": (1.1634144182611237, 1.2825955533947802),
        "bstar_scalar": 1.2135513135479457,
    },
    3: {
        "full_return": np.array([1.9235464013711074, 1.4234053745519086]),
        "reward_to_go": np.array([0.7023167919149478, 0.8828398848642809]),
        "rtg_minus_V": np.array([0.23211979736216518, 0.1920972671059569]),
        "full_minus_J": np.array([0.6115663304754834, 0.4687565109986763]),
        "full_minus_bstar_per_param": np.array([0.6108760821961078, 0.46798824349043155]),
        "full_minus_bstar_scalar": np.array([0.6108826463602672, 0.46799716723337215]),
        "bstar_per_param": (1.7551535793747923, 1.7458929541337285),
        "bstar_scalar": 1.7512286937262298,
    },
}


@functools.partial(jax.jit, static_argnames=("credit", "horizon"))
def two_states_variance(baseline, *, credit, horizon):
    """Variance of each component, shape (2, 2), with a baseline (T, S)."""
    ours = ld.exact.weighted_score_moments(
        TWO_STATES_LOGITS,
        ld.tabular_softmax,
        two_states(),
        horizon=horizon,
        credit=credit,
        baseline=baseline,
        discount=0.9,
    )
    return jnp.diag(ours.covariance).reshape(2, 2)


@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_six_estimators_of_the_two_state_process(horizon):
    expected = TWO_STATES[horizon]
    arguments, options = (
        (TWO_STATES_LOGITS, ld.tabular_softmax, two_states()),
        {"horizon": horizon, "discount": 0.9},
    )
    values = jax.jit(lambda: ld.exact.state_values(*arguments, **options))()
    value = two_states().initial @ values[0]

    def variance(credit, baseline):
        return two_states_variance(jnp.zeros((horizon, 2)) + baseline, credit=credit, horizon=horizon)

    whole = functools.partial(variance, ld.total_return)
    first, second = expected["bstar_per_param"]
    ours = {
        "full_return": whole(0.0),
        "reward_to_go": variance(ld.reward_to_go, 0.0),
        "rtg_minus_V": variance(ld.reward_to_go, 0.9 ** np.arange(horizon)[:, None] * values),
        "full_minus_J": whole(value),
        "full_minus_bstar_per_param": np.stack([whole(first)[0], whole(second)[1]]),
        "full_minus_bstar_scalar": whole(expected["bstar_scalar"]),
    }
    for name, found in ours.items():
        np.testing.assert_allclose(found, np.stack([expected[name]] * 2, axis=1), rtol=1e-12, err_msg=name)


def test_moments_are_differentiable_in_the_baseline():
    """The slope of the trace of the covariance is zero at the optimal constant baseline, and nowhere else."""
    slope = jax.jit(
        jax.grad(lambda b: jnp.sum(two_states_variance(jnp.zeros((3, 2)) + b, credit=ld.total_return, horizon=3)))
    )
    np.testing.assert_allclose(slope(TWO_STATES[3]["bstar_scalar"]), 0, atol=1e-13)
    assert slope(TWO_STATES[3]["bstar_scalar"] + 0.1) > 0.1


@pytest.mark.parametrize("name", ["full_return", "reward_to_go"])
def test_variances_of_the_two_state_process_by_enumeration(name):
    ours = ld.exact.estimator_moments(
        ld.score_function(credit=ld.total_return if name == "full_return" else ld.reward_to_go, discount=0.9),
        TWO_STATES_LOGITS,
        ld.tabular_softmax,
        two_states(),
        horizon=3,
        num_trajectories=5,
    )
    np.testing.assert_allclose(5 * np.diag(ours.covariance)[::2], TWO_STATES[3][name], rtol=1e-12)
    np.testing.assert_allclose(ours.bias, 0, atol=1e-14)


@pytest.mark.parametrize("credit", [ld.total_return, ld.reward_to_go])
def test_programming_equals_enumeration_at_five_steps_with_early_termination(credit):
    probabilities, scores, rewards, every = listed(5)
    assert len(probabilities) == 3071
    to_go = np.cumsum(rewards[:, ::-1], axis=1)[:, ::-1]
    weights = to_go if credit is ld.reward_to_go else np.repeat(to_go[:, :1], 5, axis=1)
    random = np.random.default_rng(0)

    @jax.jit
    def programmed(baseline):
        return ld.exact.weighted_score_moments(
            PARAMS, POLICY, terminating(), horizon=5, credit=credit, baseline=baseline, discount=DISCOUNT
        )

    for shape in ((3,), (5, 3)) if credit is ld.total_return else ((5, 3),):
        table = random.normal(size=shape)
        baselines = np.broadcast_to(table, (5, 3))[np.arange(5), every.observations]
        values = np.einsum("kt,ktd->kd", np.where(every.valid, weights - baselines, 0), scores)
        mean, covariance = mean_and_covariance(probabilities, values)
        ours = programmed(jnp.asarray(table))
        np.testing.assert_allclose(ravel(ours.mean), mean, atol=1e-13)
        np.testing.assert_allclose(ours.covariance, covariance, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("p", [0.3, 0.8])
def test_a_thousand_steps_follow_the_laws_of_the_horizon(p):
    for weighting, variance in variance_laws.laws(p, 1000).items():
        ours = variance_laws.computed(jnp.asarray(p), horizon=1000, weighting=weighting)
        np.testing.assert_allclose(ours.mean, 1000 * p * (1 - p), rtol=1e-12)
        np.testing.assert_allclose(ours.covariance, [[variance]], rtol=1e-10)


# Variances of the whole return times the score, with no, the mean and the optimal constant baseline, and the Fisher
# information, for the logit of going right: shared truths, decision_problems, short_corridor (generating functions).
CORRIDOR = [
    (0.2, -22.5, -42.47222222222222, (9454.349999999999, 4396.349999999999, 2960.3472222222217), 3.6),
    (0.5, -12.0, -21.666666666666668, (1959.0, 831.0, 550.6666666666666), 3.0),
    (
        0.95,
        -44.21052631578944,
        -102.6591478696741,
        (33338.532132963934, 18380.947645429333, 11206.840786175948),
        2.1,
    ),
]


def test_the_short_corridor_in_the_limit_of_long_horizons():
    @jax.jit
    def ours(p, baselines):
        arguments = (jnp.stack([jnp.zeros(()), logit(p)]), ld.shared_softmax, ld.short_corridor())

        def variance(baseline):
            found = ld.exact.weighted_score_moments(*arguments, horizon=2000, credit=ld.total_return, baseline=baseline)
            return found.covariance[1, 1]

        return jax.vmap(variance)(baselines), ld.exact.fisher(*arguments, horizon=2000)[1, 1]

    for p, mean, best, variances, fisher in CORRIDOR:
        found, information = ours(jnp.asarray(p), jnp.array([0.0, mean, best]))
        np.testing.assert_allclose(found, variances, rtol=1e-11)
        np.testing.assert_allclose(information, fisher, rtol=1e-12)


def test_random_walk_of_arya_et_al():
    """n = 50, p = 100: Arya et al. (2022), arXiv:2210.08572, section 5; the two standard deviations as in the issue."""
    walk = ld.processes.random_walk(50)

    @jax.jit
    def ours(p):
        value, slope = jax.value_and_grad(ld.exact.value)(p, walk.policy, walk, horizon=50)
        plain, mean_baseline = (
            ld.exact.weighted_score_moments(p, walk.policy, walk, horizon=50, credit=ld.total_return, baseline=b)
            for b in (0.0, value)
        )
        return value, slope, plain, mean_baseline

    value, slope, plain, mean_baseline = ours(jnp.array(100.0))
    np.testing.assert_allclose(value, 1130.398830, rtol=1e-9)
    np.testing.assert_allclose(slope, 7.558188, rtol=1e-7)
    for found, std in ((plain, 34.8081), (mean_baseline, 10.5895)):
        np.testing.assert_allclose(found.mean, slope, rtol=1e-12)
        np.testing.assert_allclose(np.sqrt(found.covariance[0, 0]), std, rtol=5e-6)


def test_weighted_scores_name_their_bad_input():
    arguments: Any = (PARAMS, POLICY, terminating())
    with pytest.raises(
        ValueError, match=r"credit: expected logderiv\.reward_to_go or .*total_return.*estimator_moments"
    ):
        ld.exact.weighted_score_moments(*arguments, horizon=2, credit=lambda r, d: r * d)
    with pytest.raises(ValueError, match=r"\(S,\) = \(3,\) or \(T, S\) = \(2, 3\), received shape \(3, 2\)"):
        ld.exact.weighted_score_moments(*arguments, horizon=2, baseline=jnp.zeros((3, 2)))
    memory = ld.FunctionPolicy(lambda p, c, s: (shifted(p, s), c), initial_carry=lambda p: jnp.zeros(()))
    with pytest.raises(ValueError, match="received one with memory"):
        ld.exact.weighted_score_moments(PARAMS, memory, terminating(), horizon=2)
    with pytest.raises(TypeError, match="expected a floating-point array"):
        ld.exact.weighted_score_moments(jnp.zeros((3, 2), int), ld.tabular_softmax, terminating(), horizon=2)
