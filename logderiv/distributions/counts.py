"""Counts: the Poisson distribution."""

import math

import jax
import jax.numpy as jnp

from logderiv._core.arrays import HALF_LOG_2PI, summable
from logderiv._core.pytrees import pytree
from logderiv.distributions.basic import fit, in_range

_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188)
_SMALL = 16  # from here on five terms of the series are enough for float64
_REMAINDERS = tuple(
    math.lgamma(a + 1) - a * math.log(a) + a - 0.5 * math.log(2 * math.pi * a) for a in range(1, _SMALL)
)


@pytree
class Poisson:
    """p(a) = λᵃ exp(-λ) / a! for a = 0, 1, 2, ..., by the logarithm of the rate, ℓ = log λ.

    With u = ℓ - log a and the remainder δ(a) of Stirling's formula, for a > 0

        log p(a) = -a (exp(u) - 1 - u) - log(2π a) / 2 - δ(a),

    where no large numbers are subtracted: what is lost at a large rate is what ℓ cannot hold. A negative count has
    log-probability `-inf` and zero gradient. A rate of 0, `log_rate` of `-inf`, gives 0 for certain.
    Draws are int32: rates stay below 2³¹.

    Attributes:
        log_rate: log λ, any shape; one value per count, the log-probability of each is returned. float32 at least.

    Raises:
        TypeError: `log_rate` is no real number.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(Poisson(jnp.log(3.0)).prob(jnp.array(2))), 4)
        0.224

    References:
        Loader (2000), Fast and Accurate Computation of Binomial Probabilities, for the form of the formula; from memory.
    """

    log_rate: jax.Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "log_rate", summable(self.log_rate, "log_rate"))

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log-probability of each count.

        Args:
            action: Integers, broadcast against `log_rate`.

        Returns:
            log p(action), `-inf` for negative integers. The broadcast shape.

        Raises:
            TypeError: `action` is not an integer.
            ValueError: `action` has a shape that does not fit.
        """
        return in_range(self._log_prob, action, math.inf, -jnp.inf)

    def prob(self, action: jax.Array) -> jax.Array:
        """Probability of each count.

        Args:
            action: Integers, broadcast against `log_rate`.

        Returns:
            p(action), 0 for negative integers. The broadcast shape.

        Raises:
            TypeError: `action` is not an integer.
            ValueError: `action` has a shape that does not fit.
        """
        return in_range(lambda a: jnp.exp(self._log_prob(a)), action, math.inf, 0.0)

    def _log_prob(self, action: jax.Array) -> jax.Array:
        shape = fit(self.log_rate.shape, action=action)
        log_rate = jnp.broadcast_to(self.log_rate, shape)
        none = jnp.broadcast_to(action == 0, shape)
        count = jnp.where(none, 1, jnp.broadcast_to(action, shape)).astype(log_rate.dtype)
        above = log_rate - jnp.log(count)
        some = -count * (jnp.expm1(above) - above) - _log_root(count) - _stirling_remainder(count)
        return jnp.where(none, -jnp.exp(log_rate), some)

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw each count, by `jax.random.poisson`.

        Args:
            key: One key, of JAX's default kind (threefry2x32). Consumed.

        Returns:
            int32, shape of `log_rate`.
        """
        return jax.random.poisson(key, jnp.exp(self.log_rate), self.log_rate.shape, dtype=jnp.int32)

    def mode(self) -> jax.Array:
        """The likeliest count, the largest that is not above the rate.

        Returns:
            int32, shape of `log_rate`.
        """
        return jnp.floor(jnp.exp(self.log_rate)).astype(jnp.int32)


def _log_root(count: jax.Array) -> jax.Array:
    """log(2π a) / 2."""
    return 0.5 * jnp.log(count) + jnp.asarray(HALF_LOG_2PI, count.dtype)


def _stirling_remainder(count: jax.Array) -> jax.Array:
    """δ(a) = log a! - a log a + a - log(2π a) / 2."""
    small = count < _SMALL
    few, many = jnp.where(small, count, 1), jnp.where(small, _SMALL, count)
    exact = jnp.array(_REMAINDERS, count.dtype)[few.astype(jnp.int32) - 1]
    square, series = 1 / (many * many), jnp.zeros_like(many)
    for term in reversed(_STIRLING):
        series = series * square + term
    return jnp.where(small, exact, series / many)
