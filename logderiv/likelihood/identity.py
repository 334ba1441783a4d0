"""The log-derivative identity on one trajectory: grad P by direct differentiation beside P * grad log P."""

import decimal
import enum
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core.arrays import check_params, wide
from logderiv._core.check import is_traced
from logderiv._core.products import float32_products, said_of
from logderiv._core.pytrees import jit
from logderiv._core.tables import named_leaves, table
from logderiv.likelihood.probability import (
    all_factors,
    log_factors,
    log_prob,
    one_trajectory,
    prob,
    running_product,
    signed_log,
)
from logderiv.likelihood.steps import check_steps
from logderiv.types import Params, SignedLog, Trajectory


class Case(enum.IntEnum):
    """How the two sides of the identity stand to each other on a computer."""

    AGREE = 0
    UNDERFLOW = 1
    OVERFLOW = 2
    ZERO_FACTOR = 3
    DIFFER = 4


_MEANING = (  # of the cases, in their order
    "both forms agree to within 8 times the resolution of log P and the rounding of the product",
    "the product underflows, or its terms do; the score form is right",
    "the product of densities overflows; the score form is right",
    "a factor is exactly zero: log P = -inf, and only the direct form is right",
    "the forms differ by more than rounding: prob and log_prob of the policy do not belong together",
)


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
        difference: Per leaf, the largest difference of the two forms over the largest magnitude of the score form, or, where that is
            larger, over P times what the score would be if its terms did not cancel: about √(Σ_t (∂ℓ_t)²), ℓ_t = log π(a_t|s_t), since
            it is the terms that are rounded. NaN where there is nothing to compare.
        resolution: eps * |log P|: the relative rounding of P itself when it comes from the logarithm. A difference of
            this size says nothing against either form.
        allowed: The largest difference that counts as agreement: 8 (`resolution` + eps * `num_factors`), the latter for the
            product.
        first_underflow: Number of the factor (from 0) at which the running product becomes zero without any factor
            being exactly zero; -1 if none does.
        first_overflow: Number of the factor at which the running product becomes infinite; -1 if none does.
        products: Whether all digits of the policy's float32 products count on an accelerator, int32: 0 they do, 1 fewer were asked for, 2
            no precision is named and the device decides, 3 not known. The report says so where the device is no CPU.
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
    allowed: jax.Array
    first_underflow: jax.Array
    first_overflow: jax.Array
    products: jax.Array

    def __str__(self) -> str:
        if is_traced(self.case) or np.ndim(self.case):
            return f"Comparison of shape {np.shape(self.case)}: index one trajectory with jax.tree.map to print it."
        lines = [
            "grad P = P * grad log P",
            f"  P by the product of {int(self.num_factors)} factors   {float(self.prob):.6g}",
            f"  P by the sum of logarithms     exp({float(self.log_prob):.8g}) = {_power_of_ten(float(self.log_prob))}",
        ]
        if self.first_underflow >= 0:
            lines.append(f"  the running product becomes zero at factor {int(self.first_underflow)}")
        if self.first_overflow >= 0:
            lines.append(f"  the running product becomes infinite at factor {int(self.first_overflow)}")
        lines += [f"  {line}" for line in said_of(self.products)]
        forms = jax.tree.leaves(self.score_form, is_leaf=_is_signed_log)
        columns = forms, jax.tree.leaves(self.score), jax.tree.leaves(self.difference)
        rows = []
        for (name, direct), form, score, gap in zip(named_leaves(self.direct), *columns, strict=True):
            product = _power_of_ten(float(np.max(form.logabs, initial=-np.inf)))
            largest = [float(np.max(np.abs(x), initial=0.0)) for x in (direct, score)]
            rows.append((name, *largest, product, float(gap), float(self.allowed)))
        names = ("leaf", "max |direct|", "max |score|", "max |P score|", "difference", "allowed")
        lines.append(table(names, "<24 >14.4g >13.4g >18 >12.1e >12.1e", rows))
        return "\n".join([*lines, f"  => {_MEANING[int(self.case)]}"])


def compare(params: Params, policy: Any, trajectory: Trajectory, *, environment: Any = None) -> Comparison:
    """Both sides of ∇P = P ∇log P for one trajectory, and which of them to believe.

    The left side differentiates the product of probabilities (`jax.grad(prob)`), the right side is built from the score
    (`jax.grad(log_prob)`) in signed-log form. Four things can happen: they agree; the product underflows, or a product
    of densities overflows, while the score form stays right; or a factor is exactly zero, where the logarithm is
    `-inf` and only the direct form is right, the honest limit of the identity. Just above the smallest normal number the terms of
    the product's gradient underflow first; a difference that this explains counts as underflow, too.

    Args:
        params: Parameters of the policy, floating point.
        policy: A policy, or a function `(params, observation) -> distribution`.
        trajectory: One trajectory, leading axis `(T,)`; `jax.vmap` for a batch.
        environment: With it, the start and the dynamics are part of P.

    Returns:
        A `Comparison`; print it.

    Raises:
        ValueError: A batch was given; shapes of the trajectory disagree; an action is out of range.
        TypeError: A parameter is not floating point.
    """
    check_params(params)
    trajectory = one_trajectory(trajectory, environment)
    return _compare(wide(params), *check_steps(params, policy, trajectory), environment)


