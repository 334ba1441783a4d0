"""Is the mean of these samples the exact value? With enough power to say so, and for all parameters at once.

A test that samples can be wrong in two ways, and this one bounds both. *False alarms*: with `D` comparisons each uses
k_D = -Φ⁻¹(Φ(-k) / D) standard errors (Bonferroni), so the whole family alarms as rarely as a single comparison at `k` does: 6e-7
at `k = 5`. *Blindness*: it refuses to answer unless k_D standard errors fit into the resolution that was asked for.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from logderiv._core import check
from logderiv._core.arrays import refuse_complex
from logderiv._core.pytrees import jit
from logderiv._core.tables import named_leaves, table
from logderiv.diagnostics.statistics import summary
from logderiv.types import Params

MIN_REPLICATES = 30


class UnbiasedReport(NamedTuple):
    """What `assert_unbiased` found; print it. Pytrees are those of `exact`, the rest are scalars.

    Attributes:
        mean: Mean of the samples.
        exact: What it should be.
        sem: Standard error of `mean`.
        resolution: The bias that had to be visible.
        k: Standard errors allowed, after family-wise control.
        num_replicates: Number of samples.
        replicates_needed: About how many reach the resolution.
        holds: What must be true. `"varies"`: every parameter's samples are finite and vary beyond rounding. `"powered"`:
            `k * sem <= resolution` everywhere. `"centered"`: `|mean - exact| <= k * sem` everywhere.
    """

    mean: Any
    exact: Any
    sem: Any
    resolution: Any
    k: Any
    num_replicates: Any
    replicates_needed: jax.Array
    holds: dict[str, jax.Array]

    @property
    def passed(self) -> jax.Array:
        """All three hold."""
        return jnp.all(jnp.stack(list(self.holds.values())), axis=0)

    def __str__(self) -> str:
        num, needed = int(self.num_replicates), float(self.replicates_needed)
        verdict = next((text for name, text in _FINDINGS.items() if not self.holds[name]), "passed")
        head = f"{verdict.format(num=num, needed=needed)}\n{num} replicates, k = {float(self.k):.2f} standard errors\n"
        names = ("leaf", "mean", "exact", "sem", "worst z", "bias seen", "resolution")
        columns = [jax.tree.leaves(x) for x in (self.exact, self.sem, self.resolution)]
        leaves = zip(named_leaves(self.mean), *columns, strict=True)
        rows = [self._row(name, *map(np.ravel, (mean, *row))) for (name, mean), *row in leaves]
        return head + table(names, "<20 >13.6g >13.6g >11.2g >10.2f >12.2g >12.2g", rows)

    def _row(self, name: str, mean: Any, exact: Any, sem: Any, resolution: Any) -> tuple[Any, ...]:
        """The entry of one leaf that is furthest off, and what was seen of the one that is seen worst."""
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (mean - exact) / sem
        i, j = np.argmax(np.abs(z)), np.argmax(sem / resolution)
        at = (mean[i], exact[i], sem[i], z[i], self.k * sem[j], resolution[j])
        return name, *map(float, at)


_FINDINGS = {
    "varies": "FAILED: a standard error is zero (to rounding) or not a number. Samples that do not vary prove nothing: is the randomness "
    "frozen, or the gradient stopped? Leave out parameters whose gradient is 0 by construction.",
    "powered": "UNDER-POWERED: {num} replicates cannot see the resolution; about {needed:.3g} are needed.",
    "centered": "BIASED",
}


def assert_unbiased(
    samples: Params, exact: Params, *, resolution: Any, k: float = 5.0, raises: bool = True
) -> UnbiasedReport:
    """Assert that the mean of independent estimates is the exact gradient, and that a bias would have been seen.

    First `k * sem <= resolution` must hold for every parameter, or the check refuses as under-powered and says how many
    replicates are needed. Then `|mean - exact| <= k * sem`. A standard error of zero, or a NaN, fails. Use many replicates
    of small batches: a bias shrinks with the batch, often like `1/N`.

    The printed "bias seen" is `k * sem`, the smallest bias that is found half of the time; three standard errors more are
    found in 999 runs of 1000.

    Args:
        samples: Estimates, one per replicate: pytree with leading axis of replicates, at least 30, for the standard error to
            be known.
        exact: Pytree of the same structure, without that axis.
        resolution: The bias that must not escape: one positive, finite number, or a pytree like `exact`. Absolute.
        k: Standard errors allowed for a single comparison, made larger for many, so that the family alarms as rarely as one.
        raises: `False` returns the report whatever it says: also under `jax.jit` and `jax.vmap`, for sweeps over seeds.

    Returns:
        An `UnbiasedReport`.

    Raises:
        AssertionError: Biased, under-powered, or without variation; the message is the report.
        ValueError: Structures or shapes differ, too few replicates, no parameter, `resolution` or `k` out of range.
        TypeError: Samples or `exact` are complex, or no numbers.

    Example:
        >>> import jax
        >>> samples = 2.0 + jax.random.normal(jax.random.key(0), (1000, 3))
        >>> bool(assert_unbiased(samples, jax.numpy.full(3, 2.0), resolution=0.25).passed)
        True
    """
    check.rows("samples", samples, at_least=MIN_REPLICATES)
    one = jax.tree.map(lambda x: np.broadcast_to(0, jnp.shape(x)[1:]), samples)
    check.like("samples", one, exact, hint="samples without the axis of replicates must be like exact")
    refuse_complex(samples=samples, exact=exact)
    try:
        resolution = jax.tree.broadcast(resolution, exact)
    except ValueError as error:
        raise ValueError(f"resolution: expected a number or a prefix of exact, received {resolution}.") from error
    named = jax.tree_util.tree_leaves_with_path(resolution)
    check.positive(finite=True, **{f"resolution{jax.tree_util.keystr(path)}": leaf for path, leaf in named})
    check.whole(**{"numbers in exact": optax.tree.size(exact)})
    report = _report(samples, exact, resolution, familywise(k, optax.tree.size(exact)))
    if raises and not report.passed:
        raise AssertionError(f"assert_unbiased: {report}")
    return report


@jit
def _report(samples: Params, exact: Params, resolution: Params, k: float) -> UnbiasedReport:
    dtype = jnp.zeros(()).dtype
    samples, exact = jax.tree.map(lambda x: jnp.asarray(x).astype(dtype), (samples, exact))
    resolution = jax.tree.map(lambda r, e: jnp.broadcast_to(jnp.asarray(r, dtype), e.shape), resolution, exact)
    found = summary(samples)
    largest = jax.tree.map(lambda x: jnp.max(jnp.abs(x), axis=0), samples)
    trees = (found.variance, largest, found.sem, resolution, jax.tree.map(jnp.subtract, found.mean, exact))
    variance, size, sem, visible, bias = (ravel_pytree(tree)[0] for tree in trees)
    holds = {
        "varies": jnp.all(jnp.sqrt(variance) > 100 * jnp.finfo(dtype).eps * size),
        "powered": jnp.all((k * sem <= visible) & jnp.isfinite(visible)),
        "centered": jnp.all(jnp.abs(bias) <= k * sem),
    }
    needed = jnp.max(jnp.ceil(found.num_samples * jnp.square(k * sem / visible)))
    return UnbiasedReport(found.mean, exact, found.sem, resolution, k, found.num_samples, needed, holds)


def familywise(k: float, num_comparisons: int) -> float:
    """k_D = -Φ⁻¹(Φ(-k) / D): what each of `D` comparisons must use for the family to alarm as one does at `k`.

    Args:
        k: Standard errors allowed for a single comparison, a number in (0, 30].
        num_comparisons: `D`, from 1.

    Returns:
        Standard errors allowed for each.

    Raises:
        ValueError: `k` outside (0, 30], or no comparison.

    Example:
        >>> round(familywise(5.0, 1), 6), round(familywise(5.0, 1000), 2)
        (5.0, 6.2)
    """
    check.between(0, 30, open_left=True, k=k)
    num, tail = check.whole(num_comparisons=num_comparisons), math.erfc(k / math.sqrt(2)) / num_comparisons
    # An upper bound, from which Newton's method on the logarithm descends to the solution.
    found = math.sqrt(k**2 + 2 * math.log(num))
    for _ in range(20):
        beyond = math.erfc(found / math.sqrt(2))
        slope = math.sqrt(2 / math.pi) * math.exp(-(found**2) / 2) / beyond
        found += math.log(beyond / tail) / slope
    return found
