"""The factors of a trajectory's probability, one a step, and their logarithms: the policy's, and those of the environment."""

from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core.arrays import widest
from logderiv._core.pytrees import jit
from logderiv.likelihood.steps import factor, fill_invalid, log_factor, over_steps, per_trajectory
from logderiv.types import Params, Trajectory


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


def all_log_factors(params: Params, policy: Any, trajectory: Trajectory, *, environment: Any = None) -> jax.Array:
    """Every log-factor of P(τ|θ) in the order in which they are multiplied.

    Without `environment` those of the policy, shape `(*batch, T)`; with it
    ρ_0, π_0, p_0, π_1, p_1, ..., shape `(*batch, 2 T + 1)`. Invalid steps are 0.
    """
    logs = log_factors(params, policy, trajectory)
    return logs if environment is None else _interleave(*environment_log_factors(environment, trajectory), logs)


def all_factors(
    params: Params, policy: Any, trajectory: Trajectory, *, environment: Any = None, block_size: int | None = None
) -> jax.Array:
    """Every factor itself, in the order and of the shape of `all_log_factors`; 1 on invalid steps."""
    factors = over_steps(factor, params, policy, trajectory, block_size=block_size)
    factors = jnp.where(trajectory.valid, factors, jnp.ones_like(factors))
    if environment is None:
        return factors
    initial, dynamics = map(jnp.exp, environment_log_factors(environment, trajectory))
    return _interleave(initial, dynamics, factors)


def environment_log_factors(environment: Any, trajectory: Trajectory) -> tuple[jax.Array, jax.Array]:
    """Log-density of the start `(*batch,)` and of the transitions `(*batch, T)`; 0 on invalid steps."""
    if not (hasattr(environment, "log_initial") and hasattr(environment, "log_factors")):
        raise ValueError(
            f"environment: expected one with known densities (log_initial and log_factors), received "
            f"{type(environment).__name__}; leave environment out: the unknown factors do not depend on params."
        )
    return _environment_log_factors(environment, trajectory)


@jit
def _environment_log_factors(environment: Any, trajectory: Trajectory) -> tuple[jax.Array, jax.Array]:
    both = per_trajectory(
        lambda tau: (environment.log_initial(tau), environment.log_factors(tau)), trajectory.valid.ndim - 1
    )
    initial, dynamics = both(fill_invalid(trajectory))
    return jnp.where(trajectory.valid[..., 0], initial, 0), jnp.where(trajectory.valid, dynamics, 0)


def _interleave(initial: jax.Array, dynamics: jax.Array, choices: jax.Array) -> jax.Array:
    """Factors in the order of the product: the start, then choice and transition of every step."""
    dtype = widest(initial.dtype, dynamics.dtype, choices.dtype)
    *batch, length = choices.shape
    pairs = jnp.stack([choices.astype(dtype), dynamics.astype(dtype)], axis=-1).reshape((*batch, 2 * length))
    return jnp.concatenate([initial.astype(dtype)[..., None], pairs], axis=-1)
