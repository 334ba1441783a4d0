"""Zero times what is infinite or unknown: what is not taken has no say, and a NaN is never hidden."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from logderiv.advantages import GAE, Return, Standardized, ToGo, VTrace
from logderiv.baselines import Constant, LearnedValue, Optimal, Value
from logderiv.estimators import DiCE, LoadedDiCE, OptimalPerParameter, Score, clipped
from logderiv.importance import Importance
from tests import oracle
from tests.worlds import trajectory
from tests.zoo import GIVEN

INF, NAN = math.inf, math.nan
SMALL = 1e-30 * math.exp(100)


TERMS = {  # by clip: log-ratio, weight, value, slope
    0.2: [
        (100, 1, 1.2, 0),
        (100, 0, 0, 0),
        (100, 0.5, 0.6, 0),
        (1e4, 2, 2.4, 0),
        (1e4, 0, 0, 0),
        (1e4, -1, -INF, -INF),
        (100, -1e-30, -SMALL, -SMALL),
        (-1e4, 1, 0, 0),
        (-1e4, -1, -0.8, 0),
        (-1e4, -0.5, -0.4, 0),
        (0, 3, 3, 3),
        (-INF, 1, 0, 0),
        (INF, 1, 1.2, 0),
        (INF, 0, 0, 0),
        (NAN, 1, NAN, NAN),
        (NAN, 0, NAN, NAN),
        (100, NAN, NAN, NAN),
    ],
    1.5: [(-1e4, -1, 0, 0), (100, 2, 5, 0)],
    None: [(100, 0, 0, 0), (100, 1e-30, SMALL, SMALL), (-INF, 1, 0, 0), (INF, 0, 0, 0), (NAN, 0, NAN, NAN)],
}


@pytest.mark.parametrize("clip", TERMS)
def test_the_clipped_term_and_its_derivatives_by_hand(clip):
    """min(ρ w, clip(ρ) w) in float32: a ratio beyond the range is clipped, or 0 where the weight is; all slopes are equal."""
    logs, weights, values, slopes = np.array(TERMS[clip], np.float32).T

    @jax.jit
    @jax.vmap
    def derivatives(log, weight):
        first = jax.grad(lambda x: clipped(x, weight, clip))
        return clipped(log, weight, clip), first(log), jax.grad(first)(log)

    for found, expected in zip(derivatives(logs, weights), (values, slopes, slopes), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_an_infinite_ratio_times_a_reward_of_zero_is_zero():
    """By hand: the first row adds nothing, the second e^0.7 / 2 / 2 (-1/2, 1/2)."""
    one, actions = jnp.ones((2, 1), jnp.float32), jnp.array([[0], [1]])
    taus = trajectory(
        rewards=one.at[0].set(0.0), actions=actions, behavior_log_probs=jnp.array([[-100.0], [-0.7]], jnp.float32)
    )
    estimate = jax.jit(ld.ScoreFunction(importance=Importance()).estimate)
    for log in (-100.0, -1e4, -INF):
        bad = taus._replace(behavior_log_probs=taus.behavior_log_probs.at[0, 0].set(log))
        grads = estimate(jnp.zeros(2, jnp.float32), (), ld.shared_softmax, bad)[0].grads
        np.testing.assert_allclose(grads, [-0.25171912, 0.25171912], rtol=1e-6)
    unknown = taus._replace(behavior_log_probs=taus.behavior_log_probs.at[0, 0].set(NAN))
    assert np.isnan(estimate(jnp.zeros(2, jnp.float32), (), ld.shared_softmax, unknown)[0].grads).all()


def test_a_baseline_that_equals_the_reward_leaves_exactly_nothing_of_an_infinite_ratio():
    taus = trajectory(
        rewards=jnp.ones((2, 1), jnp.float32), behavior_log_probs=jnp.array([[-9e3], [-0.2]], jnp.float32)
    )
    params = jnp.zeros(2, jnp.float32)
    for advantage in (ToGo(Constant(1.0)), Return(Constant(1.0)), ToGo(Value(lambda o: jnp.float32(1)))):
        estimator = ld.ScoreFunction(advantage, importance=Importance(per="trajectory"))
        assert (estimator.advantages(params, (), ld.shared_softmax, taus)[0] == 0).all()


@pytest.mark.parametrize("surrogate", [Score(), DiCE(), pytest.param(LoadedDiCE(0.0), marks=pytest.mark.slow)])
def test_a_choice_that_the_policy_cannot_make_ends_what_follows(surrogate):
    """Its ratio is 0: derivatives 1 to 3 are those of the steps before it, as if the trajectory ended there."""
    policy = ld.FunctionPolicy(
        lambda params, o: ld.Categorical(ld.masked(jnp.stack([params, 0 * params, 0 * params]), jnp.arange(3) <= 1 + o))
    )
    taus = trajectory(
        rewards=jnp.array([[1.0, 2.0, 4.0, 8.0]]),
        actions=jnp.array([[0, 1, 2, 1]]),
        observations=jnp.array([[0, 0, 0, 0]]),
        behavior_log_probs=jnp.log(jnp.array([[0.3, 0.6, 0.5, 0.9]])),
    )
    short = taus._replace(valid=jnp.array([[True, True, False, False]]))
    estimator: Any = ld.ScoreFunction(ToGo(), 0.9, surrogate, Importance())

    @jax.jit
    def derivatives(params, taus):
        weights = estimator.advantages(params, (), policy, taus)[0]
        f = lambda p: estimator.objective(p, policy, taus, weights)  # noqa: E731
        return oracle.derivatives(f, params), weights

    (found, weights), (expected, _) = (derivatives(jnp.array(0.3), x) for x in (taus, short))
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    assert (np.abs(expected) > 1e-4).all()
    assert weights[0, 2:].tolist() == [0, 0]


def looking(seen: list[float]) -> Any:
    """A value that notes every observation that it is called with."""

    def value(params, observation):
        jax.debug.callback(lambda o: seen.extend(np.ravel(o).tolist()), observation)
        return params + observation / 4

    return value


def of_rows(estimator: Any, taus: Any) -> jax.Array:
    weights = jax.jit(estimator.advantages)(jnp.zeros(2), estimator.init(jnp.zeros(2)), ld.shared_softmax, taus)[0]
    jax.effects_barrier()
    return jax.tree.leaves(weights)[0]


@pytest.mark.parametrize(
    ("kind", "stream"), [("given", True), ("learned", False), ("shared", True), ("V-trace", False)]
)
def test_what_stands_after_the_end_of_an_episode_is_never_looked_at(kind, stream):
    """A simulator that blew up: v sees no NaN, and γ = λ = 1 gives 2 − t/4 by hand; of one that was cut it is looked at."""
    seen: list[float] = []
    value = looking(seen)
    baseline = {
        "given": Value(lambda o: value(0.0, o)),
        "learned": LearnedValue(value, lambda _: jnp.zeros(()), optax.sgd(0.0)),
        "shared": ld.baselines.SharedValue(),
        "V-trace": Value(lambda o: value(0.0, o)),
    }[kind]
    actor: Any = ld.ScoreFunction(VTrace(baseline) if kind == "V-trace" else GAE(1.0, baseline))
    estimator = ld.ActorCritic(actor, lambda params, o: value(0 * params[0], o)) if kind == "shared" else actor
    o, rewards = jnp.arange(4.0)[None], jnp.array([[0.0, 0, 0, 2]])
    ends = jnp.array([[1.0, 1, 1, 0]])
    logs = jnp.full((1, 4), math.log(0.5))
    taus: Any = trajectory(
        rewards=rewards, observations=o, discounts=ends, behavior_log_probs=logs, final_observation=jnp.array([NAN])
    )
    if stream:
        steps = jax.tree.map(lambda x: x[..., None], taus)._replace(final_observation=jnp.array([[1.0, 2, 3, NAN]]))
        taus = ld.types.Stream(steps, ends == 0, jnp.arange(4, dtype=jnp.int32)[None], jnp.cumsum(rewards, axis=1))
    weights = of_rows(estimator, taus)
    np.testing.assert_allclose(np.ravel(weights), [2, 1.75, 1.5, 1.25])
    assert seen
    assert not np.isnan(seen).any()
    steps = taus.steps if stream else taus
    cut = steps._replace(discounts=jnp.ones_like(steps.discounts))
    cut = taus._replace(steps=cut, ends=taus.ends & False) if stream else cut
    assert np.isnan(of_rows(estimator, cut)).any()
    assert np.isnan(seen).any()


@pytest.mark.parametrize(("size", "per"), [(1e-30, "step"), (1e30, "step"), (1e30, "trajectory")])
def test_standardized_weights_are_right_at_any_size(size, per):
    """Squares of 1e30 and 1e-30 have no float32."""
    rewards = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    estimator = ld.ScoreFunction(Standardized(ToGo(), per, epsilon=0.0))
    taus = trajectory(rewards=jnp.asarray(rewards * np.float32(size)))
    to_go = np.cumsum(rewards[:, ::-1].astype(float), axis=1)[:, ::-1]
    over = to_go if per == "step" else to_go[:, 0]
    found = estimator.advantages(jnp.zeros(2, jnp.float32), (), ld.shared_softmax, taus)[0]
    np.testing.assert_allclose(found, (to_go - over.mean()) / over.std(), atol=2e-6)


@pytest.mark.parametrize(("shift", "in_sample"), [(0.0, False), (60.0, False), (60.0, True)])
def test_optimal_baselines_of_ratios_whose_squares_have_no_number(shift, in_sample):
    """Three one-step trajectories with ratios e^(shift + ...), rewards that undo them; b* = Σ ρ² r s² / Σ ρ² s² over the others."""
    logs, ratios = np.log([0.6, 0.4, 0.6]), np.array([0.5, -0.3, 0.2])
    rewards, scores = np.array([1.0, -2.0, 0.5]), np.array([0.4, -0.6, 0.4])
    theta = jnp.float32(math.log(0.6 / 0.4))
    policy = ld.FunctionPolicy(lambda params, o: ld.Bernoulli(params))
    taus = trajectory(
        rewards=jnp.asarray(rewards * math.exp(-shift), jnp.float32)[:, None],
        actions=jnp.array([[1], [0], [1]]),
        behavior_log_probs=jnp.asarray(logs - ratios - shift, jnp.float32)[:, None],
    )
    folds: Any = {"folds": 3, "in_sample": in_sample}
    scalar = ld.ScoreFunction(ToGo(Optimal(**folds)), importance=Importance())
    every = [scalar, OptimalPerParameter(importance=Importance(), **folds)]
    h, d = np.exp(ratios) * rewards * scores, np.exp(ratios) * scores
    fit = [np.arange(3) >= 0 if in_sample else np.arange(3) != n for n in range(3)]
    b = np.array([np.sum((h * d)[k]) / np.sum((d * d)[k]) for k in fit])
    expected = np.mean(h - b * d)
    for estimator in every:
        found = jax.jit(estimator.estimate)(theta, (), policy, taus)[0].grads
        np.testing.assert_allclose(found, expected, rtol=1e-4 if shift else 1e-5)


def test_the_plain_forms_are_rejected():
    """What stood here before, on the same numbers: the clipped minimum, products after exponentials, differences of boxes."""
    log, one = jnp.float32(100), jnp.float32(1)
    plain = lambda x, w: jnp.minimum(jnp.exp(x) * w, jnp.clip(jnp.exp(x), 0.8, 1.2) * w)  # noqa: E731
    assert np.isnan(jax.grad(plain)(log, one))
    assert np.isnan(plain(log, 0 * one))
    assert np.isnan(jnp.exp(log) * 0)
    others = lambda x: jnp.sum(x) - x  # noqa: E731
    assert others(jnp.array([1e9, 1.0], jnp.float32))[0] == 0
    mean = functools.reduce(jnp.add, jnp.full(4, 1e38, jnp.float32)) / 4
    assert np.isinf(mean)
    assert GIVEN.discounted
