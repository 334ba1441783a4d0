"""Where a tape's choices come from: from random keys, or from a list of all paths."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from logderiv import distributions
from logderiv._core.arrays import summable
from logderiv._core.keys import KeyBits
from logderiv._core.pytrees import pytree
from logderiv.distributions.finite import outcome
from logderiv.distributions.quantiles import antithetic_sample


@pytree
class Keys:
    """Random choices.

    Attributes:
        bits: Of a key, since a `lax.cond` under `jax.vmap` must not see the key itself.
        mirrored: Whether choices are made by uniform numbers 1 - U, not U, shape `()`; `None` where they need no quantile function.
    """

    bits: KeyBits
    mirrored: jax.Array | None = None

    def choose(self, distribution: Any, where: Any = True) -> tuple["Keys", Any]:
        """Make one choice: the source to go on with, and the detached value."""
        del where
        # Detached before as well as after: the sampler need not have a derivative.
        rest, value = self.draw(detached(distribution))
        return rest, lax.stop_gradient(value)

    def draw(self, distribution: Any) -> tuple["Keys", Any]:
        """Make one choice whose value has the derivative of the sampler."""
        rest, keys = self.split(1)
        if self.mirrored is None:
            return rest, distributions.sample(distribution, keys[0])
        return rest, antithetic_sample(distribution, keys[0], self.mirrored)

    def keys(self, num: int, purpose: str = "") -> tuple["Keys", jax.Array]:
        """Take `num` keys for anything else: the source to go on with, and the keys. Antithetic runs get different ones."""
        del purpose
        rest, keys = self.split(num)
        return rest, keys if self.mirrored is None else jax.vmap(jax.random.fold_in, (0, None))(keys, self.mirrored)

    def split(self, num: int) -> tuple["Keys", jax.Array]:
        """The source to go on with, and `num` keys, which antithetic runs have in common."""
        keys = jax.random.split(self.bits.keys(), num + 1)
        return dataclasses.replace(self, bits=KeyBits.of(keys[0])), keys[1:]

    def fork(self, num: int) -> tuple["Keys", "Keys"]:
        """The source to go on with, and `num` sources, stacked, for parts that run side by side."""
        rest, keys = self.split(num)
        mirrored = None if self.mirrored is None else jnp.broadcast_to(self.mirrored, num)
        return rest, Keys(KeyBits.of(keys), mirrored)

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
        log_probs: Of those that were made, else 0; the last one is of choices that stand behind the list. Shape `(num_choices + 1,)`.
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
        rows, num = choices.shape[:-1], choices.shape[-1]
        return cls(
            choices, jnp.zeros(choices.shape, bool), jnp.zeros((*rows, num + 1)), jnp.zeros(rows, jnp.int32), second
        )

    def choose(self, distribution: Any, where: Any = True) -> tuple["Given", Any]:
        """Make one choice: the source to go on with, and its value."""
        value = outcome(distribution, self.choices.at[self.position].get(mode="fill", fill_value=-1))
        if value is None:
            raise _cannot_list(_described(distribution))
        log_prob = summable(distributions.log_probs(distribution, value)).astype(self.log_probs.dtype)
        behind = self.choices.shape[0]
        position = jnp.where(where, jnp.minimum(self.position, behind), behind)
        used = self.used.at[position].set(True, mode="drop")
        log_probs = self.log_probs.at[position].add(jnp.where(where, log_prob, 0))
        next_one = jnp.where(where, self.position + self.stride, self.position)
        return dataclasses.replace(self, used=used, log_probs=log_probs, position=next_one), value

    def draw(self, distribution: Any) -> tuple["Given", Any]:
        """Raise `TypeError`: a derivative through a sampler has no list of paths."""
        raise _cannot_list(f"a pathwise sample of {type(distribution).__name__}")

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


def _described(distribution: Any) -> str:
    like = jax.tree.leaves(jax.eval_shape(partial(distributions.sample, distribution), jax.random.key(0)))
    kind = type(distribution).__name__
    if len(like) == 1 and like[0].ndim and jnp.issubdtype(like[0].dtype, jnp.integer):
        return f"a sample of {kind}, {like[0].shape} choices at once; make one for each row by logderiv.plate, or tape.plate"
    return f"a sample of {kind}"


def _cannot_list(what: str) -> TypeError:
    return TypeError(
        f"program: expected every choice to be one of finitely many outcomes, from tape.sample or logderiv.sample, so that its paths "
        f"can be listed; received {what}."
    )
