"""The tanh-Normal distribution of bounded continuous actions, and heads: from the outputs of a network to a distribution."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core import check
from logderiv._core.arrays import HALF_LOG_2PI, alike, own_dtype, summable
from logderiv._core.products import precision_of
from logderiv._core.pytrees import pytree
from logderiv.distributions.basic import log_sigmoid
from logderiv.distributions.normal import Normal, event_shape, loc_and_scale, normal_terms, sum_event, with_event

Bound = float | tuple[float, ...]
Head = Callable[[jax.Array], Any]  # from the outputs of a network to a distribution
# log Φ(x) = -x²/2 - log(3.5 - x) + Σ_k c_k uᵏ with u = 6.5 / (3.5 - x) - 1, for x <= 0: the Chebyshev expansion in u, of which
# four derivatives are right to 1e-12, in powers of u. `tests/test_distributions_derivatives.py` computes it anew.
_LOG_NDTR = """
    -0.23592404460875812 0.84014125704783729 0.15042156379095163 -0.033878796934720926 -0.031760818599775812
    0.0014233144438103886 0.0080003788298184872 0.00039562077244592803 -0.0022732550811650028 -0.00019598155222521375
    0.00069208145062428877 5.0950529868197497e-5 -0.0002155812372434717 -5.0996128556176549e-6 6.5753963396305605e-5
    -3.2132913289992287e-6 -1.8859373261923799e-5 2.4263774111345226e-6 4.9243412891510922e-6 -9.6336805181864318e-7
    -1.1605821224741737e-6 2.4237506705814879e-7 2.6113345095334809e-7 -2.459170084278424e-8 -6.3612822919058349e-8
    -9.1664687205373222e-9 1.6499382405304137e-8 5.0420310956316267e-9 -3.4101087173248557e-9 -1.1050610265770527e-9
    3.6011668755551304e-10 1.0238628077766378e-10