@jit
def _compare(params: Any, policy: Any, trajectory: Trajectory, environment: Any) -> Comparison:
    value, direct = jax.value_and_grad(prob)(params, policy, trajectory, environment=environment)
    logp, score = jax.value_and_grad(log_prob)(params, policy, trajectory, environment=environment)
    running = running_product(all_factors(params, policy, trajectory, environment=environment))

    valid_steps = jnp.sum(trajectory.valid)
    num_factors = valid_steps if environment is None else 2 * valid_steps + jnp.minimum(valid_steps, 1)
    zero_factor = jnp.isneginf(logp)
    at_underflow = jnp.where(zero_factor, -1, _first(running == 0))
    at_overflow = _first(jnp.isinf(running))

    score_form = signed_log(score, logp)
    terms = signed_log(_without_cancellation(params, policy, trajectory), logp)
    scale = jax.tree.map(_scale, score_form, terms, is_leaf=_is_signed_log)
    difference = jax.tree.map(_difference, direct, score_form, scale)
    resolution = jnp.finfo(logp.dtype).eps * jnp.abs(logp)
    rounding = jnp.finfo(value.dtype).eps * num_factors.astype(logp.dtype)  # of the product itself
    allowed = 8 * (resolution + rounding)
    lost = jax.tree.map(partial(_lost, num=num_factors, allowed=allowed), direct, score_form, scale, difference)
    agree = [d <= allowed for d in jax.tree.leaves(difference)]  # False where a difference is NaN
    differs = ~jnp.all(jnp.stack(agree))
    underflows = (at_underflow >= 0) | jnp.any(jnp.stack(jax.tree.leaves(lost)))
    conditions = zero_factor, at_overflow >= 0, underflows, differs
    cases = Case.ZERO_FACTOR, Case.OVERFLOW, Case.UNDERFLOW, Case.DIFFER
    case = jnp.select(conditions, list(map(jnp.int32, cases)), jnp.int32(Case.AGREE))
    forms = direct, score, score_form, difference
    products = float32_products(lambda params: log_prob(params, policy, trajectory), params)
    return Comparison(case, num_factors, value, logp, *forms, resolution, allowed, at_underflow, at_overflow, products)


def _is_signed_log(x: Any) -> bool:
    return isinstance(x, SignedLog)


def _first(condition: jax.Array) -> jax.Array:
    return jnp.where(jnp.any(condition), jnp.argmax(condition), -1)


def _without_cancellation(params: Any, policy: Any, trajectory: Trajectory) -> Any:
    """About √(Σ_t (∂ℓ_t)²), entry by entry: the largest of four |Σ_t z_t ∂ℓ_t| with z_t from N(0, 1), whose mean square it is."""
    factors, pull = jax.vjp(lambda params: log_factors(params, policy, trajectory), params)
    draws = jax.random.normal(jax.random.key(0), (*factors.shape, 4), factors.dtype)
    (sums,) = jax.vmap(pull, in_axes=-1)(draws)
    return jax.tree.map(lambda x: jnp.max(jnp.abs(x), axis=0), sums)


def _scale(form: SignedLog, terms: SignedLog) -> jax.Array:
    """The logarithm of what a difference is relative to: the largest entry of the score form, or of its terms where they cancel."""
    return jnp.maximum(jnp.max(form.logabs, initial=-jnp.inf), jnp.max(terms.logabs, initial=-jnp.inf))


def _difference(direct: jax.Array, form: SignedLog, log_scale: jax.Array) -> jax.Array:
    """Largest |direct - form| over the scale, computed relative to the latter so that nothing underflows."""
    usable = jnp.isfinite(log_scale) & jnp.all(jnp.isfinite(direct))
    scale = jnp.where(usable, log_scale, 0)
    direct = direct.astype(form.logabs.dtype)
    sign, logabs = signed_log(direct, -scale)
    gap = sign * jnp.exp(logabs) - form.sign * jnp.exp(form.logabs - scale)
    both_zero = jnp.isneginf(log_scale) & jnp.all(direct == 0)
    return jnp.where(usable, jnp.max(jnp.abs(gap), initial=0), jnp.where(both_zero, 0, jnp.nan))


def _lost(
    direct: jax.Array,
    form: SignedLog,
    log_scale: jax.Array,
    difference: jax.Array,
    *,
    num: jax.Array,
    allowed: jax.Array,
) -> jax.Array:
    """Whether the product's gradient lies below the smallest normal number, or differs by no more than terms that do.

    Each term of less than this number may be lost, so that the forms may differ by as many of them as there are factors.
    """
    tiny = jnp.log(jnp.finfo(direct.dtype).tiny).astype(form.logabs.dtype)
    largest = jnp.max(form.logabs, initial=-jnp.inf)
    terms = 8 * num.astype(tiny.dtype) * jnp.exp(tiny - log_scale)
    return jnp.isfinite(largest) & (largest < tiny) | (difference > allowed) & (difference <= allowed + terms)


def _power_of_ten(log: float) -> str:
    """`exp(log)` in scientific notation, however small."""
    return f"{decimal.Context(Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX).exp(decimal.Decimal(log)):.5g}"
