"""Evaluating a function on every step of every trajectory: in blocks of rows, or in segments of time.

Given a trajectory, the factors of a memoryless policy need no sequential scan over time: the `N * T` steps are rows
that can be taken in any order. All at once needs memory for all of them; one at a time wastes the machine. `map_rows`
takes a block of rows at a time, vectorized inside, scans over the blocks and recomputes each block on the way back
(`jax.checkpoint`), so that memory is that of one block. The scan is two levels deep: each inner scan starts its
parameter cotangent from zero, which keeps float32 gradients exact to about 1e-6 at 10^7 steps where a single running
sum is wrong in the second digit. `sum_rows` does the same for a sum, and takes value and gradient in one pass. No large block
takes digits from a gradient: it adds up those of its parts (`_of_block`).

A policy with memory has its steps scanned in time instead (`scan_steps`), in checkpointed segments: memory O(sqrt(T)) on the
way back.

The trajectory axis is never scanned over as a whole, so it may be sharded; where a mesh is in use (`jax.set_mesh`, or
`train(mesh=)`) each device goes through blocks of its own trajectories and the devices meet once, to add up their gradients.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from logderiv._core.arrays import accumulator_dtype
from logderiv._core.sharding import by_shard, divides
from logderiv._core.shared import num_bytes, of_each_part, with_captured
from logderiv._core.tangents import is_zero, jvp_of_moving, moving

# Rows in a block: on a CPU about what keeps a block of a small network's activations in its cache. Elsewhere a device wants all rows at once, and blocks
# only bound the memory of what is kept between the way forward and back: to `_BYTES`, or to a part of what the device has in all. Never to what is free:
# the same program in every run. On an H100, MLP 4-64-2, 10^6 rows were one block and took 0.99 of the vectorized form's time, 10^7 rows 1.12,
# measured before the gradients of parts were added up.
_ROWS = {"cpu": 512}
_BYTES, _PART = 3 << 28, 32
# On a CPU, rows of which XLA spreads a layer of 64 over the cores, as it does not for 512. Training an actor and a critic
# by minibatches is 1.4 to 1.5 times as fast with these (`benchmarks/training_speed`, 2 cores).
_WIDE = {"cpu": 2048}
# Rows whose gradients are one sum: from 10^6 rows on a gradient is the sum of 64 such sums at least, however large a block is.
_SUMMED = 10**6 // 64

Function = Callable[[Any, Any], Any]  # of what rows share, and of a row


class Layout(NamedTuple):
    """How `(N, T)` steps become `(groups, blocks, rows)`: `N = together * turns` and `T <= outer * inner * steps`.

        N: | together      | turns |            rows   = together * steps: a block, vectorized
        T: | outer | inner | steps |            blocks = inner:            scanned inside a group
                                                groups = turns * outer:    scanned

    A block holds `steps` consecutive steps of `together` trajectories. Of the trajectory axis only `turns` is scanned, the
    part that varies fastest, so that the axis stays where it is when it is sharded.
    """

    together: int
    turns: int
    outer: int
    inner: int
    steps: int

    @classmethod
    def of(cls, num_trajectories: int, num_steps: int, block_size: int) -> "Layout":
        """Blocks of at most `block_size` rows, in groups of about the square root of their number."""
        together = max(d for d in range(1, min(num_trajectories, block_size) + 1) if num_trajectories % d == 0)
        turns = num_trajectories // together
        steps = min(num_steps, max(1, block_size // together))
        blocks = -(-num_steps // steps)
        groups = max(1, math.isqrt(turns * blocks) // turns)
        inner = -(-blocks // groups)
        outer = -(-blocks // inner)
        return cls(together, turns, outer, inner, -(-num_steps // (outer * inner)))

    def fold(self, tree: Any, fill: Any = None) -> Any:
        """Leaves `(N, T, ...)` as `(groups, blocks, rows, ...)`; padding repeats the last step, or is `fill`."""
        return jax.tree.map(lambda x: self._fold(x, fill), tree)

    def unfold(self, tree: Any, num_steps: int) -> Any:
        """The inverse of `fold`, padding taken off."""
        return jax.tree.map(lambda y: self._unfold(y)[:, :num_steps], tree)

    def _fold(self, x: jax.Array, fill: Any) -> jax.Array:
        padding = self.outer * self.inner * self.steps - x.shape[1]
        if padding:
            last = x[:, -1:] if fill is None else jnp.asarray(fill, x.dtype)
            x = jnp.concatenate([x, jnp.broadcast_to(last, (x.shape[0], padding, *x.shape[2:]))], axis=1)
        x = x.reshape((*self, *x.shape[2:]))
        rows = self.turns * self.outer, self.inner, self.together * self.steps
        return jnp.moveaxis(x, 0, 3).reshape((*rows, *x.shape[5:]))

    def _unfold(self, y: jax.Array) -> jax.Array:
        y = y.reshape((self.turns, self.outer, self.inner, self.together, self.steps, *y.shape[3:]))
        y = jnp.moveaxis(y, 3, 0)
        return y.reshape((self.together * self.turns, self.outer * self.inner * self.steps, *y.shape[5:]))


def rows_in_block(function: Function, params: Any, inputs: Any, block_size: int | None = None) -> int:
    """Rows in a block of `inputs`, leading axes `(N, T)`: what was asked for; on a CPU its own number; elsewhere what fits into the bytes of a block."""
    if block_size is None:
        block_size = _ROWS.get(jax.default_backend())
    if block_size is not None:
        return block_size

    def kept(num: int) -> int:
        rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((num, *x.shape[2:]), x.dtype), inputs)
        every = jax.vmap(function, (None, 0))
        shapes = jax.eval_shape(lambda params, rows: jax.vjp(lambda p: every(p, rows), params)[1], params, rows)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))

    capacity = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", _PART * _BYTES)
    return max(min(_BYTES, capacity // _PART) // max(kept(2) - kept(1), 1), 1)


def wide_block_size(times: int = 1) -> int | None:
    """Rows in a block that keeps all cores of a CPU busy, where the whole batch would fill the memory; `None` elsewhere."""
    size = _WIDE.get(jax.default_backend())
    return size and times * size


def map_rows(function: Function, params: Any, inputs: Any, *, block_size: int | None = None) -> Any:
    """`function(params, row)` for every row of `inputs`.

    Args:
        function: From `params` and one row to a pytree of scalars.
        params: Whatever `function` shares between rows.
        inputs: Pytree with leading axes `(N, T)`.
        block_size: Rows in a block; `None` for the backend's default.

    Returns:
        The results with leading axes `(N, T)`.

    Gradients: flow through `params` and `inputs`, at any order; each block is recomputed on the way back.
    """
    num, length = jax.tree.leaves(inputs)[0].shape[:2]
    block_size = rows_in_block(function, params, inputs, block_size)
    if num * length <= min(block_size, _SUMMED):
        return _at_once(function, params, inputs)
    mapped = partial(_at_once, function) if num * length <= block_size else partial(_in_blocks, function, block_size)
    return by_shard(mapped, params, inputs)


def _at_once(function: Function, params: Any, inputs: Any) -> Any:
    num, length = jax.tree.leaves(inputs)[0].shape[:2]
    flat = jax.tree.map(lambda x: x.reshape((num * length, *x.shape[2:])), inputs)
    values = _of_block(function, params, flat)
    return jax.tree.map(lambda y: y.reshape((num, length, *y.shape[1:])), values)


def _of_block(function: Function, params: Any, rows: Any) -> Any:
    """`function(params, row)` of the rows of a block, side by side.

        d/dθ Σ_r f(θ, x_r) = Σ_k d/dθ_k Σ_(r in part k) f(θ_k, x_r)  at θ_k = θ

    A float32 sum of n terms of one sign errs in proportion to n. What rows share is therefore given once to each part of at
    most `_SUMMED` rows, and the parts' gradients are added up at the end; larger parts where so many gradients would take more than
    `_BYTES`. The parts divide the rows where a number close by does; else the last row is repeated, in a copy of
    the rows.
    """
    num = jax.tree.leaves(rows)[0].shape[0]
    if num <= _SUMMED:
        return jax.vmap(function, (None, 0))(params, rows)
    function, shared = with_captured(function, params, rows, axes=1)
    wanted, most = -(-num // _SUMMED), max(1, _BYTES // max(num_bytes(shared), 1))
    numbers = range(wanted, min(2 * wanted, most + 1)) or range(most, most // 2, -1)
    parts = next((k for k in numbers if num % k == 0), numbers[0])
    layout = Layout(1, 1, 1, parts, -(-num // parts))
    folded = jax.tree.map(lambda x: x[0], layout.fold(jax.tree.map(lambda x: x[None], rows)))
    values = of_each_part(jax.vmap(function, (None, 0)), shared, folded)
    return jax.tree.map(lambda y: y[0], layout.unfold(jax.tree.map(lambda y: y[None], values), num))


def _in_blocks(function: Function, block_size: int, params: Any, inputs: Any) -> Any:
    num, length = jax.tree.leaves(inputs)[0].shape[:2]
    layout = Layout.of(num, length, block_size)
    block = jax.checkpoint(partial(_of_block, function), prevent_cse=False)
    group = jax.checkpoint(lambda params, xs: lax.map(partial(block, params), xs), prevent_cse=False)
    return layout.unfold(lax.map(partial(group, params), layout.fold(inputs)), length)


def sum_rows(
    function: Function, params: Any, inputs: Any, valid: jax.Array, *, block_size: int | None = None
) -> jax.Array:
    """Sum over the valid rows of a scalar `function(params, row)`: value and gradient in one pass over the rows.

    Differentiating `map_rows` runs each block forwards, and on the way back forwards again. A sum does not need to wait
    for its cotangent: its derivative rule takes value and gradient of each block together, which saves the first pass.
    The rule is a JVP, linear in the tangent, so forward mode, reverse mode and higher orders all go through it.

    Args:
        function: From `params` and one row to a scalar; it may close over arrays that are being differentiated.
        params: Whatever `function` shares between rows.
        inputs: Pytree with leading axes `(N, T)`. Where they are differentiated too, the plain rule is used.
        valid: Which rows count; whatever stands in the others has no influence. Shape `(N, T)`.
        block_size: Rows in a block; `None` for the backend's default.

    Returns:
        A scalar, in float32 at least.
    """
    inputs = fill_steps(inputs, valid)
    block_size = rows_in_block(function, params, inputs, block_size)
    if valid.size <= block_size:
        values = map_rows(function, params, inputs, block_size=block_size)
        return jnp.sum(values, where=valid, dtype=accumulator_dtype(values.dtype))
    function, shared = with_captured(function, params, inputs, axes=2)

    def plain(shared: Any, inputs: Any, valid: jax.Array) -> jax.Array:
        values = map_rows(function, shared, inputs, block_size=block_size)
        return jnp.sum(values, where=valid, dtype=accumulator_dtype(values.dtype))

    total: Any = jax.custom_jvp(plain)

    @partial(total.defjvp, symbolic_zeros=True)
    def rule(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        if not all(is_zero(t) for t in jax.tree.leaves(tangents[1])):
            return jvp_of_moving(plain, primals, tangents)
        values, directions, among_all = moving(primals[0], tangents[0])

        def of_moving(values: Any, x: Any) -> jax.Array:
            return function(among_all(values), x)

        sums = by_shard(partial(_sum_blocks, of_moving, block_size), values, primals[1:])
        value, gradient = jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)
        terms = jax.tree.map(lambda g, d: jnp.sum(g * d.astype(g.dtype), dtype=value.dtype), gradient, directions)
        return value, sum(jax.tree.leaves(terms), jnp.zeros_like(value))

    return total(shared, inputs, valid)


def neutral(x: jax.Array, valid: jax.Array) -> jax.Array:
    """What stands in `x` where there is no step: 0 for one whole number a step, a row that every table has; else 1: masks, divisors."""
    index = x.ndim == valid.ndim and jnp.issubdtype(x.dtype, jnp.integer)
    return jnp.zeros((), x.dtype) if index else jnp.ones((), x.dtype)


def fill_steps(tree: Any, valid: jax.Array) -> Any:
    """What stands in invalid steps, replaced by that of the first valid step on the last axis of `valid`, or by `neutral`."""
    length = valid.shape[-1]
    steps = jnp.where(valid, lax.broadcasted_iota(jnp.int32, valid.shape, valid.ndim - 1), length)
    first = jnp.min(steps, axis=-1, keepdims=True)
    some, first = first < length, jnp.minimum(first, length - 1)

    def fill(x: Any) -> jax.Array:
        x, trailing = jnp.asarray(x), (..., *(None,) * (jnp.ndim(x) - valid.ndim))
        source = x if length == 1 else jnp.take_along_axis(x, first[trailing], axis=valid.ndim - 1)
        source = jnp.where(some[trailing], source, neutral(x, valid))
        return jnp.where(valid[trailing], x, source)

    return jax.tree.map(fill, tree)


def map_trajectories(function: Callable[..., Any], params: Any, *inputs: Any) -> Any:
    """`function(params, *trajectory)` of each trajectory, one after the other on each device.

    Args:
        function: From `params` and one trajectory's part of each of the `inputs` to a pytree of arrays.
        params: Whatever `function` shares between trajectories; for its derivatives, and for those of what `function` closes over,
            the devices of a mesh in use meet once.
        *inputs: Pytrees with leading axis `(N,)`.

    Returns:
        The results with leading axis `(N,)`.
    """
    num = jax.tree.leaves(inputs)[0].shape[0]
    if num == 1:  # without the axis: a copy of the inputs less
        return jax.tree.map(lambda y: y[None], function(params, *jax.tree.map(lambda x: x[0], inputs)))
    # Where `by_shard` does not divide them, one a device side by side, in case their axis is sharded.
    together = 1 if divides(num) else math.gcd(num, jax.device_count())
    return by_shard(partial(_in_turns, function, together), params, inputs)


def _in_turns(function: Callable[..., Any], together: int, params: Any, inputs: Any) -> Any:
    num = jax.tree.leaves(inputs)[0].shape[0]
    turns = jax.tree.map(lambda x: x.reshape((together, num // together, *x.shape[1:])).swapaxes(0, 1), inputs)
    results = lax.map(jax.vmap(lambda x: function(params, *x)), turns)
    return jax.tree.map(lambda y: y.swapaxes(0, 1).reshape((num, *y.shape[2:])), results)


def sum_results(function: Callable[[Any], Any], rows: Any, size: int) -> Any:
    """The sum over rows of results that are too many to be held, such as squares of gradients: never more than `size` at once.

    Args:
        function: From one row to a pytree of floating-point arrays.
        rows: Pytree with a common leading axis.
        size: Rows taken side by side.

    Returns:
        What `function` returns, summed in float32 at least.
    """

    def add(total: Any, rows: Any) -> tuple[Any, None]:
        results = jax.vmap(function)(rows)
        return jax.tree.map(lambda t, y: t + jnp.sum(y.astype(t.dtype), axis=0), total, results), None

    num = jax.tree.leaves(rows)[0].shape[0]
    whole = num - num % size
    one = jax.eval_shape(function, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows))
    total = jax.tree.map(lambda y: jnp.zeros(y.shape, accumulator_dtype(y.dtype)), one)
    blocks = jax.tree.map(lambda x: x[:whole].reshape((whole // size, size, *x.shape[1:])), rows)
    total, _ = lax.scan(add, total, blocks)
    return add(total, jax.tree.map(lambda x: x[whole:], rows))[0] if whole < num else total


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


def _sum_blocks(function: Function, block_size: int, shared: Any, batch: Any) -> tuple[jax.Array, Any]:
    """Sum over the valid rows and its gradient in `shared`, two levels deep, each block once; with a leading axis of 1."""
    inputs, valid = batch
    num, length = valid.shape
    layout = Layout.of(num, length, block_size)

    def block(shared: Any, x: Any, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
        values = _of_block(function, shared, x)
        values = jnp.where(valid, values, jnp.zeros_like(values))
        return jnp.sum(values), _partial_sums(values)

    def add(gradient: Any, x: Any) -> tuple[Any, jax.Array]:
        new, value = jax.grad(block, has_aux=True)(shared, *x)
        return jax.tree.map(lambda total, g: total + g.astype(total.dtype), gradient, new), value

    def group(gradient: Any, xs: Any) -> tuple[Any, jax.Array]:
        new, values = lax.scan(add, zeros, xs)
        return jax.tree.map(jnp.add, gradient, new), values

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, accumulator_dtype(x.dtype)), shared)
    gradient, values = lax.scan(group, zeros, (layout.fold(inputs), layout.fold(valid, fill=False)))
    return jax.tree.map(lambda x: x[None], (jnp.sum(values), gradient))


def _partial_sums(values: jax.Array, lanes: int = 8) -> jax.Array:
    """Sums of few values each, to be added up at the end: a sum of a whole block would be taken in sequence."""
    padded = jnp.pad(values, (0, -values.size % lanes))
    return jnp.sum(padded.reshape(lanes, -1), axis=0, dtype=accumulator_dtype(values.dtype))


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
