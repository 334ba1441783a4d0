"""Coefficients of the moments: what the gradients of each class of answers are multiplied by, in the mean and in the second moment."""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core.pytrees import jit
from logderiv.estimators.objectives.advantages import MaxAtK
from logderiv.estimators.objectives.presets import Recipe
from logderiv.exact.group_best import moments
from logderiv.exact.group_sums import Classes, Groups, Law, Needs, add, fingerprint, nothing, totals

_NUMBERS = 2**20  # rewards of groups that advantages are taken of at a time
_PARTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "both": lambda a: a,
    "positive": lambda a: np.maximum(a, 0),
    "negative": lambda a: np.maximum(-a, 0),
    "none": np.ones_like,
}


class Problem(NamedTuple):
    """What all groups have in common.

    Attributes:
        recipe: Without a penalty, which the rewards of the classes hold.
        classes: Of answers.
        groups: Of each prompt.
        needs: Of advantages, and of weights.
        parts: Names of the parts that an advantage is split into.
        num_groups: P.
        equal_rewards: What becomes of a group of equal rewards.
        best: max@k, where its moments stand for sums over groups; else `None`.
        refuse: Raises where there are too many states.
    """

    recipe: Recipe
    classes: Classes
    groups: list[Groups]
    needs: tuple[Needs, Needs]
    parts: tuple[str, ...]
    num_groups: int
    equal_rewards: str
    best: MaxAtK | None
    refuse: Callable[[int], None]


class Entries(NamedTuple):
    """What a whole group adds to the sums over the batch: one entry for each different contribution.

    Attributes:
        keys: Fingerprints of the contributions; they add up.
        of_needs: Those for advantages alone, and for weights alone. Shape `(2, E)`.
        members: The classes of some group with it. Shape `(E, G)`.
        dropped: Whether that group is left out.
        of_states: The entry of each state of each prompt.
        alive: Whether each state of each prompt has unequal rewards, or is kept all the same.
    """

    keys: np.ndarray
    of_needs: np.ndarray
    members: np.ndarray
    dropped: np.ndarray
    of_states: list[np.ndarray]
    alive: list[np.ndarray]


def entries_of(problem: Problem) -> Entries:
    """The entries of all prompts."""
    members = np.concatenate([x.whole.members for x in problem.groups])
    rewards, lengths, raw = (getattr(problem.classes, name)[members] for name in ("rewards", "lengths", "raw"))
    alive = np.ptp(raw, axis=1) > 0 if problem.equal_rewards != "keep" else np.ones(len(members), bool)
    dropped = ~alive & (problem.equal_rewards == "drop")
    columns = [np.where(dropped[:, None], 0, totals(needs, rewards, lengths)) for needs in problem.needs]
    of_needs = np.stack([fingerprint(x, seed) for seed, x in enumerate(columns, 1)])
    keys, first, inverse = np.unique(of_needs.sum(axis=0, dtype=np.uint64), return_index=True, return_inverse=True)
    ends = np.cumsum([len(x.whole.keys) for x in problem.groups])[:-1]
    of_states, of_alive = (list(np.split(x, ends)) for x in (inverse, alive))
    return Entries(keys, of_needs[:, first], members[first], dropped[first], of_states, of_alive)


class Slot(NamedTuple):
    """One group of the batch, seen together with the others.

    Attributes:
        weights: Of each prompt: its probability, over that of unequal rewards where such groups are drawn anew.
        others: The law of what all other groups add to the sums of the batch.
    """

    weights: np.ndarray
    others: Law


def weights_of(problem: Problem, entries: Entries, of_prompts: np.ndarray) -> tuple[np.ndarray, float]:
    """The weight of each prompt in a group, and the probability that the rewards of a group that is drawn are not all equal."""
    pairs = zip(problem.groups, entries.alive, strict=True)
    unequal = np.array([groups.whole.chances @ alive for groups, alive in pairs])
    kept = float(of_prompts @ unequal)
    impossible = kept == 0 if problem.equal_rewards == "refill" else np.any(unequal[of_prompts > 0] == 0)
    if problem.equal_rewards in ("refill", "redraw") and impossible:
        raise ValueError(
            f"equal_rewards: {problem.equal_rewards!r} draws until the rewards of a group are not all equal, which they always are, of "
            "some prompt; take 'mask' or 'drop', or another environment."
        )
    if problem.equal_rewards == "refill":
        return of_prompts / kept, kept
    if problem.equal_rewards == "redraw":
        return of_prompts / np.where(of_prompts > 0, unequal, 1), kept
    return of_prompts, kept


