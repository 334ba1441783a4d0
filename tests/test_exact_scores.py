"""Moments of weighted scores by dynamic programming: against published numbers, closed forms and enumeration."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from benchmarks import variance_laws
from benchmarks.variance_laws import logit
from tests.listed import DISCOUNT, PARAMS, POLICY, TWO_STATES_VARIANCES, listed, mean_and_covariance, ravel, shifted
from tests.mostly import slow
from tests.worlds import TWO_STATES_LOGITS, terminating, two_states


@functools.partial(jax.jit, static_argnames=("credit", "horizon"))
def two_states_variance(baseline, *, credit, horizon):
    """Variance of each component, shape (2, 2), with a baseline (T, S)."""
    options: dict[str, Any] = {"horizon": horizon, "credit": credit, "baseline": baseline, "discount": 0.9}
    ours = ld.exact.weighted_score_moments(TWO_STATES_LOGITS, ld.tabular_softmax, two_states(), **options)
    return jnp.diag(ours.covariance).reshape(2, 2)


@pytest.mark.parametrize("horizon", [slow(1), slow(2), 3])
def test_six_estimators_of_the_two_state_process(horizon):
    expected = TWO_STATES_VARIANCES[horizon]
    arguments, options = ((TWO_STATES_LOGITS, ld.tabular_softmax, two_states()), {"horizon": horizon, "discount": 0.9})
    values = jax.jit(lambda: ld.exact.state_values(*arguments, **options))()
    value = two_states().initial @ values[0]

    def variance(credit, baseline):
        return two_states_variance(jnp.zeros((horizon, 2)) + baseline, credit=credit, horizon=horizon)

    whole = functools.partial(variance, ld.advantages.total_return)
    first, second = expected["bstar_per_param"]
    ours = {
        "full_return": whole(0.0),
        "reward_to_go": variance(ld.advantages.reward_to_go, 0.0),
        "rtg_minus_V": variance(ld.advantages.reward_to_go, 0.9 ** np.arange(horizon)[:, None] * values),
        "full_minus_J": whole(value),
        "full_minus_bstar_per_param": np.stack([whole(first)[0], whole(second)[1]]),
        "full_minus_bstar_scalar": whole(expected["bstar_scalar"]),
    }
    for name, found in ours.items():
        np.testing.assert_allclose(found, np.stack([expected[name]] * 2, axis=1), rtol=1e-12, err_msg=name)


def test_moments_are_differentiable_in_the_baseline():
    """The slope of the trace of the covariance is zero at the optimal constant baseline, and nowhere else."""

    def trace(b):
        return jnp.sum(two_states_variance(jnp.zeros((3, 2)) + b, credit=ld.advantages.total_return, horizon=3))

    slope = jax.jit(jax.grad(trace))
    np.testing.assert_allclose(slope(TWO_STATES_VARIANCES[3]["bstar_scalar"]), 0, atol=1e-13)
    assert slope(TWO_STATES_VARIANCES[3]["bstar_scalar"] + 0.1) > 0.1


@pytest.mark.parametrize("credit", [ld.advantages.total_return, ld.advantages.reward_to_go])
def test_programming_equals_enumeration_at_five_steps_with_early_termination(credit):
    probabilities, scores, rewards, every = listed(5)
    assert len(probabilities) == 3071
    to_go = np.cumsum(rewards[:, ::-1], axis=1)[:, ::-1]
    weights = to_go if credit is ld.advantages.reward_to_go else np.repeat(to_go[:, :1], 5, axis=1)
    random = np.random.default_rng(0)

    @jax.jit
    def programmed(baseline):
        return ld.exact.weighted_score_moments(
            PARAMS, POLICY, terminating(), horizon=5, credit=credit, baseline=baseline, discount=DISCOUNT
        )

    for shape in ((3,), (5, 3)) if credit is ld.advantages.total_return else ((5, 3),):
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
# information, for the logit of going right: the corridor of Sutton & Barto, 2nd ed., example 13.1, by the
# generating functions of return and score, with sympy.
CORRIDOR = [
    (0.2, -22.5, -42.47222222222222, (9454.349999999999, 4396.349999999999, 2960.3472222222217), 3.6),
    (0.5, -12.0, -21.666666666666668, (1959.0, 831.0, 550.6666666666666), 3.0),
    (0.95, -44.21052631578944, -102.6591478696741, (33338.532132963934, 18380.947645429333, 11206.840786175948), 2.1),
]


def test_the_short_corridor_in_the_limit_of_long_horizons():
    @jax.jit
    def ours(p, baselines):
        arguments = (jnp.stack([jnp.zeros(()), logit(p)]), ld.shared_softmax, ld.environments.short_corridor())

        def variance(baseline):
            found = ld.exact.weighted_score_moments(
                *arguments, horizon=2000, credit=ld.advantages.total_return, baseline=baseline
            )
            return found.covariance[1, 1]

        return jax.vmap(variance)(baselines), ld.exact.fisher(*arguments, horizon=2000)[1, 1]

    for p, mean, best, variances, fisher in CORRIDOR:
        found, information = ours(jnp.asarray(p), jnp.array([0.0, mean, best]))
        np.testing.assert_allclose(found, variances, rtol=1e-11)
        np.testing.assert_allclose(information, fisher, rtol=1e-12)


def test_random_walk_of_arya_et_al():
    """n = 50, p = 100: Arya et al. (2022), arXiv:2210.08572, section 5."""
    walk = ld.processes.RandomWalk(50)

    @jax.jit
    def ours(p):
        value, slope = jax.value_and_grad(ld.exact.value)(p, walk.policy, walk, horizon=50)
        plain, mean_baseline = (
            ld.exact.weighted_score_moments(
                p, walk.policy, walk, horizon=50, credit=ld.advantages.total_return, baseline=b
            )
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
        ValueError, match=r"credit: expected logderiv\.advantages\.reward_to_go or .*total_return.*exact\.moments"
    ):
        ld.exact.weighted_score_moments(*arguments, horizon=2, credit=lambda r, d: r * d)
    with pytest.raises(ValueError, match=r"\(S,\) = \(3,\) or \(T, S\) = \(2, 3\), received shape \(3, 2\)"):
        ld.exact.weighted_score_moments(*arguments, horizon=2, baseline=jnp.zeros((3, 2)))
    memory = ld.FunctionPolicy(lambda p, c, s: (shifted(p, s), c), initial_carry=lambda p: jnp.zeros(()))
    with pytest.raises(ValueError, match="received one with memory"):
        ld.exact.weighted_score_moments(PARAMS, memory, terminating(), horizon=2)
    with pytest.raises(TypeError, match="expected a floating-point array"):
        ld.exact.weighted_score_moments(jnp.zeros((3, 2), int), ld.tabular_softmax, terminating(), horizon=2)
