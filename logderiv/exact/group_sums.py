"""The law of groups of answers, by what decides their advantages and weights: sums over the answers.

Answers of the same prompt, reward and length are one class. Groups whose answers have the same sums, such as ΣR and ΣR², are one
state, of which one group is kept to evaluate the objective on: the answer in question and any others with these sums. Sums are
compared by fingerprints: integers modulo 2^64 that add up when the sums do.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from logderiv.estimators.objectives.advantages import Centered, MaxAtK
from logderiv.estimators.objectives.presets import Recipe
from logderiv.exact.enumeration import readable
from logderiv.exact.group_answers import Answers

_DIGITS = 12  # decimal, of a sum, that are compared

POWERS = {
    "count": (0, 0),
    "T": (1, 0),
    "R": (0, 1),
    "RR": (0, 2),
    "TR": (1, 1),
    "TRR": (1, 2),
}  # of length and reward, in each sum
_OF_BASELINE = {
    None: (),
    "greedy": (),
    "others": ("R",),
    "group": ("R",),
    "others by length": ("T", "TR"),
    "group by length": ("T", "TR"),
}
_OF_SCALE = {None: (), "group": (), "batch": ("R", "RR"), "tokens": ("T", "TR", "TRR")}


class Needs(NamedTuple):
    """The sums that decide a number of one answer.

    Attributes:
        group: Over the answers of its group.
        batch: Over those of the batch.
        centered: Whether rewards in the latter have the mean of their group subtracted.
    """

    group: tuple[str, ...] = ()
    batch: tuple[str, ...] = ()
    centered: bool = False

    @property
    def sources(self) -> tuple[str, ...]:
        """All sums over a group that decide them."""
        return (*self.group, *self.batch, *(("R",) if self.centered else ()))


def of_advantage(kind: Centered | MaxAtK) -> Needs:
    """What decides an advantage. Of max@k it is how often each reward occurs."""
    if isinstance(kind, MaxAtK):
        return Needs(("each",))
    group = _OF_BASELINE[kind.baseline] + (("R", "RR") if kind.scale == "group" else ())
    return Needs(group, _OF_SCALE[kind.scale], kind.scale == "tokens" and kind.baseline == "group")


def of_weight(per: str, dropped: bool) -> Needs:
    """What decides the weight of an answer's tokens; where groups are left out also how many are in."""
    count = ("count",) if dropped else ()
    return Needs(("T",) if per == "group" else (), ("T", *count) if per == "batch" else count)


def linear(recipe: Recipe, parts: tuple[str, ...]) -> bool:
    """Whether the gradient is linear in the rewards of the others, given their lengths."""
    kind = recipe.advantage
    return (
        isinstance(kind, Centered)
        and kind.scale is None
        and kind.baseline not in (None, "greedy")
        and parts[0] == "both"
    )


class Classes(NamedTuple):
    """Answers of the same prompt, rewards and length; C rows.

    Attributes:
        prompts: Number of the prompt.
        chances: Probability, given the prompt.
        raw: Reward.
        rewards: Reward less penalty.
        lengths: Tokens.
        greedy: Reward of the greedy answer.
    """

    prompts: np.ndarray
    chances: np.ndarray
    raw: np.ndarray
    rewards: np.ndarray
    lengths: np.ndarray
    greedy: np.ndarray

    def sums(self, names: tuple[str, ...]) -> np.ndarray:
        """One column for each sum that is named. Shape `(C, d)`."""
        columns = [_powers(name, self.rewards, self.lengths)[:, None] for name in names if name in POWERS]
        if "each" in names:
            columns.append((self.rewards[:, None] == np.unique(self.rewards)).astype(float))
        if "raw" in names:
            columns.append(np.stack([self.raw, self.raw**2], axis=1))
        return np.concatenate(columns, axis=1) if columns else np.zeros((len(self.rewards), 0))


def classes_of(answers: Answers) -> tuple[Classes, np.ndarray]:
    """The classes, and that of each answer."""
    rows = np.stack([answers.prompts, answers.raw, answers.rewards, answers.lengths], axis=1)
    _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    own = Classes(
        answers.prompts, answers.chances, answers.raw, answers.rewards, answers.lengths.astype(float), answers.greedy
    )
    found = Classes(*(x[first] for x in own))
    return found._replace(chances=np.bincount(inverse, answers.chances)), inverse


def two_points(classes: Classes, by_length: bool) -> Classes:
    """Classes with the same mean and variance of rewards, given prompt and length: all that counts of others that enter linearly."""
    keys = np.stack([classes.prompts, classes.lengths if by_length else np.zeros_like(classes.lengths)], axis=1)
    rows = []
    for key in np.unique(keys, axis=0):
        same = (keys == key).all(axis=1)
        chances, rewards = classes.chances[same], classes.rewards[same]
        total = chances.sum()
        mean = chances @ rewards / total
        spread = math.sqrt(chances @ (rewards - mean) ** 2 / total)
        of_one = classes.prompts[same][0], total / 2, 0.0
        rest = classes.lengths[same][0], 0.0
        rows += [(*of_one, mean + spread, *rest), (*of_one, mean - spread, *rest)]
    prompts, *numbers = np.array(rows).T
    return Classes(prompts.astype(int), *numbers)


