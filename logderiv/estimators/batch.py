"""A batch as advantages and baselines see it: what every one of them needs, computed once."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from logderiv._core import check
from logderiv._core.arrays import as_batch, given, refuse_complex, unbroken
from logderiv._core.blocks import fill_steps, map_rows, wide_block_size
from logderiv.estimators.importance import log_ratios
from logderiv.likelihood.steps import own_steps
from logderiv.types import Params, Policy, Stream, Trajectories, Trajectory

_SMALL = 1e-30  # powers of a discount from here on are taken by their logarithm, where a ratio may make up for them
ValueFunction = Callable[[Any, Any], jax.Array]  # of its parameters and an observation
SHARED = ("discount", "inside", "params", "policy", "ends")  # fields of a `Batch` without an axis of trajectories


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
        powers: γ^t with the step's time in its episode; ones where it is left out.
        log_scale: Logarithm of the ratio that every reward is multiplied by, beside `powers`, before credit is given, and of those
            γ^t that are too small for `powers`, which are 1 there; `None` on policy.
        log_ratios: Logarithm of the importance weight of the choices up to each step; `None` on policy.
        log_step_ratios: Logarithm of π/b of each step; `None` on policy.
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
    powers: jax.Array
    log_scale: Any
    log_ratios: Any
    log_step_ratios: Any
    params: Params
    policy: Policy
    ends: jax.Array | None = None
    values: tuple[jax.Array, jax.Array] | None = None


def prepare(
    estimator: Any, params: Params, policy: Any, trajectories: Trajectories, value: ValueFunction | None = None
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
    refuse_complex(params=params)
    values = None if value is None else evaluate_value(value, params, steps)
    times, ends = jnp.arange(steps.valid.shape[1])[None], None
    if isinstance(trajectories, Stream):
        times, ends = trajectories.times, trajectories.ends
    shape = steps.valid.shape[:2]  # those of a stream have a third axis, of length one
    valid, discounts = steps.valid.reshape(shape), steps.discounts.reshape(shape)
    rewards = unbroken(steps.valid, steps.rewards.dtype) * jnp.where(steps.valid, steps.rewards, 0)
    rewards = rewards.reshape(shape)
    dtype, importance = rewards.dtype, estimator.importance
    discount, times = jnp.asarray(estimator.discount, dtype), jnp.broadcast_to(times, shape).astype(dtype)
    powers = discount**times if estimator.gamma_t else jnp.ones_like(rewards)
    scale = ratios = step_ratios = None
    if importance is not None or estimator.advantage.own_ratios:
        logs = jax.lax.stop_gradient(log_ratios(params, policy, steps)).reshape(shape)
        ratios = jnp.zeros_like(rewards) if importance is None else importance.log_weights(logs).astype(dtype)
        small, step_ratios = powers < _SMALL, logs.astype(dtype)
        scale = ratios + jnp.where(small, jnp.where(small, times, 1) * jnp.log(discount), 0)
        powers = jnp.where(small, 1, powers)
    return Batch(
        steps=steps,
        valid=valid,
        rewards=rewards,
        discounts=jnp.where(valid, discounts, 1).astype(dtype),
        discount=discount,
        inside=jnp.ones_like(discount) if estimator.gamma_t else discount,
        powers=powers,
        log_scale=scale,
        log_ratios=ratios,
        log_step_ratios=step_ratios,
        params=jax.lax.stop_gradient(params),
        policy=policy,
        ends=ends,
        values=values,
    )


def evaluate_value(
    function: ValueFunction, value_params: Params, trajectories: Trajectory
) -> tuple[jax.Array, jax.Array]:
    """v(s_t) and v(s_{t+1}) for a batch; observations of invalid steps, and what stands after the end of an episode, are never seen.

    Args:
        function: `(value_params, observation) -> scalar`.
        value_params: Its parameters.
        trajectories: Leading axes `(*batch, T)`.

    Returns:
        Two arrays of shape `(*batch, T)`, 0 on invalid steps; the second is 0 where the episode terminates. Detached.

    Raises:
        TypeError: Observations are missing.
        ValueError: The function does not return a scalar for one observation, or the final observation has another shape.
    """
    valid, observations = trajectories.valid, trajectories.observations
    given("observations", observations)
    given("final_observation", trajectories.final_observation, like=observations, axis=valid.ndim - 1)
    values = value_of_each(function, value_params, observations, valid)
    last = jax.tree.map(lambda x: jnp.expand_dims(x, valid.ndim - 1), trajectories.final_observation)
    going_on, follows = trajectories.discounts != 0, jnp.roll(valid, -1, axis=-1).at[..., -1].set(False)
    cut = jnp.any(valid & ~follows & going_on, axis=-1, keepdims=True)
    final = value_of_each(function, value_params, last, cut)
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
    values = map_rows(function, value_params, rows, block_size=wide_block_size(4))
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


def averaged(weights: jax.Array, batch: Batch, per: str) -> tuple[jax.Array, jax.Array]:
    """What a mean over trajectories is taken of.

    Args:
        weights: Shape `(N, T)`.
        batch: The batch.
        per: "step": every step that the policy chose; "trajectory": the first step of every trajectory.

    Returns:
        The weights, 0 where they do not count, and 1 where they do: shape `(N, T)` per step, `(N, 1)` per trajectory.
    """
    if per == "trajectory":
        return weights[:, :1], jnp.ones_like(weights[:, :1])
    own = own_steps(batch.params, batch.policy, batch.steps).reshape(weights.shape).astype(weights.dtype)
    return own * weights, own
