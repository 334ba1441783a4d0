"""Streams: environments that go on across batches and restart where an episode ends.

A rollout draws whole episodes, which an unbiased estimate of an episode's return needs. An actor-critic does not: its
credit bootstraps from values of the state, so a batch may cut an episode anywhere, and no step is spent on padding.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from logderiv._core.arrays import as_keys, check_whole, expand, floating
from logderiv.distributions.interop import log_prob, sample
from logderiv.environments import as_environment, check_action
from logderiv.sampling.episodes import check_same_leaves
from logderiv.types import Step, Stream, Trajectory, as_policy


class StreamState(NamedTuple):
    """Where `E` environments stand. Leading axis `(E,)`.

    Attributes:
        observation: What the next action will be chosen on.
        state: The environments' own.
        times: Steps of the current episode so far, int32.
        returns: Rewards of the current episode so far.
    """

    observation: Any
    state: Any
    times: jax.Array
    returns: jax.Array


def start_streams(
    key: jax.Array, environment: Any, num_environments: int, *, environment_params: Any = None
) -> StreamState:
    """`num_environments` environments at the start of an episode; `key` is consumed.

    Raises:
        ValueError: Fewer than one environment.
        TypeError: Not an environment, or not a key.
    """
    environment = as_environment(environment)
    check_whole(num_environments=num_environments)
    keys = jax.random.split(as_keys(key), num_environments)
    observation, state = jax.vmap(environment.reset, (0, None))(keys, environment_params)
    return StreamState(observation, state, jnp.zeros(num_environments, jnp.int32), jnp.zeros(num_environments))


def collect(
    params: Any,
    key: jax.Array,
    policy: Any,
    environment: Any,
    state: StreamState,
    *,
    num_steps: int,
    horizon: int | None = None,
    environment_params: Any = None,
) -> tuple[Stream, StreamState]:
    """The next `num_steps` steps of every environment, by one `lax.scan`.

    An environment whose episode ended restarts before its next step; the observation that the step led to stays in
    `steps.final_observation`, so that a truncated episode bootstraps from where it was cut. The sample is held, as in
    `logderiv.rollout`.

    Args:
        params: Parameters of the policy.
        key: Consumed.
        policy: A policy without memory.
        environment: As in `rollout`. One with a method `renew(key, ended, observation, state, params) -> (observation, state)`
            restarts itself where `ended`; any other is reset, and the restart selected.
        state: From `start_streams` or the last call.
        num_steps: `T`.
        horizon: Episodes are truncated after this many steps; `None` takes `environment.horizon`, where it has one.
        environment_params: As in `rollout`.

    Returns:
        `(Stream, StreamState)`.

    Raises:
        ValueError: `num_steps` or `horizon` below 1; the environment's reset and step disagree in shapes.
        TypeError: The policy has memory; not a policy or an environment.
    """
    policy, environment = as_policy(policy), as_environment(environment)
    if policy.initial_carry is not None:
        raise TypeError(
            "policy: a stream cuts episodes, which a policy with memory must not forget; use whole episodes."
        )
    check_whole(num_steps=num_steps)
    horizon = getattr(environment, "horizon", None) if horizon is None else horizon
    if horizon is not None:
        check_whole(horizon=horizon)
    params = lax.stop_gradient(params)

    def one(state: StreamState, key_action: jax.Array, key_step: jax.Array) -> tuple[StreamState, Any]:
        distribution = policy.apply(params, state.observation)
        action = sample(distribution, key_action)
        check_action(environment, distribution, action)
        new = Step(*environment.step(key_step, state.state, action, environment_params))
        observation, world = check_same_leaves((new.observation, new.state), (state.observation, state.state))
        reward, times = floating(new.reward), state.times + 1
        ends = new.terminated | new.truncated
        if horizon is not None:
            ends |= times >= horizon
        returns = state.returns + reward.astype(state.returns.dtype)
        discount = jnp.where(new.terminated, 0, 1).astype(reward.dtype)
        step = Trajectory(
            state.observation, action, reward, discount, jnp.ones((), bool), log_prob(distribution, action), observation
        )
        held = StreamState(observation, world, jnp.where(ends, 0, times), jnp.where(ends, 0, returns))
        return held, Stream(step, ends, state.times, returns)

    keys = jax.random.split(as_keys(key), (num_steps, 3, state.times.shape[0]))
    kind = jax.random.key_impl(keys)

    def together(state: StreamState, bits: jax.Array) -> tuple[StreamState, Stream]:
        keys = jax.random.wrap_key_data(bits[:2], impl=kind)
        state, row = jax.vmap(one)(state, keys[0], keys[1])
        observation, world = _renew(
            lambda: jax.random.wrap_key_data(bits[2], impl=kind),
            row.ends,
            state.observation,
            state.state,
            environment,
            environment_params,
        )
        return state._replace(observation=observation, state=world), row

    # As numbers: keys among what a scan or a branch takes trip JAX's reuse checker under vmap.
    state, rows = lax.scan(together, state, jax.random.key_data(keys))
    rows = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), rows)
    steps = jax.tree.map(lambda x: jnp.expand_dims(x, 2), rows.steps)
    return rows._replace(steps=steps._replace(final_observation=rows.steps.final_observation)), state


def _renew(
    keys: Callable[[], jax.Array],
    ended: jax.Array,
    observation: Any,
    state: Any,
    environment: Any,
    environment_params: Any,
) -> Any:
    """Observation and state of every environment, restarted where its episode ended."""

    def restart() -> Any:
        if hasattr(environment, "renew"):
            return jax.vmap(environment.renew, (0, 0, 0, 0, None))(
                keys(), ended, observation, state, environment_params
            )
        fresh = jax.vmap(environment.reset, (0, None))(keys(), environment_params)
        return jax.tree.map(lambda a, b: jnp.where(expand(ended, b), a, b), fresh, (observation, state))

    return lax.cond(jnp.any(ended), restart, lambda: (observation, state))
