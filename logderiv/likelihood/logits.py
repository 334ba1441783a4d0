"""Logits of tokens, and what is known of the softmax over them: what `token_log_probs` and `token_sum` share.

Notation: `V` tokens in the vocabulary, `D` features, hidden state h, unembedding W, shape `(V, D)`. With a soft-cap c and a temperature τ
the logits are ℓ_v = c tanh(w_v · h / c) / τ, without a soft-cap w_v · h / τ.

With p_v the probabilities, a the token, Z the normalizer, H the entropy and K the Kullback-Leibler divergence from reference probabilities q_v that
stand still, the derivatives are linear in those of the logits:

    d log p_a = Σ_v (1[v = a] - p_v) dℓ_v,              d log Z = Σ_v p_v dℓ_v,
    dH = -Σ_v p_v (log p_v + H) dℓ_v,                   dK = Σ_v p_v (log p_v - log q_v - K) dℓ_v
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from logderiv._core import check
from logderiv._core.arrays import accumulator_dtype, array_of, expand, summable, widen, widest
from logderiv._core.products import precision_of
from logderiv.distributions.interop import check_range


class TokenNumbers(NamedTuple):
    """What is known of each token's distribution, float32 at least; all of one shape.

    Attributes:
        log_prob: Log-probability of the token, log p_a.
        log_normalizer: log Z, the logarithm of the sum of the exponentials of the logits.
        entropy: H, in nats; `None` unless asked for.
        kl: K, the divergence from the reference, in nats; `None` without one.
    """

    log_prob: Any
    log_normalizer: Any
    entropy: Any = None
    kl: Any = None


class Tokens(NamedTuple):
    """Arrays that may be trusted: an impossible token is -1, and padding is token 0 at a hidden state of zeros."""

    unembedding: jax.Array
    hidden: jax.Array
    tokens: jax.Array
    allowed: jax.Array | None
    valid: jax.Array | None

    @classmethod
    def of(cls, unembedding: Any, hidden: Any, tokens: Any, allowed: Any, valid: Any) -> "Tokens":
        """As they are given, checked to be inside of the vocabulary wherever they have values.

        Raises:
            ValueError: Shapes disagree; nothing is allowed; a valid token is outside the vocabulary.
            TypeError: A dtype is of the wrong kind.
        """
        given = {"unembedding": unembedding, "hidden": hidden, "tokens": tokens, "allowed": allowed, "valid": valid}
        given = cls(*(None if x is None else array_of(x, name) for name, x in given.items()))  # pyright: ignore[reportArgumentType]
        _check(*given)
        vocabulary, tokens, valid = len(given.unembedding), given.tokens, given.valid
        check_range(vocabulary, tokens, given.real, "tokens")
        tokens = widen(tokens)
        inside = (tokens >= 0) & (tokens < vocabulary)
        tokens = jnp.where(inside, tokens.astype(jnp.int32), -1)
        hidden = given.hidden
        if valid is not None:
            tokens = jnp.where(valid, tokens, 0)
            hidden = jnp.where(expand(valid, hidden), hidden, jnp.zeros_like(hidden))
        return given._replace(hidden=hidden, tokens=tokens)

    @property
    def real(self) -> Any:
        """Which tokens are valid."""
        return np.ones(self.tokens.shape, bool) if self.valid is None else self.valid


class Scales(NamedTuple):
    """What a product of hidden state and unembedding goes through to become a logit."""

    temperature: jax.Array
    soft_cap: jax.Array | None

    @classmethod
    def of(cls, temperature: Any, soft_cap: Any, dtype: Any) -> "Scales":
        """Positive scalars of this dtype.

        Raises:
            ValueError: One is not positive, or no scalar.
        """
        numbers = {"temperature": temperature} | ({} if soft_cap is None else {"soft_cap": soft_cap})
        check.positive(**numbers)
        found: dict[str, Any] = {name: summable(x, name).astype(dtype) for name, x in numbers.items()}
        check.shape((), **found)
        return cls(found["temperature"], found.get("soft_cap"))


class Arithmetic(NamedTuple):
    """How hidden states and unembedding are multiplied.

    Attributes:
        operands: The dtype of both sides of a product: bfloat16 where both are, else that of the sums, on a CPU always.
        sums: The dtype in which products are summed and everything else is computed, float32 at least.
        precision: Of the products.

    The product of two numbers in bfloat16 is exact in float32, and a device that multiplies bfloat16 takes it at its full rate; a CPU takes float32
    faster. Those of float16 are exact in TF32, whose range is that of float32, so that no derivative is too small for it.
    """

    operands: Any
    sums: Any
    precision: Any

    @classmethod
    def of(cls, precision: Any, *operands: Any) -> "Arithmetic":
        """That of products of arrays of these dtypes."""
        operands = tuple(map(jnp.dtype, operands))
        sums = accumulator_dtype(widest(*operands))
        if set(operands) == {jnp.dtype(jnp.bfloat16)} and jax.default_backend() != "cpu":
            return cls(operands[0], sums, None if precision is None else precision_of(precision))
        if precision is None and set(operands) == {jnp.dtype(jnp.float16)}:
            return cls(sums, sums, lax.Precision.DEFAULT)
        if precision is None and sums == jnp.float32 and not jax.default_matmul_precision.value and _splits_float32():
            return cls(sums, sums, lax.DotAlgorithmPreset.BF16_BF16_F32_X6)
        return cls(sums, sums, precision_of(precision))

    def product(
        self, x: jax.Array, y: jax.Array, axes: tuple[int, int] = (-1, -1), *, rounded: bool = False
    ) -> jax.Array:
        """One axis of each contracted, the last unless it is said otherwise; operands are rounded to their dtype.

        With `rounded` the result is rounded to that dtype too. What is differentiated backwards needs it: JAX then multiplies in that dtype on the way back.
        """
        dimensions = ((axes[0] % x.ndim,), (axes[1] % y.ndim,)), ((), ())
        out = self.operands if rounded else self.sums
        x, y = x.astype(self.operands), y.astype(self.operands)
        found = lax.dot_general(x, y, dimensions, precision=self.precision, preferred_element_type=out)
        return found.astype(self.sums)


def _splits_float32() -> bool:
    """Whether this is a GPU on which six products in bfloat16 are as exact as one in float32 and take half the time: an H100 does, from Ampere on."""
    return jax.default_backend() == "gpu" and all(float(x.compute_capability) >= 8 for x in jax.local_devices())


def scaled(products: jax.Array, scales: Scales, open_: Any) -> jax.Array:
    """Logits from the products of hidden states and rows of the unembedding; `-inf` where a row, on the last axis, is not open."""
    logits = products
    if scales.soft_cap is not None:
        logits = scales.soft_cap * jnp.tanh(logits / scales.soft_cap)
    logits = logits / scales.temperature
    return logits if open_ is None else jnp.where(jnp.broadcast_to(open_, logits.shape), logits, -jnp.inf)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def numbers_of(with_entropy: bool, logits: jax.Array, tokens: jax.Array, log_reference: Any) -> TokenNumbers:
    """What is known of tokens by all of their logits, shapes `(*tokens, V)`; of the reference nothing moves."""
    return _numbers(with_entropy, logits, tokens, log_reference)[0]


@numbers_of.defjvp
def _tangents(with_entropy: bool, primals: Any, tangents: Any) -> tuple[TokenNumbers, TokenNumbers]:
    logits, tokens, log_reference = primals
    numbers, logs, probs = _numbers(with_entropy, *primals)
    return numbers, slopes(logs, probs, chosen(tokens, 0, logits.shape[-1]), numbers, log_reference, tangents[0])


def _numbers(with_entropy: bool, logits: Any, tokens: Any, log_reference: Any) -> tuple[TokenNumbers, Any, Any]:
    """The numbers, all log-probabilities and all probabilities: one exponential for each logit."""
    peak = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - peak)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    log_normalizer, probs = peak + jnp.log(total), weights / total
    logs = logits - log_normalizer
    here = jnp.take_along_axis(logs, jnp.maximum(tokens, 0)[..., None], axis=-1)[..., 0]
    entropy = -jnp.sum(probs * jnp.where(probs > 0, logs, 0), axis=-1) if with_entropy else None
    kl = None
    if log_reference is not None:
        kl = jnp.sum(probs * jnp.where(probs > 0, logs - log_reference, 0), axis=-1)
    log_prob = jnp.where(tokens >= 0, here, -jnp.inf)
    return TokenNumbers(log_prob, log_normalizer[..., 0], entropy, kl), logs, probs


def slopes(
    logs: Any, probs: Any, here: jax.Array, of_token: TokenNumbers, log_reference: Any, d_logits: jax.Array
) -> TokenNumbers:
    """Derivatives of a token's numbers along those of its logits, the last axis; each is one product and one sum, 0 of an impossible token.

    Args:
        logs: Log-probabilities of the vocabulary, or of a part of it.
        probs: Their exponentials.
        here: Which of them is the token.
        of_token: The numbers of the whole vocabulary, whose last axis is left out.
        log_reference: log q_v, or `None`.
        d_logits: The direction.
    """

    def along(factor: jax.Array) -> jax.Array:
        return jnp.sum(factor * d_logits, axis=-1)

    d_entropy, d_kl = None, None
    if of_token.entropy is not None:
        d_entropy = along(-probs * (jnp.where(probs > 0, logs, 0) + of_token.entropy[..., None]))
    if of_token.kl is not None:
        d_kl = along(probs * (jnp.where(probs > 0, logs - log_reference, 0) - of_token.kl[..., None]))
    d_log_prob = jnp.where(of_token.log_prob == -jnp.inf, 0, along(here.astype(probs.dtype) - probs))
    return TokenNumbers(d_log_prob, along(probs), d_entropy, d_kl)


def chosen(tokens: jax.Array, start: Any, size: int) -> jax.Array:
    """Which of `size` rows, beginning with that of token `start`, is the token's; shape `(*tokens, size)`."""
    return (tokens - start)[..., None] == lax.broadcasted_iota(jnp.int32, (*tokens.shape, size), tokens.ndim)


