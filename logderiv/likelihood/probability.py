"""The probability of a trajectory: its factors, their sum of logarithms and their product.

    P(τ|θ) = ρ_0(s_0) Π_t π_θ(a_t|s_t) p(s_{t+1}|s_t, a_t)

Without `environment` only the factors of the policy are taken, which is all that depends on θ: the start and the dynamics drop out of every gradient.

Only the direct form multiplies. Everything else sums logarithms, by the cheapest route that
`logderiv.likelihood.over_steps` knows.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from logderiv._core import check
from logderiv._core.arrays import accumulator_dtype, as_trajectory, check_params, summable, unbroken, wide, widest
from logderiv._core.pytrees import jit
from logderiv.likelihood.sequences import per_trajectory
from logderiv.likelihood.steps import factor, fill_invalid, log_factor, over_steps, weighted_log_factor
from logderiv.types import Params, SignedLog, Trajectory


def log_factors(params: Params, policy: Any, trajectory: Trajectory, *, block_size: int | None = None) -> jax.Array:
    """The log-factors log π_θ(a_t|s_t) of every step; 0 on invalid steps.

    A memoryless policy is evaluated in blocks of rows, one with memory in checkpointed segments of time, a policy with
    its own `log_factors` once per trajectory. Any leading batch axes are taken natively: use that rather than `jax.vmap`, which
    costs 1.3 to 4 times the time on a CPU.

    Args:
        params: Parameters of the policy.
        policy: A policy, or a function `(params, observation) -> distribution`.
        trajectory: Leading axes `(*batch, T)`.
        block_size: Rows in a block; `None` for the backend's default. Speed and memory only.

    Returns:
        Shape `(*batch, T)`.

    Raises:
        ValueError: Shapes of the trajectory disagree, the policy's log-probability is not a scalar, `block_size` is below 1, or,
            outside `jax.jit`, an action of a valid step is out of range. Inside `jax.jit` such an action has log-probability `-inf`.
        TypeError: Not a policy, it does not return a distribution, or a categorical action is a float.

    Gradients: flow through `params`, observations and actions, at any order. Nothing is detached.
    """
    return over_steps(log_factor, params, policy, trajectory, block_size=block_size)


def log_prob(
    params: Params, policy: Any, trajectory: Trajectory, *, environment: Any = None, block_size: int | None = None
) -> jax.Array:
    """The log-probability log P(τ|θ): the sum over valid steps of the log-factors.

    The sum is pairwise and taken in float32 at least, so its relative error does not grow with `T`.

    Args:
        params: Parameters of the policy; first, so that `jax.grad(log_prob)` is the score.
        policy: A policy, or a function `(params, observation) -> distribution`.
        trajectory: Leading axes `(*batch, T)`.
        environment: With it, log ρ_0 and the dynamics' log-densities are added; it must know them.
        block_size: Rows in a block; `None` for the backend's default. Speed and memory only.

    Returns:
        Shape `(*batch,)`; float32 for half-precision policies.

    Raises:
        ValueError: Shapes of the trajectory disagree, the policy's log-probability is not a scalar, `block_size` is below 1,
            `environment` is a black box, or, outside `jax.jit`, an action of a valid step is out of range.
        TypeError: Not a policy, it does not return a distribution, or a categorical action is a float.

    Gradients: flow through `params`, observations and actions, at any order. Nothing is detached.

    Example:
        >>> import jax, jax.numpy as jnp, logderiv as ld
        >>> tau = ld.rollout(jnp.zeros(2), jax.random.key(0), ld.shared_softmax, ld.environments.short_corridor(), horizon=8)
        >>> steps = int(tau.valid.sum())
        >>> abs(float(log_prob(jnp.zeros(2), ld.shared_softmax, tau)) / steps + 0.693147) < 1e-6
        True
    """
    total = over_steps(log_factor, params, policy, trajectory, reduce="time", block_size=block_size)
    if environment is None:
        return total
    initial, dynamics = environment_log_factors(environment, trajectory)
    dtype = widest(total.dtype, initial.dtype, dynamics.dtype)
    return total.astype(dtype) + (jnp.sum(dynamics.astype(dtype), axis=-1) + initial.astype(dtype))


def weighted_log_prob(
    params: Params, policy: Any, trajectory: Trajectory, weights: jax.Array, *, block_size: int | None = None
) -> jax.Array:
    """Σ_n Σ_t w_nt log π_θ(a_nt|s_nt): one number, whose gradient is the weighted sum of scores.

    What every estimator of order one differentiates. A policy with sufficient statistics (a tabular one) has its steps
    counted; any other is evaluated as in `log_factors`.

    Args:
        params: Parameters of the policy.
        policy: A policy, or a function `(params, observation) -> distribution`.
        trajectory: Leading axes `(*batch, T)`.
        weights: Shape `(*batch, T)`; detached, cast to the dtype of the log-factors. Those of invalid steps are not used, and a step of
            weight 0 does not count, even if it is impossible.
        block_size: Rows in a block; `None` for the backend's default. Speed and memory only.

    Returns:
        A scalar, in float32 at least.

    Raises:
        ValueError: Weights or a field of the trajectory have another shape, the policy's log-probability is not a scalar, `block_size`
            is below 1, or, outside `jax.jit`, an action of a valid step is out of range.
        TypeError: Not a policy, it does not return a distribution, or a categorical action is a float.

    Gradients: flow through `params`, observations and actions, at any order; the weights are detached.
    """
    trajectory, weights = as_trajectory(trajectory), summable(weights, "weights")
    hint = "that of trajectory.valid; a (N, 1) against a (N,) would broadcast to (N, N)"
    check.shape(trajectory.valid.shape, hint=hint, weights=weights)
    return over_steps(weighted_log_factor, params, policy, trajectory, weights, reduce="all", block_size=block_size)


def prob(
    params: Params, policy: Any, trajectory: Trajectory, *, environment: Any = None, block_size: int | None = None
) -> jax.Array:
    """P(τ|θ): the product of the probabilities themselves, multiplied out by `lax.scan`.

    This is the direct form that the log-derivative identity is compared with. It underflows (about 127 fair coins in
    float32), but it is right where a factor is exactly zero, which the logarithm is not.

    Args:
        params: Parameters of the policy.
        policy: A policy, or a function `(params, observation) -> distribution`.
        trajectory: Leading axes `(*batch, T)`.
        environment: With it, its start and dynamics are part of P; it must know their densities.
        block_size: Rows in a block; `None` for the backend's default. Speed and memory only.

    Returns:
        Shape `(*batch,)`, float32 at least.

    Raises:
        ValueError: Shapes of the trajectory disagree, the policy's probability is not a scalar, `block_size` is below 1,
            `environment` is a black box, or, outside `jax.jit`, an action of a valid step is out of range.
        TypeError: Not a policy, it does not return a distribution, or a categorical action is a float.

    Gradients: `jax.grad(prob)` differentiates the product itself. Nothing is detached.
    """
    factors = all_factors(params, policy, trajectory, environment=environment, block_size=block_size)
    return running_product(factors)[..., -1]


def grad_prob(params: Params, policy: Any, trajectory: Trajectory, *, environment: Any = None) -> Any:
    """∇P = P ∇log P of one trajectory as sign and logarithm of the magnitude, leaf by leaf.

    `sign = sign(score)` and `logabs = log P + log|score|`, so the gradient survives where `P` has long been zero in
    floating point. At a factor of exactly zero it is not defined by this form: use `jax.grad(prob)`.

    Args:
        params: Parameters of the policy, floating point.
        policy: A policy, or a function `(params, observation) -> distribution`.
        trajectory: Leading axis `(T,)`; use `jax.vmap` for a batch.
        environment: With it, its start and dynamics are part of P; it must know their densities.

    Returns:
        Pytree of `params` with a `SignedLog` in the place of each leaf.

    Raises:
        ValueError: A batch was given, `environment` is a black box, or an action of a valid step is out of range.
        TypeError: A parameter is not floating point, or not a policy.
    """
    check_params(params)
    trajectory = one_trajectory(trajectory, environment)
    logp, score = jax.value_and_grad(log_prob)(wide(params), policy, trajectory, environment=environment)
    return signed_log(score, logp)


def signed_log(tree: Any, log_scale: jax.Array) -> Any:
    """`exp(log_scale) * x` for each leaf x, as `SignedLog`."""

    def leaf(x: jax.Array) -> SignedLog:
        x = x.astype(accumulator_dtype(x.dtype))
        logabs = log_scale.astype(x.dtype) + jnp.log(jnp.where(x == 0, 1, jnp.abs(x)))
        return SignedLog(jnp.sign(x), jnp.where(x == 0, -jnp.inf, logabs))

    return jax.tree.map(leaf, tree)


@jit
def running_product(factors: jax.Array) -> jax.Array:
    """Products of the first 1, 2, ... factors along the last axis, by `lax.scan`."""

    def step(product: jax.Array, factor: jax.Array) -> tuple[jax.Array, jax.Array]:
        product = product * factor
        return product, product

    start = jnp.ones(factors.shape[:-1], factors.dtype)
    return jnp.moveaxis(lax.scan(step, start, jnp.moveaxis(factors, -1, 0))[1], 0, -1)


def one_trajectory(trajectory: Trajectory, environment: Any) -> Trajectory:
    """The trajectory, checked to be a single one."""
    trajectory = as_trajectory(trajectory, prefix=environment is not None)
    if batch := trajectory.valid.shape[:-1]:
        raise ValueError(f"trajectory: expected one trajectory, shape (T,), received batch axes {batch}; use jax.vmap.")
    return trajectory


def all_factors(
    params: Params, policy: Any, trajectory: Trajectory, *, environment: Any = None, block_size: int | None = None
) -> jax.Array:
    """Every factor of P(τ|θ) in the order in which they are multiplied; 1 on invalid steps.

    Without `environment` those of the policy, shape `(*batch, T)`; with it ρ_0, π_0, p_0, π_1, p_1, ..., shape `(*batch, 2 T + 1)`.
    """
    trajectory = as_trajectory(trajectory)
    factors = over_steps(factor, params, policy, trajectory, block_size=block_size)
    factors = jnp.where(trajectory.valid, factors, jnp.ones_like(factors))
    if environment is None:
        return factors
    initial, dynamics = map(jnp.exp, environment_log_factors(environment, trajectory))
    dtype = widest(initial.dtype, dynamics.dtype, factors.dtype)
    pairs = jnp.stack([factors.astype(dtype), dynamics.astype(dtype)], axis=-1)
    return jnp.concatenate([initial.astype(dtype)[..., None], pairs.reshape((*initial.shape, -1))], axis=-1)


def environment_log_factors(environment: Any, trajectory: Trajectory) -> tuple[jax.Array, jax.Array]:
    """Log-density of the start `(*batch,)` and of the transitions `(*batch, T)`; 0 on invalid steps.

    A transition looks at the next step, so there must be no holes.
    """
    if not (hasattr(environment, "log_initial") and hasattr(environment, "log_factors")):
        raise ValueError(
            f"environment: expected one with known densities (log_initial and log_factors), received "
            f"{type(environment).__name__}; leave environment out: the unknown factors do not depend on params."
        )
    return _environment_log_factors(environment, as_trajectory(trajectory, prefix=True))


@jit
def _environment_log_factors(environment: Any, trajectory: Trajectory) -> tuple[jax.Array, jax.Array]:
    def both(tau: Trajectory) -> tuple[jax.Array, jax.Array]:
        found = {"log_initial": environment.log_initial(tau), "log_factors": environment.log_factors(tau)}
        initial, dynamics = (summable(x, f"environment.{name}") for name, x in found.items())
        return initial, dynamics

    valid = trajectory.valid
    initial, dynamics = per_trajectory(both, valid.ndim - 1)(fill_invalid(trajectory))
    dynamics = unbroken(valid, dynamics.dtype) * jnp.where(valid, dynamics, 0)
    return jnp.where(valid[..., 0], initial, 0), dynamics
