"""Statistics of per-sample gradients: means with standard errors, variances, signal to noise.

*Samples* are a pytree of `params` whose leaves have one more leading axis, `N` independent samples. They come from
`logderiv.diagnostics.per_trajectory_gradients`, or from replicates of a whole estimate. `std` is the
spread of one sample, `sem` the error of their mean.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from logderiv._core import check
from logderiv._core.arrays import named_leaf_by_leaf, summable, widest
from logderiv.types import Params


class Summary(NamedTuple):
    """Mean and variance of `N` samples, and what follows from them.

    Attributes:
        mean: Pytree of `params`.
        variance: Of one sample, entry by entry, with divisor `N - 1`; pytree of `params`.
        num_samples: `N`.
    """

    mean: Any
    variance: Any
    num_samples: int

    @property
    def sem(self) -> Any:
        """Standard error of the mean, √(Var / N), entry by entry; pytree of `params`."""
        return jax.tree.map(lambda v: jnp.sqrt(v / jnp.asarray(self.num_samples, v.dtype)), self.variance)

    @property
    def leaf_variance(self) -> Any:
        """Variance summed over the entries of each leaf: which part of the parameters is noisy. Pytree of scalars."""
        return jax.tree.map(jnp.sum, self.variance)

    @property
    def trace(self) -> jax.Array:
        """The trace tr Σ of the covariance of one sample: the variances of all entries, summed. A scalar."""
        return jnp.asarray(optax.tree.sum(*lifted(variance=self.variance)))

    @property
    def signal_to_noise(self) -> Any:
        """|mean| / std of one sample, entry by entry; pytree of `params`.

        The mean of `N` samples has √N times as much. An entry without spread has `inf`, or NaN where it is always 0.

        References:
            Rainforth et al. (2018), "Tighter variational bounds are not necessarily better", arXiv:1802.04537.
        """
        return jax.tree.map(lambda m, v: jnp.abs(m) / jnp.sqrt(v), self.mean, self.variance)

    def noise_scale(self, *, group_size: int = 1) -> jax.Array:
        """Gradient noise scale tr Σ / |G|²: the batch at which noise and gradient are equally long.

        |G|² is estimated without bias as |mean|² - tr Σ / N, so the result is negative where the samples do not resolve the
        gradient at all.

        Args:
            group_size: Trajectories behind each sample (with `num_groups`); the result counts trajectories.

        Returns:
            A scalar.

        Raises:
            ValueError: `group_size` is no whole number from 1.

        References:
            McCandlish et al. (2018), arXiv:1812.06162, eq. 2.9, and appendix A.1 for the estimate.
        """
        return check.whole(group_size=group_size) * self.trace / self._signal

    def samples_needed(self, accuracy: float, *, relative: bool = False, group_size: int = 1) -> jax.Array:
        """Samples after which the mean's root-mean-square error √(tr Σ / N) is `accuracy`.

        Args:
            accuracy: Euclidean length over all parameters; positive.
            relative: `accuracy` is a fraction of the gradient's own length |G| (estimated without bias, |mean|² - tr Σ / N).
            group_size: Trajectories behind each sample (with `num_groups`); the result counts trajectories.

        Returns:
            A scalar, rounded up; NaN where `relative` and the samples do not resolve the gradient.

        Raises:
            ValueError: `accuracy` is not positive, or `group_size` no whole number from 1.
        """
        check.positive(finite=True, accuracy=accuracy)
        check.whole(group_size=group_size)
        signal = self._signal if relative else jnp.ones_like(self.trace)
        needed = jnp.ceil(group_size * self.trace / (accuracy**2 * signal))
        return jnp.where(signal > 0, needed, jnp.nan)

    @property
    def _signal(self) -> jax.Array:
        """Squared length of the mean, without the bias of its noise."""
        return optax.tree.norm(*lifted(mean=self.mean), squared=True) - self.trace / self.num_samples


class VarianceRatio(NamedTuple):
    """What a baseline does to the variance; scalars.

    Attributes:
        ratio: Covariance trace with the baseline over that without.
        sem: Standard error of `ratio`.
        raised: The alarm: `ratio` exceeds one by more than `k` standard errors.
    """

    ratio: jax.Array
    sem: jax.Array
    raised: jax.Array


def summary(samples: Params) -> Summary:
    """Mean and variance over the samples.

    Args:
        samples: Pytree of `params` with a leading axis `N`, at least 2.

    Returns:
        A `Summary`.

    Raises:
        ValueError: Fewer than two samples, or leaves with different leading axes.
        TypeError: Complex numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> found = summary(jnp.array([1.0, 3.0]))
        >>> float(found.mean), float(found.variance), float(found.sem)
        (2.0, 2.0, 1.0)
    """
    num = check.rows("samples", samples, at_least=2)
    samples = named_leaf_by_leaf(summable, samples, "samples")
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), samples)
    return Summary(mean, jax.tree.map(lambda x: jnp.var(x, axis=0, ddof=1), samples), num)


def sem(samples: Params) -> Any:
    """Standard error of the mean of the samples, √(Var / N), entry by entry.

    Args:
        samples: Pytree of `params` with a leading axis `N`, at least 2.

    Returns:
        Pytree of `params`.

    Raises:
        ValueError: Fewer than two samples, or leaves with different leading axes.
        TypeError: Complex numbers.
    """
    return summary(samples).sem


def cosine(tree: Params, reference: Params) -> jax.Array:
    """Cosine of the angle between two pytrees of one structure, such as an estimate and the exact gradient.

    Args:
        tree: Pytree of arrays.
        reference: Another of the same structure and shapes.

    Returns:
        A scalar; NaN where either is zero.

    Raises:
        ValueError: The structures or shapes differ.
        TypeError: Complex numbers.
    """
    check.like("tree", tree, reference, hint="that of reference, since a cosine is between two pytrees alike")
    tree, reference = map(_in_units, lifted(tree=tree, reference=reference))
    return jnp.asarray(optax.tree.vdot(tree, reference)) / (optax.tree.norm(tree) * optax.tree.norm(reference))


def variance_ratio(baselined: Params, plain: Params, *, k: float = 3.0) -> VarianceRatio:
    """An alarm for baselines: does this one raise the variance?

    ρ = tr Σ_b / tr Σ with its standard error by the delta method, paired: both samples must come from the same trajectories in the
    same order, which cancels most of the noise. Group means have the same ratio.

    Args:
        baselined: Samples with the baseline.
        plain: Samples without it, from the same trajectories.
        k: Standard errors above one at which the alarm goes off.

    Returns:
        A `VarianceRatio`; data, since only running can tell.

    Raises:
        ValueError: The two differ in structure or shape, or there are fewer than two samples; `k` is out of range.
        TypeError: Complex numbers.
    """
    check.not_negative(finite=True, k=k)
    check.like("baselined", baselined, plain, hint="both from the same trajectories")
    num = check.rows("samples", plain, at_least=2)
    deviations = jax.tree.map(_centered, lifted(baselined=baselined, plain=plain))
    above, below = map(jax.vmap(partial(optax.tree.norm, squared=True)), _in_units(deviations))
    ratio = jnp.sum(above) / jnp.sum(below)
    error = jnp.std(above - ratio * below, ddof=1) / (jnp.sqrt(jnp.asarray(num, below.dtype)) * jnp.mean(below))
    return VarianceRatio(ratio, error, ratio - k * error > 1)


def lifted(**trees: Any) -> list[Any]:
    """The pytrees in the widest dtype among their leaves, float32 at least, so that sums over all of them may be taken."""
    found = [named_leaf_by_leaf(summable, tree, name) for name, tree in trees.items()]
    dtype = widest(jnp.float32, *(x.dtype for x in jax.tree.leaves(found)))
    return jax.tree.map(lambda x: x.astype(dtype), found)


def _in_units(tree: Any) -> Any:
    """The tree over its largest magnitude, which ratios of squares do not depend on, so that no square leaves the range of the dtype."""
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0) for x in jax.tree.leaves(tree)]))
    return jax.tree.map(lambda x: x / jax.lax.stop_gradient(largest), tree)


def _centered(samples: jax.Array) -> jax.Array:
    """The deviation of each sample from the mean."""
    return samples - jnp.mean(samples, axis=0, keepdims=True)
