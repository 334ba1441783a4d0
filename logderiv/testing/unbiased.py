r"""Is the mean of these samples the exact value? With enough power to say so, and for all parameters at once.

A test that samples can be wrong in two ways, and this one bounds both. *False alarms*: with `D` comparisons each uses
$k_D = -\Phi^{-1}(\Phi(-k)/D)$ standard errors (Bonferroni), so the whole family alarms as rarely as a single comparison
at `k` does: 6e-7 at `k = 5`. *Blindness*: it refuses to answer unless $k_D$ standard errors fit into the resolution
that was asked for.
"""

from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from logderiv import diagnostics
from logderiv._core.arrays import is_traced, tree_size

MIN_REPLICATES = 30


class UnbiasedReport(NamedTuple):
    """What `assert_unbiased` found; print it. Pytrees are those of `exact`, the rest are scalars.

    Attributes:
        mean: Mean of the samples.
        exact: What it should be.
        sem: Standard error of `mean`.
        z: `(mean - exact) / sem`.
        resolution: The bias that had to be visible.
        k: Standard errors allowed, after family-wise control.
        num_replicates: Number of samples.
        replicates_needed: About how many reach the resolution.
        varies: Every parameter's samples are finite and vary beyond rounding.
        powered: `k * sem <= resolution` everywhere.
        centered: `|mean - exact| <= k * sem` everywhere.
    """

    mean: Any
    exact: Any
    sem: Any
    z: Any
    resolution: Any
    k: Any
    num_replicates: Any
    replicates_needed: jax.Array
    varies: jax.Array
    powered: jax.Array
    centered: jax.Array

    @property
    def passed(self) -> jax.Array:
        """All three hold."""
        return self.varies & self.powered & self.centered

    def __str__(self) -> str:
        if not self.varies:
            verdict = (
                "FAILED: a standard error is zero or not a number. Samples that do not vary prove nothing: is the randomness "
                "frozen, or the gradient stopped? Leave out parameters whose gradient is 0 by construction."
            )
        elif not self.powered:
            verdict = (
                f"UNDER-POWERED: {self.num_replicates} replicates cannot see the resolution; "
                f"about {float(self.replicates_needed):.3g} are needed."
            )
        else:
            verdict = "passed" if self.centered else "BIASED"
        head = f"{verdict}\n{int(self.num_replicates)} replicates, k = {float(self.k):.2f} standard errors\n"
        head += (
            f"  {'leaf':<20}{'mean':>13}{'exact':>13}{'sem':>11}{'worst z':>10}{'bias seen':>12}{'resolution':>12}\n"
        )
        return head + "\n".join(self._rows())

    def _rows(self) -> list[str]:
        columns = (self.exact, self.sem, self.z, self.resolution)
        leaves = zip(*map(jax.tree.leaves, columns), strict=True)
        rows = []
        for (path, m), (e, s, z, r) in zip(jax.tree_util.tree_leaves_with_path(self.mean), leaves, strict=True):
            i = jnp.argmax(jnp.abs(jnp.ravel(z)))
            at = [float(jnp.ravel(x)[i]) for x in (m, e, s, z)]
            rows.append(
                f"  {jax.tree_util.keystr(path) or 'params':<20}{at[0]:>13.6g}{at[1]:>13.6g}{at[2]:>11.2g}{at[3]:>10.2f}"
                f"{float(self.k * jnp.max(s)):>12.2g}{float(jnp.min(r)):>12.2g}"
            )
        return rows


def assert_unbiased(samples: Any, exact: Any, *, resolution: Any, k: float = 5.0) -> UnbiasedReport:
    r"""Assert that the mean of independent estimates is the exact gradient, and that a bias would have been seen.

    First `k * sem <= resolution` must hold for every parameter, or the check refuses as under-powered and says how many
    replicates are needed. Then `|mean - exact| <= k * sem`. A standard error of zero, or a NaN, fails. Use many replicates
    of small batches: a bias shrinks with the batch, often like `1/N`.

    The printed "bias seen" is `k * sem`, the smallest bias that is found half of the time; three standard errors more are
    found in 999 runs of 1000.

    Args:
        samples: Estimates, one per replicate: pytree with leading axis of replicates, at least 30, for the standard error to
            be known.
        exact: Pytree of the same structure, without that axis.
        resolution: The bias that must not escape: one positive number, or a pytree like `exact`. Absolute.
        k: Standard errors allowed for a single comparison, made larger for many (see the module).

    Returns:
        An `UnbiasedReport`.

    Raises:
        AssertionError: Biased, under-powered, or without variation; the message is the report.
        ValueError: Structures or shapes differ, too few replicates, `resolution` or `k` out of range.

    Example:
        >>> import jax
        >>> samples = 2.0 + jax.random.normal(jax.random.key(0), (1000, 3))
        >>> bool(assert_unbiased(samples, jax.numpy.full(3, 2.0), resolution=0.25).passed)
        True
    """
    report = jax.jit(lambda *data: unbiased_report(*data, resolution=resolution, k=k))(samples, exact)
    if not report.passed:
        raise AssertionError(f"assert_unbiased: {report}")
    return report


