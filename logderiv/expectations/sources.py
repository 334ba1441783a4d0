"""Where a tape takes its choices from: random keys, or a list of given ones."""

import dataclasses
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from logderiv import distributions
from logderiv._core.keys import KeyBits
from logderiv._core.pytrees import pytree


@pytree
class Keys:
    """Random choices.

    Attributes:
        bits: Of a key, since a `lax.cond` under `jax.vmap` must not see the key itself.
    """

    bits: KeyBits

    def choose(self, distribution: Any) -> tuple["Keys", Any]:
        """Make one choice: the source to go on with, and the detached value."""
        rest, keys = self.keys(1)
        # Detached before as well as after: the sampler need not have a derivative.
        made = jax.tree.map(lambda x: lax.stop_gradient(x) if isinstance(x, jax.Array) else x, distribution)
        return rest, lax.stop_gradient(distributions.sample(made, keys[0]))

    def keys(self, num: int, purpose: str = "") -> tuple["Keys", jax.Array]:
        """Take `num` keys: the source to go on with, and the keys."""
        del purpose
        keys = jax.random.split(self.bits.keys(), num + 1)
        return Keys(KeyBits.of(keys[0])), keys[1:]

    def fork(self, num: int) -> tuple["Keys", "Keys"]:
        """The source to go on with, and `num` sources, stacked, for parts that run side by side."""
        rest, keys = self.keys(num)
        return rest, Keys(KeyBits.of(keys))

    def join(self, parts: "Keys") -> "Keys":
        """The source after parts, stacked, that have run side by side."""
        del parts
        return self


@pytree(static=("stride",))
class Given:
    """Choices from a list: the next one is `choices[position]`, and the one after it `stride` further on.

    Attributes:
        choices: Integers; -1 stands behind the last one. Shape `(num_choices,)`.
        used: Which of them have been made. Shape `(num_choices,)`.
        position: Of the next one. Shape `()`.
        stride: Parts that run side by side take turns, so that the list need not know how many choices each makes; static.
    """

    choices: jax.Array
    used: jax.Array
    position: jax.Array
    stride: int = 1

    @classmethod
    def of(cls, choices: Any) -> "Given":
        """A source for each row of choices, shape `(..., num_choices)`."""
        choices = jnp.asarray(choices)
        return cls(choices, jnp.zeros(choices.shape, bool), jnp.zeros(choices.shape[:-1], jnp.int32))

    def choose(self, distribution: Any) -> tuple["Given", Any]:
        """Make one choice: the source to go on with, and its value."""
        like = jax.eval_shape(lambda key: distributions.sample(distribution, key), jax.random.key(0))
        single = isinstance(like, jax.ShapeDtypeStruct) and like.shape == ()
        if not (single and (jnp.issubdtype(like.dtype, jnp.integer) or like.dtype == jnp.bool_)):
            raise _cannot_list(f"a sample of {type(distribution).__name__}: {like}")
        value = self.choices.at[self.position].get(mode="fill", fill_value=-1).astype(like.dtype)
        used = self.used.at[self.position].set(True, mode="drop")
        return dataclasses.replace(self, used=used, position=self.position + self.stride), value

    def keys(self, num: int, purpose: str) -> tuple["Given", jax.Array]:
        """Raise `TypeError` with the purpose that keys were for."""
        del num
        raise _cannot_list(purpose)

    def fork(self, num: int) -> tuple["Given", "Given"]:
        """The source to go on with, and `num` sources, stacked, for parts that run side by side."""
        choices, used = (jnp.broadcast_to(x, (num, *x.shape)) for x in (self.choices, self.used))
        return self, Given(choices, used, self.position + self._turns(num), self.stride * num)

    def join(self, parts: "Given") -> "Given":
        """The source after parts, stacked, that have run side by side."""
        num = parts.position.shape[0]
        longest = jnp.max(parts.position - self._turns(num))  # of the part with most choices
        return dataclasses.replace(self, used=self.used | jnp.any(parts.used, axis=0), position=longest)

    def _turns(self, num: int) -> jax.Array:
        return self.stride * jnp.arange(num, dtype=jnp.int32)


Source: TypeAlias = Keys | Given


def _cannot_list(what: str) -> TypeError:
    return TypeError(
        f"program: expected every choice to be one integer from tape.sample, so that its paths can be listed; received {what}."
    )
