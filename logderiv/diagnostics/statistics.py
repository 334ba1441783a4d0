r"""Statistics of per-sample gradients: means with standard errors, variances, signal to noise.

*Samples* are a pytree of `params` whose leaves have one more leading axis, `N` independent samples. They come from
`logderiv.diagnostics.group_gradients` or `per_trajectory_gradients`, or from replicates of a whole estimate. `std` is the
spread of one sample, `sem` the error of their mean.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from logderiv._core.arrays import accumulator_dtype, widest


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


def mean(samples: Any) -> Any:
    """Mean over the samples; pytree of `params`."""
    num_samples(samples, at_least=1)
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), samples)


def variance(samples: Any) -> Any:
    """Variance of one sample, entry by entry, with divisor `N - 1`; pytree of `params`.

    Raises:
        ValueError: Fewer than two samples, or leaves with different leading axes.
    """
    num_samples(samples)
    return jax.tree.map(lambda x: jnp.var(x, axis=0, ddof=1), samples)


def sem(samples: Any) -> Any:
    r"""Standard error of the mean, $\sqrt{\mathrm{Var}/N}$, entry by entry; pytree of `params`.

    Raises:
        ValueError: As `variance`.

    Example:
        >>> import jax.numpy as jnp
        >>> float(sem(jnp.array([1.0, 3.0])))
        1.0
    """
    num = num_samples(samples)
    return jax.tree.map(lambda v: jnp.sqrt(v / num), variance(samples))


def leaf_variance(samples: Any) -> Any:
    """Variance summed over the entries of each leaf: which part of the parameters is noisy. Pytree of scalars."""
    return jax.tree.map(jnp.sum, variance(samples))


def covariance_trace(samples: Any) -> jax.Array:
    r"""$\mathrm{tr}\,\Sigma$ of one sample: the variances of all entries, summed. A scalar."""
    return _total(variance(samples))


def signal_to_noise(samples: Any) -> Any:
    r"""$|\mathrm{mean}| / \mathrm{std}$ of one sample, entry by entry; pytree of `params`.

    The mean of `N` samples has $\sqrt N$ times as much. An entry without spread has `inf`, or NaN where it is always 0.

    References:
        Rainforth et al. (2018), "Tighter variational bounds are not necessarily better", arXiv:1802.04537.
    """
    return jax.tree.map(lambda m, v: jnp.abs(m) / jnp.sqrt(v), mean(samples), variance(samples))


def noise_scale(samples: Any, *, group_size: int = 1) -> jax.Array:
    r"""Gradient noise scale $\mathrm{tr}\,\Sigma / |G|^2$: the batch at which noise and gradient are equally long.

    $|G|^2$ is estimated without bias as $|\bar g|^2 - \mathrm{tr}\,\Sigma/N$, so the result is negative where the samples do not
    resolve the gradient at all.

    Args:
        samples: `N` samples.
        group_size: Trajectories behind each sample (for `group_gradients`); the result counts trajectories.

    Returns:
        A scalar.

    References:
        McCandlish et al. (2018), arXiv:1812.06162, eq. 2.9, and appendix A.1 for the estimate.
    """
    trace = covariance_trace(samples)
    return group_size * trace / _signal(samples, trace)


def samples_needed(samples: Any, accuracy: float, *, relative: bool = False, group_size: int = 1) -> jax.Array:
    r"""Samples after which the mean's root-mean-square error $\sqrt{\mathrm{tr}\,\Sigma / N}$ is `accuracy`.

    Args:
        samples: A pilot run.
        accuracy: Euclidean length over all parameters; positive.
        relative: `accuracy` is a fraction of the gradient's own length $|G|$ (estimated as in `noise_scale`).
        group_size: As in `noise_scale`.

    Returns:
        A scalar, rounded up; NaN where `relative` and the pilot does not resolve the gradient.

    Raises:
        ValueError: `accuracy` is not positive.
    """
    if not accuracy > 0:
        raise ValueError(f"accuracy: expected a positive error to reach, received {accuracy}.")
    trace = covariance_trace(samples)
    signal = _signal(samples, trace) if relative else jnp.ones_like(trace)
    needed = jnp.ceil(group_size * trace / (accuracy**2 * signal))
    return jnp.where(signal > 0, needed, jnp.nan)


def cosine(tree: Any, reference: Any) -> jax.Array:
    """Cosine of the angle between two pytrees of one structure, such as an estimate and the exact gradient.

    NaN where either is zero.

    Raises:
        ValueError: The structures or shapes differ.
    """
    check_same(tree, reference, "cosine")
    products = jax.tree.map(lambda a, b: jnp.sum(_lift(a) * _lift(b).astype(_lift(a).dtype)), tree, reference)
    return _total(products) / jnp.sqrt(_squared_norm(tree) * _squared_norm(reference).astype(_total(products).dtype))


def variance_ratio(baselined: Any, plain: Any, *, k: float = 3.0) -> VarianceRatio:
    r"""An alarm for baselines: does this one raise the variance?

    $\rho = \mathrm{tr}\,\Sigma_b / \mathrm{tr}\,\Sigma$ with its standard error by the delta method, paired: both samples must come
    from the same trajectories in the same order, which cancels most of the noise. Group means have the same ratio.

    Args:
        baselined: Samples with the baseline.
        plain: Samples without it, from the same trajectories.
        k: Standard errors above one at which the alarm goes off.

    Returns:
        A `VarianceRatio`; data, since only running can tell.

    Raises:
        ValueError: The two differ in structure or shape, or there are fewer than two samples.
    """
    check_same(baselined, plain, "variance_ratio")
    num = num_samples(plain)
    above, below = _squared_deviations(baselined), _squared_deviations(plain)
    above = above.astype(below.dtype)
    ratio = jnp.sum(above) / jnp.sum(below)
    error = jnp.std(above - ratio * below, ddof=1) / (jnp.sqrt(jnp.asarray(num, below.dtype)) * jnp.mean(below))
    return VarianceRatio(ratio, error, ratio - k * error > 1)


def num_samples(samples: Any, *, at_least: int = 2) -> int:
    """`N`, the common leading axis.

    Raises:
        ValueError: No leaves, leaves without a common leading axis, or fewer than `at_least` samples.
    """
    shapes = [jnp.shape(x) for x in jax.tree.leaves(samples)]
    if not shapes or any(not s for s in shapes) or len({s[0] for s in shapes}) > 1:
        raise ValueError(f"samples: expected leaves with one common leading axis (N, ...), received shapes {shapes}.")
    if shapes[0][0] < at_least:
        raise ValueError(
            f"samples: expected at least {at_least} samples on the leading axis, received {shapes[0][0]}; "
            "a gradient without a leading axis of samples has no spread."
        )
    return shapes[0][0]


def check_same(first: Any, second: Any, name: str) -> None:
    """Raise `ValueError` unless two pytrees agree in structure and shapes."""
    if jax.tree.structure(first) != jax.tree.structure(second):
        raise ValueError(
            f"{name}: expected two pytrees of one structure, received {jax.tree.structure(first)} and "
            f"{jax.tree.structure(second)}."
        )
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(first), jax.tree.leaves(second), strict=True):
        if jnp.shape(a) != jnp.shape(b):
            raise ValueError(
                f"{name}: expected one shape for leaf {jax.tree_util.keystr(path) or 'of both'}, received {jnp.shape(a)} "
                f"and {jnp.shape(b)}."
            )


def _signal(samples: Any, trace: jax.Array) -> jax.Array:
    """Squared length of the mean, without the bias of its noise."""
    return _squared_norm(mean(samples)).astype(trace.dtype) - trace / num_samples(samples)


def _squared_deviations(samples: Any) -> jax.Array:
    """Squared distance of each sample to the mean, over all leaves. Shape `(N,)`."""

    def leaf(x: jax.Array) -> jax.Array:
        x = _lift(x)
        return jnp.sum(jnp.square(x - jnp.mean(x, axis=0, keepdims=True)).reshape((x.shape[0], -1)), axis=1)

    parts = [leaf(x) for x in jax.tree.leaves(samples)]
    dtype = widest(*(x.dtype for x in parts))
    return sum((x.astype(dtype) for x in parts[1:]), parts[0].astype(dtype))


def _squared_norm(tree: Any) -> jax.Array:
    return _total(jax.tree.map(lambda x: jnp.square(_lift(x)), tree))


def _total(tree: Any) -> jax.Array:
    """Sum over all entries of all leaves, in the widest dtype among them."""
    leaves = [_lift(x) for x in jax.tree.leaves(tree)]
    dtype = widest(*(x.dtype for x in leaves))
    return sum((jnp.sum(x).astype(dtype) for x in leaves), jnp.zeros((), dtype))


def _lift(x: jax.Array) -> jax.Array:
    x = jnp.asarray(x)
    return x.astype(accumulator_dtype(x.dtype))
