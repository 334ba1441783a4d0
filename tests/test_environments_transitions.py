"""Gymnasium's tables: published optima to their digits, and every transition of the table in the process."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld

WORLDS = {  # steps, optimum, terminal copies
    "FrozenLake-v1": (100, 0.7441902878, 0),
    "FrozenLake8x8-v1": (200, 0.9132201502, 0),
    "CliffWalking-v1": (None, -13.0, 0),
    "Taxi-v4": (200, 7.93, 4),
}


@functools.cache
def converted(name: str) -> tuple[Any, ld.environments.Converted]:
    gymnasium = pytest.importorskip("gymnasium")
    environment = gymnasium.make(name)
    own: Any = environment.unwrapped
    limit = environment.spec.max_episode_steps
    return own, ld.environments.from_transitions(own.P, own.initial_state_distrib, horizon=limit)


def optimum(mdp: ld.environments.TabularMDP, horizon: int) -> tuple[float, np.ndarray]:
    """V_t(s) = max_a (r(s,a) + Σ p V_{t+1}): its mean over the start, and the best actions at t = 0."""
    transition, reward, ended = (np.asarray(x) for x in (mdp.transition, mdp.expected_reward(), mdp.terminal))
    values, best = np.zeros(mdp.num_states), np.zeros(mdp.num_states, int)
    for _ in range(horizon):
        choices = reward + transition @ values
        best = np.argmax(np.round(choices, 12), axis=1)
        values = np.where(ended, 0, choices.max(axis=1))
    return float(np.asarray(mdp.initial) @ values), best


@pytest.mark.parametrize("name", WORLDS)
def test_published_optima(name):
    limit, expected, copies = WORLDS[name]
    own, (mdp, states) = converted(name)
    value, best = optimum(mdp, limit or 100)
    assert value == pytest.approx(expected, abs=1e-9)
    assert mdp.horizon == limit
    assert len(states) == len(own.P) + copies
    logits = jnp.asarray(np.where(np.arange(mdp.num_actions) == best[:, None], 0.0, -1e3))
    of_policy = ld.exact.value(logits, ld.tabular_softmax, mdp, horizon=limit or 100)
    transition, reward = np.asarray(mdp.transition), np.asarray(mdp.expected_reward())
    values, rows = np.zeros(mdp.num_states), np.arange(mdp.num_states)
    for _ in range(limit or 100):
        values = np.where(mdp.terminal, 0, reward[rows, best] + transition[rows, best] @ values)
    np.testing.assert_allclose(of_policy, np.asarray(mdp.initial) @ values, rtol=1e-12)
    if name in ("CliffWalking-v1", "Taxi-v4"):  # the best first actions are best at every step
        np.testing.assert_allclose(of_policy, expected, rtol=1e-9)
    else:
        assert of_policy < expected


@pytest.mark.parametrize("name", WORLDS)
def test_each_transition_is_that_of_the_table(name):
    """Next state of the table, reward and end have the same probabilities."""
    own, (mdp, states) = converted(name)
    transition, reward, ended = (np.asarray(x) for x in (mdp.transition, mdp.reward, mdp.terminal))
    for s in np.flatnonzero(~ended)[:: max(1, len(states) // 100)]:
        for a in range(mdp.num_actions):
            expected: dict[Any, float] = {}
            for p, new, r, end in own.P[int(states[s])][a]:
                expected[int(new), float(r), bool(end)] = expected.get((int(new), float(r), bool(end)), 0) + p
            found = {
                (int(states[new]), float(reward[(s, a, new)[: reward.ndim]]), bool(ended[new])): transition[s, a, new]
                for new in np.flatnonzero(transition[s, a])
            }
            assert found == pytest.approx(expected, abs=1e-14)


def test_a_state_is_split_and_duplicates_become_a_law():
    """By hand: state 0 pays 0 or 1 and stays, or ends in itself; state 1 is only entered by an end."""
    table = {
        0: {0: [(0.25, 0, 0.0, False), (0.25, 0, 1.0, False), (0.25, 0, 5.0, True), (0.25, 1, 2.0, True)]},
        1: {0: [(1.0, 0, 0.0, False)]},
    }
    mdp, states = ld.environments.from_transitions(table, [1.0, 0.0])
    assert states.tolist() == [0, 1, 0]
    assert mdp.terminal.tolist() == [False, True, True]
    assert mdp.transition[0, 0].tolist() == [0.5, 0.25, 0.25]
    assert mdp.reward.values.tolist() == [0, 1, 2, 5]
    assert mdp.reward.probabilities[0, 0].tolist() == [[0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert mdp.expected_reward()[0, 0] == 0.25 + 0.5 + 1.25
    assert ld.exact.count_trajectories(mdp, 1) == 4
    # Of three steps at most, each reached with probability 1/2; a process that forgets ends comes back from state 1.
    forgetful = {s: {0: [(*entry[:3], False) for entry in table[s][0]]} for s in table}
    worlds = mdp, ld.environments.from_transitions(forgetful, [1.0, 0.0]).mdp
    policy: Any = ld.tabular_softmax
    values = [float(ld.exact.value(jnp.zeros((x.num_states, 1)), policy, x, horizon=3)) for x in worlds]
    assert values[0] == pytest.approx(2 * (1 + 1 / 2 + 1 / 4))
    assert values[1] == pytest.approx(2 * (1 + 3 / 4 + 13 / 16))


GOOD = [(1.0, 0, 0.0, False)]
BAD = {
    r"transitions\[0\]\[0\]: expected probabilities that sum to 1, off by 0.1": {0: {0: [(0.9, 0, 0.0, False)]}},
    r"transitions\[0\]\[0\]: expected probabilities >= 0, received -0.5": {
        0: {0: [(-0.5, 0, 0.0, False), (1.5, 0, 0.0, True)]}
    },
    r"transitions\[0\]\[0\]: expected a next state from 0 to 0, received 3": {0: {0: [(1.0, 3, 0.0, False)]}},
    r"transitions: expected states numbered 0, 1, ..., received \[1\]": {1: {0: GOOD}},
    r"transitions\[1\]: expected the actions 0 .. 0 of each state, received \[0, 1\]": {
        0: {0: GOOD},
        1: {0: GOOD, 1: GOOD},
    },
    r"transitions: expected a table .* such as env.unwrapped.P, received list": [1.0],
    r"transitions\[0\]\[0\]: expected a table .* received 3": {0: {0: 3}},
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_no_table_is_named(message):
    with pytest.raises((ValueError, TypeError), match=message):
        ld.environments.from_transitions(BAD[message], [1.0])
    with pytest.raises(ValueError, match=r"initial: expected shape \(1,\)"):
        ld.environments.from_transitions({0: {0: GOOD}}, [0.5, 0.5])
