"""Exact values and derivatives: dynamic programming, enumeration and published numbers agree."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from tests.mostly import slow
from tests.worlds import TERMINATING_LOGITS, TWO_STATES_LOGITS, cast, terminating, two_states

# Every one of the 2 * 4^T trajectories of the two-state process enumerated by another program, in float64, and cross-checked
# there by dynamic programming (Sutton & Barto, 2nd ed., eq. 4.5); discount 0.9, logits as in TWO_STATES_LOGITS. The gradient is (x, -x, y, -y), the Hessian made of
# (a, b, d) with 2 x 2 blocks a J, b J, d J and J = [[1, -1], [-1, 1]], the Fisher matrix of (a, 0, d).
TWO_STATES = {
    1: {
        "value": 0.6495128338952352,
        "gradient": (0.22001248052167127, -0.1745632281350244),
        "hessian": (-0.03275656556001866, 0.0, 0.008720895205027501),
        "fisher": (0.1466749870144475, 0.09975041607715679),
    },
    2: {
        "value": 1.2545818476558974,
        "gradient": (0.3600762392217371, -0.3182649256447019),
        "hessian": (-0.00520447139818736, 0.015636764737870394, -0.015442959857532634),
        "fisher": (0.2856094668379328, 0.20739705388233032),
    },
    3: {
        "value": 1.795401176555255,
        "gradient": (0.4989654693822225, -0.4482019507027061),
        "hessian": (-0.003901630999192829, 0.023128413068927656, -0.029032912726438265),
        "fisher": (0.4261136214086897, 0.3134424400460357),
    },
}
BLOCK = np.array([[1.0, -1.0], [-1.0, 1.0]])

# (p_right, T, J_T, dJ_T / dlogit): the corridor of Sutton & Barto, 2nd ed., example 13.1. J_T = -sum_{t<T} P(not at the goal
# after t steps), by powers of the 3 x 3 matrix of live states; in the limit J = (2 p - 4) / (p (1 - p)).
CORRIDOR = [
    (0.05, 5, -4.99299375, 0.01284875000000003),
    (0.05, 500, -82.04285302060394, 75.4164811054062),
    (0.5, 10, -7.65625, 0.52734375),
    (0.5, 2000, -12.0, 2.0),
    (0.5857864376269049, 10, -7.546241728839691, 0.10270802215955623),
    (0.95, 50, -30.681816620978644, -11.880024892847198),
    (0.95, 2000, -44.210526315789295, -37.78947368421039),
]


def with_memory(params, carry, observation):
    """The tabular softmax, dressed as a policy with memory."""
    return ld.Categorical(params[observation]), carry


WITH_MEMORY = ld.FunctionPolicy(with_memory, initial_carry=lambda params: jnp.zeros((), params.dtype))


@pytest.mark.parametrize("horizon", [slow(1), slow(2), 3])
def test_value_gradient_hessian_and_fisher_of_the_two_state_process(horizon):
    expected = TWO_STATES[horizon]

    @jax.jit
    def ours(params):
        arguments, options = (params, ld.tabular_softmax, two_states()), {"horizon": horizon, "discount": 0.9}
        return (
            ld.exact.value(*arguments, **options),
            ld.exact.gradient(*arguments, **options),
            ld.exact.hessian(*arguments, **options),
            ld.exact.fisher(*arguments, horizon=horizon),
        )

    value, gradient, hessian, fisher = ours(TWO_STATES_LOGITS)
    np.testing.assert_allclose(value, expected["value"], rtol=1e-13)
    np.testing.assert_allclose(gradient, np.outer(expected["gradient"], [1, -1]), rtol=1e-13)
    a, b, d = expected["hessian"]
    np.testing.assert_allclose(hessian.reshape(4, 4), np.kron([[a, b], [b, d]], BLOCK), atol=1e-14)
    np.testing.assert_allclose(fisher, np.kron(np.diag(expected["fisher"]), BLOCK), atol=1e-14)


def test_dynamic_programming_and_enumeration_agree_with_early_termination():
    mdp = terminating()

    def exact(function, params, policy: Any = ld.tabular_softmax, method=None):
        return function(params, policy, mdp, horizon=3, discount=0.8, method=method)

    @jax.jit
    def results(params):
        functions = (ld.exact.value, ld.exact.gradient, ld.exact.hessian)
        dynamic, enumerated = ([exact(f, params, method=m) for f in functions] for m in ("dynamic", "enumeration"))
        fisher = [ld.exact.fisher(params, p, mdp, horizon=3) for p in (ld.tabular_softmax, WITH_MEMORY)]
        return dynamic, enumerated, [exact(f, params, WITH_MEMORY) for f in functions[:2]], fisher

    dynamic, enumerated, memory, fisher = results(TERMINATING_LOGITS)
    for exact_one, other in zip([*dynamic, *dynamic[:2], fisher[0]], [*enumerated, *memory, fisher[1]], strict=True):
        np.testing.assert_allclose(other, exact_one, rtol=1e-12, atol=1e-14)
    assert abs(dynamic[0]) > 0.1
    assert np.abs(dynamic[2]).max() > 0.01


@pytest.mark.parametrize(("p", "horizon", "value", "slope"), CORRIDOR)
def test_short_corridor_at_finite_horizons(p, horizon, value, slope):
    params = jnp.array([0.0, np.log(p / (1 - p))])
    ours, gradient = jax.jit(jax.value_and_grad(ld.exact.value), static_argnames="horizon")(
        params, ld.shared_softmax, ld.environments.short_corridor(), horizon=horizon
    )
    np.testing.assert_allclose(ours, value, rtol=1e-12)
    np.testing.assert_allclose(gradient, [-slope, slope], rtol=1e-9)


# gamma^t V_t(s) of the two-state process at T = 3, by enumeration as above.
TWO_STATES_VALUES = [
    [1.550498926420467, 2.1627545517574376],
    [0.9173408837295345, 1.4467978316314682],
    [0.2929476579261657, 0.8758420017486027],
]


def test_state_values_of_every_step():
    values = ld.exact.state_values(TWO_STATES_LOGITS, ld.tabular_softmax, two_states(), horizon=3, discount=0.9)
    np.testing.assert_allclose(0.9 ** np.arange(3)[:, None] * values, TWO_STATES_VALUES, rtol=1e-13)


def test_trajectories_end_early_sum_to_one_and_carry_their_behavior():
    mdp, params = terminating(), TERMINATING_LOGITS
    every = ld.exact.enumerate_trajectories(mdp, horizon=3, params=params, policy=ld.tabular_softmax)
    weights = jax.jit(lambda p: ld.prob(p, ld.tabular_softmax, every, environment=mdp))(params)
    assert every.valid.shape == (ld.exact.count_trajectories(mdp, 3), 3) == (191, 3)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-14)
    every, weights = jax.tree.map(np.asarray, (every, weights))
    lengths = every.valid.sum(axis=1)
    assert set(lengths) == {1, 2, 3}
    ended = np.asarray(mdp.terminal)[every.final_observation]
    assert ended[lengths < 3].all()
    np.testing.assert_array_equal(every.discounts.min(axis=1) == 0, ended)
    logs = np.asarray(jax.nn.log_softmax(params))[every.observations, every.actions]
    np.testing.assert_allclose(every.behavior_log_probs, np.where(every.valid, logs, 0), rtol=1e-14)
    columns = (every.valid, every.observations, every.actions, every.final_observation[:, None])
    assert len(np.unique(np.concatenate(columns, axis=1), axis=0)) == 191

    occupied = ld.exact.occupancy(params, ld.tabular_softmax, mdp, horizon=3)
    counted = [[weights[(every.observations[:, t] == s) & every.valid[:, t]].sum() for s in range(3)] for t in range(3)]
    np.testing.assert_allclose(occupied, counted, atol=1e-15)


def test_what_a_terminal_state_says_is_never_used():
    """A policy that is not defined there, and tables full of NaN, change no value and no derivative."""
    clean = terminating()
    rubbish = ld.environments.TabularMDP(
        clean.initial, clean.transition.at[2].set(jnp.nan), clean.reward.at[2].set(jnp.nan), clean.terminal
    )

    def policy(params, state):
        return ld.Categorical(params[state] * jnp.sqrt(1.0 - state.astype(float)))  # NaN in state 2

    def sound(params, state):
        return ld.Categorical(params[state] * jnp.sqrt(jnp.where(state == 2, 1.0, 1.0 - state.astype(float))))

    exact = ld.exact
    functions = (exact.value, exact.gradient, exact.hessian, exact.fisher, exact.weighted_score_moments)

    @jax.jit
    def results(params):
        return [[f(params, *given, horizon=4) for f in functions] for given in ((policy, rubbish), (sound, clean))]

    assert jnp.isnan(policy(TERMINATING_LOGITS, jnp.int32(2)).logits).all()
    received, expected = results(TERMINATING_LOGITS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14, atol=1e-15), received, expected)


def test_a_process_is_an_argument_like_any_other():
    def value(reward):
        mdp = dataclasses.replace(two_states(), reward=reward)
        return ld.exact.value(TWO_STATES_LOGITS, ld.tabular_softmax, mdp, horizon=3, discount=0.9)

    reward = two_states().reward
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(value)))(jnp.stack([reward, 2 * reward]))
    expected = TWO_STATES[3]["value"]
    np.testing.assert_allclose(values, [expected, 2 * expected], rtol=1e-13)
    np.testing.assert_allclose(jnp.sum(slopes * reward[None], axis=(1, 2)), [expected, expected], rtol=1e-13)


def _value(params=TWO_STATES_LOGITS, policy: Any = ld.tabular_softmax, mdp: Any = None, **options: Any):
    given: Any = {"horizon": 2} | options
    return ld.exact.value(params, policy, two_states() if mdp is None else mdp, **given)


def _listed(**options: Any):
    return ld.exact.enumerate_trajectories(two_states(), **options)


ARGUMENTS: Any = (TWO_STATES_LOGITS, ld.tabular_softmax, two_states())
TOO_MANY = r"2 states and 2 actions have at least \d+ .* 100 steps.*exact\.value"
THREE = "between the 2 actions of the decision process, received a distribution over 3"
CONCRETE = "environment: expected a concrete one"
BAD = [
    (ValueError, TOO_MANY, lambda: _listed(horizon=100)),
    (ValueError, "2048 trajectories of 5 steps, more than limit=2047", lambda: _listed(horizon=5, limit=2047)),
    (ValueError, "method: expected 'dynamic'", lambda: _value(method="monte carlo")),
    (TypeError, CONCRETE, lambda: jax.jit(lambda m: _value(policy=WITH_MEMORY, mdp=m))(two_states())),
    (ValueError, "received one with memory", lambda: _value(policy=WITH_MEMORY, method="dynamic")),
    (ValueError, THREE, lambda: _value(jnp.zeros(3), ld.shared_softmax)),
    (TypeError, "floating-point", lambda: ld.exact.gradient(BLOCK.astype(int), *ARGUMENTS[1:], horizon=2)),
]


@pytest.mark.parametrize(("error", "message", "call"), BAD, ids=[row[1] for row in BAD])
def test_bad_input_is_named(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_horizons_and_discounts_out_of_range_are_named():
    others = [functools.partial(f, *ARGUMENTS) for f in (ld.exact.fisher, ld.exact.weighted_score_moments)]
    for call in (_listed, _value, *others):
        for horizon in (0, -1, 2.0):
            with pytest.raises(ValueError, match=r"horizon: expected a whole number from 1 to \d+"):
                call(horizon=horizon)
    for discount in (-0.1, 1.5):
        for method in ("dynamic", "enumeration"):
            with pytest.raises(ValueError, match=r"discount: expected a number in \[0, 1\]"):
                _value(discount=discount, method=method)


@pytest.mark.parametrize(("enabled", "method"), [(True, "enumeration"), (False, "dynamic")])
def test_float32_with_and_without_x64(enabled, method):
    with jax.enable_x64(enabled):
        params, mdp = cast((TWO_STATES_LOGITS, two_states()), jnp.float32)
        both = jax.value_and_grad(lambda p: _value(p, mdp=mdp, horizon=3, discount=0.9, method=method))
        value, gradient = jax.jit(both)(params)
        assert value.dtype == gradient.dtype == jnp.float32
        np.testing.assert_allclose(value, TWO_STATES[3]["value"], rtol=1e-6)
        np.testing.assert_allclose(gradient[:, 0], TWO_STATES[3]["gradient"], rtol=1e-5)


def test_whole_and_half_precise_tables_have_the_values_of_their_numbers():
    """One state, rewards 1 and 2, discount 1/2, three steps: 1.5 (1 + 1/2 + 1/4), the slope 1.75 p (1 - p). As it was, 1.5."""
    tabular: Any = ld.environments.TabularMDP
    one, where = jnp.zeros(2), {"horizon": 3, "discount": 0.5}
    rewards: list = [
        [[1, 2]],
        jnp.array([[1, 2]], jnp.int8),
        np.array([[1, 2]], np.uint8),
        jnp.array([[1, 2]], jnp.bfloat16),
    ]
    for reward in rewards:
        mdp = tabular([1], [[[1], [1]]], reward, [0])
        assert mdp.reward.dtype.itemsize >= 4
        for method in ("dynamic", "enumeration"):
            value = ld.exact.value(one, ld.shared_softmax, mdp, method=method, **where)
            np.testing.assert_allclose(value, 2.625, rtol=1e-6)
    mdp = tabular([1], [[[1], [1]]], rewards[-1], [0])
    slope = ld.exact.gradient(jnp.array([0.3, 0.0]), ld.shared_softmax, mdp, **where)
    np.testing.assert_allclose(slope[1], 1.75 * jax.nn.sigmoid(0.3) * jax.nn.sigmoid(-0.3), rtol=1e-6)
    tenths = tabular(jnp.array([0.1, 0.9], jnp.bfloat16), jnp.ones((2, 1, 2)) / 2, [[1], [2]], [0, 0])
    np.testing.assert_allclose(tenths.initial.sum(), 1, rtol=1e-7)
    np.testing.assert_allclose(tenths.initial, [0.1, 0.9], rtol=0.01)
    with pytest.raises(ValueError, match=r"sum to 1, off by 0\.0991"):
        tabular(jnp.array([0.1, 0.8], jnp.bfloat16), jnp.ones((2, 1, 2)) / 2, [[1], [2]], [0, 0])
    for name in ("initial", "transition", "reward", "terminal"):
        tables = {"initial": [1], "transition": [[[1], [1]]], "reward": [[1, 2]], "terminal": [0]}
        with pytest.raises(TypeError, match=f"TabularMDP.{name}: expected real numbers"):
            tabular(**tables | {name: jnp.asarray(tables[name], complex)})