def _check(unembedding: jax.Array, hidden: jax.Array, tokens: jax.Array, allowed: Any, valid: Any) -> None:
    kind(jnp.floating, unembedding=unembedding, hidden=hidden)
    kind(jnp.integer, tokens=tokens)
    kind(jnp.bool_, allowed=allowed, valid=valid)
    if unembedding.ndim != 2 or not unembedding.shape[0]:
        raise ValueError(f"unembedding: expected shape (V, D), received {unembedding.shape}.")
    vocabulary, width = unembedding.shape
    turned = "; is the unembedding (D, V)? Then use unembedding.T" if hidden.shape[-1:] == (vocabulary,) else ""
    check.shape((*tokens.shape, width), hint=f"that is (*tokens.shape, D){turned}", hidden=hidden)
    check.shape((vocabulary,), allowed=unembedding[:, 0] if allowed is None else allowed)
    check.shape(tokens.shape, valid=tokens if valid is None else valid)
    if allowed is not None and not check.is_traced(allowed) and not np.asarray(allowed).any():
        raise ValueError("allowed: expected at least one token that may be drawn, received none.")


def kind(expected: Any, **arrays: Any) -> None:
    """Raise `TypeError`, naming the array, if one that is there is not of this kind."""
    for name, array in arrays.items():
        if array is not None and not jnp.issubdtype(jnp.result_type(array), expected):
            raise TypeError(f"{name}: expected dtype {expected.__name__}, received {jnp.result_type(array)}.")


def detached_reference(reference: Any, unembedding: jax.Array, tokens: jax.Array) -> tuple[Any, Any]:
    """The unembedding and the hidden states of a reference, of which nothing moves; `None` twice without one.

    Raises:
        TypeError: Not a pair, or not of floating point.
        ValueError: It has another vocabulary, or other places.
    """
    if reference is None:
        return None, None
    if not isinstance(reference, tuple | list) or len(reference) != 2:
        raise TypeError(f"reference: expected a pair (unembedding, hidden), received {type(reference).__name__}.")
    rows, hidden = (array_of(x, f"reference[{i}]") for i, x in enumerate(reference))
    kind(jnp.floating, **{"reference[0]": rows, "reference[1]": hidden})
    if rows.ndim != 2 or rows.shape[0] != unembedding.shape[0]:
        expected = f"expected shape ({unembedding.shape[0]}, D), as many tokens as the unembedding has"
        raise ValueError(f"reference[0]: {expected}, received {rows.shape}.")
    check.shape((*tokens.shape, rows.shape[1]), hint="", **{"reference[1]": hidden})
    return lax.stop_gradient((rows, hidden))
