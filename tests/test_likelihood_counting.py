"""Visit counts: all that the likelihood of a tabular policy depends on."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.likelihood.counting import from_visits
from tests.agreement import assert_same, value
from tests.mostly import slow
from tests.worlds import TERMINATING_LOGITS, trajectory

# The same two policies without a table: every step is taken on its own.
STEPWISE = ld.FunctionPolicy(ld.tabular_softmax.apply)
SHARED_STEPWISE = ld.FunctionPolicy(ld.shared_softmax.apply)


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _batch(key, num, length, states=3, actions=2):
    keys = jax.random.split(key, 3)
    s = jax.random.randint(keys[0], (num, length), 0, states)
    a = jax.random.randint(keys[1], (num, length), 0, actions)
    lengths = jax.random.randint(keys[2], (num,), 1, length + 1)
    return trajectory(observations=s, actions=a, valid=jnp.arange(length)[None] < lengths[:, None])


def test_counts_by_hand_and_what_is_outside_is_dropped():
    states, actions = jnp.array([0, 1, 1, 2, -1, 0, 1]), jnp.array([0, 1, 0, 0, 0, -1, 1])
    weights = jnp.array([True, True, True, True, True, True, False])
    assert ld.likelihood.visit_counts(states, actions, weights, (2, 2)).tolist() == [[1, 0], [1, 1]]
    weighted = ld.likelihood.visit_counts(states, actions, jnp.array([0.5, 2.0, 3.0, 7.0, 7.0, 7.0, 4.0]), (2, 2))
    assert weighted.tolist() == [[0.5, 0.0], [3.0, 6.0]]


@pytest.mark.parametrize(
    ("policy", "stepwise", "logits"),
    [(ld.tabular_softmax, STEPWISE, TERMINATING_LOGITS), (ld.shared_softmax, SHARED_STEPWISE, TERMINATING_LOGITS[1])],
    ids=["tabular", "shared"],
)
def test_counting_equals_taking_every_step_at_every_order(policy, stepwise, logits):
    taus = _batch(jax.random.key(0), 5, 40)
    weights = jax.random.normal(jax.random.key(1), (5, 40))

    def of(policy):
        return lambda p: (ld.log_prob(p, policy, taus), ld.weighted_log_prob(p, policy, taus, weights))

    assert_same(of(policy), of(stepwise), logits, modes=(value, jax.jacrev, jax.hessian))


def test_the_score_is_counts_minus_what_was_expected():
    states, actions = jnp.array([0, 0, 1, 0, 1]), jnp.array([1, 1, 0, 0, 0])
    logits = jnp.array([[0.3, -0.2], [1.0, 0.5]])
    tau = trajectory(observations=states, actions=actions)
    expected = jnp.array([[1.0, 2.0], [2.0, 0.0]]) - jnp.array([[3.0], [2.0]]) * jax.nn.softmax(logits)
    np.testing.assert_allclose(jax.jit(jax.grad(ld.log_prob))(logits, ld.tabular_softmax, tau), expected, rtol=1e-13)


def test_counting_is_what_log_prob_does(monkeypatch):
    """The one-step-at-a-time route is taken away: only counting is left."""

    def refuse(*_, **__):
        raise AssertionError("a step was taken on its own")

    monkeypatch.setattr("logderiv.likelihood.steps.map_rows", refuse)
    monkeypatch.setattr("logderiv.likelihood.steps.sum_rows", refuse)
    taus = _batch(jax.random.key(2), 4, 30)
    estimator = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()))

    @jax.jit
    def both(logits):  # a function of its own: nothing that was traced before the routes were taken away
        estimate, _ = estimator.estimate(logits, (), ld.tabular_softmax, taus)
        return ld.log_prob(logits, ld.tabular_softmax, taus), estimate.grads

    logs, grads = both(TERMINATING_LOGITS)
    assert logs.shape == (4,)
    assert grads.shape == TERMINATING_LOGITS.shape
    with pytest.raises(AssertionError, match="on its own"):  # more logits than steps: counting does not pay
        ld.log_prob(jnp.zeros((3, 20)), ld.tabular_softmax, taus)


def test_a_masked_action_that_was_never_taken_leaves_no_nan():
    logits = jnp.array([[0.3, -jnp.inf, 0.1], [0.0, 0.2, -jnp.inf]])
    states, actions = jnp.array([0, 1, 0, 0, 1, 1]), jnp.array([0, 1, 2, 0, 0, 1])
    assert all(
        np.isfinite(x).all() for x in jax.jit(jax.value_and_grad(from_visits))(logits, states, actions, jnp.ones(6))
    )
    taken = jax.jit(from_visits)(logits, states, actions.at[0].set(1), jnp.ones(6))
    assert taken == -jnp.inf


def test_out_of_range_is_never_another_action_or_state():
    states, actions, weights = jnp.array([0, 1, 1]), jnp.array([0, 1, 2]), jnp.ones(3)
    logits = jnp.zeros((2, 2))
    assert jax.jit(from_visits)(logits, states, actions, weights) == -jnp.inf
    assert from_visits(logits, states, actions, weights.at[2].set(0)) == pytest.approx(2 * np.log(0.5))
    for state in (2, -1):
        moved = states.at[0].set(state)
        assert np.isnan(from_visits(logits, moved, jnp.zeros(3, int), weights))
        assert np.isnan(ld.tabular_softmax.apply(logits, jnp.asarray(state)).log_prob(jnp.asarray(0)))
    tau = trajectory(observations=states, actions=actions)
    with pytest.raises(ValueError, match=r"0 \.\. 1, received 2 at index \(2,\)"):
        ld.log_prob(logits, ld.tabular_softmax, tau)


def test_float32_counts_do_not_drift():
    """One state, one action taken 2^24 + 2^20 times: a running float32 sum stops at 2^24."""
    length = 2**24 + 2**20
    zeros = jnp.zeros(length, jnp.int32)
    count = jax.jit(lambda w: ld.likelihood.visit_counts(zeros, zeros, w, (1, 1)))
    assert count(jnp.ones(length, bool)).item() == length
    assert count(jnp.ones(length, jnp.float32)).item() == pytest.approx(length, rel=1e-7)


@pytest.mark.parametrize(
    ("states", "actions", "shape"),
    [slow(("uint8", "int32", (200, 5))), ("int8", "int8", (100, 200)), slow(("int16", "uint8", (20_000, 3)))],
)
def test_the_width_of_the_integers_does_not_matter(states, actions, shape):
    """`S` and `A`, or the index `s A + a`, do not fit into them."""
    s, a = jnp.array([0, shape[0] - 1, 90], states), jnp.array([1, 2, 2], actions)
    counts = ld.likelihood.visit_counts(s, a, jnp.ones(3, bool), shape)
    assert counts.sum() == 3
    assert [int(counts[i, j]) for i, j in zip(s.tolist(), a.tolist(), strict=True)] == [1, 1, 1]
    logits, one, tau = jnp.zeros(shape), jnp.ones(3), trajectory(observations=s, actions=a)
    for policy in (ld.tabular_softmax, STEPWISE):
        assert ld.log_prob(logits, policy, tau) == pytest.approx(-3 * np.log(shape[1]), rel=1e-12)
    assert from_visits(logits, s, a, one > 0) == pytest.approx(-3 * np.log(shape[1]), rel=1e-12)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.bfloat16, jnp.float16])
def test_counts_are_not_kept_in_the_width_of_the_weights(dtype):
    """2^17 steps of one action: more than int8 and float16 hold, and than bfloat16 counts."""
    zeros, weights = jnp.zeros(2**17, jnp.int32), jnp.ones(2**17, dtype)
    assert ld.likelihood.visit_counts(zeros, zeros, weights, (1, 2)).tolist() == [[2**17, 0]]
    assert from_visits(jnp.zeros((1, 2)), zeros, zeros, weights) == pytest.approx(-(2**17) * np.log(2), rel=1e-12)


@pytest.mark.parametrize("policy", [ld.tabular_softmax, STEPWISE], ids=["counted", "stepwise"])
def test_an_impossible_step_of_weight_zero_does_not_count(policy):
    logits = jnp.array([[0.0, -jnp.inf], [0.5, 0.2]])
    states, actions = jnp.array([[0, 1, 1, 0]]), jnp.array([[1, 0, 1, 0]])
    tau = trajectory(observations=states, actions=actions)
    total = jax.jit(jax.value_and_grad(lambda p, w: ld.weighted_log_prob(p, policy, tau, w)))
    found, grad = total(logits, jnp.array([[0.0, 1.0, 2.0, 1.0]]))
    logs = jax.nn.log_softmax(logits[1])
    np.testing.assert_allclose(found, logs[0] + 2 * logs[1], rtol=1e-13)
    assert np.all(np.isfinite(grad))
    assert total(logits, jnp.ones((1, 4)))[0] == -jnp.inf


def test_states_and_actions_are_whole_numbers_and_weights_real_ones_of_any_kind():
    """State 0.9 was counted as state 0. Lists, eight bits and half precision give what float32 does."""
    count: Any = ld.likelihood.visit_counts
    states, actions = [0, 1, 1], [0, 1, 0]
    for kind in (list, np.array, jnp.array, lambda x: jnp.array(x, jnp.uint8), lambda x: np.array(x, np.int64)):
        counts = count(kind(states), kind(actions), kind([100, 100, 100]), (2, 2))
        np.testing.assert_array_equal(counts, [[100, 0], [100, 100]])
    half = jnp.full(3000, 1.0, jnp.bfloat16)
    found = count(jnp.zeros(3000, bool), jnp.zeros(3000, jnp.int8), half, (1, 1))
    assert (found.dtype, found[0, 0]) == (jnp.float32, 3000)
    refused = {
        "states": lambda: count(jnp.array([0.0, 0.9, 1.0]), actions, jnp.ones(3), (2, 2)),
        "actions": lambda: count(states, jnp.array([0.0, 1.0, 1.0]), jnp.ones(3), (2, 2)),
        "weights": lambda: count(states, actions, jnp.full(3, 1j), (2, 2)),
    }
    for name, call in refused.items():
        with pytest.raises(TypeError, match=f"{name}: expected"):
            call()


@pytest.mark.parametrize("policy", [ld.tabular_softmax, STEPWISE], ids=["counted", "step by step"])
def test_a_state_outside_the_table_makes_derivatives_nan_too(policy):
    """A finite gradient would be trained on; the wrong twin has the value alone NaN, by `jnp.where`."""
    logits, estimator = jnp.array([[0.3, -0.2], [1.0, 0.5]]), ld.RLOO()
    taus = trajectory(observations=jnp.array([[0, 1, 2], [0, 1, 1]]), rewards=jnp.arange(6.0).reshape(2, 3))
    value, slope = jax.jit(jax.value_and_grad(lambda p: ld.log_prob(p, policy, taus).sum()))(logits)
    assert np.isnan(value)
    assert np.isnan(slope).any()
    estimate, _ = jax.jit(lambda p: estimator.estimate(p, estimator.init(p), policy, taus))(logits)
    assert np.isnan(estimate.grads).any()
    inside = taus._replace(observations=jnp.minimum(taus.observations, 1))
    twin = jax.grad(lambda p: jnp.where(False, ld.log_prob(p, policy, inside).sum(), jnp.nan))(logits)
    assert np.isfinite(twin).all()


WEIGHED = jnp.array([[0.5, 2.0, 1.0]])


@pytest.mark.parametrize(
    ("estimate", "expected"),
    [
        (ld.log_prob, -jnp.inf),
        (lambda params, policy, tau: ld.weighted_log_prob(params, policy, tau, WEIGHED), -jnp.inf),
        (lambda params, policy, tau: ld.weighted_log_prob(params, policy, tau, -WEIGHED), jnp.inf),
    ],
    ids=["log P", "weighted", "negative weights"],
)
def test_an_impossible_action_leaves_the_derivatives_of_the_other_steps(estimate, expected):
    """Counted and step by step; the wrong twin replaces the sum by `jnp.where`, which has no derivative."""
    logits = jnp.array([[0.3, -0.2], [1.0, 0.5]])
    possible = trajectory(observations=jnp.array([[0, 1, 1]]), actions=jnp.array([[1, 0, 1]]))
    tau = possible._replace(actions=jnp.array([[1, 2, 1]]))

    def found(policy, tau):
        return jax.jit(jax.value_and_grad(lambda p, tau: estimate(p, policy, tau).sum()))(logits, tau)

    counted, stepwise, others = found(ld.tabular_softmax, tau), found(STEPWISE, tau), found(STEPWISE, possible)
    assert counted[0] == stepwise[0] == expected
    np.testing.assert_allclose(counted[1], stepwise[1], rtol=1e-14)
    assert np.abs(counted[1]).min() > 0
    np.testing.assert_allclose(counted[1][0], others[1][0], rtol=1e-14)  # that of the first step is untouched
    twin = jax.grad(lambda p: jnp.where(True, -jnp.inf, ld.log_prob(p, STEPWISE, possible).sum()))(logits)
    assert not twin.any()


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_several_states_at_once_are_each_state_on_its_own(shape):
    """Also as many states as actions: the wrong twin lays the mask of states along the actions, and loses a column of every state."""
    logits = jnp.cos(jnp.arange(9.0)).reshape(3, 3)
    states, actions = jnp.resize(jnp.array([0, 2, 1]), shape), jnp.resize(jnp.array([1, 0, 2]), shape)
    outside = states.at[(0,) * len(shape)].set(3)
    for policy in (ld.tabular_softmax, ld.shared_softmax):
        params = logits if policy is ld.tabular_softmax else logits[0]
        found = jax.jit(lambda s, p=policy, q=params: p.apply(q, s).log_prob(actions))(states)
        each = [policy.apply(params, s).log_prob(a) for s, a in zip(states.ravel(), actions.ravel(), strict=True)]
        np.testing.assert_allclose(found, jnp.stack(each).reshape(shape), rtol=1e-14)
    rows = ld.tabular_softmax.apply(logits, outside).logits
    np.testing.assert_array_equal(jnp.isnan(rows), jnp.broadcast_to((outside == 3)[..., None], rows.shape))
    twin = jnp.where((outside < 3).reshape((*shape[:-1], 1, 3)), logits[states], jnp.nan)
    assert not np.array_equal(jnp.isnan(twin), jnp.isnan(rows))