def law_of(problem: Problem, entries: Entries, weights: list[np.ndarray]) -> Law:
    """The law of what groups of these weights of prompts add to the sums over the batch."""
    drawn_anew = problem.equal_rewards in ("refill", "redraw")
    law = nothing()
    for of_prompts in weights:
        chances = np.zeros(len(entries.keys))
        for x in np.flatnonzero(of_prompts):
            of_states = problem.groups[x].whole.chances * (entries.alive[x] if drawn_anew else 1)
            chances += of_prompts[x] * np.bincount(entries.of_states[x], of_states, len(chances))
        possible = np.flatnonzero(chances)
        law = add(law, possible, chances[possible], entries.keys[possible], problem.refuse)
    return law


class Coefficients(NamedTuple):
    """Of one slot: of each class and part, given the entry of the own group and the state of the others.

    Attributes:
        given: Shape `(C, S, E, states of the others)`; the others' probability is left out.
        squares: Of one answer. Shape `(C, S, S)`.
        pairs: Of two answers of the group. Shape `(C, S, C, S)`.
    """

    given: np.ndarray
    squares: np.ndarray
    pairs: np.ndarray


def coefficients(problem: Problem, entries: Entries, slot: Slot) -> Coefficients:
    """Those of one slot."""
    number, parts, states = len(problem.classes.rewards), len(problem.parts), _known(problem, entries)
    problem.refuse(number * parts * states * len(slot.others.keys) // 16)
    given = np.zeros((number, parts, states, len(slot.others.keys)))
    squares, pairs = np.zeros((number, parts, parts)), np.zeros((number, parts, number, parts))
    of_prompt = _of_prompt if problem.best is None else partial(_of_best, problem.best)
    for x in np.flatnonzero(slot.weights):
        own = problem.groups[x].own
        found = of_prompt(problem, entries, slot.others, int(x))
        for total, new, place in zip(
            (given, squares, pairs), found, (own, own, np.ix_(own, np.arange(parts), own)), strict=True
        ):
            total[place] += slot.weights[x] * new
    return Coefficients(given, squares, pairs)


def _known(problem: Problem, entries: Entries) -> int:
    """How many entries the own group is told apart by: only other groups have to know."""
    return len(entries.keys) if problem.num_groups > 1 else 1


def _of_prompt(problem: Problem, entries: Entries, others: Law, x: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The coefficients of answers to one prompt."""
    groups, entry, alive = problem.groups[x], entries.of_states[x], entries.alive[x]
    (advantages, of_group, of_others), (weights, weighed, weighed_others) = (
        _table(problem, entries, others, x, i) for i in range(2)
    )
    different = weighed.max() + 1  # weights; with the entry one number, in the order of entries
    known = np.minimum(entry, _known(problem, entries) - 1)
    both, weighed = np.unique(known * different + weighed, return_inverse=True)
    entry, rows = np.divmod(both, different)
    entry, first = np.unique(entry, return_index=True)
    classes, parts = len(groups.own), len(problem.parts)
    given = np.zeros((classes, parts, _known(problem, entries), len(others.keys)))
    squares, pairs = np.zeros((classes, parts, parts)), np.zeros((classes, parts, classes, parts))
    for i in range(advantages.shape[2]):
        split = np.stack([_PARTS[name](advantages[:, :, i]) for name in problem.parts], axis=1)
        mine = np.flatnonzero(of_others == i)
        weight = weights[:, rows][:, :, weighed_others[mine]]
        chance = others.chances[mine]
        once, twice, pair = _sums(groups, split[:, :, of_group], weighed, alive, len(rows))
        given[:, :, entry[:, None], mine] += np.add.reduceat(once[..., None] * weight[:, None], first, axis=2)
        squares += np.einsum("csut,ctr,ctr,r->csu", twice, weight, weight, chance, optimize=True)
        products = np.einsum("ctr,dtr,r->cdt", weight, weight, chance, optimize=True)
        pairs += np.einsum("csdut,cdt->csdu", pair, products)
    return given, squares, pairs


def _of_best(
    kind: MaxAtK, problem: Problem, entries: Entries, others: Law, x: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same of max@k where no sum decides anything: all groups are one state."""
    groups = problem.groups[x]
    size = groups.whole.members.shape[1]
    rewards, chances = problem.classes.rewards[groups.own], problem.classes.chances[groups.own]
    found = moments(kind, rewards, chances, size)
    weight = _table(problem, entries, others, x, 1)[0][:, 0, 0]
    ones = np.ones_like(found.pairs)
    parts = len(problem.parts)  # the second is that of what has no advantage: 1
    once = np.stack([found.once, ones[0]], axis=1)[:, :parts]
    squares = np.array([[found.twice, found.once], [found.once, ones[0]]])[:parts, :parts]
    pairs = np.array([[found.pairs, found.beside], [found.beside.T, ones]])[:parts, :parts]
    squares = np.moveaxis(squares, 2, 0) * np.square(weight)[:, None, None]
    pairs = np.transpose(pairs, (2, 0, 3, 1)) * np.multiply.outer(weight, weight)[:, None, :, None]
    return (once * weight[:, None])[..., None, None], squares, pairs


def _sums(
    groups: Groups, split: np.ndarray, weighed: np.ndarray, alive: np.ndarray, number: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each part of the advantage, of each product of two of one answer, and of two answers; by what weights depend on.

    Args:
        groups: Of one prompt.
        split: Parts of the advantage of each class in each state of the whole group. Shape `(C, S, states)`.
        weighed: What the weight depends on, from 0, of each state.
        alive: Which states count.
        number: How many different weights there are.
    """
    classes, parts = split.shape[:2]
    every, split = np.arange(classes), split * alive

    def by_weight(state: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Sums of values over the first axis of two, for each of the second."""
        columns = (weighed[state] + number * np.arange(state.shape[1])).ravel()
        return lambda values: np.bincount(columns, values.ravel(), number * state.shape[1]).reshape(-1, number)

    state, chance = groups.whole.following, groups.rest.chances[:, None]
    own, sums = [split[every, s, state] for s in range(parts)], by_weight(state)
    once = np.stack([sums(chance * x) for x in own], axis=1)
    twice = np.stack([np.stack([sums(chance * x * y) for y in own], axis=1) for x in own], axis=1)
    pairs = np.zeros((classes, parts, classes, parts, number))
    if groups.fewer is None:
        return once, twice, pairs
    for c in range(classes):
        state = groups.whole.following[groups.rest.following[:, c:], c]  # with each class beside it, from this one on
        chance, sums = groups.fewer.chances[:, None], by_weight(state)
        beside = [split[every[c:], u, state] for u in range(parts)]
        for s in range(parts):
            mine = chance * split[c, s, state]
            for u in range(parts):
                pairs[c, s, c:, u] = pairs[c:, u, c, s] = sums(mine * beside[u])
    return once, twice, pairs


def _table(
    problem: Problem, entries: Entries, others: Law, x: int, which: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Advantages (0) or weights (1) of the classes of one prompt, by what decides them in their group, and in the others.

    Returns:
        The table, shape `(C, states of the group, states of the others)`, the row of each state of the group, the column of each
        of the others.
    """
    groups, needs, alive = problem.groups[x], problem.needs[which], entries.alive[x]
    in_group = np.sum(fingerprint(problem.classes.sums(needs.group))[groups.whole.members], axis=1, dtype=np.uint64)
    in_group = in_group + entries.of_needs[which][entries.of_states[x]]
    keys, rows = np.unique(in_group, return_inverse=True)
    outside = np.sum(entries.of_needs[which][others.members], axis=1, dtype=np.uint64)
    outside, first_outside, columns = np.unique(outside, return_index=True, return_inverse=True)
    different, cells = np.unique(keys[:, None] + outside, return_inverse=True)
    values, known = np.zeros((len(groups.own), len(different))), np.zeros((len(groups.own), len(different)), bool)

    def evaluate(own: np.ndarray, column: np.ndarray) -> np.ndarray:
        outer = others.members[first_outside[column]]
        of_others = entries.members[outer].reshape(len(own), outer.shape[1] * entries.members.shape[1])
        return _evaluate(problem, np.concatenate([own, of_others], axis=1), entries.dropped[outer], which)

    states = np.flatnonzero(alive)  # of each cell some group: all its answers are known by it
    cell, row, column = _some_of_each(rows[states], cells, np.ones(cells.shape, bool))
    members = groups.whole.members[states[row]]
    place = np.searchsorted(groups.own, members), cell[:, None]
    values[place], known[place] = evaluate(members, column), True
    left = []
    for c in range(len(groups.own)):  # and of each class the cells that it is missing from
        states = np.flatnonzero(alive[groups.whole.following[:, c]])
        cell, row, column = _some_of_each(rows[groups.whole.following[states, c]], cells, ~known[c, cells])
        left.append((np.full(len(cell), c), cell, states[row], column))
    own, cell, rest, column = (np.concatenate(x) for x in zip(*left, strict=True))
    members = np.concatenate([groups.own[own][:, None], groups.rest.members[rest]], axis=1)
    values[own, cell] = evaluate(members, column)[:, 0]
    return values[:, cells], rows, columns


def _some_of_each(rows: np.ndarray, cells: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each cell that is wanted in one of these rows, the place of such a row among them, and the column."""
    places = np.full(len(cells), -1)
    places[rows] = np.arange(len(rows))
    row, column = np.nonzero(wanted & (places >= 0)[:, None])
    cell, first = np.unique(cells[row, column], return_index=True)
    return cell, places[row[first]], column[first]


def _evaluate(problem: Problem, members: np.ndarray, dropped: np.ndarray, which: int) -> np.ndarray:
    """The advantages (0), or weights (1), of the first group of each batch. Shapes `(M, N)`, `(M, P - 1)`; returns `(M, G)`."""
    number, total = members.shape
    size = total // problem.num_groups
    if number == 0:
        return np.zeros((0, size))
    groups = np.where(dropped, -1, np.arange(1, problem.num_groups))
    groups = np.repeat(np.concatenate([np.zeros((number, 1), int), groups], axis=1), size, axis=1)
    rows = max(1, min(_NUMBERS // total, 1 << (number - 1).bit_length()))  # few different shapes to compile
    longest, values = int(max(1, problem.classes.lengths.max())), []
    with jax.enable_x64(True):
        for start in range(0, number, rows):
            place = np.minimum(np.arange(start, start + rows), number - 1)
            rewards, lengths, greedy = (
                getattr(problem.classes, n)[members[place]] for n in ("rewards", "lengths", "greedy")
            )
            batch = rewards, lengths, greedy, groups[place].astype(np.int32)
            values.append(np.asarray(_of_first_group(problem.recipe, batch, problem.num_groups, longest, which)))
    return np.concatenate(values)[:number]


@jit
def _of_first_group(recipe: Recipe, batches: Any, num_groups: int, longest: int, which: int) -> jax.Array:
    def of_batch(rewards: jax.Array, lengths: jax.Array, greedy: jax.Array, groups: jax.Array) -> jax.Array:
        mask = jnp.arange(longest, dtype=lengths.dtype)[None] < lengths[:, None]
        if which == 0:
            found = recipe.advantages(rewards, groups, num_groups=num_groups, mask=mask, greedy=greedy)
        else:
            weights = recipe.token_weights(mask, groups, num_groups=num_groups, dtype=rewards.dtype)
            found = jnp.max(weights, axis=1)
        return found[: len(found) // num_groups]

    return jax.vmap(of_batch)(*batches)


def crossed(
    first: Coefficients, second: Coefficients, laws: tuple[Law, Law], rest: Law, keys: np.ndarray
) -> np.ndarray:
    """The coefficients of two answers of two groups. Shape `(C, S, C, S)`.

    Args:
        first: Coefficients of the one group's slot.
        second: Of the other's.
        laws: Of what is not in the first group, and not in the second.
        rest: Of what is in neither.
        keys: Of the entries.
    """
    shape = first.squares.shape[:2]
    total = np.zeros((shape[0] * shape[1],) * 2)
    for key, chance in zip(rest.keys, rest.chances, strict=True):
        seen = [
            np.minimum(law.find(keys + key), len(law.keys) - 1) for law in laws
        ]  # the other group's entry, then the state
        one = first.given[..., seen[0]].reshape(len(total), -1)
        other = np.swapaxes(second.given[..., seen[1]], -1, -2).reshape(len(total), -1)
        total += chance * one @ other.T
    return total.reshape(shape * 2)


def mean_of(found: Coefficients, others: Law) -> np.ndarray:
    """The coefficients of the mean of one answer. Shape `(C, S)`."""
    return reduce(np.matmul, (np.sum(found.given, axis=2), others.chances))
