"""Where a tape's choices come from: from random keys, or from a list of all paths."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from logderiv import distributions
from logderiv._core.arrays import summable
from logderiv._core.keys import KeyBits
from logderiv._core.pytrees import pytree
from logderiv.distributions.finite import outcome


@pytree
class Keys:
    """Random choices.

    Attributes:
        bits: Of a key, since a `lax.cond` under `jax.vmap` must not see the key itself.
    """

    bits: KeyBits

    def choose(self, distribution: Any, where: Any = True) -> tuple["Keys", Any]:
        """Make one choice: the source to go on with, and the detached value."""
        del where
        rest, keys = self.keys(1)
        # Detached before as well as after: the sampler need not have a derivative.
        return rest, lax.stop_gradient(distributions.sample(detached(distribution), keys[0]))

    def keys(self, num: int, purpose: str = "") -> tuple["Keys", jax.Array]:
        """Take `num` keys: the source to go on with, and the keys."""
        del purpose
        keys = jax.random.split(self.bits.keys(), num + 1)
        return Keys(KeyBits.of(keys[0])), keys[1:]

    def fork(self, num: int) -> tuple["Keys", "Keys"]:
        """The source to go on with, and `num` sources, stacked, for parts that run side by side."""
        rest, keys = self.keys(num)
        return rest, Keys(KeyBits.of(keys))

    def again(self) -> "Keys":
        """That of a second run, on the same keys."""
        return self

    def join(self, parts: Any) -> "Keys":
        """The source after parts, stacked, that have run side by side."""
        del parts
        return self


@pytree(static=("stride",))
class Given:
    """Choices from a list: the next one is `choices[position]`, and the one after it `stride` further on.

    Attributes:
        choices: Numbers of outcomes; -1 stands behind the last one. Shape `(num_choices,)`.
        used: Which of them have been made. Shape `(num_choices,)`.
        log_probs: Of those that were made, else 0. Shape `(num_choices,)`.
        position: Of the next one. Shape `()`.
        second: The list of a second run, where one choice is made otherwise; or `None`.
        stride: Parts that run side by side take turns, so that the list need not know how many choices each makes; static.
    """

    choices: jax.Array
    used: jax.Array
    log_probs: jax.Array
    position: jax.Array
    second: jax.Array | None = None
    stride: int = 1

    @classmethod
    def of(cls, choices: Any, second: Any = None) -> "Given":
        """A source for each row of choices, shape `(..., num_choices)`."""
        choices = jnp.asarray(choices)
        unused, position = jnp.zeros(choices.shape, bool), jnp.zeros(choices.shape[:-1], jnp.int32)
        return cls(choices, unused, jnp.zeros(choices.shape), position, second)

    def choose(self, distribution: Any, where: Any = True) -> tuple["Given", Any]:
        """Make one choice: the source to go on with, and its value."""
        value = outcome(distribution, self.choices.at[self.position].get(mode="fill", fill_value=-1))
        if value is None:
            raise _cannot_list(f"a sample of {type(distribution).__name__}")
        log_prob = summable(distributions.log_probs(distribution, value)).astype(self.log_probs.dtype)
        position = jnp.where(where, self.position, self.choices.shape[0])  # behind the list: dropped
        used = self.used.at[position].set(True, mode="drop")
        log_probs = self.log_probs.at[position].set(log_prob, mode="drop")
        next_one = jnp.where(where, self.position + self.stride, self.position)
        return dataclasses.replace(self, used=used, log_probs=log_probs, position=next_one), value

    def again(self) -> "Given":
        """That of the second run."""
        return self if self.second is None else dataclasses.replace(self, choices=self.second)

    def keys(self, num: int, purpose: str) -> tuple["Given", jax.Array]:
        """Raise `TypeError` with the purpose that keys were for."""
        del num
        raise _cannot_list(purpose)

    def fork(self, num: int) -> tuple["Given", "Given"]:
        """The source to go on with, and `num` sources, stacked, for parts that run side by side."""
        rows = jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *x.shape)), self)
        position, nothing = self.position + self._turns(num), jnp.zeros_like(rows.log_probs)
        return self, dataclasses.replace(rows, position=position, log_probs=nothing, stride=self.stride * num)

    def join(self, parts: Any) -> "Given":
        """The source after parts, stacked, that have run side by side."""
        num = parts.position.shape[0]
        longest = jnp.max(parts.position - self._turns(num), initial=0)  # of the part with most choices
        position = jnp.maximum(longest, self.position)
        used, log_probs = self.used | jnp.any(parts.used, axis=0), self.log_probs + jnp.sum(parts.log_probs, axis=0)
        return dataclasses.replace(self, used=used, position=position, log_probs=log_probs)

    def _turns(self, num: int) -> jax.Array:
        return self.stride * jnp.arange(num, dtype=jnp.int32)


def detached(tree: Any) -> Any:
    """The same tree without derivatives; what is no array stays as it is."""
    return jax.tree.map(lambda x: lax.stop_gradient(x) if isinstance(x, jax.Array) else x, tree)


def _cannot_list(what: str) -> TypeError:
    return TypeError(
        f"program: expected every choice to be one of finitely many outcomes, from tape.sample or logderiv.sample, so that its paths "
        f"can be listed; received {what}."
    )
