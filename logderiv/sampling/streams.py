"""Streams: environments that go on across batches and restart where an episode ends.

A rollout draws whole episodes, which an unbiased estimate of an episode's return needs. An actor-critic does not: its
credit bootstraps from values of the state, so a batch may cut an episode anywhere, and no step is spent on padding.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from logderiv._core import check
from logderiv._core.arrays import as_key, expand, refuse_complex
from logderiv._core.keys import KeyBits
from logderiv._core.pytrees import jit
from logderiv.environments import _protocol, as_environment
from logderiv.policies import StepPolicy, as_policy
from logderiv.sampling.episodes import Place, transition
from logderiv.types import Key, Observation, Params, State, Stream


class StreamState(NamedTuple):
    """Where `E` environments stand. Leading axis `(E,)`.

    Attributes:
        observation: What the next action will be chosen on.
        state: The environments' own.
        times: Steps of the current episode so far, int32.
        returns: Rewards of the current episode so far.
    """

    observation: Observation
    state: State
    times: jax.Array
    returns: jax.Array


def start_streams(key: Key, environment: Any, num_environments: int, *, environment_params: Any = None) -> StreamState:
    """Environments at the start of an episode.

    Args:
        key: Typed, or raw uint32. Consumed.
        environment: `reset` and `step` as in `logderiv.types.Environment`, or one of a suite that is known.
        num_environments: `E`.
        environment_params: Passed to the environment; `None` for its own.

    Returns:
        A `StreamState` with leading axis `(E,)`.

    Raises:
        ValueError: Fewer than one environment, or several keys.
        TypeError: Not an environment, or not a key.
    """
    environment = as_environment(environment)
    num_environments = check.whole(num_environments=num_environments)
    keys = jax.random.split(as_key(key), num_environments)
    observation, state = jax.vmap(partial(_protocol.reset, environment), (0, None))(keys, environment_params)
    returns = jnp.zeros((num_environments, *_protocol.reward_shape(environment)))
    return StreamState(observation, state, jnp.zeros(num_environments, jnp.int32), returns)


def collect(
    params: Params,
    key: Key,
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
    `steps.final_observation`, so that a truncated episode bootstraps from where it was cut. The sample is detached, as in
    `logderiv.rollout`.

    Args:
        params: Parameters of the policy.
        key: Consumed.
        policy: A policy without memory.
        environment: `reset` and `step` as in `logderiv.types.Environment`, or one of a suite that is known. One with a method `renew(key, ended, observation, state, params) -> (observation, state)`
            restarts itself where `ended`; any other is reset, and the restart selected.
        state: From `start_streams` or the last call.
        num_steps: `T`.
        horizon: Episodes are truncated after this many steps; `None` takes `environment.horizon`, where it has one.
        environment_params: Passed to the environment; `None` for its own.

    Returns:
        The steps, a `Stream` with leading axes `(E, T)`, and where the environments then stand.

    Raises:
        ValueError: `num_steps` or `horizon` below 1; several keys; the environment's reset and step disagree in shapes.
        TypeError: The policy has memory; not a policy or an environment; parameters, or what `step` returned, are no real numbers.
    """
    policy, environment = as_policy(policy), as_environment(environment)
    if policy.has_memory:
        raise TypeError("policy: a stream cuts episodes, which one with memory must not forget; use whole episodes.")
    horizon = getattr(environment, "horizon", None) if horizon is None else horizon
    num_steps, horizon = check.whole(num_steps=num_steps), check.whole(or_none=True, horizon=horizon)
    refuse_complex(params=params)
    return _collect(params, as_key(key), policy, (environment, environment_params), state, num_steps, horizon)


@jit
def _collect(
    params: Params, key: Key, policy: StepPolicy, world: Any, state: StreamState, num_steps: int, horizon: int | None
) -> tuple[Stream, StreamState]:
    params = lax.stop_gradient(params)

    def one(state: StreamState, key_action: Key, key_step: Key) -> tuple[StreamState, Stream]:
        place = Place(state.observation, state.state, ())
        row, ends, place = transition(params, key_action, key_step, policy, world, place)
        times, returns = state.times + 1, state.returns + row.rewards.astype(state.returns.dtype)
        if horizon is not None:
            ends |= times >= horizon
        new = StreamState(place.observation, place.state, jnp.where(ends, 0, times), jnp.where(ends, 0, returns))
        return new, Stream(row, ends, state.times, returns)

    def together(state: StreamState, keys: KeyBits) -> tuple[StreamState, Stream]:
        of_choices, of_restarts = jax.tree.map(lambda x: x[:2], keys), jax.tree.map(lambda x: x[2], keys)
        state, row = jax.vmap(one)(state, *of_choices.keys())
        place = state.observation, state.state
        restart = partial(_restart, of_restarts, row.ends, place, *world)
        observation, inner = lax.cond(jnp.any(row.ends), restart, lambda: place)
        return state._replace(observation=observation, state=inner), row

    keys = jax.random.split(key, (num_steps, 3, state.times.shape[0]))
    state, rows = lax.scan(together, state, KeyBits.of(keys))
    rows = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), rows)
    steps = jax.tree.map(lambda x: jnp.expand_dims(x, 2), rows.steps)
    return rows._replace(steps=steps._replace(final_observation=rows.steps.final_observation)), state


def _restart(keys: KeyBits, ended: jax.Array, place: Any, environment: Any, environment_params: Any) -> Any:
    """Observations and states, `place`, of every environment, at a new start where its episode ended."""
    if hasattr(environment, "renew"):
        new = tuple(jax.vmap(environment.renew, (0, 0, 0, 0, None))(keys.keys(), ended, *place, environment_params))
        return _protocol.as_before("environment.renew", new, place, hint="(observation, state) as reset returned them")
    fresh = jax.vmap(partial(_protocol.reset, environment), (0, None))(keys.keys(), environment_params)
    return jax.tree.map(lambda a, b: jnp.where(expand(ended, b), a, b), fresh, place)
