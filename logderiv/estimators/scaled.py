"""Numbers beyond the range of floating point, m eˡ: products of many ratios, and what they multiply.

A ratio of e¹⁰⁰ has no float32, and neither have most products of a thousand ratios; yet multiplied by a reward of 0, or by a ratio of
e⁻⁹⁰ that comes later, what is wanted is an ordinary number. So logarithms are added, and nothing is exponentiated before it has
met everything that it is multiplied by. A mantissa of exactly 0 is 0 whatever its logarithm; a NaN stays NaN.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_NOTHING = -1e30  # the logarithm of 0: lower than any other, and finite, so that differences are no NaN


class Scaled(NamedTuple):
    """m eˡ, elementwise.

    Attributes:
        mantissa: m.
        log: l, of the same shape.
    """

    mantissa: jax.Array
    log: jax.Array

    @property
    def value(self) -> jax.Array:
        """As a floating-point number; infinite only where it has none."""
        return times_exp(self.mantissa, self.log)

    def plus(self, mantissa: jax.Array, log: jax.Array) -> "Scaled":
        """The sum of two.

        Args:
            mantissa: Of the other one.
            log: Of the other one; broadcasts against its mantissa.

        Returns:
            Their sum, exactly 0 where equal mantissas of equal logarithms cancel.
        """
        first, second = _bounded(*self), _bounded(mantissa, log)
        peak = jnp.maximum(first.log, second.log)
        parts = [x.mantissa * jnp.exp(x.log - peak) for x in (first, second)]
        return Scaled(parts[0] + parts[1], peak)


def times_exp(x: jax.Array, log: jax.Array) -> jax.Array:
    """The product x eˡ, which is infinite or 0 only where the product is; x itself, bit for bit, where l = 0.

    Args:
        x: Any shape.
        log: l, same shape, in the same dtype; ±inf is allowed.

    Returns:
        Same shape.

    Gradients: not to be differentiated in `log`, whose parts overflow before the whole does; `logderiv.estimators.box` does that.
    """
    # In three parts, each of which can be represented: every product lies between x and the result.
    most = 0.99 * math.log(float(jnp.finfo(x.dtype).max))
    part = jnp.exp(jnp.clip(log / 3, -most, most))
    return x * part * part * part


def scaled_sums(
    terms: jax.Array, factors: jax.Array, log_terms: jax.Array, log_factors: jax.Array | None = None
) -> Scaled:
    """Sums from the end, as `logderiv.estimators.returns.backward_sums`, of terms and factors beyond the range of floating point.

        y_t = x_t exp(p_t) + c_t exp(q_t) y_{t+1},  y_T = 0

    Args:
        terms: x, shape `(N, T)`.
        factors: c in [0, 1], same shape.
        log_terms: p, same shape.
        log_factors: q, same shape; `None` for 0.

    Returns:
        y, same shape.
    """

    def combine(later: Any, earlier: Any) -> tuple[Scaled, jax.Array, jax.Array]:
        (y, c_later, q_later), (x, c, q) = later, earlier
        return x.plus(c * y.mantissa, q + y.log), c * c_later, q + q_later

    logs = jnp.zeros_like(terms) if log_factors is None else jnp.maximum(log_factors, _NOTHING)
    parts = _bounded(terms, log_terms), jnp.broadcast_to(factors, terms.shape).astype(terms.dtype), logs
    return lax.associative_scan(combine, parts, reverse=True, axis=terms.ndim - 1)[0]


def _bounded(mantissa: jax.Array, log: jax.Array) -> Scaled:
    """With a finite logarithm, the lowest one where the mantissa is 0."""
    log = jnp.clip(log, _NOTHING, -_NOTHING)
    nothing = (mantissa == 0) & ~jnp.isnan(log)
    return Scaled(mantissa, jnp.where(nothing, jnp.full_like(log, _NOTHING), log))
