"""The tanh-Normal distribution of bounded continuous actions, and heads: from the outputs of a network to a distribution."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from logderiv._core import check
from logderiv._core.arrays import HALF_LOG_2PI, accumulator_dtype
from logderiv._core.pytrees import pytree
from logderiv.distributions.basic import Normal, normal_terms, sum_event

Bound = float | tuple[float, ...]
Head = Callable[[jax.Array], Any]  # from the outputs of a network to a distribution


@pytree(static=("low", "high"))
class TanhNormal:
    """y = m + h tanh u with u ~ Normal(μ, σ), diagonal, m and h the middle and half width of `[low, high]`.

        log p(y) = Σ_i [ log N(u_i; μ_i, σ_i) - log h_i - log (1 - z_i)(1 + z_i) ],   z = (y - m) / h,  u = artanh z

    **At the boundary.** A floating-point number near a bound stands for a wide range of `u`, and one on it for
    half a line. Draws beyond z = 1 - ε^(2/3) (2e-5 short of the bound in float32, 4e-11 in float64) are
    therefore put *on* the bound, and there `log_prob` is the log-probability of all of them,
    log Φ(-(u_max - μ) / σ), as for an action that is clipped. Density inside and the
    two point masses sum to one, so the score has mean zero however far the policy saturates, value and gradient are finite at
    the bounds, and a draw recomputed from its action alone has the same log-probability. Other libraries give NaN there, or
    clamp the action, whose score is biased. Outside the bounds the log-probability is `-inf`, with zero gradient.

    The last axis of `loc`, if it has one, is the event and is summed over. `sample` is reparameterized, as in `Normal`.

    Attributes:
        loc: Mean of `u`, shape `()` or `(..., D)`.
        scale: Standard deviation of `u`, positive, broadcast against `loc`.
        low: Lower bound, or one for each of the `D` coordinates; static.
        high: Upper bound, or one for each of the `D` coordinates; static.

    Raises:
        ValueError: Bounds that are not finite, or not in order.

    Example:
        >>> import jax.numpy as jnp
        >>> torque = TanhNormal(jnp.zeros(1), jnp.ones(1), low=-2.0, high=2.0)
        >>> [bool(jnp.isfinite(torque.log_prob(jnp.array([y])))) for y in (0.5, 2.0, 2.5)]
        [True, True, False]

    References:
        Haarnoja et al. (2018), arXiv:1812.05905, appendix C, eq. 26, for the density; Fujita & Maeda (2018),
        arXiv:1802.07564, for the point masses of an action held inside its bounds.
    """

    loc: jax.Array
    scale: jax.Array
    low: Bound = -1.0
    high: Bound = 1.0

    def __post_init__(self) -> None:
        check.between(-np.inf, np.inf, low=self.low, high=self.high)
        low, high = np.asarray(self.low, float), np.asarray(self.high, float)
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
            raise ValueError(f"TanhNormal: expected finite bounds low < high, received {self.low} and {self.high}.")
        for name, bound in (("low", low), ("high", high)):
            object.__setattr__(self, name, float(bound) if bound.ndim == 0 else tuple(bound.tolist()))

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log-density of an action, log-probability on a bound; the event axis summed.

        Args:
            action: Shape of `loc`, or broadcast against it; between the bounds.

        Returns:
            The broadcast shape without its last axis, if it has one; `-inf` outside the bounds.
        """
        dtype = jnp.result_type(self.loc, self.scale, action)
        action, loc, scale = jnp.broadcast_arrays(*(jnp.asarray(x, dtype) for x in (action, self.loc, self.scale)))
        low, high, middle, half, gap, last = self._bounds(action)
        z = (action - middle) / half
        inside = jnp.abs(z) <= 1 - gap / 2
        z_in = jnp.where(inside, z, 0)  # double where: no NaN on the way back
        terms = normal_terms(jnp.arctanh(z_in), loc, scale) - jnp.log(half) - jnp.log1p(-z_in) - jnp.log1p(z_in)
        tail = _log_ndtr((jnp.where(z > 0, loc, -loc) - last) / scale)
        outside = (action < low) | (action > high)
        return sum_event(jnp.where(outside, -jnp.inf, jnp.where(inside, terms, tail)))

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw the squashed `loc + scale * noise`, on a bound where it is as good as there.

        Args:
            key: One key. Consumed.

        Returns:
            Shape of `loc` and `scale`, broadcast.
        """
        return self._squash(Normal(self.loc, self.scale).sample(key))

    def mode(self) -> jax.Array:
        """The squashed mean, which is the median. The density itself may be highest at the bounds.

        Returns:
            Shape of `loc`.
        """
        return self._squash(self.loc)

    def entropy(self) -> jax.Array:
        """Differential entropy H(u) + E[log dy/du], the point masses left aside.

        There is no closed form. The expectation is a trapezoidal sum over 65 points of `u`, deterministic and
        differentiable: right to 1e-14 for scales up to 1, 1e-6 at 3 and 1e-3 at 6.

        Returns:
            In nats, shape of `loc` without its last axis, if it has one.
        """
        loc, scale = jnp.broadcast_arrays(self.loc, self.scale)
        half = self._bounds(loc)[3]
        nodes = np.linspace(-8.0, 8.0, 65)
        weights = np.exp(-0.5 * nodes**2) / np.exp(-0.5 * nodes**2).sum()

        def slope(node: jax.Array) -> jax.Array:
            u = loc + scale * node
            return 2 * (math.log(2.0) - u - jax.nn.softplus(-2 * u))  # log(1 - tanh(u)^2)

        slopes = jax.vmap(slope)(jnp.asarray(nodes, loc.dtype))
        expected = jnp.tensordot(jnp.asarray(weights, slopes.dtype), slopes, axes=1) + jnp.log(half)
        return Normal(loc, scale).entropy() + sum_event(expected)

    def _squash(self, u: jax.Array) -> jax.Array:
        low, high, middle, half, _, last = self._bounds(u)
        return jnp.where(u > last, high, jnp.where(u < -last, low, middle + half * jnp.tanh(u)))

    def _bounds(self, like: jax.Array) -> tuple[jax.Array, ...]:
        """`low, high, middle, half`, the gap in `z` that belongs to a bound, and the `u` where it begins."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        middle, half = (low + high) / 2, (high - low) / 2
        resolution = float(jnp.finfo(like.dtype).eps) * np.maximum(np.abs(low), np.abs(high)) / half
        gap = np.minimum(resolution ** (2 / 3), 0.5)
        last = 0.5 * np.log((2 - gap) / gap)
        found = (low, high, middle, half, gap, last)
        return tuple(jnp.broadcast_to(jnp.asarray(x, like.dtype), like.shape) for x in found)


