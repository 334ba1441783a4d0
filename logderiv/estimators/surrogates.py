"""Surrogates: scalars whose derivatives are the estimates.

An estimator is a weighting of per-step scores. With log-factors l = log π(a_t|s_t) of N trajectories and weights w, detached, the
score surrogate is the mean over trajectories of Σ_t w_t l_t. DiCE changes only how the weighted scores are differentiated again,
the clipped surrogate only what a second step on the same batch may do. The value means nothing.

Reductions are sum over time, mean over trajectories. Others have names (`reduce_steps`) and are biased.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from logderiv._core import check
from logderiv._core.arrays import as_mask, check_kind, named_leaf_by_leaf, summable
from logderiv._core.pytrees import pytree
from logderiv.estimators.declaration import Declaration, Part, Structure, biased, concrete
from logderiv.estimators.returns import backward_sums, times_exp
from logderiv.types import Trajectory

Normalizer = Literal["per_trajectory", "per_step_of_trajectory", "per_step_of_batch"]
NORMALIZERS = {  # what each asks of a batch, and what it does to the expectation
    "per_trajectory": (Structure(), Declaration()),
    "per_step_of_trajectory": (
        Structure(),
        biased("per_step_of_trajectory: each trajectory is divided by its own random length"),
    ),
    "per_step_of_batch": (
        Structure(degree=None),
        biased("per_step_of_batch: divided by the random number of steps in the batch"),
    ),
}

_ONE_SHAPE = "a (N, 1) against a (N,) would broadcast to (N, N)"


class Surrogate(Part):
    """Base of surrogates whose weights are detached: L = 1/N Σ_n Σ_t w_{n,t} y_{n,t}, where y decides what they multiply.

    One of your own inherits from this one, with `steps` and the attribute `declaration`, without which it is counted as biased.
    """

    structure = Structure()

    def steps(self, log_factors: jax.Array) -> jax.Array:
        """What the weight of each step multiplies.

        Args:
            log_factors: Shape `(*batch, T)`, 0 on invalid steps.

        Returns:
            y, same shape.
        """
        raise NotImplementedError

    def __call__(self, log_factors: jax.Array, weights: jax.Array) -> jax.Array:
        """The surrogate of a batch.

        Args:
            log_factors: Shape `(*batch, T)`, 0 on invalid steps.
            weights: Same shape; cast to the dtype of `log_factors`.

        Returns:
            A scalar.

        Raises:
            ValueError: The shapes differ.
            TypeError: Complex numbers.

        Gradients: flow through `log_factors`; the weights are detached.
        """
        log_factors, weights = summable(log_factors, "log_factors"), summable(weights, "weights")
        check.shape(log_factors.shape, hint=_ONE_SHAPE, weights=weights)
        weights, steps = lax.stop_gradient(weights).astype(log_factors.dtype), self.steps(log_factors)
        # An impossible choice of weight 0 counts as 0, where the product would be NaN.
        steps = jnp.where((weights == 0) & jnp.isinf(steps), jnp.zeros_like(steps), steps)
        return jnp.mean(jnp.sum(weights * steps, axis=-1))


@pytree
class Score(Surrogate):
    """The score surrogate, right at order one only.

        L = 1/N Σ_n Σ_t w_{n,t} l_{n,t}

    Differentiated twice it yields E Σ w ∇²l and lacks every product of scores.
    """

    declaration = Declaration(order=1)

    def steps(self, log_factors: jax.Array) -> jax.Array:
        return log_factors


@pytree
class DiCE(Surrogate):
    """The infinitely differentiable Monte-Carlo estimator: right at every order.

        L = 1/N Σ_n Σ_t w_{n,t} (□(l_{n,≤t}) − □(l_{n,<t})),  □(x) = exp(x − detached x)

    The same weights serve as for `Score`: reward-to-go minus any legal baseline. The k-th derivative is unbiased for the k-th
    derivative of the objective; in float64, since the box sums log-factors.

    References:
        Foerster et al. (2018), arXiv:1802.05098, eqs. 5-6; Mao et al. (2019), arXiv:1904.09664, for the baseline.
    """

    declaration = Declaration()

    def steps(self, log_factors: jax.Array) -> jax.Array:
        return _own_share(log_factors, _shifted(jnp.cumsum(log_factors, axis=-1)))


@pytree
class LoadedDiCE(Surrogate):
    """DiCE whose dependence on earlier choices decays: l_{≤t} becomes Σ_{s≤t} λ^{t−s} l_s.

        L = 1/N Σ_n Σ_t w_{n,t} (□(Σ_{s≤t} λ^{t−s} l_s) − □(Σ_{s<t} λ^{t−s} l_s))

    `lambda_` = 1 is `DiCE`, exact at every order. Below 1 the gradient is the same, exactly, and higher derivatives trade bias
    for variance; 0 keeps each step's own choice only.

    Attributes:
        lambda_: λ in [0, 1].

    Raises:
        ValueError: `lambda_` is outside [0, 1].

    References:
        Farquhar, Whiteson & Foerster (2019), arXiv:1909.10549, section 4 (Loaded DiCE).
    """

    lambda_: float

    def __post_init__(self) -> None:
        check.between(0, 1, lambda_=self.lambda_)

    @property
    def declaration(self) -> Declaration:
        """Every order at `lambda_` = 1, else order one."""
        lambda_ = concrete("lambda_", self.lambda_)
        if (lambda_ == 1).all():
            return Declaration()
        reason = f"Loaded DiCE forgets earlier choices at lambda = {lambda_} from order 2 on"
        return Declaration(order=1, reasons=(reason,))

    def steps(self, log_factors: jax.Array) -> jax.Array:
        decays = jnp.full_like(log_factors, self.lambda_)
        possible = jnp.where(jnp.isinf(log_factors), jnp.zeros_like(log_factors), log_factors)
        up_to = jnp.flip(backward_sums(jnp.flip(possible, -1), decays), -1)
        return _own_share(log_factors, decays * _shifted(up_to))


def clipped(log_ratio: jax.Array, weight: jax.Array, clip: float | jax.Array | None) -> jax.Array:
    """The clipped surrogate of one step, or of arrays of steps.

        min(ρ w, clip(ρ, 1 − ε, 1 + ε) w),  ρ = exp(l − l_b)

    At ρ = 1 its gradient is w ∇l; it is flat where a step has already moved by more than ε in the direction that its weight asks
    for. It is finite wherever its value has a floating-point number, whatever ρ; a weight of 0 gives 0.

    Args:
        log_ratio: l − l_b, of policy over behavior policy. Any shape.
        weight: Advantage, same shape; cast to the dtype of `log_ratio`.
        clip: ε > 0; `None` does not clip.

    Returns:
        Shape of `log_ratio`; a batch of them is reduced by `reduce_steps`.

    Raises:
        ValueError: The shapes differ, or `clip` is not positive.
        TypeError: Complex numbers.

    Gradients: flow through `log_ratio`; the weight is detached.

    References:
        Schulman et al. (2017), arXiv:1707.06347, eq. 7.
    """
    check.positive(or_none=True, clip=clip)
    log_ratio, weight = summable(log_ratio, "log_ratio"), summable(weight, "weight")
    check.shape(log_ratio.shape, hint=_ONE_SHAPE, weight=weight)
    weight = lax.stop_gradient(weight).astype(log_ratio.dtype)
    if clip is None:
        return times_exp(weight, lax.stop_gradient(log_ratio)) * box(log_ratio)
    clip, up = jnp.asarray(clip, log_ratio.dtype), weight >= 0
    low, high = jnp.maximum(1 - clip, 0), 1 + clip
    flat = jnp.where(up, log_ratio > jnp.log(high), log_ratio < jnp.log(low))
    # Selected before anything is multiplied: the derivative of what is not taken may be infinite, and 0 times it is NaN.
    moving = jnp.where(flat, jnp.zeros_like(log_ratio), log_ratio)
    return times_exp(weight, lax.stop_gradient(moving)) * box(moving) * jnp.where(flat, jnp.where(up, high, low), 1)


def reduce_steps(terms: jax.Array, valid: jax.Array, normalizer: Normalizer) -> jax.Array:
    """One number from per-step terms x, with the normalizer named.

    | normalizer | | |
    |---|---|---|
    | `per_trajectory` | 1/N Σ_n Σ_t x_{n,t} | ours, Dr. GRPO; leaves the gradient unbiased |
    | `per_step_of_trajectory` | 1/N Σ_n 1/T_n Σ_t x_{n,t} | GRPO; weighs a step less in a long trajectory |
    | `per_step_of_batch` | Σ_n Σ_t x_{n,t} / Σ_n T_n | DAPO; divides by a random number |

    Args:
        terms: Shape `(*batch, T)`, 0 on invalid steps; N is the number of trajectories in all.
        valid: Same shape; T_n counts it, and is taken as at least 1.
        normalizer: One of the three.

    Returns:
        A scalar.

    Raises:
        ValueError: None of the three, or the shapes differ.
        TypeError: Complex numbers, or `valid` is no mask.

    Gradients: flow through `terms`.
    """
    terms, valid = summable(terms, "terms"), as_mask(valid, "valid")
    check.shape(terms.shape, hint=_ONE_SHAPE, valid=valid)
    return jnp.sum(terms * step_weights(valid, normalizer, terms.dtype))


def of_each_step(trajectory: Trajectory, weights: Any) -> Any:
    """The weights of an objective, checked to be one number for every step, in float32 at least.

    Args:
        trajectory: Leading axes `(*batch, T)`.
        weights: Pytree; leaves `(*batch, T)`.

    Returns:
        The pytree.

    Raises:
        ValueError: A leaf, named, has another shape.
        TypeError: Complex numbers, or no trajectory.
    """
    check_kind(trajectory)
    shape = np.shape(trajectory.valid)

    def number(x: Any, name: str) -> jax.Array:
        x = summable(x, name)
        if x.shape != shape:
            check.shape(shape, hint=f"that of trajectory.valid; {_ONE_SHAPE}", **{name: x})
        return x

    return named_leaf_by_leaf(number, weights, "weights")


def step_weights(valid: jax.Array, normalizer: Normalizer, dtype: Any) -> jax.Array:
    """What each step counts in `reduce_steps`.

    Args:
        valid: Shape `(*batch, T)`.
        normalizer: One of the three of `reduce_steps`.
        dtype: Of the result.

    Returns:
        Shape of `valid`, invalid steps included.

    Raises:
        ValueError: None of the three.
        TypeError: `valid` is no mask.
    """
    valid = as_mask(valid, "valid")
    num, lengths = math.prod(valid.shape[:-1]), jnp.sum(valid, axis=-1, keepdims=True).astype(dtype)
    divisors = {
        "per_trajectory": jnp.full_like(lengths, num),
        "per_step_of_trajectory": num * jnp.maximum(lengths, 1),
        "per_step_of_batch": jnp.full_like(lengths, jnp.maximum(jnp.sum(lengths), 1)),
    }
    if normalizer not in divisors:
        check.one_of(divisors, normalizer=normalizer)
    return jnp.broadcast_to(1 / divisors[normalizer], valid.shape)


def box(x: jax.Array) -> jax.Array:
    """□(x) = exp(x − detached x): 1, with the derivatives of exp at 0.

    Args:
        x: Any shape; an infinite one is taken as fixed.

    Returns:
        Ones of that shape.

    Raises:
        TypeError: Complex numbers.

    Gradients: those of exp(x − x₀) at x = x₀, at every order.
    """
    x = summable(x, "x")
    x = jnp.where(jnp.isinf(x), jnp.zeros_like(x), x)
    return jnp.exp(x - lax.stop_gradient(x))


def _own_share(log_factors: jax.Array, before: jax.Array) -> jax.Array:
    """What a step adds to the box of the log-factors before it, □(before + l) − □(before), without a difference of large numbers."""
    return box(before) * (box(log_factors) - 1)


def _shifted(x: jax.Array) -> jax.Array:
    """What stood one step earlier, 0 at the first."""
    return jnp.concatenate([jnp.zeros_like(x[..., :1]), x[..., :-1]], axis=-1)
