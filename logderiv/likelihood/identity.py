r"""The log-derivative identity on one trajectory: grad P by direct differentiation beside P * grad log P."""

import enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core.arrays import hold, is_traced, release
from logderiv.likelihood.factors import all_factors, all_log_factors, log_factors
from logderiv.likelihood.probability import check_single, cumulative_product, log_prob, prob, times_exp
from logderiv.types import SignedLog, Trajectory, as_policy, check_params


class Case(enum.IntEnum):
    """How the two sides of the identity stand to each other on a computer."""

    AGREE = 0
    UNDERFLOW = 1
    OVERFLOW = 2
    ZERO_FACTOR = 3
    DIFFER = 4


_MEANING = {
    Case.AGREE: "both forms agree to within the resolution",
    Case.UNDERFLOW: "the product underflows; the score form is right",
    Case.OVERFLOW: "the product of densities overflows; the score form is right",
    Case.ZERO_FACTOR: "a factor is exactly zero: log P = -inf, and only the direct form is right",
    Case.DIFFER: "the forms differ by more than rounding: prob and log_prob of the policy do not belong together",
}


class Comparison(NamedTuple):
    """What `compare` found. Arrays, so it passes through `jit` and `vmap`; printed, it reads as a report.

    Attributes:
        case: A `Case`, int32.
        num_factors: Number of factors multiplied, invalid steps not counted.
        prob: The product.
        log_prob: The sum of logarithms.
        direct: grad P by differentiating the product; pytree of `params`.
        score: grad log P; pytree of `params`.
        score_form: P * grad log P; a `SignedLog` per leaf.
        difference: Per leaf, the largest difference of the two forms over the largest magnitude of the score form;
            NaN where there is nothing to compare.
        resolution: eps * |log P|: the relative rounding of P itself when it comes from the logarithm. A difference of
            this size says nothing against either form.
        first_underflow: Number of the factor (from 0) at which the running product becomes zero without any factor
            being exactly zero; -1 if none does.
        first_overflow: Likewise for an infinite product.
    """

    case: jax.Array
    num_factors: jax.Array
    prob: jax.Array
    log_prob: jax.Array
    direct: Any
    score: Any
    score_form: Any
    difference: Any
    resolution: jax.Array
    first_underflow: jax.Array
    first_overflow: jax.Array

    def __str__(self) -> str:
        return report(self)


def compare(params: Any, policy: Any, trajectory: Trajectory, *, environment: Any = None) -> Comparison:
    r"""Both sides of $\nabla P = P\, \nabla\log P$ for one trajectory, and which of them to believe.

    The left side differentiates the product of probabilities (`jax.grad(prob)`), the right side is built from the score
    (`jax.grad(log_prob)`) in signed-log form. Four things can happen: they agree; the product underflows, or a product
    of densities overflows, while the score form stays right; or a factor is exactly zero, where the logarithm is
    `-inf` and only the direct form is right, the honest limit of the identity.

    Args:
        params: Parameters of the policy, floating point.
        policy: As in `log_factors`.
        trajectory: One trajectory, leading axis `(T,)`; `jax.vmap` for a batch.
        environment: With it, the start and the dynamics are part of P.

    Returns:
        A `Comparison`; print it.

    Raises:
        ValueError: A batch was given, or as `log_factors`.
        TypeError: A parameter is not floating point.
    """
    check_params(params)
    check_single(trajectory)
    policy = as_policy(policy)
    jax.eval_shape(lambda p: log_factors(p, policy, trajectory), params)  # checks shapes, and actions that have values
    return _compare(params, policy, trajectory, hold(environment))


@jax.jit
def _compare(params: Any, policy: Any, trajectory: Trajectory, environment: Any) -> Comparison:
    environment = release(environment)
    value, direct = jax.value_and_grad(prob)(params, policy, trajectory, environment=environment)
    logp, score = jax.value_and_grad(log_prob)(params, policy, trajectory, environment=environment)
    logs = all_log_factors(params, policy, trajectory, environment=environment)
    running = cumulative_product(all_factors(params, policy, trajectory, environment=environment))

    valid_steps = jnp.sum(trajectory.valid)
    num_factors = valid_steps if environment is None else 2 * valid_steps + jnp.minimum(valid_steps, 1)
    zero_factor = jnp.any(jnp.isneginf(logs))
    first_underflow = jnp.where(zero_factor, -1, _first(running == 0))
    first_overflow = _first(jnp.isinf(running))

    score_form = times_exp(score, logp)
    difference = jax.tree.map(_difference, direct, score_form, is_leaf=lambda x: isinstance(x, SignedLog))
    eps = jnp.finfo(logp.dtype).eps
    resolution = eps * jnp.abs(logp)
    lost = jax.tree.map(_lost, direct, score_form, is_leaf=lambda x: isinstance(x, SignedLog))
    rounding = jnp.finfo(value.dtype).eps * num_factors.astype(logp.dtype)  # of the product itself
    tolerance = 8 * (resolution + rounding)
    differs = jnp.any(jnp.stack([jnp.any(d > tolerance) for d in jax.tree.leaves(difference)]))
    underflows = (first_underflow >= 0) | jnp.any(jnp.stack(jax.tree.leaves(lost)))
    case = jnp.select(
        [zero_factor, first_overflow >= 0, underflows, differs],
        [jnp.int32(c) for c in (Case.ZERO_FACTOR, Case.OVERFLOW, Case.UNDERFLOW, Case.DIFFER)],
        jnp.int32(Case.AGREE),
    )
    return Comparison(
        case,
        num_factors,
        value,
        logp,
        direct,
        score,
        score_form,
        difference,
        resolution,
        first_underflow,
        first_overflow,
    )


