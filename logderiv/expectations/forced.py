"""Programs that run again with forced outcomes: of enumerated choices every one, of one choice by the alternative path another one.

Running code cannot be resumed at a choice, so the whole program runs again, on the same keys.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from logderiv import distributions
from logderiv._core.pytrees import pytree
from logderiv.distributions.basic import Categorical
from logderiv.distributions.finite import outcome, outcomes_of
from logderiv.expectations.measures import otherwise
from logderiv.expectations.sources import Given


@pytree
class World:
    """The outcomes of all enumerated choices together, as the digits of one number; each digit has the base of its choice.

    Attributes:
        rest: What is left of the number; a run that ends with another one than 0 has been counted already. Shape `()`.
        weight: Product of the probabilities of the outcomes so far; it carries their derivatives. Shape `()`.
    """

    rest: jax.Array
    weight: jax.Array

    @classmethod
    def of(cls, number: Any) -> "World":
        """The world of this number."""
        return cls(jnp.asarray(number, jnp.int32), jnp.ones(()))

    def choose(self, distribution: Any, where: Any = True) -> tuple["World", Any]:
        """The world to go on with, and the outcome that it prescribes; where `where` is false nothing is made."""
        base = outcomes_of("sample(method='enumerate')", distribution)
        value = outcome(distribution, self.rest % base)
        prob = distributions.prob(distribution, value).astype(self.weight.dtype)
        return World(jnp.where(where, self.rest // base, self.rest), self.weight * jnp.where(where, prob, 1)), value

    def of_part(self, index: jax.Array, worlds: int) -> "World":
        """That of one of several parts, each one of so many."""
        return World(self.rest // worlds**index % worlds, jnp.ones_like(self.weight))

    def after(self, num: int, worlds: int, parts: "World") -> "World":
        """The world after so many parts, stacked."""
        return World(self.rest // worlds**num, self.weight * jnp.prod(parts.final()))

    def final(self) -> jax.Array:
        """The weight at the end; 0 where the number has digits left."""
        return jnp.where(self.rest == 0, self.weight, 0)


@pytree(static=("stride",))
class Detour:
    """The alternative path: of all choices of this method one is picked, and made otherwise in a second run, or in a second and a third.

    A run passes choices i = 1, ..., n with outcomes xᵢ. Each is picked with a chance in proportion to its `chance` cᵢ, in one pass
    (reservoir sampling). Where one of finitely many outcomes is chosen, cᵢ = 1 - p(xᵢ), and the second run makes another one there,
    a ~ p(a) / cᵢ. What else has a decomposition stands in `logderiv.expectations.measures`.

    Attributes:
        chance: Σ cᵢ so far. Shape `()`.
        picked: The choice that is picked so far. Shape `()`.
        made: Number of the outcome that was made there, where outcomes have numbers. Shape `()`.
        position: Of the next choice. Shape `()`.
        even: What carries the derivative at the picked choice in a further run, with the mean of the further runs less the first;
            for finitely many outcomes half of log p(a) - log p(x). Shape `()`.
        odd: The same with the difference of two further runs. Shape `()`.
        slot: Where choices are given, its place in their list; -1 where none is picked. Shape `()`.
        side: 0 in the first run, 1 in the second, -1 in the third. Shape `()`.
        stride: Parts that run side by side take turns with positions; static.
    """

    chance: jax.Array
    picked: jax.Array
    made: jax.Array
    position: jax.Array
    even: jax.Array
    odd: jax.Array
    slot: jax.Array
    side: jax.Array
    stride: int = 1

    @classmethod
    def start(cls, picked: Any = -1) -> "Detour":
        """Of a first run; where choices are given, so is the one that is picked."""
        zero, none = jnp.zeros(()), jnp.zeros((), jnp.int32)
        return cls(zero, jnp.asarray(picked, jnp.int32), none, none, zero, zero, none - 1, none)

    def again(self, side: jax.Array) -> "Detour":
        """Of the second run, or of the third."""
        return dataclasses.replace(Detour.start(self.picked), made=self.made, side=side)

    def choose(self, source: Any, distribution: Any, where: Any = True) -> tuple[Any, "Detour", Any]:
        """The source and the detour to go on with, and the outcome; where `where` is false nothing is made."""
        way = otherwise("sample(method='alternative')", distribution)
        slot = source.position if isinstance(source, Given) else self.slot
        source, made = source.choose(way.law, where)
        chance = jnp.where(where, way.chance(made), 0).astype(self.chance.dtype)
        if isinstance(source, Given):
            pick, instead = self.position == self.picked, made  # the list says what is made otherwise, too
        else:
            source, keys = source.keys(2)
            pick = jax.random.uniform(keys[0], dtype=chance.dtype) * (self.chance + chance) < chance
            instead = way.other(made, keys[1])
        here = (self.side != 0) & (self.position == self.picked) & where
        pick = pick & (self.side == 0) & where
        even, odd = (jnp.where(here, x, 0).astype(self.even.dtype) for x in way.slopes(self.made, instead))
        changed = dataclasses.replace(
            self,
            chance=self.chance + chance,
            position=jnp.where(where, self.position + self.stride, self.position),
            picked=jnp.where(pick, self.position, self.picked),
            made=jnp.where(pick, made.astype(self.made.dtype), self.made),
            slot=jnp.where(pick, slot, self.slot),
            even=self.even + even,
            odd=self.odd + odd,
        )
        return source, changed, way.value(jnp.where(here, instead, made), jnp.where(here, self.side, 1))

    def fork(self, num: int) -> "Detour":
        """Those of `num` parts, stacked."""
        turns = self.stride * jnp.arange(num, dtype=jnp.int32)
        rows = jax.tree.map(lambda x: jnp.broadcast_to(x, num), self)
        zeros = jnp.zeros(num, self.chance.dtype)
        return dataclasses.replace(
            rows, chance=zeros, even=zeros, odd=zeros, position=self.position + turns, stride=self.stride * num
        )

    def join(self, source: Any, parts: "Detour") -> tuple[Any, "Detour"]:
        """The source and the detour after parts, stacked: one of their picks, or the one before them, by their chances."""
        num = parts.chance.shape[0]
        turns = self.stride * jnp.arange(num, dtype=jnp.int32)
        chance, even, odd = (
            x + jnp.sum(y) for x, y in ((self.chance, parts.chance), (self.even, parts.even), (self.odd, parts.odd))
        )
        joined = dataclasses.replace(self, chance=chance, even=even, odd=odd, position=jnp.max(parts.position - turns))
        if isinstance(source, Given):
            made, slot = (
                x + jnp.sum(y - x, dtype=x.dtype) for x, y in ((self.made, parts.made), (self.slot, parts.slot))
            )
            return source, dataclasses.replace(joined, made=made, slot=slot)
        source, keys = source.keys(1)
        chances = jnp.concatenate([self.chance[None], parts.chance])
        row = Categorical(jnp.where(jnp.sum(chances) > 0, jnp.log(chances), 0)).sample(keys[0])
        picked, made = (
            jnp.concatenate([x[None], y])[row] for x, y in ((self.picked, parts.picked), (self.made, parts.made))
        )
        first = self.side == 0
        picked, made = jnp.where(first, picked, self.picked), jnp.where(first, made, self.made)
        return source, dataclasses.replace(joined, picked=picked, made=made)
