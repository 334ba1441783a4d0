"""Derivative rules that are taken only in what moves: of most arguments the tangent is known to be zero."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero


def is_zero(tangent: Any) -> bool:
    """Whether this is the tangent of something detached, of an integer, or of nothing at all (`None`)."""
    return tangent is None or isinstance(tangent, SymbolicZero) or tangent.dtype == jax.dtypes.float0


def those_that(moves: Any, tree: Any) -> Any:
    """The leaves of `tree` at which `moves` is true, with `None` for the others."""
    return jax.tree.map(lambda moves, x: x if moves else None, moves, tree, is_leaf=_is_none)


def put_back(values: Any, tree: Any) -> Any:
    """`tree` with those of its leaves replaced whose value is not `None`."""
    return jax.tree.map(lambda value, x: x if value is None else value, values, tree, is_leaf=_is_none)


def moving(primals: Any, tangents: Any) -> tuple[Any, Any, Callable[[Any], Any]]:
    """The leaves that have a tangent, and these tangents, with `None` for the others; and how to put the others back among values."""
    moves = jax.tree.map(lambda t: not is_zero(t), tangents, is_leaf=_is_none)
    return those_that(moves, primals), those_that(moves, tangents), lambda values: put_back(values, primals)


def jvp_of_moving(function: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
    """`jax.jvp` in those arguments that have a tangent, so that the others cost nothing."""
    values, directions, among_all = moving(primals, tangents)
    return jax.jvp(lambda values: function(*among_all(values)), (values,), (directions,))


@jax.custom_jvp
def with_slope(value: jax.Array, slope: jax.Array, moving: jax.Array) -> jax.Array:
    """`value`, whose derivative is `slope` times that of `moving`; value and slope are detached, so it is one of order one."""
    del slope  # of the rule alone
    return jnp.broadcast_to(value, jnp.broadcast_shapes(value.shape, moving.shape))


@with_slope.defjvp
def _slope_of(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    return with_slope(*primals), primals[1] * tangents[2]


def _is_none(x: Any) -> bool:
    return x is None


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def differentiated_no_further(tree: Any, message: str) -> Any:
    """`tree` itself; `ValueError` with the message where somebody differentiates it, in either mode."""
    del message  # of the rule alone
    return tree


@partial(differentiated_no_further.defjvp, symbolic_zeros=True)
def _no_further(message: str, primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    if not all(is_zero(t) for t in jax.tree.leaves(tangents)):
        raise ValueError(message)
    return primals[0], tangents[0]
