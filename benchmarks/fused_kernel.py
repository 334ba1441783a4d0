r"""Log P and its gradient of a small network in one pass over the rows, as one kernel (Pallas); this file runs nothing.

A network with one layer of tanh and a categorical choice, written out by hand:

    h = tanh(Wᵀx + b),  z = Vᵀh + c,  log π(a|x) = z_a - log Σ_j exp z_j
    ∂/∂z_j = 1[j = a] - softmax(z)_j,  ∂/∂h = V ∂/∂z,  ∂/∂(Wᵀx + b) = (1 - h²) ∂/∂h

Whatever is written with arrays keeps h in memory, 256 bytes of each row for 64 units, and reads it again on the way back: that is what its time goes
into. Here h stays in registers, and a row's 20 bytes are read once. Each program of the kernel adds up the gradients of its own rows; the sums of all programs
are added at the end. `benchmarks/accelerator` times it beside the library, which takes it in if it is four times as fast.

Finding: on a CPU, where Pallas interprets it, it is exact to float32; for a GPU it is lowered, by Pallas' Triton back end. It was not measured on a GPU yet. From JAX 0.12 on that
back end is deprecated: before it enters the library, it would have to be written for Pallas' Mosaic back end.
"""

from collections.abc import Iterable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Shape(NamedTuple):
    """How the rows are taken.

    Attributes:
        rows: At once, a power of two; fewer where there are fewer in all.
        programs: Side by side, each for as many rows.
    """

    rows: int
    programs: int


SHAPES = (Shape(64, 1056), Shape(128, 1056), Shape(64, 2112))
INTERPRETED = (Shape(32, 4),)


class Rows(NamedTuple):
    """What was observed and done in each row, and whether it counts: `(n, D)`, `(n,)` integers, `(n,)` booleans."""

    observation: Any
    action: Any
    valid: Any


class Weights(NamedTuple):
    """W and b of the hidden layer, `(D, H)` and `(H,)`; of the outputs V transposed, `(A, H)`, and c, `(A,)`."""

    hidden: Any
    hidden_bias: Any
    output: Any
    output_bias: Any


def value_and_grad(shape: Shape, params: Any, rows: Rows) -> tuple[jax.Array, Any]:
    """The sum of log π(a|x) over the valid rows, and its gradient.

    Args:
        shape: How the rows are taken.
        params: Of an `MLP` with one hidden layer, float32. On a GPU its number of units is a power of two.
        rows: Whatever stands in invalid ones has no influence.

    Returns:
        The sum, and the gradient in the form of `params`.

    Raises:
        ImportError: This JAX has no Pallas.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    (first, last), num = params, rows.action.size
    weights = Weights(first["weight"], first["bias"], last["weight"].T, last["bias"])
    shape = shape._replace(rows=min(shape.rows, 1 << (num.bit_length() - 1)))

    def per_program(x: Any) -> Any:
        return jax.ShapeDtypeStruct((shape.programs, *x.shape), jnp.float32)

    def of_program(x: Any) -> Any:
        return pl.BlockSpec((None, *x.shape), lambda program: (program, *(0,) * x.ndim))

    sums = jnp.zeros(1), weights
    call = pl.pallas_call(
        partial(_kernel, shape, num),
        out_shape=jax.tree.map(per_program, sums),
        out_specs=jax.tree.map(of_program, sums),
        grid=(shape.programs,),
        interpret=jax.default_backend() == "cpu",
        compiler_params=triton.CompilerParams(num_warps=4),
    )
    (value,), found = jax.tree.map(lambda x: jnp.sum(x, axis=0), call(weights, rows))
    first = {"weight": found.hidden, "bias": found.hidden_bias}
    return value, [first, {"weight": found.output.T, "bias": found.output_bias}]


def _kernel(shape: Shape, num: int, weights: Weights, rows: Rows, value: Any, gradient: Weights) -> None:
    """One program: the sums over its rows, block by block.

    A block that would reach beyond the last row begins earlier, and does not count the rows that are another block's: no copy of
    the inputs is filled up. One input or output at a time: a GPU's arrays have lengths that are powers of two.
    """
    from jax.experimental import pallas as pl

    program, blocks = pl.program_id(0), -(-num // (shape.rows * shape.programs))
    inputs, outputs = range(len(weights.hidden)), range(len(weights.output))
    read = Weights(
        [weights.hidden[k, :] for k in inputs],
        weights.hidden_bias[:],
        [weights.output[j, :] for j in outputs],
        [weights.output_bias[j] for j in outputs],
    )

    def add(block: Any, total: Any) -> Any:
        own = (program * blocks + block) * shape.rows
        start = jnp.minimum(own, num - shape.rows)
        at = pl.ds(start, shape.rows)
        counts = _counts(start, own, rows.valid[at])
        x = [jnp.where(counts, rows.observation[at, k], 0.0) for k in inputs]
        return jax.tree.map(jnp.add, total, _of_block(read, Rows(x, rows.action[at], counts)))

    zeros = jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, read)
    value[0], total = lax.fori_loop(0, blocks, add, zeros)
    gradient.hidden_bias[:] = total.hidden_bias
    for k in inputs:
        gradient.hidden[k, :] = total.hidden[k]
    for j in outputs:
        gradient.output[j, :], gradient.output_bias[j] = total.output[j], total.output_bias[j]


def _counts(start: Any, own: Any, valid: jax.Array) -> jax.Array:
    """Which of the rows from `start` on are valid and no other block's: this one's begin at `own`."""
    return (start + lax.iota(jnp.int32, len(valid)) >= own) & valid


def _of_block(weights: Weights, rows: Rows) -> tuple[jax.Array, Weights]:
    """The sum of log-probabilities and its gradient; observations, weights and what is found, input by input and output by output."""
    x, action, counts = rows
    h = jnp.tanh(_sum(map(_outer, x, weights.hidden)) + weights.hidden_bias[None, :])
    z = [jnp.sum(h * v[None, :], axis=1) + c for v, c in zip(weights.output, weights.output_bias, strict=True)]
    largest = reduce(jnp.maximum, z)
    exponential = [jnp.exp(logit - largest) for logit in z]
    normalizer = _sum(exponential)
    taken = [jnp.where(action == j, 1.0, 0.0) for j in range(len(z))]
    log_prob = _sum(map(jnp.multiply, taken, z)) - largest - jnp.log(normalizer)
    d_z = [jnp.where(counts, t - e / normalizer, 0.0) for t, e in zip(taken, exponential, strict=True)]
    d_in = _sum(map(_outer, d_z, weights.output)) * (1 - h * h)
    gradient = Weights(
        [jnp.sum(one[:, None] * d_in, axis=0) for one in x],
        jnp.sum(d_in, axis=0),
        [jnp.sum(d[:, None] * h, axis=0) for d in d_z],
        [jnp.sum(d) for d in d_z],
    )
    return jnp.sum(jnp.where(counts, log_prob, 0.0)), gradient


def _outer(x: jax.Array, y: jax.Array) -> jax.Array:
    return x[:, None] * y[None, :]


def _sum(arrays: Iterable[jax.Array]) -> jax.Array:
    return reduce(jnp.add, arrays)
