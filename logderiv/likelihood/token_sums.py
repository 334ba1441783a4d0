"""A sum over tokens with its gradient in one pass: chunks of tokens, each with the whole vocabulary.

`token_log_probs` returns a number for each token, so that nobody can tell on the way forward what is going to be asked of each on the way back: its blocks
are taken twice. Where the loss is a sum over tokens (or over sequences) of a function of their own numbers, the gradient of a chunk can be taken as soon as
its logits are there, and they are never taken again: three matrix products instead of four.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from logderiv._core import check
from logderiv._core.arrays import accumulator_dtype, array_of, expand, named_leaf_by_leaf
from logderiv._core.blocks import Layout, fill_steps
from logderiv._core.sharding import by_shard
from logderiv._core.shared import with_captured
from logderiv._core.tangents import is_zero, put_back, those_that
from logderiv.likelihood.logits import Arithmetic, Scales, TokenNumbers, Tokens, detached_reference, numbers_of, scaled

# Tokens in a chunk: on a CPU a few hundred, of which a product with the vocabulary reaches its full rate. Elsewhere what keeps the additions to the
# unembedding's gradient rare: on an H100, D 4096 and V 128 256 in bfloat16, 2048 of 8192 tokens take 1.09 of the time of optax's loss of all logits, of 32 768
# 1.01; larger chunks save no more than 5 % of it.
_CHUNK = {"cpu": 256}
_CHUNK_ELSEWHERE = 2048


class TokenSum(NamedTuple):
    """What `token_sum` returns.

    Attributes:
        value: The sum, a scalar in float32 at least.
        numbers: Those of every token, shape of the tokens; 0 where invalid. No gradient flows through them.
    """

    value: Any
    numbers: TokenNumbers


def token_sum(
    term: Callable[..., Any],
    unembedding: jax.Array,
    hidden: jax.Array,
    tokens: jax.Array,
    *extras: Any,
    by: str = "token",
    temperature: Any = 1.0,
    soft_cap: Any = None,
    allowed: jax.Array | None = None,
    valid: jax.Array | None = None,
    reference: tuple[jax.Array, jax.Array] | None = None,
    entropy: bool = False,
    compute_dtype: Any = None,
    precision: Any = None,
    chunk_size: int | None = None,
) -> TokenSum:
    """The sum over tokens of a function of each token's numbers, with its gradient in one pass.

        S = Σ_n term(numbers_n, *extras_n)

    A weighted log-probability, a clipped ratio, a term of divergence or entropy: any differentiable function of one token's log-probability, normalizer,
    entropy and divergence from a reference. Value and gradients take three matrix products, two where the unembedding is held, and one more with a reference.
    Memory is that of the logits of one chunk, and that of the unembedding's gradient in float32, if it is asked for and the unembedding is of half precision
    (else it is what is returned). Where a mesh is in use each device goes through chunks of its own batch, with a whole unembedding, and they meet once.
    What no sum of terms gives, such as a ratio of two sums, goes through `token_log_probs`.

        def term(token, weight):
            return weight * token.log_prob

        value, numbers = ld.token_sum(term, unembedding, hidden, tokens, advantages)

    Args:
        term: From one token's `logderiv.likelihood.TokenNumbers` and what belongs to it in `extras` to a scalar. It may close over arrays that are being
            differentiated. Of tokens that do not count it is not used, but evaluated at another token that does.
        unembedding: One row for each token of the vocabulary, shape `(V, D)`.
        hidden: Shape `(*batch, T, D)`, or any other leading axes.
        tokens: Integers in `0 .. V - 1`, shape `(*batch, T)`.
        *extras: Arrays, or pytrees of them, with the leading axes of the tokens. They may be differentiated as well.
        by: `"token"`, or `"sequence"`: then `term` gets the numbers and the extras of one sequence, vectors along the last axis of the tokens, 0 where invalid,
            and chunks are whole sequences. For a ratio of the sequence; for a divisor by its length pass `valid` as one of the extras.
        temperature: τ > 0, a scalar.
        soft_cap: c > 0, a scalar; `None` for none.
        allowed: False for tokens that are never drawn. Shape `(V,)`, bool.
        valid: False on padding, whose content is then never used. Shape `(*batch, T)`, bool.
        reference: Unembedding and hidden states, shapes `(V, D')` and `(*batch, T, D')`, whose softmax at the same temperature, soft-cap and allowed tokens
            is the reference; detached.
        entropy: Whether numbers hold the entropy.
        compute_dtype: The dtype in which unembedding and hidden states are multiplied; `None` for their own. With float32 weights and bfloat16 here the
            gradient is float32, rounded nowhere. On a CPU, which multiplies float32 faster, the weights are not rounded either.
        precision: As in `token_log_probs`.
        chunk_size: Tokens in a chunk; `None` for the backend's default. Speed and memory only.

    Returns:
        `TokenSum`.

    Raises:
        ValueError: Shapes disagree; temperature, soft-cap or chunk size is not positive; a reference of another vocabulary; an unknown `by`; no token; a term that is
            no scalar; or, outside `jax.jit`, a valid token outside the vocabulary. Inside it such a token has log-probability `-inf`, with no gradient.
        TypeError: A dtype is of the wrong kind.

    Gradients: flow through `unembedding`, `hidden`, `temperature`, `soft_cap`, `extras` and what `term` closes over, to `value` alone, in both modes
    and at any order.

    Example:
        >>> import jax.numpy as jnp
        >>> unembedding, hidden, weights = jnp.zeros((8, 2)), jnp.ones((3, 2)), jnp.array([1.0, -1.0, 2.0])
        >>> found = token_sum(lambda token, w: w * token.log_prob, unembedding, hidden, jnp.array([0, 7, 3]), weights)
        >>> round(float(found.value), 4)  # -2 log 8
        -4.1589
    """
    given = Tokens.of(unembedding, hidden, tokens, allowed, valid)
    check.one_of(("token", "sequence"), by=by)
    if not callable(term):
        raise TypeError(f"term: expected a function, received {type(term).__name__}.")
    if not given.tokens.size or (by == "sequence" and not given.tokens.ndim):
        raise ValueError(f"tokens: expected at least one {by}, received shape {given.tokens.shape}.")
    operands = (given.unembedding.dtype, given.hidden.dtype) if compute_dtype is None else (_floating(compute_dtype),)
    arithmetic = Arithmetic.of(precision, *operands)
    ref_unembedding, ref_hidden = detached_reference(reference, given.unembedding, given.tokens)
    shape, extras = given.tokens.shape, _checked_extras(extras, given.tokens.shape)
    rows = _filled(by, given, ref_hidden, extras)
    rows = jax.tree.map(partial(_row_axes, shape, by), rows)
    rows = rows._replace(counts=jnp.any(rows.counts.reshape((*rows.counts.shape[:2], -1)), axis=-1))
    shared = _Shared(given.unembedding, Scales.of(temperature, soft_cap, arithmetic.sums), ref_unembedding)

    of_row, captured = _row_function(term, partial(_softmax, given.allowed, entropy), shared, rows)
    default = _CHUNK.get(jax.default_backend(), _CHUNK_ELSEWHERE)
    size = default if chunk_size is None else check.whole(chunk_size=chunk_size)
    num_rows = max(size // math.prod(rows.tokens.shape[2:]), 1)
    value, numbers = _sum(of_row, num_rows, arithmetic, shared._replace(captured=captured), rows)
    return TokenSum(value, jax.tree.map(lambda x: jnp.where(given.real, x.reshape(shape), 0), numbers))


class _Shared(NamedTuple):
    """What rows share."""

    unembedding: Any
    scales: Scales
    reference: Any
    captured: Any = ()


class _Rows(NamedTuple):
    """What is each row's own, a token or a sequence of them; leading axes `(N, R)`.

    The term of a row is shown the numbers of the tokens in `shown`, 0 of others; `counts` says whether the row's term does.
    """

    hidden: Any
    tokens: Any
    reference: Any
    extras: Any
    shown: Any
    counts: Any


def _row_function(term: Any, softmax: Any, shared: _Shared, rows: _Rows) -> tuple[Callable[..., Any], Any]:
    """From products with the unembedding to a row's term and its numbers, and what term and softmax close over."""
    example = jax.tree.map(lambda x: x[0, 0], rows)
    products = jnp.zeros((*example.tokens.shape, shared.unembedding.shape[0]), shared.scales.temperature.dtype)
    given = shared.scales, example, products, None if shared.reference is None else products
    _check_scalar(jax.eval_shape(term, jax.eval_shape(softmax, *given), *example.extras))

    def of_row(scales: Scales, row: _Rows, products: Any, of_reference: Any) -> tuple[jax.Array, TokenNumbers]:
        numbers = softmax(scales, row, products, of_reference)
        value = jnp.asarray(term(numbers, *row.extras)).astype(products.dtype)
        return jnp.where(row.counts, value, jnp.zeros_like(value)), numbers

    among, (_, captured) = with_captured(of_row, *given)
    return lambda scales, captured, *row: among((scales, captured), *row), captured


