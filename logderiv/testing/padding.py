"""Does padding matter? Value, gradient and Hessian-vector product with garbage in every invalid step, and with more of them."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from logderiv._core import check
from logderiv._core.arrays import as_trajectory, check_params, expand
from logderiv._core.pytrees import jit
from logderiv.diagnostics.statistics import lifted
from logderiv.types import Params, Trajectory

FIELDS = ("observations", "actions", "rewards", "discounts", "behavior_log_probs")
QUANTITIES = ("value", "gradient", "Hessian-vector product")
# One column each: what a float, a signed integer and a bool of an invalid step are replaced by.
GARBAGE = {
    "NaN": (np.nan, "min", True),
    "inf": (np.inf, "max", False),
    "-inf": (-np.inf, -1, True),
    "largest": ("max", "max", True),
    "smallest": ("min", "min", False),
    "zero": (0.0, 0, False),
}


class PaddingReport(NamedTuple):
    """What `check_padding` found; print it.

    Attributes:
        num_cases: Number of comparisons of all bits.
        num_invalid: Number of invalid steps that were filled.
        failures: One line for each field and quantity that changed, with the kinds of garbage.
    """

    num_cases: int
    num_invalid: int
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Nothing changed."""
        return not self.failures

    def __str__(self) -> str:
        head = f"{self.num_cases} comparisons, {self.num_invalid} invalid steps filled: "
        return head + ("no bit changed" if self.passed else "\n  ".join(["padding matters", *self.failures]))


def check_padding(
    params: Params, function: Callable[[Params, Trajectory], Any], trajectories: Trajectory, *, num_extra: int = 2
) -> PaddingReport:
    """Assert that `function(params, trajectories)` does not depend on what invalid steps hold, bit for bit, nor on their number.

    Observations, actions, rewards, discounts and behavior log-probabilities of invalid steps are filled with NaN,
    infinities, the extremes of their dtypes and zeros. Compared are the value, the gradient and the product of the
    Hessian with a fixed direction: masking the output alone gives the right value and NaN derivatives, so a check of
    values would not find it. Once more with NaN outside `jax.jit`, where a product with a mask shows what the compiler
    hides by luck.

    Then invalid steps are appended to every trajectory. A division by `T` changes with them. Sums may round differently,
    so the three quantities agree to the square root of the dtype's rounding unit; outputs that have a time axis are not compared.

    Args:
        params: Floating point.
        function: From params and a (batch of) trajectories to a pytree of floating-point arrays, such as
            `lambda p, taus: estimator.objective(p, policy, taus, estimator.advantages(p, state, policy, taus)[0])`.
        trajectories: Some of whose steps are invalid.
        num_extra: Invalid steps to append; 0 for a function that holds arrays of a fixed `T`.

    Returns:
        A `PaddingReport`.

    Raises:
        AssertionError: Something changed, or is NaN to begin with; the message is the report.
        ValueError: Every step is valid, or the function returns nothing, so that there is nothing to check; no parameters;
            `num_extra` below 0.
        TypeError: A parameter is not floating point; an output is complex.
    """
    num_extra = check.whole(at_least=0, num_extra=num_extra)
    check_params(params)
    trajectories = as_trajectory(trajectories, prefix=True)
    num_invalid = int(np.sum(~np.asarray(trajectories.valid)))
    if not num_invalid:
        raise ValueError("trajectories: expected some invalid steps, received none; set valid to False on a suffix.")
    # Compiled, a product with a mask becomes a selection and hides its NaN; operation by operation it does not.
    failures = _failures(params, function, trajectories, "compiled", _compiled, tuple(GARBAGE))
    failures += _failures(params, function, trajectories, "eager", _derivatives, ("NaN",))
    if num_extra:
        given, longer = (_compiled(params, function, x) for x in (trajectories, extend(trajectories, num_extra)))
        failures += [f"{num_extra} more invalid steps: the {change}" for change in _apart(given, longer)]
    num_cases = len(QUANTITIES) * (len(GARBAGE) + 1 + bool(num_extra))
    report = PaddingReport(num_cases, num_invalid, tuple(failures))
    if not report.passed:
        raise AssertionError(f"check_padding: {report}")
    return report