def unbiased_report(samples: Any, exact: Any, *, resolution: Any, k: float = 5.0) -> UnbiasedReport:
    """What `assert_unbiased` looks at, without raising the verdict: also under `jax.jit` and `jax.vmap`, for sweeps over seeds."""
    num = diagnostics.num_samples(samples, at_least=MIN_REPLICATES)
    diagnostics.check_same(
        jax.tree.map(lambda x: x[0], samples), exact, "samples (without the replicate axis) and exact"
    )
    dtype = jnp.zeros(()).dtype
    samples, exact = jax.tree.map(lambda x: jnp.asarray(x).astype(dtype), (samples, exact))
    resolution = _resolution(resolution, exact)
    k = familywise(k, tree_size(exact))
    mean, sem = diagnostics.mean(samples), diagnostics.sem(samples)

    def varies(x: jax.Array, s: jax.Array) -> jax.Array:
        rounding = 100 * jnp.finfo(dtype).eps * jnp.max(jnp.abs(x), axis=0)
        return jnp.all(s * jnp.sqrt(jnp.asarray(num, dtype)) > rounding)

    return UnbiasedReport(
        mean,
        exact,
        sem,
        z=jax.tree.map(lambda m, e, s: (m - e) / s, mean, exact, sem),
        resolution=resolution,
        k=k,
        num_replicates=num,
        replicates_needed=_largest(jax.tree.map(lambda s, r: jnp.ceil(num * jnp.square(k * s / r)), sem, resolution)),
        varies=_every(jax.tree.map(varies, samples, sem)),
        powered=_every(jax.tree.map(lambda s, r: k * s <= r, sem, resolution)),
        centered=_every(jax.tree.map(lambda m, e, s: jnp.abs(m - e) <= k * s, mean, exact, sem)),
    )


def familywise(k: float, num_comparisons: int) -> float:
    r"""$k_D = -\Phi^{-1}(\Phi(-k)/D)$: what each of `D` comparisons must use for the family to alarm as one does at `k`.

    Raises:
        ValueError: `k` outside (0, 30], or no comparison.

    Example:
        >>> round(familywise(5.0, 1), 6), round(familywise(5.0, 1000), 2)
        (5.0, 6.2)
    """
    if not 0 < k <= 30:
        raise ValueError(f"k: expected a number of standard errors in (0, 30], received {k}.")
    if num_comparisons < 1:
        raise ValueError("exact: expected at least one parameter, received none.")
    normal = NormalDist()
    return -normal.inv_cdf(normal.cdf(-k) / num_comparisons)


def _resolution(resolution: Any, exact: Any) -> Any:
    if jax.tree.structure(resolution) == jax.tree.structure(0.0):
        resolution = jax.tree.map(lambda _: resolution, exact)
    if jax.tree.structure(resolution) != jax.tree.structure(exact):
        raise ValueError(
            f"resolution: expected one number or a pytree like exact, {jax.tree.structure(exact)}; "
            f"received {jax.tree.structure(resolution)}."
        )
    leaves = [r for r in jax.tree.leaves(resolution) if not is_traced(r)]
    if not all((np.asarray(r) > 0).all() for r in leaves):
        raise ValueError(
            f"resolution: expected positive numbers, the bias that must not escape, received {resolution}."
        )
    return jax.tree.map(lambda r, e: jnp.broadcast_to(jnp.asarray(r, e.dtype), e.shape), resolution, exact)


def _every(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(x) for x in jax.tree.leaves(tree)]))


def _largest(tree: Any) -> jax.Array:
    return jnp.max(jnp.stack([jnp.max(x) for x in jax.tree.leaves(tree)]))