"""


@pytree(static=("low", "high"))
class TanhNormal:
    """y = m + h tanh u with u ~ Normal(μ, σ), diagonal, m and h the middle and half width of `[low, high]`.

        log p(y) = Σ_i [ log N(u_i; μ_i, σ_i) - log h_i - log (1 - z_i)(1 + z_i) ],   z = (y - m) / h,  u = artanh z

    **At the boundary.** A floating-point number near a bound stands for a wide range of `u`, and one on it for
    half a line. Draws beyond z = 1 - ε^(2/3) (2e-5 short of the bound in float32, 4e-11 in float64) are
    therefore put *on* the bound, and there `log_prob` is the log-probability of all of them,
    log Φ(-(u_max - μ) / σ), as for an action that is clipped. ε is that of the action's dtype, whatever those of the parameters:
    a draw in float32 may be scored in float64, and one that was stored in bfloat16 is still on the bound. Density inside and the
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
        ValueError: Bounds that are not finite, or not in order; `scale` is not positive; a shape does not fit.
        TypeError: `loc` or `scale` is no real number.

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
        loc_and_scale(self)
        low, high = np.asarray(self.low, float), np.asarray(self.high, float)
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
            raise ValueError(f"TanhNormal: expected finite bounds low < high, received {self.low} and {self.high}.")
        for name, bound in (("low", low), ("high", high)):
            object.__setattr__(self, name, float(bound) if bound.ndim == 0 else tuple(bound.tolist()))
            if bound.ndim:
                check.shape(event_shape(self)[-1:], hint="one bound for each coordinate of loc", **{name: bound})

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log-density of an action, log-probability on a bound; the event axis summed.

        Args:
            action: `D` numbers between the bounds, or one where `loc` and `scale` are scalars; leading axes broadcast against
                those of `loc`. Its own dtype says what is as good as on a bound.

        Returns:
            The broadcast shape without the event axis; `-inf` outside the bounds.

        Raises:
            ValueError: `action` has a shape that does not fit, or a dtype in which the bounds are one number.
            TypeError: `action` is no real number.
        """
        arrays = alike(action=action, loc=self.loc, scale=self.scale)
        held_in = own_dtype(action) or self.loc.dtype
        action, loc, scale = with_event(self, arrays)
        low, high, middle, half, gap, last, rounding = self._bounds(action, held_in)
        z = (action - middle) / half
        on_bound = jnp.abs(z) > 1 - gap + rounding  # draws end at 1 - gap; false of NaN, which stays one
        z_in = jnp.where(on_bound, 0, z)  # a number that is not used: at z = 1 the derivative would be NaN
        terms = normal_terms(jnp.arctanh(z_in), loc, scale) - jnp.log(half) - jnp.log1p(-z_in) - jnp.log1p(z_in)
        tail = log_ndtr((jnp.where(z > 0, loc, -loc) - last) / jnp.where(scale > 0, scale, jnp.nan))
        outside = (action < low) | (action > high)
        return sum_event(self, jnp.where(outside, -jnp.inf, jnp.where(on_bound, tail, terms)))

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw the squashed `loc + scale * noise`, on a bound where it is as good as there.

        Args:
            key: One key. Consumed.

        Returns:
            Shape of `loc` and `scale`, broadcast.
        """
        return self._squash(Normal(self.loc, self.scale).sample(key))

    def quantile(self, probability: jax.Array, *, upper: Any = False) -> jax.Array:
        """The squashed `loc + scale Φ⁻¹(u)` in each coordinate: of uniform u a draw.

        Args:
            probability: u, or 1 - u where `upper`; between 0 and 1, broadcast against `loc`.
            upper: Whether `probability` counts from the top; broadcast against it.

        Returns:
            The broadcast shape.

        Gradients: flow through `loc`, `scale` and `probability`, but for what is put on a bound.
        """
        return self._squash(Normal(self.loc, self.scale).quantile(probability, upper=upper))

    def mode(self) -> jax.Array:
        """The squashed mean, which is the median. The density itself may be highest at the bounds.

        Returns:
            Shape of `loc` and `scale`, broadcast.
        """
        return self._squash(jnp.broadcast_to(self.loc, event_shape(self)))

    def entropy(self) -> jax.Array:
        """Differential entropy H(u) + E[log dy/du], the point masses left aside.

        There is no closed form. The expectation is a sum over fixed points, deterministic and differentiable, right to 1e-12 at any
        scale: for scales up to 1 a trapezoidal sum, beyond it E[-2 |u|] in closed form and the rest by a Gauss-Legendre rule.

        Returns:
            In nats, shape of `loc` and `scale`, broadcast, without the last axis, if there is one.
        """
        loc, scale = (jnp.broadcast_to(x, event_shape(self)) for x in (self.loc, self.scale))
        half = self._bounds(loc, loc.dtype)[3]
        narrow = scale < 1
        below, above = jnp.where(narrow, scale, 1), jnp.where(narrow, 1, scale)
        slopes = jnp.where(narrow, _log_slope_of_narrow(loc, below), _log_slope_of_wide(loc, above))
        return Normal(loc, scale).entropy() + sum_event(self, slopes + jnp.log(half))

    def _squash(self, u: jax.Array) -> jax.Array:
        low, high, middle, half, _, last, _ = self._bounds(u, u.dtype)
        return jnp.where(u > last, high, jnp.where(u < -last, low, middle + half * jnp.tanh(u)))

    def _bounds(self, like: jax.Array, held_in: Any) -> tuple[jax.Array, ...]:
        """`low, high, middle, half`, the gap in `z` that belongs to a bound, the `u` where it begins, and the rounding of `z`.

        All for actions that are held in this dtype.
        """
        low, high = (np.asarray(x).astype(held_in).astype(float) for x in (self.low, self.high))
        if not (low < high).all():
            raise ValueError(
                f"TanhNormal: expected bounds that differ in the dtype of the action, received {self.low} and {self.high}, which are "
                f"one number in {jnp.dtype(held_in)}; keep actions in float32, or take bounds around 0."
            )
        middle, half = (low + high) / 2, (high - low) / 2
        rounding = float(jnp.finfo(held_in).eps) * np.maximum(np.abs(low), np.abs(high)) / half
        gap = np.minimum(rounding ** (2 / 3), 0.5)
        last = 0.5 * np.log((2 - gap) / gap)
        found = (low, high, middle, half, gap, last, np.minimum(rounding, gap / 2))
        return tuple(jnp.broadcast_to(jnp.asarray(x, like.dtype), like.shape) for x in found)