def _softmax(allowed: Any, entropy: bool, scales: Scales, row: _Rows, products: Any, of_reference: Any) -> TokenNumbers:
    log_reference = None
    if of_reference is not None:
        log_reference = jax.nn.log_softmax(scaled(of_reference, lax.stop_gradient(scales), allowed))
    numbers = numbers_of(entropy, scaled(products, scales, allowed), row.tokens, log_reference)
    return jax.tree.map(lambda x: jnp.where(row.shown, x, jnp.zeros_like(x)), numbers)


def _sum(
    of_row: Any, size: int, arithmetic: Arithmetic, shared: _Shared, rows: _Rows
) -> tuple[jax.Array, TokenNumbers]:
    """The sum and the numbers of all rows; the gradient, where one is asked for, is taken with them."""

    def taken(moves: Any, shared: _Shared, rows: _Rows) -> tuple[Any, TokenNumbers, Any]:
        sums, numbers, of_rows = by_shard(partial(_one_pass, of_row, size, arithmetic, moves), shared, rows)
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), sums), numbers, of_rows

    @jax.custom_jvp
    def total(shared: _Shared, rows: _Rows) -> tuple[jax.Array, TokenNumbers]:
        (value, _), numbers, _ = taken(jax.tree.map(lambda _: False, (shared, rows)), shared, rows)
        return value, numbers

    @partial(total.defjvp, symbolic_zeros=True)
    def rule(primals: Any, tangents: Any) -> Any:
        moves = jax.tree.map(lambda _, t: not is_zero(t), primals, tangents)
        (value, of_shared), numbers, of_rows = taken(moves, *primals)
        gradient = jax.tree.leaves((of_shared, of_rows))
        directions = jax.tree.leaves(those_that(moves, tangents))
        terms = [jnp.sum(g * d.astype(g.dtype), dtype=value.dtype) for g, d in zip(gradient, directions, strict=True)]
        return (value, numbers), (sum(terms, jnp.zeros_like(value)), jax.tree.map(jnp.zeros_like, numbers))

    return total(shared, rows)


