"""Sampling trajectories with `lax.scan`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from logderiv._core.arrays import as_keys, check_whole, floating
from logderiv._core.sharding import check_auto
from logderiv.distributions.interop import log_prob, sample
from logderiv.environments import as_environment, check_action
from logderiv.types import Step, Trajectory, as_policy

CHUNK = 32  # steps between two looks at whether an episode is still going on, where nothing is differentiated


def rollout(
    params: Any,
    key: jax.Array,
    policy: Any,
    environment: Any,
    *,
    horizon: int | None = None,
    environment_params: Any = None,
    start_key: jax.Array | None = None,
    chunk: int | None = None,
) -> Trajectory:
    r"""Draw a trajectory $\tau \sim P(\tau|\theta)$ of at most `horizon` steps.

    The sample is *held*: `params` pass through `stop_gradient`, so no reparameterized derivative leaks into a score.
    An episode ends by masks: after `terminated` or `truncated` the steps are invalid, with reward 0 and discount 1.
    Memory is that of the trajectory; the key is split inside the scan.

    Args:
        params: Parameters of the policy.
        key: One key, or keys of shape `(*batch,)` for a batch; typed, or raw uint32. Consumed.
        policy: A policy, or a function `(params, observation) -> distribution`.
        environment: `reset` and `step` as in `logderiv.types.Environment`, or a gymnax environment.
        horizon: Number of steps `T`; `None` takes `environment.horizon`.
        environment_params: Passed to the environment; `None` for its own.
        start_key: Key, or keys of the shape of `key`, of the start alone: trajectories with equal ones start alike, as a
            group-relative estimator wants it. Consumed. `None` splits them off `key`.
        chunk: Stop as soon as all trajectories have ended, looking every so many steps. The same trajectories; not
            differentiable in reverse. `None` always takes `horizon` steps.

    Returns:
        A `Trajectory` with leading axes `(*batch, T)`.

    Raises:
        ValueError: No horizon, or it or `chunk` is below 1; the environment's reset and step disagree in shapes; `start_key`
            has another shape than `key`; keys sharded over mesh axes of type `Explicit`.
        TypeError: Not a policy, an environment, or a key.

    Example:
        >>> import jax, logderiv as ld
        >>> keys = jax.random.split(jax.random.key(0), 5)
        >>> taus = rollout(jax.numpy.zeros(2), keys, ld.shared_softmax, ld.short_corridor(), horizon=30)
        >>> taus.rewards.shape
        (5, 30)
    """
    key, policy, environment = as_keys(key), as_policy(policy), as_environment(environment)
    horizon = _horizon(horizon, environment)
    if chunk is not None:
        check_whole(chunk=chunk)
    check_auto(key, "key")
    batch = key.shape
    if start_key is not None and jnp.shape(start_key) != batch:
        raise ValueError(f"start_key: expected the shape of key, {batch}, received {jnp.shape(start_key)}.")
    start, step = _one_trajectory(params, policy, environment, environment_params)
    for _ in batch:
        start, step = jax.vmap(start), jax.vmap(step)
    carry = start(key) if start_key is None else start(key, as_keys(start_key))
    if chunk is None:
        carry, rows = lax.scan(lambda c, _: step(c), carry, None, length=horizon)
    else:
        carry, rows = _in_chunks(step, carry, horizon, chunk)
    rows = jax.tree.map(lambda x: jnp.moveaxis(x, 0, len(batch)), rows)
    return Trajectory(*rows, final_observation=carry[2])


def _one_trajectory(
    params: Any, policy: Any, environment: Any, environment_params: Any
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`start(key, start_key=None) -> carry` and `step(carry) -> (carry, row)` of one trajectory."""
    params = lax.stop_gradient(params)
    has_memory = policy.initial_carry is not None

    def start(key: jax.Array, start_key: jax.Array | None = None) -> Any:
        if start_key is None:
            key, start_key = jax.random.split(key)
        observation, state = environment.reset(start_key, environment_params)
        memory = policy.initial_carry(params) if has_memory else None
        return key, state, observation, memory, jnp.ones((), bool)

    def step(carry: Any) -> tuple[Any, Any]:
        key, state, observation, memory, alive = carry
        key, key_action, key_step = jax.random.split(key, 3)
        if has_memory:
            distribution, new_memory = policy.apply(params, memory, observation)
        else:
            distribution, new_memory = policy.apply(params, observation), None
        action = sample(distribution, key_action)
        check_action(environment, distribution, action)
        new = Step(*environment.step(key_step, state, action, environment_params))
        row = (
            observation,
            action,
            jnp.where(alive, floating(new.reward), 0),
            jnp.where(alive & new.terminated, 0, 1).astype(floating(new.reward).dtype),
            alive,
            jnp.where(alive, log_prob(distribution, action), 0),
        )
        old = (observation, state, memory)
        new_leaves = check_same_leaves((new.observation, new.state, new_memory), old)
        observation, state, memory = jax.tree.map(lambda a, b: jnp.where(alive, a, b), new_leaves, old)
        return (key, state, observation, memory, alive & ~(new.terminated | new.truncated)), row

    return start, step