def _log_slope_of_narrow(loc: jax.Array, scale: jax.Array) -> jax.Array:
    """E[log(1 - tanh² u)], u = loc + scale x, by a trapezoidal sum over x."""
    nodes = np.linspace(-9.0, 9.0, 73)
    weights = np.exp(-0.5 * nodes**2) / np.exp(-0.5 * nodes**2).sum()

    def log_slope(node: jax.Array) -> jax.Array:
        u = loc + scale * node
        return math.log(4.0) + log_sigmoid(2 * u) + log_sigmoid(-2 * u)

    slopes = jax.vmap(log_slope)(jnp.asarray(nodes, loc.dtype))
    return jnp.tensordot(jnp.asarray(weights, loc.dtype), slopes, axes=1, precision=precision_of())


def _log_slope_of_wide(loc: jax.Array, scale: jax.Array) -> jax.Array:
    """The same, as E[log 4 - 2 |u| - 2 log(1 + exp(-2 |u|))], for scales from 1 on.

    E|u| has a closed form. The last term is negligible beyond |u| = 20, and its expectation a Gauss-Legendre sum over what is below.
    """
    nodes, weights = np.polynomial.legendre.leggauss(56)
    nodes, weights = 10 * (nodes + 1), 10 * weights * 2 * np.log1p(np.exp(-20 * (nodes + 1)))

    def density(u: jax.Array) -> jax.Array:
        return jnp.exp(normal_terms(u, loc, scale)) + jnp.exp(normal_terms(-u, loc, scale))

    densities = jax.vmap(density)(jnp.asarray(nodes, loc.dtype))
    rest = jnp.tensordot(jnp.asarray(weights, loc.dtype), densities, axes=1, precision=precision_of())
    x = loc / scale
    size = 2 * scale * jnp.exp(-0.5 * jnp.square(x) - HALF_LOG_2PI) + loc * jax.lax.erf(x * math.sqrt(0.5))
    return math.log(4.0) - 2 * size - rest


def normal_head(outputs: jax.Array) -> Normal:
    """A diagonal Normal from `2 D` outputs: means, then log standard deviations.

    Args:
        outputs: Shape `(..., 2 D)`.

    Returns:
        A `Normal` of `D` coordinates.

    Raises:
        ValueError: The number of outputs is not even.
        TypeError: They are no real numbers.
    """
    outputs = summable(outputs, "outputs")
    if outputs.ndim == 0 or outputs.shape[-1] % 2:
        raise ValueError(
            f"outputs: expected shape (..., 2 D), means and logarithms of standard deviations, received {outputs.shape}."
        )
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
        # `TanhNormal` checks them; by shapes, since importing a module must not start a device.
        loc = jax.ShapeDtypeStruct(np.shape(self.low) or np.shape(self.high), jnp.float32)
        jax.eval_shape(lambda loc: TanhNormal(loc, loc + 1, self.low, self.high), loc)

    def __call__(self, outputs: jax.Array) -> TanhNormal:
        """The distribution."""
        normal = normal_head(outputs)
        return TanhNormal(normal.loc, normal.scale, self.low, self.high)


tanh_normal_head = TanhNormalHead()


def log_ndtr(x: jax.Array) -> jax.Array:
    """The logarithm of Φ(x), the standard normal distribution function."""
    below = x < 0
    tail = _log_ndtr_below(jnp.where(below, x, -x))
    return jnp.where(below, tail, jnp.log1p(-jnp.exp(jnp.where(below, -1, tail))))


def _log_ndtr_below(x: jax.Array) -> jax.Array:
    distance = 3.5 - x
    u = 6.5 / distance - 1
    powers = [u]  # u, u², u⁴, u⁸, u¹⁶
    while len(powers) < 5:
        powers.append(jnp.square(powers[-1]))
    coefficients = jnp.asarray(list(map(float, _LOG_NDTR.split())), x.dtype)
    terms = jnp.broadcast_to(coefficients, (*x.shape, coefficients.size))
    for power in reversed(powers):  # a polynomial is its lower half plus its upper half times a power
        low, high = jnp.split(terms, 2, axis=-1)
        terms = low + high * power[..., None]
    return terms[..., 0] - 0.5 * jnp.square(x) - jnp.log(distance)
