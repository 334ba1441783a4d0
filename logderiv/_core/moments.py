"""Running mean and variance of values that come in batches: of observations, and of sums of rewards."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from logderiv._core import check
from logderiv._core.arrays import accumulator_dtype, expand, widest

# A deviation of so many units in the last place of the numbers is none; 1e6 +- 1 still has one in float32.
_ROUNDING = 4


class RunningMoments(NamedTuple):
    """Mean and variance of all values so far, coordinate by coordinate; batches are merged by their own moments.

        w = m / (n + m),  δ = x̄ − μ
        μ ← μ + w δ,  σ² ← (1 − w) σ² + w s² + w (1 − w) δ²,  n ← n + m

    with the number m, the mean x̄ and the variance s² of a batch. Neither a square of a value nor a sum of all values is formed, so
    that values far from 0 keep their digits in float32. Only the variance itself must have a number there: deviations from 1e-19 to
    1e19. Beyond, it is infinite, and `standardize` gives 0, or it is 0, and values are shifted alone; take such values in other
    units. Leaves that are not floating point (integers, masks) have no moments.

    Attributes:
        num_steps: n, a floating-point scalar; 0 where nothing was measured.
        mean: μ, a pytree of the values with `None` for leaves that are not floating point; float32 at least. 0 where n = 0.
        variance: σ², divided by n, in the same units squared. 0 where n = 0.

    References:
        Chan, Golub & LeVeque (1983), The American Statistician 37, eq. 2.1 (from memory).
    """

    num_steps: jax.Array
    mean: Any
    variance: Any

    @classmethod
    def start(cls, value: Any) -> "RunningMoments":
        """Moments of nothing.

        Args:
            value: One value, a pytree of arrays or of their shapes.

        Returns:
            The moments.
        """
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, accumulator_dtype(x.dtype)), _one(value, 0))
        return cls(jnp.zeros(()), zeros, zeros)

    @property
    def deviation(self) -> Any:
        """σ in the units of the values; 0 where it is no more than the rounding of μ."""

        def leaf(mean: jax.Array, variance: jax.Array) -> jax.Array:
            return beyond_rounding(jnp.sqrt(variance), jnp.abs(mean))

        return jax.tree.map(leaf, self.mean, self.variance)

    def including(self, values: Any, valid: jax.Array, name: str = "values") -> "RunningMoments":
        """The moments with one more batch.

        Args:
            values: Leading axes `(*batch,)`; what stands at invalid places is not looked at.
            valid: Which are counted. Shape `(*batch,)`.
            name: What messages call them.

        Returns:
            The moments.

        Raises:
            ValueError: Another structure or other shapes than those of earlier values.
        """
        check.like(name, _one(values, valid.ndim), self.mean, hint="as those that were measured before")
        num = jnp.sum(valid).astype(self.num_steps.dtype)
        total = jnp.maximum(self.num_steps + num, 1)

        def leaf(x: jax.Array, mean: Any, variance: Any) -> tuple[Any, Any]:
            if mean is None:
                return None, None
            here, weight = expand(valid, x), (num / total).astype(mean.dtype)

            def average(x: jax.Array) -> jax.Array:
                return jnp.sum(jnp.where(here, x, 0), tuple(range(valid.ndim))) / jnp.maximum(num, 1).astype(mean.dtype)

            x = jnp.where(here, x, 0).astype(mean.dtype)
            rough = average(x)
            errors = x - jnp.broadcast_to(rough, x.shape)
            rest = average(errors)  # what rounding has left out of the mean
            own = jnp.maximum(average(jnp.square(errors)) - jnp.square(rest), 0)
            step = (rough - mean) + rest
            between = weight * (1 - weight) * jnp.square(step)
            return mean + weight * step, (1 - weight) * variance + weight * own + between

        pairs = jax.tree.map(leaf, values, self.mean, self.variance)
        mean, variance = (jax.tree.map(lambda _, pair, k=k: pair[k], values, pairs) for k in (0, 1))
        return RunningMoments(self.num_steps + num, mean, variance)

    def standardize(self, values: Any, axes: int = 0, name: str = "values") -> Any:
        """Values less the mean, over the deviation: (x − μ) / σ of floating-point leaves, x − μ where σ is 0; other leaves as they are.

        Args:
            values: One value, or several.
            axes: How many leading axes these have.
            name: What messages call them.

        Returns:
            A pytree of the same structure, shapes and dtypes; computed in float32 at least.

        Raises:
            ValueError: Another structure or other shapes than those of the values that were measured.

        Gradients: flow through the values; the moments are detached.
        """
        check.like(name, _one(values, axes), self.mean, hint="as those that were measured")
        moments = jax.lax.stop_gradient(self)

        def leaf(x: jax.Array, mean: Any, deviation: Any) -> jax.Array:
            if mean is None:
                return x
            dtype = widest(x.dtype, mean.dtype)
            scale = jnp.where(deviation == 0, 1, deviation)
            mean, scale = (jnp.broadcast_to(y.astype(dtype), x.shape) for y in (mean, scale))
            return ((x.astype(dtype) - mean) / scale).astype(x.dtype)

        return jax.tree.map(leaf, values, moments.mean, moments.deviation)


def beyond_rounding(deviation: jax.Array, size: jax.Array) -> jax.Array:
    """The deviation of numbers of this size, or 0 where it is no more than their rounding."""
    return jnp.where(deviation > _ROUNDING * jnp.finfo(size.dtype).eps * size, deviation, 0)


def _one(values: Any, axes: int) -> Any:
    """The shapes of one of the values, of leaves that are floating point, and `None` in the place of others."""

    def leaf(x: Any) -> Any:
        real = jnp.issubdtype(jnp.result_type(x), jnp.floating)
        return jax.ShapeDtypeStruct(jnp.shape(x)[axes:], jnp.result_type(x)) if real else None

    return jax.tree.map(leaf, values)
