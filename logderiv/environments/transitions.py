"""Tables of transitions as Gymnasium's toy worlds keep them, as a `TabularMDP`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from logderiv._core import check
from logderiv.environments.rewards import RewardLaw
from logderiv.environments.tabular import TabularMDP


class Converted(NamedTuple):
    """A table of transitions as a decision process.

    Attributes:
        mdp: The process.
        states: The table's number of each state of `mdp`, shape `(S,)`, whole numbers of NumPy.
    """

    mdp: TabularMDP
    states: np.ndarray


def from_transitions(transitions: Any, initial: Any, *, horizon: int | None = None) -> Converted:
    """A table `{state: {action: [(probability, next state, reward, terminated), ...]}}` as a `TabularMDP`.

    In the table a transition ends the episode, here a state does. A state that is only entered by transitions that end is terminal.
    One that is entered by both kinds, or starts and is entered by one that ends, stays, and gets a terminal copy. The states of the
    table keep their numbers; copies follow in the order of what they are copies of, and `states` says which that is: a policy
    that reads the table's numbers is `lambda params, s: policy(params, states[s])`. A terminal state has nothing to leave it.

    Entries of the same next state and end are one transition. The reward has the smallest shape that holds it: `(S, A)` where it
    is known once the action is, `(S, A, S)` where it is known on arrival, else a `RewardLaw`.

    For Gymnasium: `from_transitions(env.unwrapped.P, env.unwrapped.initial_state_distrib, horizon=env.spec.max_episode_steps)`.

    Args:
        transitions: The table; states and actions are numbered from 0, all states have the same actions.
        initial: Probability of each state as a start, shape `(S,)` of the table.
        horizon: The time limit.

    Returns:
        `Converted`: the process, and the table's number of each of its states.

    Raises:
        ValueError: States or actions are not numbered from 0, a next state is out of range, probabilities are negative or do not sum
            to 1, shapes disagree.
        TypeError: `transitions` is no such table.

    Example:
        >>> table = {0: {0: [(0.5, 0, 0.0, False), (0.5, 0, 1.0, True)]}}  # ends where it started
        >>> mdp, states = from_transitions(table, [1.0])
        >>> mdp.terminal.tolist(), states.tolist(), mdp.reward.tolist()
        ([False, True], [0, 0], [[[0.0, 1.0]], [[0.0, 0.0]]])
    """
    steps, size, actions = _entries(transitions)
    start = np.asarray(initial, np.float64)
    check.shape((size,), initial=start, hint="one for each state of the table")
    state, action, new, probability, reward, ends = steps
    entered, ended = start > 0, np.zeros(size, bool)
    entered[new[~ends]] = True
    ended[new[ends]] = True
    copied = np.flatnonzero(entered & ended)
    numbers = np.arange(size)
    numbers[copied] = size + np.arange(len(copied))
    states = np.concatenate([np.arange(size), copied])
    terminal = np.concatenate([ended & ~entered, np.ones(len(copied), bool)])
    lives = ~terminal[state]
    new = np.where(ends, numbers[new], new)
    steps = tuple(x[lives] for x in (state, action, new, probability, reward))
    transition = np.zeros((len(states), actions, len(states)))
    np.add.at(transition, steps[:3], steps[3])
    transition[terminal, :, terminal] = 1
    start = np.concatenate([start, np.zeros(len(copied))])
    tables: Any = start, transition, _rewards(steps, transition), terminal
    return Converted(TabularMDP(*tables, horizon=horizon), states)


def _entries(transitions: Any) -> tuple[tuple[np.ndarray, ...], int, int]:
    """The columns state, action, next state, probability, reward and end of what is possible, and the numbers of states and actions."""
    expected = (
        "a table {state: {action: [(probability, next state, reward, terminated), ...]}}, such as env.unwrapped.P"
    )
    if not isinstance(transitions, Mapping) or not all(isinstance(x, Mapping) for x in transitions.values()):
        raise TypeError(f"transitions: expected {expected}, received {type(transitions).__name__}.")
    size = len(transitions)
    actions = len(next(iter(transitions.values()), ()))
    if size == 0 or set(transitions) != set(range(size)):
        raise ValueError(f"transitions: expected states numbered 0, 1, ..., received {list(transitions)[:5]}.")
    rows = []
    for state in range(size):
        if actions == 0 or set(transitions[state]) != set(range(actions)):
            raise ValueError(
                f"transitions[{state}]: expected the actions 0 .. {actions - 1} of each state, received {list(transitions[state])}."
            )
        for action in range(actions):
            rows += _row(state, action, transitions[state][action], size, expected)
    columns = np.array(rows, np.float64).T
    state, action, new = columns[:3].astype(int)
    return (state, action, new, columns[3], columns[4], columns[5] != 0), size, actions


def _row(state: int, action: int, entries: Any, size: int, expected: str) -> list[tuple[float, ...]]:
    name = f"transitions[{state}][{action}]"
    try:
        rows = [(float(p), new, float(reward), bool(ends)) for p, new, reward, ends in entries]
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected {expected}, received {entries!r}.") from error
    total = sum(row[0] for row in rows)
    if any(row[0] < 0 for row in rows):
        raise ValueError(f"{name}: expected probabilities >= 0, received {min(row[0] for row in rows):.3g}.")
    if not abs(total - 1) <= 1e-6:
        raise ValueError(f"{name}: expected probabilities that sum to 1, off by {abs(total - 1):.3g}.")
    for row in rows:
        if not (0 <= row[1] < size and row[1] == int(row[1])):
            raise ValueError(f"{name}: expected a next state from 0 to {size - 1}, received {row[1]!r}.")
    return [(state, action, int(new), p / total, reward, ends) for p, new, reward, ends in rows if p > 0]


def _rewards(steps: tuple[np.ndarray, ...], transition: np.ndarray) -> Any:
    """The smallest table that holds the rewards of these entries, or their law."""
    *step, probability, reward = steps
    for place in (step[:2], step):
        table = np.zeros(transition.shape[: len(place)])
        table[tuple(place)] = reward
        if np.array_equal(table[tuple(place)], reward):
            return table
    values, place = np.unique(reward, return_inverse=True)
    law = np.zeros((*transition.shape, len(values)))
    np.add.at(law, (*step, place.ravel()), probability)
    total = law.sum(axis=-1, keepdims=True)
    law[..., :1][total == 0] = 1  # of what never happens
    return RewardLaw(values, law / np.where(total == 0, 1, total))
