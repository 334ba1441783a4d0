"""Log-probabilities of tokens under a softmax over a large vocabulary, in blocks of the vocabulary.

Notation: `V` tokens in the vocabulary, `D` features, hidden states h with leading axes `(*batch, T)`, unembedding W, shape `(V, D)`.
The logits of one token are ℓ_v = w_v · h, and those of all of them are the largest array of a language model's
training step. Here a block of rows of W is taken at a time, with all tokens: the maximum and the sum of exponentials
are carried from block to block, and the derivative rule takes the logits of each block anew. Tokens are never cut, so
the first of their axes may be sharded, as a batch usually is.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from logderiv._core import check
from logderiv._core.arrays import array_of
from logderiv._core.blocks import map_rows
from logderiv._core.tangents import is_zero, jvp_of_moving
from logderiv.distributions import Categorical
from logderiv.distributions.interop import check_range
from logderiv.likelihood.logits import (
    Arithmetic,
    Scales,
    TokenNumbers,
    Tokens,
    chosen,
    detached_reference,
    kind,
    scaled,
    slopes,
)

# Numbers in a block of logits, and rows of the unembedding: on a CPU about what its last cache holds, and no power of
# two, which would make its matrix products slower. Elsewhere what makes products large: on an H100, 8192 tokens of D 4096 and V 128 256 in bfloat16,
# blocks of 8016, 16 032 and 32 064 rows take 1.54, 1.48 and 1.41 of the plain form's time, and 0.8, 1.4 and 2.5 GiB for its 7.8.
_BLOCK = {"cpu": (4_096_000, 2000)}
_BLOCK_ELSEWHERE = (5 << 24, 1 << 15)
_SMALLEST_BLOCK = 500  # with very many tokens a block of logits may then be as large as the hidden states


class TokenLogProbs(NamedTuple):
    """What `token_log_probs` returns, shape of the tokens, float32 at least.

    Attributes:
        log_probs: Log-probability of each token; 0 where invalid.
        entropy: Entropy of the distribution that it was drawn from, in nats; 0 where invalid. `None` unless asked for.
        kl: Divergence of that distribution from the reference's, in nats; 0 where invalid. `None` without one.
    """

    log_probs: jax.Array
    entropy: jax.Array | None = None
    kl: jax.Array | None = None


def token_log_probs(
    unembedding: jax.Array,
    hidden: jax.Array,
    tokens: jax.Array,
    *,
    temperature: Any = 1.0,
    soft_cap: Any = None,
    allowed: jax.Array | None = None,
    support: jax.Array | None = None,
    valid: jax.Array | None = None,
    reference: tuple[jax.Array, jax.Array] | None = None,
    entropy: bool = False,
    precision: Any = None,
    block_size: int | None = None,
) -> TokenLogProbs:
    """Log-probability of each token given the hidden state it was drawn from, without the logits of the whole vocabulary.

        log p(v|h) = ℓ_v - log Σ_u exp ℓ_u,   ℓ_v = c tanh(w_v · h / c) / τ

    The soft-cap c belongs to the model and comes first, the temperature τ to sampling and comes last. Without a soft-cap
    ℓ_v = w_v · h / τ. A sampler that is cut to its most probable tokens (top-k, top-p) draws from the same with u in `support`.

    Memory is that of one block of logits, and time that of four matrix products for value and both gradients, where the
    plain form needs three and moves `N V` numbers through memory several times, and `token_sum` three. Sums are taken in float32
    at least; gradients are summed in it too and returned in the dtype of their argument. Use the batch axes rather than
    `jax.vmap`, which hides them from the choice of the block. A sum over valid steps is the log-probability of a sequence.

    As the model of whole sequences, so that every estimator takes it:

        def log_factors(params, tau):  # one trajectory: `hidden` of step t sees the tokens before t only
            hidden = transformer(params, tau.observations)
            return ld.token_log_probs(params["unembedding"], hidden, tau.actions).log_probs

        policy = ld.FunctionPolicy(step, log_factors=log_factors)

    Args:
        unembedding: One row for each token of the vocabulary, shape `(V, D)`, as an embedding table has it.
        hidden: Shape `(*batch, T, D)`, or any other leading axes.
        tokens: Integers in `0 .. V - 1`, shape `(*batch, T)`.
        temperature: τ > 0, a scalar.
        soft_cap: c > 0, a scalar; `None` for none.
        allowed: False for tokens that are never drawn: probability 0, and none of the derivatives. Shape `(V,)`, bool.
        support: Tokens that could be drawn, each at most once, other ones for each place: what a truncated sampler kept; -1 for
            padding. Where nothing is kept the entropy is NaN. Only their logits are taken, a block of places at a time. Shape `(*batch, T, K)`, integers.
        valid: False on padding, whose content is then never used: bit for bit nothing depends on it. Shape `(*batch, T)`, bool.
        reference: Unembedding and hidden states, shapes `(V, D')` and `(*batch, T, D')`, of the softmax from which the divergence over the whole
            vocabulary is taken, at the same temperature, soft-cap and allowed tokens; detached. Not with a support.
        entropy: Whether to take the entropy as well; it costs no matrix product.
        precision: Of the products: JAX's `Precision`, a `DotAlgorithmPreset`, or a name of one. `None` follows `jax_default_matmul_precision` where
            that is set; else what comes in float32 is multiplied in float32 on every device, and half precision at its own rate, with sums in float32
            (derivatives of the logits are then rounded once on a device that has such products).
        block_size: Rows of the unembedding in a block. `None` for the backend's default, a divisor of `V` where there is one near
            it; other sizes copy the unembedding once. With a support, places in a block. Speed and memory only.

    Returns:
        `TokenLogProbs`, shape `(*batch, T)`.

    Raises:
        ValueError: Shapes disagree; temperature, soft-cap or block size is not positive; nothing is allowed; or, outside `jax.jit`,
            a valid token, or one of the support, is outside the vocabulary. Inside `jax.jit` such a token has log-probability `-inf`
            and zero gradient, like one that is not allowed or outside the support; one of the support is left out.
        TypeError: A dtype is of the wrong kind.

    Gradients: flow through `unembedding`, `hidden`, `temperature` and `soft_cap`, in both modes and at any order.

    Example:
        >>> import jax.numpy as jnp
        >>> unembedding, hidden = jnp.zeros((8, 2)), jnp.ones((3, 2))
        >>> result = token_log_probs(unembedding, hidden, jnp.array([0, 7, 3]), entropy=True)
        >>> [round(float(x), 4) for x in (*result.log_probs, result.entropy[0])]  # log 8 = 2.0794
        [-2.0794, -2.0794, -2.0794, 2.0794]

    References:
        Milakov & Gimelshein (2018), arXiv:1805.02867, algorithm 3, for the running sum; Gemma Team (2024), arXiv:2408.00118,
        section 2, for the soft-cap.
    """
    given = Tokens.of(unembedding, hidden, tokens, allowed, valid)
    arithmetic = Arithmetic.of(precision, given.unembedding.dtype, given.hidden.dtype)
    scales = Scales.of(temperature, soft_cap, arithmetic.sums)
    given = given._replace(hidden=given.hidden.astype(arithmetic.sums))  # as its gradient is: each block adds to it
    if support is None:
        numbers = _of_vocabulary(block_size, entropy, arithmetic, given, scales, reference)
    elif reference is None:
        numbers = _of_support(block_size, arithmetic, given, scales, support)
    else:
        raise ValueError("reference: its divergence is that of the whole vocabulary; expected none with a support.")

    def result(values: jax.Array) -> jax.Array:
        values = values.reshape(given.tokens.shape)
        return values if valid is None else jnp.where(given.real, values, jnp.zeros_like(values))

    numbers = jax.tree.map(result, numbers)
    return TokenLogProbs(numbers.log_prob, numbers.entropy if entropy else None, numbers.kl)


def _of_vocabulary(
    size: int | None, entropy: bool, arithmetic: Arithmetic, given: Tokens, scales: Scales, reference: Any
) -> TokenNumbers:
    """All tokens with the whole vocabulary."""
    ref_unembedding, ref_hidden = detached_reference(reference, given.unembedding, given.tokens)
    size = _block_size(given.tokens.size, len(given.unembedding), size)
    over_vocabulary = partial(_over_vocabulary, size, entropy, arithmetic)
    rows, ids, of_reference = given.hidden.reshape((-1, given.hidden.shape[-1])), given.tokens.reshape(-1), None
    if reference is not None:
        ref_hidden = jnp.where(given.real[..., None], ref_hidden, jnp.zeros_like(ref_hidden)).reshape((len(rows), -1))
        alone = over_vocabulary(ref_unembedding, ref_hidden, lax.stop_gradient(scales), ids, given.allowed, None)
        of_reference = ref_unembedding, ref_hidden, alone.log_normalizer
    return over_vocabulary(given.unembedding, rows, scales, ids, given.allowed, of_reference)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _over_vocabulary(
    size: int,
    with_entropy: bool,
    arithmetic: Arithmetic,
    unembedding: Any,
    hidden: Any,
    scales: Any,
    tokens: Any,
    allowed: Any,
    reference: Any,
) -> TokenNumbers:
    """The blocks of the vocabulary in turn, with the running maximum `peak` and sums relative to it."""

    def add(carry: Any, block: Any) -> tuple[Any, None]:
        peak, total, moment, gap, found = carry
        (rows, start, open_), ref_rows = block
        logits = scaled(arithmetic.product(hidden, rows), scales, open_)
        new = jnp.maximum(peak, jnp.max(logits, axis=1))
        shifted, shrink = logits - new[:, None], jnp.exp(peak - new)
        weights = jnp.exp(shifted)
        if with_entropy:  # sum of weights * (logit - peak), moved to the new peak
            moment = shrink * (moment + (peak - new) * total)
            moment += jnp.sum(weights * jnp.where(weights > 0, shifted, 0), axis=1)
        if reference is not None:  # sum of weights * (logit - log q)
            excess = logits - _log_reference(arithmetic, scales, reference, ref_rows, open_)
            gap = shrink * gap + jnp.sum(weights * jnp.where(weights > 0, excess, 0), axis=1)
        total = shrink * total + jnp.sum(weights, axis=1)
        local = tokens - start
        here = jnp.take_along_axis(logits, jnp.clip(local, 0, size - 1)[:, None], axis=1)[:, 0]
        found = jnp.where((local >= 0) & (local < size), here, found)
        return (new, total, moment, gap, found), None

    zeros = jnp.zeros(tokens.shape, hidden.dtype)
    lowest = jnp.full_like(zeros, jnp.finfo(hidden.dtype).min)  # finite: a block may allow nothing
    start = (lowest, zeros, zeros, zeros, jnp.full_like(zeros, -jnp.inf))
    blocks = _blocks(size, unembedding, allowed), _rows_of(size, reference)
    (peak, total, moment, gap, found), _ = lax.scan(add, start, blocks)
    log_total = jnp.log(total)
    entropy = log_total - moment / total if with_entropy else None
    kl = None if reference is None else gap / total - (peak + log_total)
    return TokenNumbers((found - peak) - log_total, peak + log_total, entropy, kl)


@partial(_over_vocabulary.defjvp, symbolic_zeros=True)
def _tangents(
    size: int, with_entropy: bool, arithmetic: Arithmetic, primals: Any, tangents: Any
) -> tuple[TokenNumbers, TokenNumbers]:
    """The blocks in turn, for the tangents.

    A block is recomputed when its part is transposed: on the way back each block gives its rows of the unembedding's gradient and
    adds to that of the hidden states.
    """
    unembedding, hidden, scales, tokens, allowed, reference = primals
    numbers = _over_vocabulary(size, with_entropy, arithmetic, *primals)
    d_unembedding, d_hidden, d_scales = tangents[:3]

    @partial(jax.checkpoint, prevent_cse=False)
    def tangent_of_block(block: Any, ref_rows: Any, d_rows: Any) -> TokenNumbers:
        rows, start, open_ = block
        products, d_products = arithmetic.product(hidden, rows), None
        if not is_zero(d_hidden):
            d_products = arithmetic.product(d_hidden, rows, rounded=True)
        if d_rows is not None:
            along = arithmetic.product(hidden, d_rows, rounded=True)
            d_products = along if d_products is None else d_products + along
        of_block = partial(scaled, open_=open_)
        logits, d_logits = jvp_of_moving(of_block, (products, scales), (d_products, d_scales))
        logs = logits - numbers.log_normalizer[:, None]
        log_reference = None
        if reference is not None:
            log_reference = _log_reference(arithmetic, scales, reference, ref_rows, open_)
        return slopes(logs, jnp.exp(logs), chosen(tokens, start, size), numbers, log_reference, d_logits)

    def add(carry: TokenNumbers, x: Any) -> tuple[TokenNumbers, None]:
        return jax.tree.map(jnp.add, carry, tangent_of_block(*x)), None

    d_blocks = None if is_zero(d_unembedding) else _blocks(size, d_unembedding, None)[0]
    blocks = _blocks(size, unembedding, allowed), _rows_of(size, reference), d_blocks
    d_numbers, _ = lax.scan(add, jax.tree.map(jnp.zeros_like, numbers), blocks)
    return numbers, d_numbers


def _rows_of(size: int, reference: Any) -> Any:
    return None if reference is None else _blocks(size, reference[0], None)[0]


def _log_reference(arithmetic: Arithmetic, scales: Any, reference: Any, rows: Any, open_: Any) -> jax.Array:
    """Log-probabilities of the reference in a block of its unembedding's rows."""
    _, hidden, log_normalizer = reference
    logits = scaled(arithmetic.product(hidden, rows), lax.stop_gradient(scales), open_)
    return logits - log_normalizer[:, None]


