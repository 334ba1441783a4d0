"""Counts: the Poisson distribution."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from logderiv._core.arrays import HALF_LOG_2PI, summable
from logderiv._core.noise import uniform
from logderiv._core.pytrees import jit, pytree
from logderiv.distributions.basic import fit, in_range

_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188)
_SMALL = 16  # from here on five terms of the series are enough for float64
_REMAINDERS = tuple(
    math.lgamma(a + 1) - a * math.log(a) + a - 0.5 * math.log(2 * math.pi * a) for a in range(1, _SMALL)
)
# Below this rate JAX's own test of a draw, which subtracts k log λ, λ and log k!, has its digits in float32.
_LARGE = 1000.0


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
        """Draw each count: by `jax.random.poisson` up to a rate of 1000, above it by the same method with a test that keeps its digits.

        In float32 the counts of `jax.random.poisson` have 1.05 times the variance of the law at a rate of 1e7, and 1.5 times at 1e9.

        Args:
            key: One key, of JAX's default kind (threefry2x32). Consumed.

        Returns:
            int32, shape of `log_rate`.

        References:
            Hörmann (1993), The Transformed Rejection Method for Generating Poisson Random Variables, algorithm PTRS; from memory.
        """
        rate = jnp.exp(lax.stop_gradient(self.log_rate))
        large = (rate >= _LARGE) & (rate < 2.0**31)
        many = _draw_of_large(jax.random.fold_in(key, 1), jnp.where(large, rate, _LARGE), large)
        few = jax.random.poisson(key, jnp.where(large, 0, rate), rate.shape, dtype=jnp.int32)
        return jnp.where(large, many, few)

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


@jit
def _draw_of_large(key: jax.Array, rate: jax.Array, wanted: jax.Array) -> jax.Array:
    """Counts of large rates where they are wanted, by rejection."""

    def propose(state: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        key, found, open_ = state
        key, of_place, of_test = jax.random.split(key, 3)
        offset, log_accepted = _proposal(rate, *uniform(of_place, rate.shape, rate.dtype))
        x, upper = uniform(of_test, rate.shape, rate.dtype)
        accepted = open_ & (jnp.where(upper, jnp.log1p(-x), jnp.log(x)) <= log_accepted)
        return key, jnp.where(accepted, offset, found), open_ & ~accepted

    start = key, jnp.zeros_like(rate), wanted
    _, offset, _ = lax.while_loop(lambda state: jnp.any(state[2]), propose, start)
    return jnp.floor(rate).astype(jnp.int32) + offset.astype(jnp.int32)


def _proposal(rate: jax.Array, x: jax.Array, upper: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A count of a uniform number, less ⌊λ⌋, and the logarithm of the probability with which it is accepted.

    With U in (-1/2, 1/2), whose distance to the nearer end is x, the count is k = ⌊G(U)⌋,

        G(U) = (2a / x + b) U + λ + 0.43,   G'(U) = a / x² + b,

    and accepted with probability p(k) G'(U) / c, which leaves p(k): c is a bound of p(k) G'(U), and 1/c of the proposals, 0.88, are
    accepted. (With the paper's 1.1239 for 1.126 the bound is exceeded by 1e-4 at a rate of 1000.)
    In p(k) = exp(-λ h(t) - δ(k)) / √(2π k), with k = λ (1 + t) and h(t) = (1 + t) log(1 + t) - t, nothing is subtracted:
    with v = t / (2 + t), h(t) = 2 (v² + (1 + v) (v³/3 + v⁵/5 + ...)) / (1 - v) (Loader). Nothing is drawn below λ/2 and above 2 λ, which
    together have less than exp(-150).
    """
    b = 0.931 + 2.53 * jnp.sqrt(rate)
    a = -0.059 + 0.02483 * b
    log_bound = jnp.log(1.126 + 1.1328 / (b - 3.4))
    rest = rate - jnp.floor(rate)
    offset = jnp.floor((2 * a / x + b) * jnp.where(upper, 0.5 - x, x - 0.5) + (rest + 0.43))
    t = (offset - rest) / rate
    inside = (t > -0.5) & (t < 1)
    t = jnp.where(inside, t, 0)
    v, count = t / (2 + t), rate * (1 + t)
    square, series = v * v, jnp.zeros_like(v)
    for j in range(16, 0, -1):
        series = square * (series + 1 / (2 * j + 1))
    deviance = 2 * (square + (1 + v) * v * series) / (1 - v)
    log_prob = -rate * deviance - _log_root(count) - _stirling_remainder(count)
    return offset, jnp.where(inside, log_prob + jnp.log(a / (x * x) + b) - log_bound, -jnp.inf)
