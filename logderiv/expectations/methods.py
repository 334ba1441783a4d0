"""How derivatives pass through one choice: the methods of `logderiv.sample`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from logderiv._core import check
from logderiv._core.tangents import differentiated_no_further
from logderiv.distributions.basic import softmax
from logderiv.distributions.finite import OneHotCategorical, outcomes_of, with_padding, zero_padding
from logderiv.expectations.measures import otherwise
from logderiv.expectations.sources import detached
from logderiv.expectations.tape import Tape

Choose = Callable[..., tuple[Tape, Any]]


@dataclasses.dataclass(frozen=True)
class Method:
    """One way of making a choice.

    Attributes:
        choose: `(tape, distribution, where=..., **options) -> (tape, value)`.
        order: The highest derivative that it gives; `None` for any.
        takes: What a distribution must be: `"any"`, `"finite"`, `"measured"` (its derivative is a difference of laws) or `"one-hot"`.
        reruns: Whether the number of outcomes is a number of runs.
    """

    choose: Choose
    order: int | None = None
    takes: str = "any"
    reruns: bool = False

    def about(self, name: str, distribution: Any, where: Any) -> dict[str, Any]:
        """Number of outcomes, order and runs of one choice; one outcome where it is known to be padding.

        Raises:
            TypeError: The distribution does not fit.
        """
        if self.takes == "one-hot" and not isinstance(distribution, OneHotCategorical):
            raise TypeError(
                f"{name}: expected a logderiv.distributions.OneHotCategorical, whose outcomes are floating point, received "
                f"{type(distribution).__name__}."
            )
        if self.takes == "measured":
            return {"order": self.order, "runs": 1 + otherwise(name, distribution).num_sides}
        num = outcomes_of(name, distribution) if self.takes != "any" else 1
        made = where is None or check.is_traced(where) or bool(np.any(np.asarray(where)))
        return {"num_outcomes": num if self.reruns and made else 1, "order": self.order}


def enumerated(tape: Tape, distribution: Any, where: Any = None) -> tuple[Tape, Any]:
    """The outcome that the run's world prescribes; drawn where there is none."""
    if tape.world is None:
        return tape.sample(distribution, where=where)
    tape._use()
    distribution, where = with_padding(distribution, where)
    world, value = tape.world.choose(distribution, True if where is None else where)
    return dataclasses.replace(tape, world=world), zero_padding(value, where)


def alternative(tape: Tape, distribution: Any, where: Any = None) -> tuple[Tape, Any]:
    """A draw, or of the picked choice in a second (and third) run another outcome; drawn where there is none."""
    if tape.detour is None:
        return tape.sample(distribution, where=where)
    tape._use()
    distribution, where = with_padding(distribution, where)
    source, detour, value = tape.detour.choose(tape.source, distribution, True if where is None else where)
    return dataclasses.replace(tape, source=source, detour=detour), zero_padding(value, where)


def straight_through(tape: Tape, distribution: OneHotCategorical, where: Any = None) -> tuple[Tape, Any]:
    """A unit vector D with the derivative of the mean: D + π - detached π. Bengio et al. (2013), arXiv:1308.3432; from memory."""
    return _surrogate(tape, distribution, where, lambda logits, _: softmax(logits))


def reinmax(tape: Tape, distribution: OneHotCategorical, where: Any = None) -> tuple[Tape, Any]:
    """A unit vector D with the derivative of 2 π₁ - π / 2, where π₁ has the mean of π and D as its value.

    Liu et al. (2023), arXiv:2304.08612, algorithm 2, at temperature 1: second order (Heun's method) where the straight-through
    form is of first order (Euler's); from memory.
    """

    def mean(logits: jax.Array, unit: jax.Array) -> jax.Array:
        fixed = lax.stop_gradient(logits)
        middle = jnp.log((unit + softmax(fixed)) / 2)
        return 2 * softmax(middle + (logits - fixed)) - softmax(logits) / 2

    return _surrogate(tape, distribution, where, mean)


def _surrogate(
    tape: Tape, distribution: OneHotCategorical, where: Any, mean: Callable[..., jax.Array]
) -> tuple[Tape, Any]:
    if tape.world is None:
        return tape.sample(distribution, where=where)
    tape._use()
    distribution, where = with_padding(distribution, where)
    source, unit = tape.source.choose(detached(distribution), True if where is None else where)
    live = mean(distribution.logits, unit)
    return dataclasses.replace(tape, source=source), zero_padding(unit + (live - lax.stop_gradient(live)), where)


def once_differentiable(value: jax.Array, reason: str) -> jax.Array:
    """The same value with the same first derivative; a second one raises, in both modes."""
    message = (
        f"{reason} gives the first derivative only, and an expectation has the least order of its choices; take 'score', 'pathwise' or "
        "'enumerate' for higher ones."
    )

    @jax.custom_jvp
    def same(value: jax.Array) -> jax.Array:
        return value

    @same.defjvp
    def _(primals: Any, tangents: Any) -> Any:  # the factor is 1, and known where the first derivative is linear
        factor = differentiated_no_further((primals[0], jnp.ones_like(primals[0])), message)[1]
        return primals[0], tangents[0] * factor

    return same(value)


METHODS: dict[str, Method] = {
    "score": Method(Tape.sample),
    "pathwise": Method(Tape.sample_pathwise),
    "enumerate": Method(enumerated, takes="finite", reruns=True),
    "alternative": Method(alternative, order=1, takes="measured"),
    "straight_through_biased": Method(straight_through, order=1, takes="one-hot"),
    "reinmax_biased": Method(reinmax, order=1, takes="one-hot"),
}
