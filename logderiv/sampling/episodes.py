"""The one way in which a step is drawn, and trajectories of such steps by `lax.scan`."""

import warnings
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from logderiv._core import check
from logderiv._core.arrays import as_keys, expand, refuse_complex, refuse_explicit
from logderiv._core.pytrees import jit
from logderiv.distributions.interop import log_prob, sample
from logderiv.environments import _protocol, as_environment, check_action
from logderiv.policies import StepPolicy, as_policy
from logderiv.types import Key, Observation, Params, State, Trajectory, batch_info

BLOCK_SIZE = 32  # steps between two looks at whether an episode is still going on, where nothing is differentiated


class Place(NamedTuple):
    """Where a trajectory stands.

    Attributes:
        observation: What the next action will be chosen on.
        state: The environment's own.
        carry: The policy's memory.
    """

    observation: Observation
    state: State
    carry: Any


def transition(
    params: Params, key_action: Key, key_step: Key, policy: StepPolicy, world: tuple[Any, Any], place: Place
) -> tuple[Trajectory, jax.Array, Place]:
    """One action, and what the environment makes of it.

    Args:
        params: Parameters of the policy, detached.
        key_action: Consumed.
        key_step: Consumed.
        policy: What acts.
        world: The environment, and the parameters that are passed to it.
        place: Where the trajectory stands.

    Returns:
        The step as a trajectory without a time axis, `final_observation` being the one after it; whether the episode ends with it,
        terminated or truncated; and the next place.

    Raises:
        ValueError, TypeError: What `step` returned is not five values in the protocol's order, or does not fit what `reset` did; the
            action does not fit the environment.
    """
    environment, environment_params = world
    distribution, carry = policy.step(params, place.carry, place.observation)
    action = sample(distribution, key_action)
    check_action(environment, distribution, action)
    before = place.observation, place.state
    new = _protocol.step(environment, key_step, before, action, environment_params)
    log, discount = log_prob(distribution, action), jnp.where(new.terminated, 0, 1).astype(new.reward.dtype)
    hint = "not as initial_carry returned it"
    carry = _protocol.as_before("policy: carry", carry, place.carry, source="initial_carry", hint=hint)
    valid = jnp.ones((), bool)
    step = Trajectory(place.observation, action, new.reward, discount, valid, log, new.observation)
    return step, new.terminated | new.truncated, Place(new.observation, new.state, carry)


def rollout(
    params: Params,
    key: Key,
    policy: Any,
    environment: Any,
    *,
    horizon: int | None = None,
    environment_params: Any = None,
    start_key: Key | None = None,
    block_size: int | None = None,
) -> Trajectory:
    """Draw a trajectory τ ~ P(τ|θ) of at most `horizon` steps.

    The sample is detached: `params` pass through `stop_gradient`, so no reparameterized derivative leaks into a score.
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
        block_size: Stop as soon as all trajectories have ended, looking every so many steps. The same trajectories; not
            differentiable in reverse. `None` always takes `horizon` steps.

    Returns:
        A `Trajectory` with leading axes `(*batch, T)`.

    Raises:
        ValueError: No horizon, or it or `block_size` is below 1; the environment's reset and step disagree in shapes; `start_key`
            has another shape than `key`; keys sharded over mesh axes of type `Explicit`.
        TypeError: Not a policy, an environment, or a key; parameters, or what `step` returned, are no real numbers.

    Warns:
        UserWarning: `horizon` cuts some paths of a process that ends by itself (a `logderiv.processes.JumpProcess`, say), so that
            they lack what comes after. Not inside `jax.jit`: look at `logderiv.types.batch_info` there.

    Example:
        >>> import jax, logderiv as ld
        >>> keys = jax.random.split(jax.random.key(0), 5)
        >>> taus = rollout(jax.numpy.zeros(2), keys, ld.shared_softmax, ld.environments.short_corridor(), horizon=30)
        >>> taus.rewards.shape
        (5, 30)
    """
    options = {"environment_params": environment_params, "start_key": start_key, "block_size": block_size}
    taus, cut = draw(params, key, policy, environment, horizon=horizon, **options)
    warn_of_cut("rollout", cut, stacklevel=2)
    return taus


def draw(
    params: Params,
    key: Key,
    policy: Any,
    environment: Any,
    *,
    horizon: Any,
    environment_params: Any = None,
    start_key: Key | None = None,
    block_size: int | None = None,
) -> tuple[Trajectory, jax.Array | None]:
    """As `rollout`, without a warning: also the fraction of paths that `horizon` cuts short.

    Returns:
        The trajectories, and the fraction; `None` where the horizon is a part of the model.
    """
    key, policy, environment = as_keys(key), as_policy(policy), as_environment(environment)
    horizon = getattr(environment, "horizon", None) if horizon is None else horizon
    if horizon is None:
        raise ValueError("horizon: this environment has no default; pass horizon=, the number of steps.")
    horizon, block_size = check.whole(horizon=horizon), check.whole(or_none=True, block_size=block_size)
    refuse_explicit(key=key)
    refuse_complex(params=params)
    if hasattr(policy.policy, "check_params"):
        policy.policy.check_params(params)  # values, before all is traced
    if start_key is not None:
        start_key = as_keys(start_key, "start_key")
        check.shape(key.shape, hint="that of key", start_key=start_key)
    return _rollout(params, key, start_key, policy, (environment, environment_params), horizon, block_size)


