"""Sums of later rewards, with and without values of the state. Written for one trajectory; `jax.vmap` for a batch.

Every function takes rewards and per-step discounts γ_t: γ times 0 where the episode terminates and 1 elsewhere. The forms with
values take v_t = v(s_t) as `values` and v'_t = v(s_{t+1}) as `next_values`, where the next observation of the last step is the
final one: a trajectory that was truncated, or cut by the horizon, bootstraps from it; one that terminated does not, because its
discount is 0 there. In the terms of rlax, `next_values` is `v_t` and `values` is `v_tm1`.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from logderiv._core import check
from logderiv._core.arrays import as_mask, summable, unbroken, widest

_NOTHING = -1e30  # the logarithm of 0: lower than any other, and finite, so that differences are no NaN


class Scaled(NamedTuple):
    """Numbers beyond the range of floating point, m eˡ, elementwise: products of many ratios, and what they multiply.

    A ratio of e¹⁰⁰ has no float32, and neither have most products of a thousand ratios; yet multiplied by a reward of 0, or by a
    ratio of e⁻⁹⁰ that comes later, what is wanted is an ordinary number. So logarithms are added, and nothing is exponentiated
    before it has met everything that it is multiplied by. A mantissa of exactly 0 is 0 whatever its logarithm; a NaN stays NaN.

    Attributes:
        mantissa: m.
        log: l, of the same shape; `None` where it is 0 everywhere, as on policy.
    """

    mantissa: jax.Array
    log: Any = None

    @property
    def value(self) -> jax.Array:
        """As a floating-point number; infinite only where it has none."""
        return self.mantissa if self.log is None else times_exp(self.mantissa, self.log)

    def plus(self, mantissa: jax.Array, log: Any) -> "Scaled":
        """The sum of this and another one; exactly 0 where equal mantissas of equal logarithms cancel."""
        if self.log is None and log is None:
            return Scaled(self.mantissa + mantissa)
        first, second = _bounded(*self), _bounded(mantissa, log)
        peak = jnp.maximum(first.log, second.log)
        parts = [x.mantissa * jnp.exp(x.log - peak) for x in (first, second)]
        return Scaled(parts[0] + parts[1], peak)


def reward_to_go(rewards: jax.Array, discounts: jax.Array) -> jax.Array:
    """Discounted sum of rewards from each step to the end of a trajectory.

        G_t = r_t + γ_t G_{t+1},  G_T = 0

    By an associative scan: float32 stays exact to 1e-7 at 10^6 steps, where a sequential sum is wrong by a percent.

    Args:
        rewards: Reward on leaving step t. Shape `(T,)`.
        discounts: Continuation factor in [0, 1], zero where the episode terminates. Shape `(T,)`.

    Returns:
        G_t, shape `(T,)`, in the widest dtype of the two, float32 at least.

    Raises:
        TypeError: Complex numbers.
        ValueError: The two shapes differ, or are not one-dimensional.

    Gradients: flow through both arguments; nothing is detached.

    Example:
        >>> import jax.numpy as jnp
        >>> reward_to_go(jnp.ones(3), jnp.array([1.0, 0.5, 0.0])).tolist()
        [2.5, 1.5, 1.0]

    References:
        Sutton & Barto (2018), Reinforcement Learning, 2nd ed., eq. 3.9.
    """
    return backward_sums(*_of_one(rewards=rewards, discounts=discounts))


def total_return(rewards: jax.Array, discounts: jax.Array) -> jax.Array:
    """The whole return G_0 at every step: the weight of the plain identity.

    Args:
        rewards: Reward on leaving step t. Shape `(T,)`.
        discounts: Continuation factor in [0, 1], zero where the episode terminates. Shape `(T,)`.

    Returns:
        G_0 repeated, shape `(T,)`.

    Raises:
        TypeError: Complex numbers.
        ValueError: The two shapes differ, or are not one-dimensional.

    Gradients: flow through both arguments; nothing is detached.

    References:
        Williams (1992), Machine Learning 8, theorem 1 (REINFORCE).
    """
    returns = reward_to_go(rewards, discounts)
    return jnp.broadcast_to(returns[0], returns.shape)


def td_residuals(rewards: jax.Array, discounts: jax.Array, values: jax.Array, next_values: jax.Array) -> jax.Array:
    """One-step errors of a value function (temporal differences).

        δ_t = r_t + γ_t v'_t − v_t

    Formed as γ_t (v'_t − v_t) + r_t − (1 − γ_t) v_t: neighboring values are subtracted from each other before anything is
    rounded, so that large ones cost no digits. Where γ_t is 0 an infinite v'_t, or NaN, counts for nothing.

    Args:
        rewards: Reward on leaving step t. Shape `(T,)`.
        discounts: γ times 0 at termination, 1 elsewhere. Shape `(T,)`.
        values: v(s_t), shape `(T,)`.
        next_values: v(s_{t+1}), of the final observation after the last valid step. Shape `(T,)`.

    Returns:
        δ_t, shape `(T,)`, in the widest dtype of the four, float32 at least.

    Raises:
        TypeError: Complex numbers.
        ValueError: The shapes differ, or are not one-dimensional.

    Gradients: flow through everything, the bootstrap included; nothing is detached.

    References:
        Sutton & Barto (2018), Reinforcement Learning, 2nd ed., eq. 6.5.
    """
    arrays = {"rewards": rewards, "discounts": discounts, "values": values, "next_values": next_values}
    rewards, discounts, values, next_values = _of_one(**arrays)
    return discounts * (_used(next_values, discounts) - values) + (rewards - (1 - discounts) * values)


def lambda_returns(
    rewards: jax.Array,
    discounts: jax.Array,
    next_values: jax.Array,
    *,
    lambda_: float | jax.Array = 1.0,
    valid: jax.Array | None = None,
) -> jax.Array:
    """Returns that bootstrap from values.

        G_t = r_t + γ_t ((1 − λ_t) v'_t + λ_t G_{t+1}),  and G = r + γ v' at the last valid step

    | `lambda_` | name |
    |---|---|
    | 0 | one-step (temporal-difference) target |
    | 1 | discounted return, bootstrapped where the trajectory was cut |

    Args:
        rewards: Reward on leaving step t. Shape `(T,)`.
        discounts: γ times 0 at termination, 1 elsewhere. Shape `(T,)`.
        next_values: v(s_{t+1}), of the final observation after the last valid step. Shape `(T,)`.
        lambda_: In [0, 1], a number or shape `(T,)`.
        valid: Prefix mask, shape `(T,)`; invalid steps may hold anything and return 0. `None`: all are valid.

    Returns:
        G_t, shape `(T,)`, in the widest dtype of the three, float32 at least; NaN where a traced `valid` has a hole.

    Raises:
        TypeError: Complex numbers, or `valid` is no mask.
        ValueError: The shapes differ, or are not one-dimensional; `lambda_` is outside [0, 1], or `valid` has a hole.

    Gradients: flow through everything; nothing is detached.

    References:
        Sutton & Barto (2018), Reinforcement Learning, 2nd ed., eq. 12.18; `rlax.lambda_returns` is the same function of the same
        arrays.
    """
    arrays = {"rewards": rewards, "discounts": discounts, "next_values": next_values}
    rewards, discounts, next_values = _of_one(valid, **arrays)
    present = jnp.ones(rewards.shape, bool) if valid is None else as_mask(valid, "valid")
    mixing = jnp.append(present[1:], False).astype(rewards.dtype) * _mixing(lambda_, rewards)
    own = discounts * (1 - mixing)
    return backward_sums(rewards + own * _used(next_values, own), discounts * mixing)


def generalized_advantages(
    rewards: jax.Array,
    discounts: jax.Array,
    values: jax.Array,
    next_values: jax.Array,
    *,
    lambda_: float | jax.Array = 1.0,
    valid: jax.Array | None = None,
) -> jax.Array:
    """Generalized advantage estimation: discounted sums of temporal differences δ_t (`td_residuals`).

        A_t = δ_t + γ_t λ_t A_{t+1},  A_T = 0

    Equal to `lambda_returns` minus `values`, without subtracting large numbers.

    Args:
        rewards: Reward on leaving step t. Shape `(T,)`.
        discounts: γ times 0 at termination, 1 elsewhere. Shape `(T,)`.
        values: v(s_t), shape `(T,)`.
        next_values: v(s_{t+1}), of the final observation after the last valid step. Shape `(T,)`.
        lambda_: In [0, 1], a number or shape `(T,)`.
        valid: Prefix mask, shape `(T,)`; invalid steps may hold anything and return 0. `None`: all are valid.

    Returns:
        A_t, shape `(T,)`, in the widest dtype of the four, float32 at least; NaN where a traced `valid` has a hole.

    Raises:
        TypeError: Complex numbers, or `valid` is no mask.
        ValueError: The shapes differ, or are not one-dimensional; `lambda_` is outside [0, 1], or `valid` has a hole.

    Gradients: flow through everything, the values included; nothing is detached.

    References:
        Schulman et al. (2016), arXiv:1506.02438, eq. 16; `rlax.truncated_generalized_advantage_estimation`.
    """
    arrays = {"rewards": rewards, "discounts": discounts, "values": values, "next_values": next_values}
    rewards, discounts, values, next_values = _of_one(valid, **arrays)
    residuals = td_residuals(rewards, discounts, values, next_values)
    return backward_sums(residuals, discounts * _mixing(lambda_, residuals))


class VTraceReturns(NamedTuple):
    """What `vtrace` returns, each `(T,)`.

    Attributes:
        targets: What the value function should predict.
        advantages: Weights of the scores, the clipped ratio included.
        q_values: Estimated value of the action taken.
    """

    targets: jax.Array
    advantages: jax.Array
    q_values: jax.Array


def vtrace(
    rewards: jax.Array,
    discounts: jax.Array,
    values: jax.Array,
    next_values: jax.Array,
    ratios: jax.Array,
    *,
    lambda_: float | jax.Array = 1.0,
    clip_rho: float | jax.Array = 1.0,
    clip_c: float | jax.Array = 1.0,
    clip_pg: float | jax.Array = 1.0,
) -> VTraceReturns:
    """V-trace targets and policy-gradient advantages of one trajectory, from ratios ρ_t clipped step by step.

        e_t = min(ρ̄, ρ_t) δ_t + γ_t λ min(c̄, ρ_t) e_{t+1},  e_T = 0      errors of the values, δ_t as in `td_residuals`
        targets_t = v_t + e_t
        A_t = min(ρ̄_pg, ρ_t) (δ_t + γ_t λ e_{t+1})

    With all ratios 1 and `lambda_` = 1 the targets are the bootstrapped discounted returns. Invalid steps: rewards and both
    values 0, which `advantages.VTrace` sees to.

    Args:
        rewards: Reward on leaving step t. Shape `(T,)`.
        discounts: γ times 0 at termination, 1 elsewhere. Shape `(T,)`.
        values: v(s_t), shape `(T,)`.
        next_values: v(s_{t+1}), of the final observation after the last step. Shape `(T,)`.
        ratios: π/b of each step alone. Shape `(T,)`.
        lambda_: In [0, 1], a number or shape `(T,)`.
        clip_rho: ρ̄, which decides what the values converge to.
        clip_c: c̄, which decides how fast.
        clip_pg: ρ̄_pg of the advantages.

    Returns:
        `VTraceReturns`, in the widest dtype of the arrays, float32 at least.

    Raises:
        TypeError: Complex numbers.
        ValueError: The shapes differ, or are not one-dimensional; `lambda_` is outside [0, 1], or a clip negative.

    Gradients: flow through everything; nothing is detached.

    References:
        Espeholt et al. (2018), arXiv:1802.01561, eq. 1, remark 1 and section 4.2; `rlax.vtrace_td_error_and_advantage`, where
        `clip_c` is 1.
    """
    arrays = {"rewards": rewards, "discounts": discounts, "values": values, "next_values": next_values}
    rewards, discounts, values, next_values, ratios = _of_one(**arrays, ratios=ratios)
    clips: dict[str, Any] = {"clip_rho": clip_rho, "clip_c": clip_c, "clip_pg": clip_pg}
    check.not_negative(**clips)
    at_most = {name: jnp.minimum(ratios, summable(clip, name).astype(ratios.dtype)) for name, clip in clips.items()}
    residuals, kept = td_residuals(rewards, discounts, values, next_values), discounts * _mixing(lambda_, rewards)
    errors = backward_sums(at_most["clip_rho"] * residuals, kept * at_most["clip_c"])
    later = kept * jnp.append(errors[1:], jnp.zeros((), errors.dtype))
    advantages = at_most["clip_pg"] * (residuals + later)
    q_values = rewards + discounts * _used(next_values, discounts) + later
    return VTraceReturns(values + errors, advantages, q_values)


def backward_sums(terms: jax.Array, factors: jax.Array) -> jax.Array:
    """Sums from the end, by an associative scan.

        y_t = x_t + c_t y_{t+1},  y_T = 0

    Args:
        terms: x, shape `(*batch, T)`.
        factors: c, same shape.

    Returns:
        y, same shape, dtype of `terms`.

    Gradients: flow through both arguments; nothing is detached.
    """

    def combine(later: Any, earlier: Any) -> tuple[jax.Array, jax.Array]:
        return earlier[0] + earlier[1] * later[0], earlier[1] * later[1]

    pair = terms, factors.astype(terms.dtype)
    return lax.associative_scan(combine, pair, reverse=True, axis=terms.ndim - 1)[0]


def times_exp(x: jax.Array, log: jax.Array) -> jax.Array:
    """The product x eˡ, which is infinite or 0 only where the product is; x itself, bit for bit, where l = 0.

    Args:
        x: Any shape.
        log: l, same shape, in the same dtype; ±inf is allowed.

    Returns:
        Same shape.

    Gradients: not to be differentiated in `log`, whose parts overflow before the whole does; `logderiv.estimators.box` does that.
    """
    # In three parts, each of which can be represented: every product lies between x and the result.
    most = 0.99 * math.log(float(jnp.finfo(x.dtype).max))
    part = jnp.exp(jnp.clip(log / 3, -most, most))
    return x * part * part * part


def scaled_sums(terms: Scaled, factors: Scaled) -> Scaled:
    """`backward_sums` of terms and factors that may be beyond the range of floating point.

        y_t = x_t + c_t y_{t+1},  y_T = 0

    Args:
        terms: x, shape `(N, T)`.
        factors: c, whose mantissas are in [0, 1], same shape; without a logarithm where the terms have none.

    Returns:
        y, same shape.
    """
    if terms.log is None:
        return Scaled(backward_sums(terms.mantissa, factors.mantissa))

    def combine(later: Any, earlier: Any) -> tuple[Scaled, jax.Array, jax.Array]:
        (y, c_later, q_later), (x, c, q) = later, earlier
        return x.plus(c * y.mantissa, q + y.log), c * c_later, q + q_later

    c = factors.mantissa
    q = jnp.zeros_like(c) if factors.log is None else jnp.maximum(factors.log, _NOTHING)
    return lax.associative_scan(combine, (_bounded(*terms), c, q), reverse=True, axis=c.ndim - 1)[0]


def _bounded(mantissa: jax.Array, log: Any) -> Scaled:
    """With a finite logarithm, the lowest one where the mantissa is 0."""
    log = jnp.zeros_like(mantissa) if log is None else jnp.clip(log, _NOTHING, -_NOTHING)
    nothing = (mantissa == 0) & ~jnp.isnan(log)
    return Scaled(mantissa, jnp.where(nothing, jnp.full_like(log, _NOTHING), log))


def _of_one(valid: Any = None, **arrays: Any) -> list[jax.Array]:
    """Arrays of one trajectory, in the widest dtype among them, float32 at least; 0 on invalid steps, NaN where there is a hole."""
    found = {name: summable(x, name) for name, x in arrays.items()}
    shapes: dict[tuple[int, ...], str] = {}
    for name, x in found.items():
        shapes.setdefault(x.shape, name)  # the first of each
    if len(shapes) > 1 or len(min(shapes)) != 1:
        received = ", ".join(f"{name} {shape}" for shape, name in shapes.items())
        raise ValueError(
            f"expected arrays of one trajectory, all of shape (T,), received {received}; use jax.vmap for a batch."
        )
    dtype = widest(*(x.dtype for x in found.values()))
    if valid is None:
        return [x.astype(dtype) for x in found.values()]
    valid = as_mask(valid, "valid")
    check.shape(*shapes, hint="as the rewards", valid=valid)
    whole = unbroken(valid, dtype, "valid")
    return [whole * jnp.where(valid, x.astype(dtype), 0) for x in found.values()]


def _mixing(lambda_: Any, like: jax.Array) -> jax.Array:
    """λ, one number or one a step, in the dtype of the rewards."""
    check.between(0, 1, lambda_=lambda_)
    found = summable(lambda_, "lambda_").astype(like.dtype)
    if found.ndim:
        check.shape(like.shape, hint="or a number", lambda_=found)
    return found


def _used(values: jax.Array, factor: jax.Array) -> jax.Array:
    """The values, and 0 where one that is not finite would be multiplied by 0."""
    return jnp.where((factor == 0) & ~jnp.isfinite(values), 0, values)
