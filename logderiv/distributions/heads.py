"""Heads: from the output vector of a network to a distribution."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core.pytrees import pytree
from logderiv.distributions.basic import Normal
from logderiv.distributions.tanh_normal import Bound, TanhNormal

Head = Callable[[jax.Array], Any]


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

    def __call__(self, outputs: jax.Array) -> TanhNormal:
        """The distribution."""
        normal = normal_head(outputs)
        return TanhNormal(normal.loc, normal.scale, self.low, self.high)


tanh_normal_head = TanhNormalHead()