def _in_chunks(step: Callable[[Any], Any], carry: Any, horizon: int, chunk: int) -> tuple[Any, Any]:
    """`step` up to `horizon` times, in chunks, until no trajectory is alive. The rows have a leading axis `(T,)`.

    Those that are never reached are invalid: zeros, with discount 1.
    """
    chunks = -(-horizon // chunk)
    chunk = -(-horizon // chunks)

    def limited(carry: Any, index: jax.Array) -> tuple[Any, Any]:
        *held, alive = carry
        return step((*held, alive & (index < horizon)))

    def blank(x: Any) -> jax.Array:
        return jnp.zeros((chunks * chunk, *x.shape), x.dtype)

    def going_on(loop: Any) -> jax.Array:
        index, carry, _ = loop
        return (index < horizon) & jnp.any(carry[-1])

    def advance(loop: Any) -> Any:
        index, carry, rows = loop
        carry, new = lax.scan(limited, carry, index + jnp.arange(chunk, dtype=jnp.int32))
        write = partial(lax.dynamic_update_slice_in_dim, start_index=index, axis=0)
        return index + chunk, carry, jax.tree.map(write, rows, new)

    rows = jax.tree.map(blank, jax.eval_shape(step, carry)[1])
    _, carry, rows = lax.while_loop(going_on, advance, (jnp.zeros((), jnp.int32), carry, rows))
    observations, actions, rewards, discounts, valid, logs = jax.tree.map(lambda x: x[:horizon], rows)
    return carry, (observations, actions, rewards, jnp.where(valid, discounts, 1), valid, logs)


def check_same_leaves(new: Any, old: Any) -> Any:
    """`new` in the dtypes of `old`: what step returned, against what reset did.

    Raises:
        ValueError: They disagree in structure, or in the shape of a leaf, which is named.
        TypeError: A leaf is whole after reset and real after step.
    """
    if jax.tree.structure(new) != jax.tree.structure(old):
        raise ValueError(
            "environment: expected step to return observation and state of the structure that reset returned, "
            f"{jax.tree.structure(old)}; received {jax.tree.structure(new)}."
        )

    def leaf(path: Any, a: Any, b: Any) -> Any:
        if jnp.shape(a) != jnp.shape(b):
            raise ValueError(
                f"environment: leaf {jax.tree_util.keystr(path)} of (observation, state, carry) has shape {jnp.shape(b)} "
                f"after reset and {jnp.shape(a)} after step; they must agree."
            )
        before, after = jnp.result_type(b), jnp.result_type(a)
        is_key = jnp.issubdtype(before, jax.dtypes.prng_key)
        if not is_key and jnp.issubdtype(after, jnp.inexact) and not jnp.issubdtype(before, jnp.inexact):
            raise TypeError(
                f"environment: leaf {jax.tree_util.keystr(path)} of (observation, state, carry) is {before} after reset and "
                f"{after} after step; let reset return {after} too, or fractions would be cut off."
            )
        return a if is_key else jnp.asarray(a, jnp.result_type(b))

    return jax.tree_util.tree_map_with_path(leaf, new, old)


def _horizon(horizon: int | None, environment: Any) -> int:
    horizon = getattr(environment, "horizon", None) if horizon is None else horizon
    if horizon is None:
        raise ValueError("horizon: this environment has no default; pass horizon=, the number of steps.")
    check_whole(horizon=horizon)
    return horizon
