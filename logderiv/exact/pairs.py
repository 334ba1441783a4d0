"""Pairs of antithetic runs: what both draw together, with probabilities, over cells of the uniform numbers that they share.

A run takes path x where each of its uniform numbers lies in the interval [F(xᵢ - 1), F(xᵢ)) of the outcome xᵢ that the path makes
there. The other run of the pair makes outcome yⱼ where 1 - U lies in that of yⱼ. Choices with one key have one U, others have
independent ones, so that the probability of both paths is a product over keys: of the overlap of the first interval with the
mirrored second one where both have the key, of the interval's length where one has.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from logderiv import distributions
from logderiv._core.keys import KeyBits
from logderiv._core.pytrees import pytree
from logderiv.distributions.finite import outcome, outcomes_of
from logderiv.expectations.sources import Given, Keys

_ROUNDING = 1e-15  # of the ends of an interval


@pytree
class Cells:
    """Given choices, each with its interval of the uniform number, and the key that this number has where choices are drawn.

    Attributes:
        given: A `Given`, which makes the choices.
        drawn: The `Keys` that would.
        below: The lower end of each interval. Shape `(num_choices,)`.
        labels: The key of each. Shape `(num_choices, words)`, uint32.
    """

    given: Given
    drawn: Keys
    below: jax.Array
    labels: jax.Array

    @classmethod
    def of(cls, choices: jax.Array) -> "Cells":
        """A source for one list of choices."""
        bits = KeyBits.of(jax.random.key(0))
        zeros = jnp.zeros((*choices.shape, *bits.bits.shape), bits.bits.dtype)
        return cls(Given.of(choices), Keys(bits), jnp.zeros(choices.shape), zeros)

    def choose(self, distribution: Any, where: Any = True) -> tuple["Cells", Any]:
        """Make one choice: the source to go on with, and its value."""
        given, value = self.given.choose(distribution, where)
        drawn, keys = self.drawn.split(1)
        numbers = jnp.arange(outcomes_of("draws='antithetic'", distribution), dtype=jnp.int32)
        probs = jax.vmap(lambda i: distributions.prob(distribution, outcome(distribution, i)))(numbers)
        at = jnp.where(where, self.given.position, len(self.below))
        number = self.given.choices.at[self.given.position].get(mode="fill", fill_value=0)
        below = jnp.sum(jnp.where(numbers < number, probs, 0)).astype(self.below.dtype)
        return dataclasses.replace(
            self,
            given=given,
            drawn=drawn,
            below=self.below.at[at].set(below, mode="drop"),
            labels=self.labels.at[at].set(jax.random.key_data(keys[0]), mode="drop"),
        ), value

    def draw(self, distribution: Any) -> Any:
        """Raise `TypeError`, as a list of paths does."""
        return self.given.draw(distribution)

    def keys(self, num: int, purpose: str) -> Any:
        """Raise `TypeError` with the purpose that keys were for."""
        return self.given.keys(num, purpose)

    def fork(self, num: int) -> tuple["Cells", "Cells"]:
        """The source to go on with, and `num` sources, stacked, for parts that run side by side."""
        (given, parts), (drawn, keys) = self.given.fork(num), self.drawn.fork(num)
        rows = jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *x.shape)), self)
        return dataclasses.replace(self, given=given, drawn=drawn), dataclasses.replace(rows, given=parts, drawn=keys)

    def join(self, parts: "Cells") -> "Cells":
        """The source after parts, stacked, each of which has made choices in other places of the list."""
        below, labels = (
            x + jnp.sum(y - x[None], axis=0, dtype=x.dtype)
            for x, y in ((self.below, parts.below), (self.labels, parts.labels))
        )
        return dataclasses.replace(self, given=self.given.join(parts.given), below=below, labels=labels)


def joint(probabilities: np.ndarray, used: np.ndarray, below: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probability that one run takes path i and the other one path j, shape `(K, K)`.

    Args:
        probabilities: Of each choice of each path, shape `(K, num_choices)`.
        used: Whether the path makes it.
        below: The lower end of its interval.
        labels: The key of its uniform number, with further axes.
    """
    above, alone = below + probabilities, np.prod(np.where(used, probabilities, 1), axis=1)
    keys = np.unique(labels.reshape(used.size, -1), axis=0, return_inverse=True)[1].reshape(used.shape)
    found = np.multiply.outer(alone, alone)
    for i, n in np.argwhere(used):
        theirs = np.nonzero(used & (keys == keys[i, n]))
        overlap = np.minimum(above[i, n], 1 - below[theirs]) - np.maximum(below[i, n], 1 - above[theirs])
        shared = np.where(overlap > _ROUNDING, overlap, 0)
        found[i, theirs[0]] *= shared / (probabilities[i, n] * probabilities[theirs])
    return found
