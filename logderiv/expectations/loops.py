"""Loops with a bound, which reverse mode can differentiate."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from logderiv._core import check
from logderiv.expectations.models import closed_to


def bounded_while_loop(
    cond_fun: Callable[[Any], Any], body_fun: Callable[[Any], Any], init: Any, *, max_steps: int
) -> tuple[Any, jax.Array]:
    """`lax.while_loop` that ends after `max_steps` at the latest, and that reverse mode can differentiate.

    A scan of `max_steps` steps, each of which runs the body while the condition holds. Under `jax.vmap` (and so under
    `expectation`) the body runs in every step and its result is dropped where the loop has ended: it must be
    differentiable there too.

    Args:
        cond_fun: `carry -> bool`.
        body_fun: `carry -> carry`.
        init: The first carry, tapes and all.
        max_steps: At least 1.

    Returns:
        `(carry, finished)`; where `finished` is false the loop was cut, and the expectation is another one.

    Raises:
        ValueError: `max_steps` below 1.

    Gradients: flow through `init` and whatever the two functions close over, in both modes.
    """
    max_steps = check.whole(max_steps=max_steps)

    def goes_on(carry: Any) -> Any:
        with closed_to("bounded_while_loop condition"):
            return cond_fun(carry)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        return lax.cond(goes_on(carry), body_fun, lambda carry: carry, carry), None

    carry, _ = lax.scan(step, init, None, length=max_steps)
    return carry, ~jnp.asarray(goes_on(carry))