def _one_pass(
    of_row: Any, size: int, arithmetic: Arithmetic, moves: Any, shared: _Shared, rows: _Rows
) -> tuple[Any, Any, Any]:
    """Chunk by chunk: the sum and its gradient in what moves of the shared, the numbers, and the gradient in what moves of the rows.

    The gradient of a chunk is written out, not transposed: its derivatives by the products are rounded once, and what is shared sums it in float32. That of
    hidden states in bfloat16 is kept in it, whose range is that of float32.
    """
    shape, (shared_moves, rows_move) = rows.counts.shape, moves
    unembedding = shared.unembedding.astype(arithmetic.operands)
    wide = those_that((shared_moves.scales, shared_moves.captured), (shared.scales, shared.captured))
    wide = jax.tree.map(lambda x: x.astype(accumulator_dtype(x.dtype)), wide)

    def product(states: jax.Array, unembedding: jax.Array) -> jax.Array:
        found = arithmetic.product(states.reshape((-1, states.shape[-1])), unembedding)
        return found.reshape((*states.shape[:-1], -1))

    def value(wide: Any, extras: Any, products: jax.Array, chunk: _Rows) -> tuple[jax.Array, TokenNumbers]:
        scales, captured = put_back(wide, (shared.scales, shared.captured))
        of_reference = None if shared.reference is None else product(chunk.reference, shared.reference)
        chunk = chunk._replace(extras=put_back(extras, chunk.extras))
        values, numbers = jax.vmap(partial(of_row, scales, captured))(chunk, products, of_reference)
        return jnp.sum(values), numbers

    def add(total: Any, chunk: _Rows) -> tuple[Any, Any]:
        extras = those_that(rows_move.extras, chunk.extras)
        slope = jax.value_and_grad(value, (0, 1, 2), has_aux=True)
        (found, numbers), (of_wide, of_extras, d) = slope(wide, extras, product(chunk.hidden, unembedding), chunk)
        d, d_unembedding, d_hidden = d.reshape((-1, d.shape[-1])), None, None
        if shared_moves.unembedding:
            d_unembedding = arithmetic.product(d, chunk.hidden.reshape((len(d), -1)), (0, 0))
        if rows_move.hidden:
            d_hidden = arithmetic.product(d, unembedding, (1, 0)).reshape(chunk.hidden.shape)
            d_hidden = d_hidden.astype(jnp.bfloat16) if chunk.hidden.dtype == jnp.bfloat16 else d_hidden
        of_shared = _Shared(d_unembedding, of_wide[0], None, of_wide[1])
        of_chunk = _Rows(d_hidden, None, None, of_extras, None, None)
        return jax.tree.map(jnp.add, total, (found, of_shared)), (numbers, of_chunk)

    moving = those_that(shared_moves, shared)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, accumulator_dtype(x.dtype)), moving)
    if shared_moves.unembedding:
        zeros = zeros._replace(unembedding=jnp.zeros(unembedding.shape, arithmetic.sums))
    start = jnp.zeros((), arithmetic.sums), zeros
    num = rows.counts.size
    chunks = -(-num // size)
    layout = Layout(1, 1, chunks, 1, -(-num // chunks))  # the last row is repeated to fill it, and does not count
    rows = jax.tree.map(lambda x: x.reshape((1, num, *x.shape[2:])), rows)
    folded = layout.fold(rows)._replace(counts=layout.fold(rows.counts, fill=False))
    folded = jax.tree.map(lambda x: x[:, 0], folded)
    total, per_row = lax.scan(jax.checkpoint(add, prevent_cse=False), start, folded)
    per_row = layout.unfold(jax.tree.map(lambda y: y[:, None], per_row), num)
    per_row = jax.tree.map(lambda y: y.reshape((*shape, *y.shape[2:])), per_row)
    return jax.tree.map(lambda x: x[None], total), *per_row


def _row_axes(shape: tuple[int, ...], by: str, x: jax.Array) -> jax.Array:
    """Leading axes `(N, R)` of rows: N the first axis of the tokens, over which they may be spread on several devices."""
    rows = shape if by == "token" else shape[:-1]
    first, *rest = rows or (1,)
    return x.reshape((first, math.prod(rest), *x.shape[len(rows) :]))


def _filled(by: str, given: Tokens, ref_hidden: Any, extras: Any) -> _Rows:
    """Rows whose terms are finite, whatever stands in padding: then a term that does not count has no NaN for a derivative either.

    A single token that does not count becomes one that does, with all that is its own. Within a sequence its extras are 0. Where no token counts, hidden
    states are 0, the token is one that is allowed, and extras are 1.
    """
    valid, own = jnp.asarray(given.real), (given.hidden, ref_hidden, extras)
    possible = 0 if given.allowed is None else jnp.argmax(given.allowed).astype(jnp.int32)
    tokens, axis = jnp.where(valid, given.tokens, possible), max(valid.ndim - 1, 0)
    some = jnp.any(valid, axis=axis, keepdims=True) if valid.ndim else valid
    if by == "token" and valid.ndim:
        hidden, ref_hidden, extras = fill_steps(own, valid)
        tokens = jnp.where(some, fill_steps(tokens, valid), possible)
        return _Rows(hidden, tokens, ref_hidden, extras, jnp.ones_like(valid), valid)

    def fill(x: jax.Array) -> jax.Array:
        rest = jnp.where(expand(some, x), jnp.zeros_like(x), jnp.ones_like(x))
        return jnp.where(expand(valid, x), x, rest)

    _, ref_hidden, extras = jax.tree.map(fill, own)
    return _Rows(given.hidden, tokens, ref_hidden, extras, valid | ~some, valid)


def _checked_extras(extras: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[Any, ...]:
    def leaf(x: Any, name: str) -> jax.Array:
        x = array_of(x, name)
        if x.shape[: len(shape)] != shape:
            raise ValueError(f"{name}: expected the leading axes of the tokens, {shape}, received shape {x.shape}.")
        return x

    return tuple(named_leaf_by_leaf(leaf, extra, f"extras[{i}]") for i, extra in enumerate(extras))


def _floating(dtype: Any) -> Any:
    try:
        dtype = jax.dtypes.canonicalize_dtype(dtype)
    except TypeError as error:
        raise TypeError(f"compute_dtype: expected a floating dtype, received {dtype!r}.") from error
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"compute_dtype: expected a floating dtype, received {dtype}.")
    return dtype


def _check_scalar(value: Any) -> None:
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        received = f"shape {value.shape} of {value.dtype}" if hasattr(value, "shape") else type(value).__name__
        raise ValueError(f"term: expected it to return one real number, received {received}.")