def report(comparison: Comparison) -> str:
    """A `Comparison` of one trajectory as text, with the reason where the two forms part."""
    if is_traced(comparison.case) or np.ndim(comparison.case):
        return f"Comparison of shape {np.shape(comparison.case)}: index one trajectory with jax.tree.map to print it."
    case = Case(int(comparison.case))
    lines = [
        "grad P = P * grad log P",
        f"  P by the product of {int(comparison.num_factors)} factors   {float(comparison.prob):.6g}",
        f"  P by the sum of logarithms     exp({float(comparison.log_prob):.8g}) = {_power_of_ten(1.0, float(comparison.log_prob))}",
    ]
    if comparison.first_underflow >= 0:
        lines.append(f"  the running product becomes zero at factor {int(comparison.first_underflow)}")
    if comparison.first_overflow >= 0:
        lines.append(f"  the running product becomes infinite at factor {int(comparison.first_overflow)}")
    lines.append(
        f"  {'leaf':<24}{'max |direct|':>14}{'max |P score|':>18}{'max |score|':>13}{'difference':>12}{'resolution':>12}"
    )
    direct = jax.tree_util.tree_leaves_with_path(comparison.direct)
    forms = jax.tree.leaves(comparison.score_form, is_leaf=lambda x: isinstance(x, SignedLog))
    columns = (forms, jax.tree.leaves(comparison.score), jax.tree.leaves(comparison.difference))
    for (path, d), form, s, diff in zip(direct, *columns, strict=True):
        name = jax.tree_util.keystr(path) or "params"
        largest = _power_of_ten(1.0, float(np.max(form.logabs, initial=-np.inf)))
        lines.append(
            f"  {name:<24}{np.max(np.abs(d), initial=0.0):>14.4g}{largest:>18}{np.max(np.abs(s), initial=0.0):>13.4g}"
            f"{float(diff):>12.1e}{float(comparison.resolution):>12.1e}"
        )
    lines.append(f"  => {_MEANING[case]}")
    return "\n".join(lines)


def _first(condition: jax.Array) -> jax.Array:
    return jnp.where(jnp.any(condition), jnp.argmax(condition), -1)


def _difference(direct: jax.Array, form: SignedLog) -> jax.Array:
    """Largest |direct - form| over largest |form|, computed relative to the latter so that nothing underflows."""
    largest = jnp.max(form.logabs, initial=-jnp.inf)
    usable = jnp.isfinite(largest) & jnp.all(jnp.isfinite(direct))
    scale = jnp.where(usable, largest, 0)
    direct = direct.astype(form.logabs.dtype)
    zero = direct == 0
    log_direct = jnp.where(zero, -jnp.inf, jnp.log(jnp.where(zero, 1, jnp.abs(direct))))
    gap = jnp.sign(direct) * jnp.exp(log_direct - scale) - form.sign * jnp.exp(form.logabs - scale)
    both_zero = jnp.isneginf(largest) & jnp.all(direct == 0)
    return jnp.where(usable, jnp.max(jnp.abs(gap), initial=0), jnp.where(both_zero, 0, jnp.nan))


def _lost(direct: jax.Array, form: SignedLog) -> jax.Array:
    """Whether some entry of the product's gradient lies below the smallest normal number, where it loses its digits."""
    tiny = jnp.log(jnp.finfo(direct.dtype).tiny).astype(form.logabs.dtype)
    largest = jnp.max(form.logabs, initial=-jnp.inf)
    return jnp.isfinite(largest) & (largest < tiny)


def _power_of_ten(sign: float, logabs: float) -> str:
    """`sign * exp(logabs)` in scientific notation, however small."""
    if not np.isfinite(logabs):
        return "0" if logabs == -np.inf else str(sign * logabs)
    exponent = int(np.floor(logabs / np.log(10)))
    return f"{sign * np.exp(logabs - exponent * np.log(10)):.4f}e{exponent:+d}"
