"""Moments of the advantages of max@k, in groups of any size and for any rewards: U-statistics of the best of several.

The advantage of an answer is a sum of terms, each a factor times the mean, over all sets of s of the other answers, of the best of
them, with or without the own reward. The mean of a product of two terms is one over pairs of sets; of the best of m and of n
independent rewards, l of them in common, P(best ≤ x, best' ≤ y) = F(min(x, y))^l F(x)^(m−l) F(y)^(n−l).
"""

import itertools
import math
from typing import NamedTuple

import numpy as np

from logderiv.estimators.objectives.advantages import MaxAtK


class Term(NamedTuple):
    """A term of an advantage.

    Attributes:
        factor: What the mean is multiplied by.
        size: s.
        own: Whether the own reward is in each set.
    """

    factor: float
    size: int
    own: bool


def terms_of(kind: MaxAtK) -> list[Term]:
    """The terms whose sum is the advantage."""
    terms = [Term(kind.k, kind.k - 1, True)]
    if kind.baseline is not None:
        terms.append(Term(-kind.k, kind.k if kind.baseline == "k others" else kind.k - 1, False))
    return terms


class Best:
    """Expectations of the best of several rewards and a fixed one; V different rewards, numbered from the smallest.

    Attributes:
        places: The number of each class's reward.
    """

    def __init__(self, rewards: np.ndarray, chances: np.ndarray) -> None:
        self._values, self.places = np.unique(rewards, return_inverse=True)
        self._law = np.cumsum(np.bincount(self.places, chances))[:-1]  # F, but for the largest
        self._steps = np.diff(self._values)

    def mean(self, m: int) -> np.ndarray:
        """E[max(x, best of m)] for each x. Shape `(V,)`."""
        return self._values + self._beyond(m)

    def _beyond(self, m: int) -> np.ndarray:
        """E[max(0, best of m − x)] = Σ (step to the next) P(best of m is beyond it), from x on."""
        return _from_here(self._steps * (1 - self._law**m))

    def product(self, m: int, n: int, number: int) -> np.ndarray:
        """E[max(x, best of m) max(y, best of n)] for sets of m and of n drawn from the same `number`. Shape `(V, V)`."""
        x, y = self._law[:, None], self._law[None]
        neither = np.zeros((len(x), len(x)))  # P(best of m ≤ x, best of n ≤ y)
        for shared in range(max(0, m + n - number), min(m, n) + 1):
            chance = math.comb(m, shared) * math.comb(number - m, n - shared) / math.comb(number, n)
            neither += chance * np.minimum(x, y) ** shared * x ** (m - shared) * y ** (n - shared)
        both = (1 - x**m - y**n + neither) * np.multiply.outer(self._steps, self._steps)
        beyond = _from_here(_from_here(both).T).T
        values, times = self._values, np.multiply.outer
        return times(values, values) + times(values, self._beyond(n)) + times(self._beyond(m), values) + beyond


def _from_here(x: np.ndarray) -> np.ndarray:
    """Along the last axis, the sum from each place to the end, and at last the empty one."""
    sums = np.cumsum(x[..., ::-1], axis=-1)[..., ::-1]
    return np.concatenate([sums, np.zeros((*x.shape[:-1], 1))], axis=-1)


class Moments(NamedTuple):
    """Moments of the advantage A of an answer of class c, and of A' of another one of its group, of class d.

    Attributes:
        once: E[A | c]. Shape `(C,)`.
        twice: E[A² | c]. Shape `(C,)`.
        beside: E[A | c, d]. Shape `(C, C)`.
        pairs: E[A A' | c, d]. Shape `(C, C)`.
    """

    once: np.ndarray
    twice: np.ndarray
    beside: np.ndarray
    pairs: np.ndarray


def moments(kind: MaxAtK, rewards: np.ndarray, chances: np.ndarray, size: int) -> Moments:
    """Moments of max@k in groups of `size` answers to one prompt, of these classes."""
    best, terms = Best(rewards, chances), terms_of(kind)
    own, nothing = best.places, np.zeros_like(best.places)
    fixed = [own if term.own else nothing for term in terms]
    once = np.sum([t.factor * best.mean(t.size)[x] for t, x in zip(terms, fixed, strict=True)], axis=0)
    twice, beside, pairs = np.zeros(len(own)), np.zeros((len(own),) * 2), np.zeros((len(own),) * 2)
    for (t, x), (u, y) in itertools.product(zip(terms, fixed, strict=True), repeat=2):
        twice += t.factor * u.factor * best.product(t.size, u.size, size - 1)[x, y]
    if size == 1:
        return Moments(once, twice, beside, pairs)
    # of the sets of each answer some hold the other one, whose reward is fixed as well
    parts = [
        (
            t.factor * share,
            t.size - inside,
            np.maximum(x[:, None], own[None]) if inside else np.broadcast_to(x[:, None], beside.shape),
        )
        for t, x in zip(terms, fixed, strict=True)
        for inside, share in ((0, 1 - t.size / (size - 1)), (1, t.size / (size - 1)))
        if share > 0
    ]
    for factor, m, x in parts:
        beside += factor * best.mean(m)[x]
        for other, n, y in parts:
            pairs += factor * other * best.product(m, n, size - 2)[x, y.T]
    return Moments(once, twice, beside, pairs)