def fingerprint(columns: np.ndarray, seed: int = 0) -> np.ndarray:
    """Of each row of numbers, rounded to 12 digits of the largest in its column: it adds up as they do, modulo 2^64."""
    number = columns.shape[-1]
    largest = np.max(np.abs(columns), axis=0, initial=0.0)
    digits = _DIGITS - np.ceil(np.log10(np.where(largest > 0, largest, 1)))
    whole = np.rint(columns * 10**digits).astype(np.int64).astype(np.uint64)
    odd = np.random.default_rng(seed).integers(2**63, size=number, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    return np.asarray(np.sum(whole * odd, axis=-1, dtype=np.uint64))


class Law(NamedTuple):
    """The sums over m members; sorted by fingerprint, S rows.

    Attributes:
        keys: Fingerprints.
        chances: Probabilities.
        members: Some m members with these sums, shape `(S, m)`.
        following: Where a law came from: from each of its states, with each new member, the state here. Shape `(S', C)`.
    """

    keys: np.ndarray
    chances: np.ndarray
    members: np.ndarray
    following: np.ndarray

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The states of these fingerprints."""
        return np.searchsorted(self.keys, keys)


def nothing() -> Law:
    """The law of no members."""
    return Law(np.zeros(1, np.uint64), np.ones(1), np.zeros((1, 0), int), np.zeros((0, 0), int))


def add(law: Law, members: np.ndarray, chances: np.ndarray, keys: np.ndarray, refuse: Callable[[int], None]) -> Law:
    """One more member, of those numbered `members`, independent of the others."""
    refuse(len(law.keys) * len(members))
    sums = law.keys[:, None] + keys[None]
    unique, first, inverse = np.unique(sums.ravel(), return_index=True, return_inverse=True)
    found = np.bincount(inverse, (law.chances[:, None] * chances).ravel())
    before, new = np.divmod(first, len(members))
    rows = np.concatenate([law.members[before], members[new][:, None]], axis=1)
    return Law(unique, found, rows, inverse.reshape(sums.shape))


class Groups(NamedTuple):
    """Every group of answers to one prompt.

    Attributes:
        own: Numbers of the classes of its answers.
        fewer: The law of all answers but two; `None` of a group of one.
        rest: Of all but one.
        whole: Of all.
    """

    own: np.ndarray
    fewer: Law | None
    rest: Law
    whole: Law


def groups_of(
    prompt: int, classes: Classes, keys: np.ndarray, number: int, size: int, refuse: Callable[[int], None]
) -> Groups:
    """The groups of `size` answers to one prompt.

    Args:
        prompt: Its number.
        classes: Those of the answers; behind them, if there are more than `number`, those that take their place among the others.
        keys: Fingerprints of the classes.
        number: How many classes of answers there are.
        size: G.
        refuse: Raises where there are too many states.

    Returns:
        `Groups`.
    """
    of_prompt = classes.prompts == prompt
    own = np.flatnonzero(of_prompt[:number])
    others = number + np.flatnonzero(of_prompt[number:]) if len(keys) > number else own
    fewer, rest = None, nothing()
    for i in range(size - 1):
        fewer, chosen = rest, own if i == size - 2 else others
        rest = add(rest, chosen, classes.chances[chosen], keys[chosen], refuse)
    whole = add(rest, own, classes.chances[own], keys[own], refuse)
    return Groups(own, fewer, rest, whole)


def refusal(recipe: Recipe, classes: int, size: int, limit: int) -> Callable[[int], None]:
    """Raise `ValueError` if there are more states than `limit`."""

    def refuse(states: int) -> None:
        if states > limit:
            names = dict.fromkeys((*of_advantage(recipe.advantage).sources, *of_weight(recipe.per, False).sources))
            many = readable(math.comb(classes + size - 1, size))
            penalty = ", of rewards less a penalty, which are all different" if recipe.penalty is not None else ""
            raise ValueError(
                f"size: {recipe.advantage} with per={recipe.per!r} depends on sums over groups ({', '.join(names) or 'none'}{penalty}) "
                f"with at least {states} values, more than limit={limit}, and {many} groups of {size} answers of {classes} classes "
                "cannot be listed one by one; take smaller groups, fewer different rewards, a shorter horizon, or raise limit."
            )

    return refuse


def totals(needs: Needs, rewards: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """What whole groups add to the sums over the batch. Shapes `(S, G)`; returns `(S, d)`."""
    if needs.centered:
        rewards = rewards - np.mean(rewards, axis=-1, keepdims=True)
    columns: list[Any] = [np.sum(_powers(name, rewards, lengths), axis=-1) for name in needs.batch]
    return np.stack(columns, axis=-1) if columns else np.zeros((len(rewards), 0))


def _powers(name: str, rewards: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    of_length, of_reward = POWERS[name]
    return lengths**of_length * rewards**of_reward
