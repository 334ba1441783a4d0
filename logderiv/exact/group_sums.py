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

_DIGITS = 12  # decimal, of a sum, that are compared
POWERS = {  # of length and reward, in each sum
    "count": (0, 0),
    "T": (1, 0),
    "R": (0, 1),
    "RR": (0, 2),
    "TR": (1, 1),
    "TRR": (1, 2),
}
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
    """Whether the gradient is linear in all rewards, given the lengths."""
    return isinstance(recipe.advantage, Centered) and recipe.advantage.scale is None and parts[0] == "both"


class Classes(NamedTuple):
    """Answers of the same prompt, rewards and length; C rows.

    Attributes:
        prompts: Number of the prompt (start), from 0.
        chances: Probability, given the prompt.
        raw: Reward.
        rewards: Reward less penalty: what advantages see.
        lengths: Tokens.
        greedy: Reward of the greedy answer to its prompt.
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


def classes_of(each: Classes) -> tuple[Classes, np.ndarray]:
    """The classes of answers, each of which comes as one of its own; and its share in each of them, shape `(K, C)`."""
    rows = np.stack([each.prompts, each.raw, each.rewards, each.lengths], axis=1)
    _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    shares = np.eye(len(first))[inverse.reshape(-1)]
    return Classes(*(x[first] for x in each))._replace(chances=each.chances @ shares), shares


def three_rewards(classes: Classes) -> tuple[Classes, np.ndarray]:
    """Classes with three rewards alone, by prompt and length, and the share of each class in them; shares may be negative.

    What is quadratic in the reward of each answer is its own interpolation between three rewards: products of two advantages that
    are linear in all rewards have the same expectations.
    """
    middle = (classes.rewards.max() + classes.rewards.min()) / 2
    half = classes.rewards.max() - middle
    x = (classes.rewards - middle) / half
    weights = np.stack([x * (x - 1) / 2, 1 - x * x, x * (x + 1) / 2], axis=1)
    same = np.stack([classes.prompts, classes.lengths], axis=1)
    keys, first, inverse = np.unique(same, axis=0, return_index=True, return_inverse=True)
    shares = (np.eye(len(keys))[inverse.reshape(-1)][:, :, None] * weights[:, None, :]).reshape(len(x), -1)
    rewards = np.tile(middle + half * np.arange(-1, 2), len(keys))
    three = Classes(*(np.repeat(x[first], 3) for x in classes))
    return three._replace(chances=classes.chances @ shares, raw=rewards, rewards=rewards), shares


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


def groups_of(prompt: int, classes: Classes, keys: np.ndarray, size: int, refuse: Callable[[int], None]) -> Groups:
    """The groups of `size` answers to one prompt.

    Args:
        prompt: Its number.
        classes: Of the answers to all prompts.
        keys: Fingerprints of the classes.
        size: G.
        refuse: Raises where there are too many states.

    Returns:
        `Groups`.
    """
    own, laws = np.flatnonzero(classes.prompts == prompt), [nothing()]
    for _ in range(size):
        laws.append(add(laws[-1], own, classes.chances[own], keys[own], refuse))
    return Groups(own, laws[-3] if size > 1 else None, laws[-2], laws[-1])


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
