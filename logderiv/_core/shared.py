"""What a function shares between rows: its parameters and whatever it closes over, given once, or once to each part of the rows."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend.core import jaxpr_as_fun

from logderiv._core.arrays import accumulator_dtype
from logderiv._core.tangents import put_back, those_that


def with_captured(
    function: Callable[..., Any], params: Any, *inputs: Any, axes: int = 0
) -> tuple[Callable[..., Any], Any]:
    """A function that closes over nothing that is being traced, and `(params, captured)`, which it takes for `params`.

    `jax.closure_convert` would keep what is captured, and find it again at the next call of the same function; and it leaves integers
    and keys behind, which a rule of `jax.custom_jvp` then uses after their trace has ended.

    Args:
        function: `function(params, *inputs)`.
        params: Its first argument.
        *inputs: What it will be called with, or of these shapes.
        axes: So many leading axes of the inputs are rows, of which it takes one.

    Returns:
        `among`, `shared`, so that `among(shared, *inputs)` is `function(params, *inputs)`.
    """

    def of_one(x: Any) -> jax.ShapeDtypeStruct:
        weak = getattr(x, "weak_type", False)
        return jax.ShapeDtypeStruct(jnp.shape(x)[axes:], jnp.result_type(x), weak_type=weak)

    one = jax.tree.map(of_one, inputs)
    closed, like = jax.make_jaxpr(lambda *args: function(*args), return_shape=True)(params, *one)
    structure = jax.tree.structure(like)
    traced = [isinstance(x, Tracer) and isinstance(x, jax.Array) for x in closed.consts]  # a `jax.Ref` is no array
    captured = jax.tree.map(jnp.asarray, those_that(traced, closed.consts))

    def among(shared: Any, *inputs: Any) -> Any:
        params, captured = shared
        run = jaxpr_as_fun(closed.replace(consts=put_back(captured, closed.consts)))
        return jax.tree.unflatten(structure, run(*jax.tree.leaves((params, *inputs))))

    return among, (params, captured)


def of_each_part(function: Callable[[Any, Any], Any], shared: Any, parts: Any, place: Any = lambda x: x) -> Any:
    """`function(shared, part)` of each part of the leading axis, each with its own copy of the real numbers among `shared`.

    Their cotangents are those of the copies, added up at the end, in float32 at least. Whatever else is shared, such as integers and
    keys, is not copied.

    Args:
        function: From `shared` and one part to a pytree of arrays.
        shared: Pytree of arrays.
        parts: Pytree with a common leading axis.
        place: What is done to the copies, which have that leading axis, too.

    Returns:
        The results, with the leading axis of the parts.
    """
    num, (leaves, structure) = jax.tree.leaves(parts)[0].shape[0], jax.tree.flatten(shared)
    own = [_is_real(x) for x in leaves]

    def copies(x: Any) -> jax.Array:
        wide = jnp.asarray(x, accumulator_dtype(jnp.result_type(x)))
        return jnp.broadcast_to(wide, (num, *wide.shape)).astype(jnp.result_type(x))

    copied = [place(copies(x)) if real else x for x, real in zip(leaves, own, strict=True)]
    each = jax.vmap(
        lambda leaves, part: function(structure.unflatten(leaves), part), ([0 if x else None for x in own], 0)
    )
    return each(copied, parts)


def num_bytes(shared: Any) -> int:
    """Of a copy of the real numbers among `shared`, float32 at least."""
    real = [x for x in jax.tree.leaves(shared) if _is_real(x)]
    return sum(jnp.size(x) * jnp.dtype(accumulator_dtype(jnp.result_type(x))).itemsize for x in real)


def _is_real(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)