def _failures(params: Params, function: Any, taus: Trajectory, how: str, derivatives: Any, kinds: Any) -> list[str]:
    """One line for each field and quantity that these kinds of garbage change."""
    given = derivatives(params, function, taus)
    nan = (any(np.isnan(x).any() for x in jax.tree.leaves(tree)) for tree in given)
    failures = [f"the {name} is NaN with the padding as given ({how})" for name in itertools.compress(QUANTITIES, nan)]

    def changed(kind: str, fields: tuple[str, ...] = FIELDS) -> list[str]:
        results = derivatives(params, function, fill(taus, kind, fields))
        return [name for name, a, b in zip(QUANTITIES, given, results, strict=True) if _bits(a) != _bits(b)]

    where: dict[tuple[str, str], list[str]] = {}  # field, quantity: kinds of garbage
    for kind in kinds:
        if together := changed(kind):
            alone = [(field, name) for field in FIELDS for name in changed(kind, (field,))]
            for place in alone or [("several fields at once", together[0])]:
                where.setdefault(place, []).append(kind)
    lines = (f"{', '.join(kinds)} in {field}: the {name} changes ({how})" for (field, name), kinds in where.items())
    return [*failures, *lines]


def fill(trajectories: Trajectory, kind: str, fields: tuple[str, ...] = FIELDS) -> Trajectory:
    """The trajectories with garbage of one kind (a key of `GARBAGE`) in the invalid steps of `fields`."""

    def leaf(x: jax.Array) -> jax.Array:
        x = jnp.asarray(x)
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return x
        return jnp.where(expand(trajectories.valid, x), x, _garbage(kind, x.dtype))

    return trajectories._replace(**{name: jax.tree.map(leaf, getattr(trajectories, name)) for name in fields})


def extend(trajectories: Trajectory, number: int) -> Trajectory:
    """The trajectories with `number` more invalid steps, which repeat the last one."""
    *batch, length = trajectories.valid.shape
    times = np.minimum(np.arange(length + number), length - 1)

    def leaf(x: jax.Array) -> jax.Array:
        return jnp.take(x, times, axis=len(batch))

    fields = {name: jax.tree.map(leaf, getattr(trajectories, name)) for name in FIELDS}
    return trajectories._replace(valid=leaf(trajectories.valid).at[..., length:].set(False), **fields)


def _garbage(kind: str, dtype: Any) -> Any:
    floating, integer, boolean = GARBAGE[kind]
    if jnp.issubdtype(dtype, jnp.bool_):
        return boolean
    inexact = jnp.issubdtype(dtype, jnp.inexact)
    value, limits = (floating, jnp.finfo(dtype)) if inexact else (integer, jnp.iinfo(dtype))
    return np.asarray(getattr(limits, value) if isinstance(value, str) else value).astype(dtype)


def _derivatives(params: Params, function: Any, trajectories: Trajectory) -> tuple[Any, Any, Any]:
    """Value, gradient and Hessian-vector product, of outputs weighted so that they cannot cancel."""

    def weighted(params: Any) -> tuple[jax.Array, Any]:
        outputs = function(params, trajectories)
        if not jax.tree.leaves(outputs):
            raise ValueError("function: expected a pytree of arrays, received one without leaves.")
        numbers = lifted(outputs=outputs)[0]
        return jnp.asarray(optax.tree.vdot(jax.tree.map(_ramp, numbers), numbers)), outputs

    gradient = jax.grad(weighted, has_aux=True)
    direction = jax.tree.map(_ramp, params)
    (first, value), (second, _) = jax.jvp(gradient, (params,), (direction,))
    return value, first, second


_compiled = jit(_derivatives)


def _ramp(like: jax.Array) -> jax.Array:
    return jnp.linspace(1, 2, like.size, dtype=like.dtype).reshape(like.shape)


def _bits(tree: Any) -> list[bytes]:
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def _apart(first: tuple[Any, Any, Any], second: tuple[Any, Any, Any]) -> list[str]:
    """Quantities that differ by more than rounding, and by how much; none where the outputs have another shape."""
    if [x.shape for x in jax.tree.leaves(first[0])] != [x.shape for x in jax.tree.leaves(second[0])]:
        return []
    changes = []
    for name, *both in zip(QUANTITIES, first, second, strict=True):
        for a, b in zip(*map(jax.tree.leaves, both), strict=True):
            a, b, eps = np.asarray(a, np.float64), np.asarray(b, np.float64), float(jnp.finfo(a.dtype).eps)
            allowed = eps**0.5 * np.max(np.abs(a), initial=0, where=np.isfinite(a))
            with np.errstate(invalid="ignore"):
                off = np.max(np.where(a == b, 0, np.abs(a - b)), initial=0)  # two infinities are the same
            if not off <= allowed:
                changes.append(f"{name} changes by {off:.3g}, allowed {allowed:.3g}")
                break
    return changes
