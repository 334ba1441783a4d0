"""The normal distribution with diagonal covariance, and what distributions with a location and a scale share."""

from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core import check
from logderiv._core.arrays import HALF_LOG_2PI, alike, set_alike
from logderiv._core.noise import normal_quantile, uniform
from logderiv._core.pytrees import pytree
from logderiv.distributions.basic import fit, levels


@pytree
class Normal:
    """Normal with diagonal covariance.

        log p(x) = -Σ_i [ ((x_i - μ_i) / σ_i)² / 2 + log σ_i + log(2π) / 2 ]

    The last axis of `loc`, if it has one, is the event and is summed over.

    `sample` is reparameterized (`loc + scale * noise`), so a score needs a detached sample: `logderiv.rollout` detaches its
    parameters, elsewhere use `jax.lax.stop_gradient`.

    Attributes:
        loc: Mean, shape `()` or `(..., D)`; float32 at least.
        scale: Standard deviation, positive, broadcast against `loc`, in its dtype.

    Raises:
        ValueError: `scale` is not positive, or its shape does not fit that of `loc`.
        TypeError: One of them is no real number.
    """

    loc: jax.Array
    scale: jax.Array

    def __post_init__(self) -> None:
        loc_and_scale(self)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log-density of an action, the event axis summed.

        Args:
            action: `D` numbers, or one where `loc` and `scale` are scalars; leading axes broadcast against those of `loc`.

        Returns:
            The broadcast shape without the event axis.

        Raises:
            ValueError: `action` has a shape that does not fit.
            TypeError: `action` is no real number.
        """
        return sum_event(self, normal_terms(*with_event(self, alike(action=action, loc=self.loc, scale=self.scale))))

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw `loc + scale * noise`.

        Args:
            key: One key. Consumed.

        Returns:
            Shape of `loc` and `scale`, broadcast.
        """
        x, upper = uniform(key, event_shape(self), self.loc.dtype)
        return self.quantile(x, upper=upper)

    def quantile(self, probability: jax.Array, *, upper: Any = False) -> jax.Array:
        """`loc + scale Φ⁻¹(u)` in each coordinate: of uniform u a draw.

        Args:
            probability: u, or 1 - u where `upper`; between 0 and 1, broadcast against `loc`.
            upper: Whether `probability` counts from the top; broadcast against it.

        Returns:
            The broadcast shape.

        Gradients: flow through `loc`, `scale` and `probability`.
        """
        u, upper = levels(probability, upper, event_shape(self), self.loc.dtype)
        loc, scale = (jnp.broadcast_to(x, u.shape) for x in (self.loc, self.scale))
        return loc + scale * normal_quantile(u, upper)

    def entropy(self) -> jax.Array:
        """Σ_i log σ_i + log(2πe) / 2.

        Returns:
            In nats, shape of `loc` and `scale`, broadcast, without the last axis, if there is one.
        """
        return sum_event(self, jnp.log(jnp.broadcast_to(self.scale, event_shape(self))) + (HALF_LOG_2PI + 0.5))

    def mode(self) -> jax.Array:
        """The likeliest action, the mean.

        Returns:
            `loc`, in the shape of a draw.
        """
        return jnp.broadcast_to(self.loc, event_shape(self))


def normal_terms(x: jax.Array, loc: jax.Array, scale: jax.Array) -> jax.Array:
    """Log-density of each coordinate of a diagonal Normal."""
    standard = (x - loc) / scale
    return -0.5 * jnp.square(standard) - jnp.log(scale) - jnp.asarray(HALF_LOG_2PI, standard.dtype)


def loc_and_scale(distribution: Any) -> None:
    """Bring `loc` and `scale` to one floating dtype, and check them.

    Raises:
        ValueError: `scale` is not positive, or its shape does not fit that of `loc`.
        TypeError: One of them is no real number.
    """
    set_alike(distribution, "loc", "scale")
    fit(distribution.loc.shape, scale=distribution.scale)
    check.positive(scale=distribution.scale, hint="it is a standard deviation, for example jnp.exp(log_scale)")


def event_shape(distribution: Any) -> tuple[int, ...]:
    """The shape of `loc` and `scale` together; its last axis, where there is one, is the event."""
    return jnp.broadcast_shapes(jnp.shape(distribution.loc), jnp.shape(distribution.scale))


def with_event(distribution: Any, arrays: list[jax.Array]) -> list[jax.Array]:
    """An action and what else is given, broadcast against each other; the action has the event axis of the distribution.

    Raises:
        ValueError: It has not, or its leading axes do not fit.
    """
    shape = event_shape(distribution)
    if shape and arrays[0].shape[-1:] != shape[-1:]:
        raise ValueError(
            f"action: expected {shape[-1]} numbers in the last axis, as in loc and scale, received shape {arrays[0].shape}."
        )
    shape = fit(shape, action=arrays[0])
    return [jnp.broadcast_to(x, shape) for x in arrays]


def sum_event(distribution: Any, terms: jax.Array) -> jax.Array:
    """The sum over the last axis, the event, where the distribution has one."""
    return jnp.sum(terms, axis=-1) if event_shape(distribution) else terms