def normal_head(outputs: jax.Array) -> Normal:
    """A diagonal Normal from `2 D` outputs: means, then log standard deviations.

    Args:
        outputs: Shape `(..., 2 D)`.

    Returns:
        A `Normal` of `D` coordinates.
    """
    loc, log_scale = jnp.split(outputs, 2, axis=-1)
    return Normal(loc, jnp.exp(log_scale))


@pytree(static=("low", "high"))
class TanhNormalHead:
    """A `TanhNormal` between bounds from `2 D` outputs: means before the squashing, then log standard deviations.

    Attributes:
        low: Lower bound, or a tuple of `D`.
        high: Upper bound, or a tuple of `D`.
    """

    low: Bound = -1.0
    high: Bound = 1.0

    def __post_init__(self) -> None:
        TanhNormal(0.0, 1.0, self.low, self.high)  # pyright: ignore[reportArgumentType]  # which checks them

    def __call__(self, outputs: jax.Array) -> TanhNormal:
        """The distribution."""
        normal = normal_head(outputs)
        return TanhNormal(normal.loc, normal.scale, self.low, self.high)


tanh_normal_head = TanhNormalHead()


@jax.custom_jvp
def _log_ndtr(x: jax.Array) -> jax.Array:
    return log_ndtr(x.astype(accumulator_dtype(x.dtype))).astype(x.dtype)


@_log_ndtr.defjvp
def _log_ndtr_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The inverse Mills ratio; far out, where the logarithms cancel, by its asymptotic series (26.2.12 of Abramowitz & Stegun)."""
    (x,), (dx,) = primals, tangents
    value = _log_ndtr(x)
    far = x < (-50 if jnp.finfo(x.dtype).bits == 64 else -10)
    a = 1 / jnp.square(jnp.where(far, x, 1))
    series = -x * (1 + a - 2 * a**2 + 10 * a**3)
    near = jnp.exp(jnp.where(far, 0, -0.5 * jnp.square(x) - value - HALF_LOG_2PI))
    return value, jnp.where(far, series, near) * dx