def _of_support(
    size: int | None, arithmetic: Arithmetic, given: Tokens, scales: Scales, support: jax.Array
) -> TokenNumbers:
    """Each place with its own rows of the unembedding, a block of places at a time."""
    vocabulary, (*batch, width) = len(given.unembedding), given.hidden.shape
    support = array_of(support, "support")
    _check_support(vocabulary, given, support)
    kept = (support >= 0) & (support < vocabulary) & given.real[..., None]
    support = jnp.where(kept, support, 0).astype(jnp.int32)
    kept = kept if given.allowed is None else kept & given.allowed[support]

    def of_place(shared: Any, place: Any) -> tuple[jax.Array, jax.Array]:
        (unembedding, scales), (hidden, token, ids, kept) = shared, place
        possible = kept | ~jnp.any(kept)  # where nothing is kept nothing is used
        logits = scaled(arithmetic.product(hidden, unembedding[ids]), scales, possible)
        distribution, here = Categorical(logits), kept & (ids == token)
        of_token = distribution.log_prob(jnp.argmax(jnp.where(jnp.any(here), here, possible)))
        entropy = jnp.where(jnp.any(kept), distribution.entropy(), jnp.nan)
        return jnp.where(jnp.any(here), of_token, -jnp.inf), entropy

    shape = (batch[0], math.prod(batch[1:])) if batch else (1, 1)  # the first axis is the one that may be sharded
    places = given.hidden, given.tokens, support, kept
    places = jax.tree.map(lambda x: x.reshape((*shape, *x.shape[len(batch) :])), places)
    numbers, _ = _BLOCK.get(jax.default_backend(), _BLOCK_ELSEWHERE)
    size = max(numbers // (support.shape[-1] * width), 1) if size is None else check.whole(block_size=size)
    log_probs, entropies = map_rows(of_place, (given.unembedding, scales), places, block_size=size)
    return TokenNumbers(log_probs, None, entropies)


def _blocks(size: int, unembedding: jax.Array, allowed: jax.Array | None) -> tuple[Any, Any, Any]:
    """Blocks of rows, where each starts, and which of its rows are open (`None`: all); the last one is filled up."""
    vocabulary, width = unembedding.shape
    starts = jnp.arange(0, vocabulary, size, dtype=jnp.int32)
    if missing := -vocabulary % size:
        unembedding = jnp.pad(unembedding, ((0, missing), (0, 0)))
        allowed = jnp.pad(jnp.ones(vocabulary, bool) if allowed is None else allowed, (0, missing))
    return unembedding.reshape(-1, size, width), starts, None if allowed is None else allowed.reshape(-1, size)


def _block_size(num_tokens: int, vocabulary: int, size: int | None) -> int:
    """The divisor of the vocabulary nearest to the default within a factor of two, or the default."""
    if size is not None:
        return min(check.whole(block_size=size), vocabulary)
    numbers, largest = _BLOCK.get(jax.default_backend(), _BLOCK_ELSEWHERE)
    target = max(min(numbers // max(num_tokens, 1), largest), _SMALLEST_BLOCK)
    if target >= vocabulary:
        return vocabulary
    divisors = [d for d in range(-(-target // 2), min(2 * target, vocabulary) + 1) if vocabulary % d == 0]
    return min(divisors, key=lambda d: max(d / target, target / d), default=target)


def _check_support(vocabulary: int, given: Tokens, support: jax.Array) -> None:
    kind(jnp.integer, support=support)
    shape = given.tokens.shape
    if support.shape[:-1] != shape or support.shape[-1:] in ((), (0,)):
        raise ValueError(
            f"support: expected shape {(*shape, 'K')}, that of the tokens and K ids, received {support.shape}."
        )
    check_range(vocabulary, jnp.where(support == -1, 0, support), given.real, "support")
