"""A batch as advantages and baselines see it: what every one of them needs, computed once."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from logderiv._core import check
from logderiv._core.arrays import unbroken
from logderiv._core.blocks import map_rows, wide_block_size
from logderiv.estimators.importance import log_ratios
from logderiv.likelihood.steps import fill_steps
from logderiv.types import Params, Policy, Stream, Trajectories, Trajectory, as_batch

ValueFunction = Callable[[Any, Any], jax.Array]  # of its parameters and an observation


class Batch(NamedTuple):
    """Trajectories, or the steps of a stream, with the factors that their rewards are multiplied by.

    Shapes `(N, T)`; of a stream of E environments `(E, T)`.

    Attributes:
        steps: The trajectories; of a stream its steps, leading axes `(E, T, 1)`.
        valid: Which steps are real.
        rewards: In float32 at least; 0 on invalid steps.
        discounts: 0 where the episode terminates, 1 elsewhere, in the dtype of the rewards.
        discount: γ of the objective, in that dtype. Shape `()`.
        inside: What multiplies `discounts` inside a sum of rewards that were already multiplied by `scale`: 1, or γ where γ^t
            is left out. Shape `()`.
        scale: What every reward is multiplied by before credit is given: the ratio, times γ^t with the step's time in its episode
            unless it is left out.
        ratios: Importance weight of the choices up to each step; ones on policy.
        step_ratios: π/b of each step; ones on policy.
        params: Parameters of the policy whose gradient is wanted, detached.
        policy: That policy.
        ends: Of a stream, whether the step is the last one of its episode; else `None`.
        values: v(s_t) and v(s_{t+1}) of an actor-critic's own value function, leading axes of the steps; `None` without one.
    """

    steps: Trajectory
    valid: jax.Array
    rewards: jax.Array
    discounts: jax.Array
    discount: jax.Array
    inside: jax.Array
    scale: jax.Array
    ratios: jax.Array
    step_ratios: jax.Array
    params: Params
    policy: Policy
    ends: jax.Array | None = None
    values: tuple[jax.Array, jax.Array] | None = None


def prepare(
    estimator: Any, params: Params, policy: Policy, trajectories: Trajectories, value: ValueFunction | None = None
) -> Batch:
    """What the advantage of an estimator is given.

    Args:
        estimator: Its discount, γ^t and importance, a `Weighting`.
        params: Parameters of the policy.
        policy: The policy.
        trajectories: Leading axes `(N, T)`; a stream `(E, T)`.
        value: An actor-critic's own value function, of `params`.

    Returns:
        A `Batch`.
    """
    trajectories, steps = as_batch(trajectories, streams=estimator.structure.streams)
    values = None if value is None else evaluate_value(value, params, steps)
    times, ends = jnp.arange(steps.valid.shape[1])[None], None
    if isinstance(trajectories, Stream):
        times, ends = trajectories.times, trajectories.ends
    shape = steps.valid.shape[:2]  # those of a stream have a third axis, of length one
    discounts, whole = steps.discounts.reshape(shape), unbroken(steps.valid, steps.rewards.dtype)
    rewards = whole * jnp.where(steps.valid, steps.rewards, 0)
    rewards, valid = rewards.reshape(shape), (steps.valid | jnp.isnan(whole)).reshape(shape)
    dtype, importance = rewards.dtype, estimator.importance
    step_ratios = ratios = jnp.ones_like(rewards)
    if importance is not None or estimator.advantage.own_ratios:
        logs = jax.lax.stop_gradient(log_ratios(params, policy, steps))
        step_ratios = jnp.exp(logs).astype(dtype)
        ratios = ratios if importance is None else importance.ratios(logs).astype(dtype)
    discount = jnp.asarray(estimator.discount, dtype)
    return Batch(
        steps=steps,
        valid=valid,
        rewards=rewards,
        discounts=jnp.where(valid, discounts, 1).astype(dtype),
        discount=discount,
        inside=jnp.ones_like(discount) if estimator.gamma_t else discount,
        scale=discount ** times.astype(dtype) * ratios if estimator.gamma_t else ratios,
        ratios=ratios,
        step_ratios=step_ratios,
        params=jax.lax.stop_gradient(params),
        policy=policy,
        ends=ends,
        values=values,
    )


def evaluate_value(
    function: ValueFunction, value_params: Params, trajectories: Trajectory
) -> tuple[jax.Array, jax.Array]:
    """v(s_t) and v(s_{t+1}) for a batch; the observations of invalid steps are never seen.

    Args:
        function: `(value_params, observation) -> scalar`.
        value_params: Its parameters.
        trajectories: Leading axes `(*batch, T)`.

    Returns:
        Two arrays of shape `(*batch, T)`, 0 on invalid steps. Detached.

    Raises:
        ValueError: The function does not return a scalar for one observation.
    """
    valid = trajectories.valid
    values = value_of_each(function, value_params, trajectories.observations, valid)
    last = jax.tree.map(lambda x: jnp.expand_dims(x, valid.ndim - 1), trajectories.final_observation)
    final = value_of_each(function, value_params, last, jnp.any(valid, axis=-1, keepdims=True))
    follows = jnp.roll(valid, -1, axis=-1).at[..., -1].set(False)
    next_values = jnp.where(follows, jnp.roll(values, -1, axis=-1), final)
    return jax.lax.stop_gradient((values, jnp.where(valid, next_values, 0)))


def value_of_each(function: ValueFunction, value_params: Params, observations: Any, valid: jax.Array) -> jax.Array:
    """The value of every observation, 0 on invalid steps.

    Args:
        function: `(value_params, observation) -> scalar`.
        value_params: Its parameters.
        observations: Leading axes `(*batch, T)`.
        valid: Which of them are real. Shape `(*batch, T)`.

    Returns:
        Shape `(*batch, T)`.

    Raises:
        ValueError: The function does not return a scalar for one observation.
    """
    shape = valid.shape
    grid = shape[0], math.prod(shape[1:])
    rows = jax.tree.map(lambda x: x.reshape((*grid, *x.shape[len(shape) :])), fill_steps(observations, valid))
    # One network forwards: large blocks cost little memory.
    values = map_rows(function, value_params, rows, block_size=4 * wide_block_size())
    if values.shape != grid:
        hint = "a scalar for one observation; squeeze its last axis"
        check.shape(grid, hint=hint, **{"values of the value function": values})
    return jnp.where(valid, values.reshape(shape), 0)


def in_groups(x: jax.Array, size: int) -> jax.Array:
    """Consecutive groups.

    Args:
        x: Shape `(N, ...)`.
        size: Trajectories in a group.

    Returns:
        Shape `(N / size, size, ...)`.

    Raises:
        ValueError: `size` does not divide N.
    """
    if x.shape[0] % size:
        raise ValueError(
            f"trajectories: expected a multiple of group_size = {size}, received {x.shape[0]}; "
            "the groups are consecutive: draw each prompt or start group_size times."
        )
    return x.reshape((x.shape[0] // size, size, *x.shape[1:]))


def averaged(weights: jax.Array, valid: jax.Array, per: str) -> tuple[jax.Array, jax.Array]:
    """What a mean over trajectories is taken of.

    Args:
        weights: Shape `(N, T)`.
        valid: Shape `(N, T)`.
        per: "step": every valid step; "trajectory": the first step of every trajectory.

    Returns:
        The weights, and 1 where they count: shape `(N, T)` per step, `(N, 1)` per trajectory.
    """
    if per == "trajectory":
        return weights[:, :1], jnp.ones_like(weights[:, :1])
    return weights, valid.astype(weights.dtype)
