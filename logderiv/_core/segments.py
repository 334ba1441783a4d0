"""Scanning time in checkpointed segments, for policies with memory: memory O(sqrt(T)) on the way back."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from logderiv._core.arrays import accumulator_dtype
from logderiv._core.layout import Layout
from logderiv._core.sharding import by_shard


def scan_steps(
    function: Callable[..., Any], params: Any, carry: Any, inputs: Any, valid: jax.Array, *, total: bool = False
) -> Any:
    """Scan `carry, y = function(params, carry, x)` over time for `N` trajectories side by side.

    Args:
        function: One step of one trajectory. Where the step is not valid the carry stays as it is.
        params: Whatever `function` shares between steps.
        carry: Start, without a trajectory axis.
        inputs: Pytree with leading axes `(N, T)`; the last step is repeated to fill the segments.
        valid: Which steps are real. Shape `(N, T)`.
        total: Return the sums of `y` over the valid steps, segment by segment, instead of every `y`.

    Returns:
        The `y`, with leading axes `(N, T)`; their sums, leading axis `(N,)`, with `total`.

    Gradients: flow through everything. Each segment is recomputed on the way back: memory O(sqrt(T)) beyond the inputs
    and what is returned.
    """
    return by_shard(partial(_in_segments, function, total), (params, carry), (inputs, valid))


def _in_segments(function: Callable[..., Any], total: bool, start: Any, batch: Any) -> Any:
    (params, carry), (inputs, valid) = start, batch
    num, length = valid.shape
    segments = math.isqrt(length)
    layout = Layout(num, 1, segments, -(-length // segments), 1)

    def one(carry: Any, x: Any, valid: jax.Array) -> tuple[Any, Any]:
        new, y = function(params, carry, x)
        if total:
            y = jax.tree.map(lambda y: jnp.where(valid, y, jnp.zeros_like(y)), y)
        return jax.tree.map(lambda a, b: jnp.where(valid, a, b), new, carry), y

    def segment(carry: Any, xs: Any) -> tuple[Any, Any]:
        carry, ys = lax.scan(lambda c, x: jax.vmap(one)(c, *x), carry, xs)
        return carry, _sum_first(ys) if total else ys

    carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *jnp.shape(x))), carry)
    folded = layout.fold(inputs), layout.fold(valid, fill=False)
    _, results = lax.scan(jax.checkpoint(segment, prevent_cse=False), carry, folded)
    return _sum_first(results) if total else layout.unfold(results, length)


def _sum_first(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.sum(x, axis=0, dtype=accumulator_dtype(x.dtype)), tree)
