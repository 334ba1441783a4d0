"""The normalized policy: by hand, and its gradient with the statistics held, by enumeration."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.policies import Normalized, RunningMoments, Truncated
from tests.listed import ravel
from tests.worlds import terminating

FEATURES = jnp.array([[1000.0, 1.0], [-2000.0, 0.5], [0.0, 0.0]])
PARAMS = jnp.array([[0.3, -0.2], [0.1, 0.5]])
SEEN = RunningMoments(jnp.array(9.0), jnp.array([-400.0, 0.6]), jnp.array([1.5e6, 0.09]))


def linear(params, x):
    return ld.Categorical(x @ params)


POLICY = Normalized(linear, SEEN)


def by_features(policy):
    """The policy on states, of which it sees the features."""
    return ld.FunctionPolicy(lambda params, state: policy.apply(params, FEATURES[state]))


def test_what_the_inner_policy_is_shown_by_hand():
    observation = jnp.array([-400 + 2 * np.sqrt(1.5e6), 0.6 + 0.3 * 11])
    for clip, shown in ((10.0, [2.0, 10.0]), (1.5, [1.5, 1.5]), (None, [2.0, 11.0])):
        policy = dataclasses.replace(POLICY, clip=clip)
        logits = policy.apply(PARAMS, observation).logits
        np.testing.assert_allclose(logits, np.array(shown) @ PARAMS, rtol=1e-12)


def test_parameters_are_those_of_the_inner_policy():
    inner = ld.MLP(2, hidden=(3,))
    made, same = (policy.init(jax.random.key(0), jnp.ones(2)) for policy in (Normalized(inner), inner))
    jax.tree.map(np.testing.assert_array_equal, made, same)
    with pytest.raises(TypeError, match=r"init: expected an inner policy that has init, received .*linear"):
        Normalized(linear).init(jax.random.key(0), jnp.ones(2))


def test_the_statistics_are_detached_and_settings_are_leaves():
    def score(policy):
        return policy.apply(PARAMS, FEATURES[0]).log_prob(jnp.int32(1))

    grads = jax.jit(jax.grad(score))(POLICY)
    np.testing.assert_array_equal(jax.tree.leaves(grads.statistics.mean), jnp.zeros((1, 2)))
    np.testing.assert_array_equal(jax.tree.leaves(grads.statistics.variance), jnp.zeros((1, 2)))
    moved = jax.jit(lambda mean: score(Normalized(linear, SEEN._replace(mean=mean))))
    assert abs(moved(SEEN.mean) - moved(SEEN.mean + 1.0)) > 1e-3


def test_the_gradient_is_that_of_the_policy_with_these_statistics_and_with_the_batchs_own_it_is_not():
    """Every batch of two by enumeration. The twin takes the batch in before its log-probabilities are differentiated."""
    world, options = terminating(), dict[str, Any](horizon=2, num_trajectories=2)
    estimator = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut(per="trajectory")))
    acting = by_features(POLICY)
    found = ld.exact.moments(PARAMS, acting, world, estimator, **options)
    np.testing.assert_allclose(ravel(found.bias), 0, atol=1e-12)

    def twin(params, policy, trajectories):
        del policy
        seen = SEEN.including(FEATURES[trajectories.observations], trajectories.valid)
        within = by_features(Normalized(linear, seen))
        return estimator.estimate(params, (), within, trajectories)[0].grads

    biased = ld.exact.moments(PARAMS, acting, world, twin, **options)
    assert np.abs(ravel(biased.bias)).max() > 1e-3


class Floats:
    """`terminating`, seen as its features."""

    horizon = 5

    def reset(self, key, params=None):
        _, state = terminating().reset(key)
        return FEATURES[state], state

    def step(self, key, state, action, params=None):
        _, state, *rest = terminating().step(key, state, action)
        return (FEATURES[state], state, *rest)


def test_the_inner_policy_on_what_it_is_shown_is_the_policy_on_what_was_seen():
    """Log-probabilities and estimates, two ways; with memory too. What is drawn says which statistics it was drawn with."""
    keys = jax.random.split(jax.random.key(0), 6)
    memory = ld.GRU(2, hidden=3)
    for inner, params in ((linear, PARAMS), (memory, memory.init(jax.random.key(1), FEATURES[0]))):
        policy = Normalized(inner, SEEN)
        taus = jax.tree.map(np.asarray, ld.rollout(params, jax.random.clone(keys), policy, Floats()))
        assert not np.all(taus.valid)
        taus = taus._replace(observations=np.where(taus.valid[..., None], taus.observations, np.nan))

        @jax.jit
        def both(params, policy=policy, taus=taus):
            shown: Any = policy.shown(taus)
            views = (policy, taus), (policy.inner, shown)
            estimates = [ld.ScoreFunction().estimate(params, (), *view)[0].grads for view in views]
            return estimates, [ld.log_factors(params, *view) for view in views], shown

        estimates, logs, shown = both(params)
        np.testing.assert_allclose(logs[0], logs[1], atol=1e-13)
        np.testing.assert_allclose(logs[0], np.where(taus.valid, taus.behavior_log_probs, 0), atol=1e-13)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), *estimates)
        np.testing.assert_allclose(shown.final_observation, SEEN.standardize(taus.final_observation, 1), rtol=1e-13)
        seen = policy.measured(taus)
        np.testing.assert_array_equal(seen.num_steps, 9 + taus.valid.sum())


BAD: list[tuple[Any, str, Any]] = [
    (ValueError, "inner: expected a policy that is not normalized", lambda: Normalized(POLICY)),
    (ValueError, "normalize once", lambda: Normalized(Truncated(POLICY, top_k=1))),
    (ValueError, "clip: expected a positive number, received 0", lambda: Normalized(linear, SEEN, clip=0.0)),
    (ValueError, "statistics: expected a RunningMoments", lambda: Normalized(linear).apply(PARAMS, FEATURES[0])),
    (ValueError, r"observation: expected shape \(2,\), received \(3,\)", lambda: POLICY.apply(PARAMS, jnp.zeros(3))),
    (TypeError, "expected a policy", lambda: Normalized(linear.__name__)),
]


@pytest.mark.parametrize(("error", "message", "call"), BAD, ids=[row[1] for row in BAD])
def test_bad_input_is_named(error, message, call):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_whole_numbers_beside_half_precision_keep_their_digits(dtype):
    """In bfloat16 1001 is 1000, in float16 70001 is infinite."""
    number = jnp.int32(1001 if dtype == jnp.bfloat16 else 70001)
    layer = {"weight": jnp.eye(2, 1, dtype=jnp.float32), "bias": jnp.zeros(1, jnp.float32)}
    shown = ld.MLP(1, hidden=()).apply([layer], {"a": number, "b": dtype(1)})
    assert float(shown.logits[0]) == int(number)
