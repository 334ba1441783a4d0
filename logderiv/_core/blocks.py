"""Evaluating a function on every step of every trajectory, in blocks of rows.

Given a trajectory, the factors of a memoryless policy need no sequential scan over time: the `N * T` steps are rows
that can be taken in any order. All at once needs memory for all of them; one at a time wastes the machine. `map_rows`
takes a block of rows at a time, vectorized inside, scans over the blocks and recomputes each block on the way back
(`jax.checkpoint`), so that memory is that of one block. The scan is two levels deep: each inner scan starts its
parameter cotangent from zero, which keeps float32 gradients exact to about 1e-6 at 10^7 steps where a single running
sum is wrong in the second digit. The trajectory axis is never scanned over as a whole, so it may be sharded;
where a mesh is in use (`jax.set_mesh`, or `train(mesh=)`) each device goes through blocks of its own trajectories and the
devices meet once, to add up their gradients.

`scan_steps` is the same for policies with memory: step by step in time, in checkpointed segments of about sqrt(T).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from logderiv._core.arrays import accumulator_dtype
from logderiv._core.sharding import num_shards, spread

# Rows in a block: on a CPU about what keeps a block of a small network's activations in its cache. Elsewhere blocks
# only bound the memory and a device wants many rows at once; that number is *unmeasured*.
_ROWS = {"cpu": 512}
_ROWS_ELSEWHERE = 65536
# On a CPU, rows of which XLA spreads a layer of 64 over the cores, as it does not for 512. Training an actor and a critic
# by minibatches is 1.4 to 1.5 times as fast with these (`benchmarks/training_speed`, 2 cores).
_WIDE = 2048


def rows_or_default(rows: int | None) -> int:
    """Rows in a block: as asked, or the backend's default.

    Raises:
        ValueError: Fewer than one.
    """
    rows = _ROWS.get(jax.default_backend(), _ROWS_ELSEWHERE) if rows is None else rows
    if rows < 1:
        raise ValueError(f"rows: expected a block of at least 1 row, received {rows}.")
    return rows


def wide_rows() -> int:
    """Rows in a block that keeps all cores busy, where the whole batch would fill the memory."""
    return max(_WIDE, rows_or_default(None))


class Layout(NamedTuple):
    """How `(N, T)` steps are laid out: `N = together * turns` and `T <= outer * inner * steps`.

    A block holds `steps` consecutive steps of `together` trajectories; the blocks are scanned in `turns * outer`
    groups of `inner`.
    """

    together: int
    turns: int
    outer: int
    inner: int
    steps: int


def layout(num_trajectories: int, num_steps: int, rows: int) -> Layout:
    """The layout of blocks of at most about `rows` rows."""
    together = max(d for d in range(1, min(num_trajectories, rows) + 1) if num_trajectories % d == 0)
    turns = num_trajectories // together
    steps = min(num_steps, max(1, rows // together))
    blocks = -(-num_steps // steps)
    groups = max(1, math.isqrt(turns * blocks) // turns)
    inner = -(-blocks // groups)
    outer = -(-blocks // inner)
    return Layout(together, turns, outer, inner, -(-num_steps // (outer * inner)))


def map_rows(function: Callable[[Any, Any], Any], params: Any, inputs: Any, *, rows: int | None = None) -> Any:
    """`function(params, row)` for every row of `inputs`.

    Args:
        function: From `params` and one row to a pytree of scalars.
        params: Whatever `function` shares between rows.
        inputs: Pytree with leading axes `(N, T)`.
        rows: Rows in a block; `None` for the backend's default.

    Returns:
        The results with leading axes `(N, T)`.

    Gradients: flow through `params` and `inputs`, at any order; each block is recomputed on the way back.
    """
    num, length = jax.tree.leaves(inputs)[0].shape[:2]
    rows = rows_or_default(rows)
    if num * length <= rows:
        flat = jax.tree.map(lambda x: x.reshape((num * length, *x.shape[2:])), inputs)
        values = jax.vmap(function, (None, 0))(params, flat)
        return jax.tree.map(lambda y: y.reshape((num, length, *y.shape[1:])), values)
    return _by_shard(partial(_in_blocks, function, rows), params, inputs)


def _in_blocks(function: Callable[[Any, Any], Any], rows: int, params: Any, inputs: Any) -> Any:
    num, length = jax.tree.leaves(inputs)[0].shape[:2]
    shape = layout(num, length, rows)
    block = jax.checkpoint(jax.vmap(function, (None, 0)), prevent_cse=False)

    def group(params: Any, xs: Any) -> Any:
        return lax.scan(lambda _, x: (None, block(params, x)), None, xs)[1]

    group = jax.checkpoint(group, prevent_cse=False)
    _, results = lax.scan(lambda _, x: (None, group(params, x)), None, jax.tree.map(lambda x: _fold(x, shape), inputs))
    return jax.tree.map(lambda y: _unfold(y, shape)[:, :length], results)


def sum_rows(
    function: Callable[[Any, Any], jax.Array], params: Any, inputs: Any, valid: jax.Array, *, rows: int | None = None
) -> jax.Array:
    """Sum over the valid rows of a scalar `function(params, row)`: value and gradient in one pass over the rows.

    Differentiating `map_rows` runs each block forwards, and on the way back forwards again. A sum does not need to wait
    for its cotangent: its derivative rule takes value and gradient of each block together, which saves the first pass.
    The rule is a JVP, linear in the tangent, so forward mode, reverse mode and higher orders all go through it.

    Args:
        function: From `params` and one row to a scalar; it may close over arrays that are being differentiated.
        params: Whatever `function` shares between rows.
        inputs: Pytree with leading axes `(N, T)`. Where they are differentiated too, the plain rule is used.
        valid: Which rows count. Shape `(N, T)`.
        rows: Rows in a block; `None` for the backend's default.

    Returns:
        A scalar, in float32 at least.
    """
    rows = rows_or_default(rows)
    function, captured = jax.closure_convert(function, params, jax.tree.map(lambda x: x[0, 0], inputs))

    def plain(shared: Any, inputs: Any, valid: jax.Array) -> jax.Array:
        values = map_rows(lambda p, x: function(p[0], x, *p[1]), shared, inputs, rows=rows)
        return jnp.sum(jnp.where(valid, values, jnp.zeros_like(values)), dtype=accumulator_dtype(values.dtype))

    if valid.size <= rows:
        return plain((params, captured), inputs, valid)
    total: Any = jax.custom_jvp(plain)

    @partial(total.defjvp, symbolic_zeros=True)
    def rule(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        if not all(_is_zero(t) for t in jax.tree.leaves(tangents[1])):
            return jax.jvp(plain, primals, jax.tree.map(_instantiate, tangents))
        leaves, tree = jax.tree.flatten(primals[0])
        moving = {i: t for i, t in enumerate(jax.tree.leaves(tangents[0])) if not _is_zero(t)}

        def of_moving(values: dict[int, jax.Array], x: Any) -> jax.Array:
            p, captured = tree.unflatten([values.get(i, leaf) for i, leaf in enumerate(leaves)])
            return function(p, x, *captured)

        value, gradient = _value_and_gradient(of_moving, {i: leaves[i] for i in moving}, *primals[1:], rows=rows)
        terms = [jnp.sum(gradient[i] * t, dtype=value.dtype) for i, t in moving.items()]
        return value, sum(terms, jnp.zeros_like(value))

    return total((params, captured), inputs, valid)


def map_trajectories(function: Callable[[Any], Any], inputs: Any) -> Any:
    """`function` of each trajectory: one after the other, with one a device side by side in case their axis is sharded.

    Args:
        function: From one trajectory's part of `inputs` to a pytree of arrays.
        inputs: Pytree with leading axis `(N,)`.

    Returns:
        The results with leading axis `(N,)`.
    """
    num = jax.tree.leaves(inputs)[0].shape[0]
    if num == 1:  # without the axis: a copy of the inputs less
        return jax.tree.map(lambda y: y[None], function(jax.tree.map(lambda x: x[0], inputs)))
    together = math.gcd(num, jax.device_count())
    turns = jax.tree.map(lambda x: x.reshape((together, num // together, *x.shape[1:])).swapaxes(0, 1), inputs)
    results = lax.map(jax.vmap(function), turns)
    return jax.tree.map(lambda y: y.swapaxes(0, 1).reshape((num, *y.shape[2:])), results)


def _value_and_gradient(
    function: Any, shared: Any, inputs: Any, valid: jax.Array, *, rows: int
) -> tuple[jax.Array, Any]:
    """Sum over the valid rows and its gradient in `shared`, two levels deep, each block once."""
    sums = _by_shard(partial(_sums, function, rows), shared, (inputs, valid))
    value, gradient = jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)
    return value, jax.tree.map(lambda g, x: g.astype(x.dtype), gradient, shared)


def _sums(function: Any, rows: int, shared: Any, batch: Any) -> tuple[jax.Array, Any]:
    """The two with a leading axis of 1."""
    inputs, valid = batch
    num, length = valid.shape
    shape = layout(num, length, rows)

    def block(shared: Any, x: Any, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
        values = jax.vmap(function, (None, 0))(shared, x)
        values = jnp.where(valid, values, jnp.zeros_like(values))
        return jnp.sum(values), _partial_sums(values)

    def add(gradient: Any, x: Any) -> tuple[Any, jax.Array]:
        new, value = jax.grad(block, has_aux=True)(shared, *x)
        return jax.tree.map(lambda total, g: total + g.astype(total.dtype), gradient, new), value

    def group(gradient: Any, xs: Any) -> tuple[Any, jax.Array]:
        new, values = lax.scan(add, zeros, xs)
        return jax.tree.map(jnp.add, gradient, new), values

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, accumulator_dtype(x.dtype)), shared)
    folded = jax.tree.map(lambda x: _fold(x, shape), inputs), _fold(valid, shape, fill=False)
    gradient, values = lax.scan(group, zeros, folded)
    return jax.tree.map(lambda x: x[None], (jnp.sum(values), gradient))


def _by_shard(function: Callable[[Any, Any], Any], params: Any, inputs: Any) -> Any:
    """`function(params, inputs)` of the trajectories of each device, where their axis is spread over a mesh in use.

    Each device has its own copy of `params`, whose derivatives are added up over the devices at the very end: a sum inside
    the loops over blocks or steps would make the devices wait for each other every time around.

    Args:
        function: From `params` and `inputs` to a pytree with a leading axis.
        params: Shared.
        inputs: Leading axis of trajectories.
    """
    num = jax.tree.leaves(inputs)[0].shape[0]
    shards = num_shards(num)
    if shards == 1:
        return function(params, inputs)
    copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (shards, *jnp.shape(x))), params)
    parts = jax.tree.map(lambda x: x.reshape((shards, num // shards, *x.shape[1:])), inputs)
    results = jax.vmap(function)(spread(copies), parts)
    return jax.tree.map(lambda y: y.reshape((shards * y.shape[1], *y.shape[2:])), results)


def _partial_sums(values: jax.Array, lanes: int = 8) -> jax.Array:
    """Sums of few values each, to be added up at the end: a sum of a whole block would be taken in sequence."""
    padded = jnp.pad(values, (0, -values.size % lanes))
    return jnp.sum(padded.reshape(lanes, -1), axis=0, dtype=accumulator_dtype(values.dtype))


def _is_zero(tangent: Any) -> bool:
    """Whether this is the tangent of what is held, or of an integer."""
    return isinstance(tangent, SymbolicZero) or tangent.dtype == jax.dtypes.float0


def _instantiate(tangent: Any) -> Any:
    if not isinstance(tangent, SymbolicZero):
        return tangent
    aval: Any = tangent.aval
    return jnp.zeros(aval.shape, aval.dtype)


def scan_steps(
    function: Callable[[Any, Any, Any], tuple[Any, Any]],
    params: Any,
    carry: Any,
    inputs: Any,
    valid: jax.Array,
    *,
    total: bool = False,
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
    return _by_shard(partial(_in_segments, function, total), (params, carry), (inputs, valid))


def _in_segments(function: Callable[[Any, Any, Any], tuple[Any, Any]], total: bool, start: Any, batch: Any) -> Any:
    (params, carry), (inputs, valid) = start, batch
    num, length = valid.shape
    segments = math.isqrt(length)
    shape = Layout(num, 1, segments, -(-length // segments), 1)

    def one(carry: Any, x: Any, valid: jax.Array) -> tuple[Any, Any]:
        new, y = function(params, carry, x)
        if total:
            y = jax.tree.map(lambda y: jnp.where(valid, y, jnp.zeros_like(y)), y)
        return jax.tree.map(lambda a, b: jnp.where(valid, a, b), new, carry), y

    def segment(carry: Any, xs: Any) -> tuple[Any, Any]:
        carry, ys = lax.scan(lambda c, x: jax.vmap(one)(c, *x), carry, xs)
        return carry, jax.tree.map(_sum_first, ys) if total else ys

    carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *jnp.shape(x))), carry)
    folded = jax.tree.map(lambda x: _fold(x, shape), inputs), _fold(valid, shape, fill=False)
    _, results = lax.scan(jax.checkpoint(segment, prevent_cse=False), carry, folded)
    if total:
        return jax.tree.map(_sum_first, results)
    return jax.tree.map(lambda y: _unfold(y, shape)[:, :length], results)


def _sum_first(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=0, dtype=accumulator_dtype(x.dtype))


def _fold(x: jax.Array, shape: Layout, fill: Any = None) -> jax.Array:
    """From `(N, T, ...)` to `(turns * outer, inner, together * steps, ...)`; padding repeats the last step, or is `fill`."""
    padding = shape.outer * shape.inner * shape.steps - x.shape[1]
    if padding:
        last = jnp.broadcast_to(x[:, -1:] if fill is None else jnp.asarray(fill), (x.shape[0], padding, *x.shape[2:]))
        x = jnp.concatenate([x, last], axis=1)
    x = x.reshape((shape.together, shape.turns, shape.outer, shape.inner, shape.steps, *x.shape[2:]))
    if x.shape[0] > 1:
        x = x.transpose((1, 2, 3, 0, 4, *range(5, x.ndim)))
    return x.reshape((shape.turns * shape.outer, shape.inner, shape.together * shape.steps, *x.shape[5:]))


def _unfold(y: jax.Array, shape: Layout) -> jax.Array:
    """The inverse of `_fold`, padding included: `(N, outer * inner * steps, ...)`."""
    y = y.reshape((shape.turns, shape.outer, shape.inner, shape.together, shape.steps, *y.shape[3:]))
    y = y.transpose((3, 0, 1, 2, 4, *range(5, y.ndim)))
    return y.reshape((shape.together * shape.turns, shape.outer * shape.inner * shape.steps, *y.shape[5:]))