def warn_of_cut(name: str, cut: Any, *, stacklevel: int) -> None:
    """Warn if paths that end by themselves were cut, and it is known.

    Args:
        name: Of the function that was called.
        cut: From `draw`.
        stacklevel: As of `warnings.warn`.
    """
    if cut is not None and not check.is_traced(cut) and (fraction := float(cut)) > 0:
        warnings.warn(
            f"{name}: the horizon cuts {fraction:.2%} of the paths before their end, so that they lack what comes after; it is no "
            "part of this process, which ends by itself: raise it until no path is cut.",
            stacklevel=stacklevel + 1,
        )


def _cut(environment: Any, state: State, taus: Trajectory) -> jax.Array | None:
    """The fraction of paths that are cut short; `None` where the horizon is a part of the model."""
    ends_by_itself = getattr(environment, "ends_by_itself", None)
    if ends_by_itself is None:
        return None
    batch = taus.valid.ndim - 1
    leaf = lambda axes: lambda x: jax.ShapeDtypeStruct(x.shape[axes:], x.dtype)  # noqa: E731
    one = jax.tree.map(leaf(batch), state), jax.tree.map(leaf(batch + 1), taus.actions)
    return batch_info(taus).truncated_fraction if ends_by_itself(*one) else None


@jit
def _rollout(
    params: Params, key: Key, start_key: Any, policy: StepPolicy, world: Any, horizon: int, block_size: int | None
) -> tuple[Trajectory, jax.Array | None]:
    params, (environment, environment_params) = lax.stop_gradient(params), world

    def start(key: Key, start_key: Any) -> Any:
        if start_key is None:
            key, start_key = jax.random.split(key)
        observation, state = _protocol.reset(environment, start_key, environment_params)
        return key, Place(observation, state, policy.start(params)), jnp.ones((), bool)

    def step(carry: Any) -> tuple[Any, Trajectory]:
        key, place, alive = carry
        key, key_action, key_step = jax.random.split(key, 3)
        row, ends, new = transition(params, key_action, key_step, policy, world, place)
        place = jax.tree.map(lambda a, b: jnp.where(alive, a, b), new, place)
        return (key, place, alive & ~ends), row._replace(valid=alive, final_observation=None)

    for _ in key.shape:
        start, step = jax.vmap(start), jax.vmap(step)
    carry = start(key, start_key)
    if block_size is None:
        carry, rows = lax.scan(lambda c, _: step(c), carry, None, length=horizon)
    else:
        carry, rows = _until_all_have_ended(step, carry, horizon, block_size)
    rows = jax.tree.map(lambda x: jnp.moveaxis(x, 0, key.ndim), rows)
    values = (rows.rewards, rows.behavior_log_probs)
    rewards, logs = (jnp.where(expand(rows.valid, x), x, 0) for x in values)
    discounts = jnp.where(rows.valid, rows.discounts, 1)
    final = carry[1].observation
    taus = rows._replace(rewards=rewards, discounts=discounts, behavior_log_probs=logs, final_observation=final)
    return taus, _cut(environment, carry[1].state, taus)


def _until_all_have_ended(step: Any, carry: Any, horizon: int, block_size: int) -> tuple[Any, Trajectory]:
    """`step` up to `horizon` times, a block at a time, until no trajectory is alive. The rows have a leading axis `(T,)`.

    Those that are never reached are zeros, and invalid.
    """
    blocks = -(-horizon // block_size)
    block_size = -(-horizon // blocks)

    def limited(carry: Any, index: jax.Array) -> tuple[Any, Trajectory]:
        *rest, alive = carry
        return step((*rest, alive & (index < horizon)))

    def blank(x: Any) -> jax.Array:
        return jnp.zeros((blocks * block_size, *x.shape), x.dtype)

    def going_on(loop: Any) -> jax.Array:
        index, carry, _ = loop
        return (index < horizon) & jnp.any(carry[-1])

    def advance(loop: Any) -> Any:
        index, carry, rows = loop
        carry, new = lax.scan(limited, carry, index + jnp.arange(block_size, dtype=jnp.int32))
        write = partial(lax.dynamic_update_slice_in_dim, start_index=index, axis=0)
        return index + block_size, carry, jax.tree.map(write, rows, new)

    rows = jax.tree.map(blank, jax.eval_shape(step, carry)[1])
    _, carry, rows = lax.while_loop(going_on, advance, (jnp.zeros((), jnp.int32), carry, rows))
    return carry, jax.tree.map(lambda x: x[:horizon], rows)
