"""The library's environments as PureJaxRL and rejax want them: with the interface of gymnax 0.x, resets and all."""

import importlib
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import logderiv as ld
from logderiv.environments import ActionSpace, as_environment


class Limits(NamedTuple):
    """What gymnax 0.x has as the parameters of an environment.

    Attributes:
        max_steps_in_episode: Steps until an episode is cut; 0 where it is not.
    """

    max_steps_in_episode: int


class Clipped(NamedTuple):
    """What a peer draws from where actions are real numbers: a normal whose samples are clipped to the bounds.

    Attributes:
        normal: Before clipping.
        low: Lower bounds, shape of an action.
        high: Upper bounds.
    """

    normal: ld.Normal
    low: np.ndarray
    high: np.ndarray

    def sample(self, key: jax.Array) -> jax.Array:
        """One action."""
        return jnp.clip(self.normal.sample(key).reshape(self.low.shape), self.low, self.high)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Of the normal, as the peers have it; an evaluation draws and does not look at it."""
        return self.normal.log_prob(action.reshape(self.normal.loc.shape))


class GymnaxStyle:
    """An environment of the library, or of a suite that it adapts, that steps as those of gymnax 0.x did.

    An observation is one vector of float32, of a finite process the state as a row of the unit matrix. A step returns five values: an
    episode that ended starts anew, by selection, and `done` is both of its ends, also that at the horizon. Actions are clipped to
    their bounds. Copies are the object itself, for it never changes.

    Attributes:
        environment: The environment, of the library's protocol.
        space: Its actions: one choice, or real numbers.
        default_params: The `Limits`.

    Raises:
        TypeError: Its actions are of another kind.
    """

    def __init__(self, environment: Any, reward_scale: float = 1.0):
        self.environment, self._reward_scale = as_environment(environment), reward_scale
        self.space = _actions(self.environment)
        self.low, self.high = _bounds(self.space)
        self.default_params = Limits(getattr(self.environment, "horizon", None) or 0)

    def __deepcopy__(self, memo: Any) -> "GymnaxStyle":
        del memo
        return self

    @property
    def num_outputs(self) -> int:
        """Of an actor: a logit for each choice, or a mean for each number."""
        return self.space.num_values if isinstance(self.space.num_values, int) else math.prod(self.space.shape)

    def vector(self, observation: Any) -> jax.Array:
        """An observation of the environment as the peers' networks are shown it."""
        states = getattr(self.environment, "num_states", None)
        if states is not None:
            return jax.nn.one_hot(observation, states, dtype=jnp.float32)
        return jnp.concatenate([jnp.ravel(x).astype(jnp.float32) for x in jax.tree.leaves(observation)])

    def distribution(self, law: Any) -> Any:
        """A distribution of distrax over one action, in a batch of one or in none, as the library's."""
        if self.space.integer:
            return ld.Categorical(jnp.ravel(law.logits))
        return Clipped(ld.Normal(jnp.ravel(law.loc), jnp.ravel(law.scale_diag)), self.low, self.high)

    def observation_space(self, params: Limits | None = None) -> Any:
        """Of gymnax."""
        del params
        size = jax.eval_shape(lambda key: self.reset(key)[0], jax.random.key(0)).shape
        return _spaces().Box(-jnp.inf, jnp.inf, size)

    def action_space(self, params: Limits | None = None) -> Any:
        """Of gymnax."""
        del params
        if self.space.integer:
            return _spaces().Discrete(self.num_outputs)
        return _spaces().Box(self.low, self.high, self.space.shape)

    def reset(self, key: jax.Array, params: Any = None) -> tuple[jax.Array, Any]:
        """Observation and state; the state has the number of steps with it."""
        del params
        observation, state = self.environment.reset(key)
        state = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), state)
        return self.vector(observation), (state, jnp.zeros((), jnp.int32))

    def step(self, key: jax.Array, state: Any, action: Any, params: Any = None) -> tuple[Any, ...]:
        """The five values: observation, state, reward, whether it was the last step, and nothing more."""
        del params
        key_step, key_reset = jax.random.split(key)
        (inside, time), horizon = state, self.default_params.max_steps_in_episode
        if not self.space.integer:
            action = jnp.clip(jnp.reshape(action, self.space.shape), self.low, self.high)
        new = self.environment.step(key_step, inside, action)
        done = jnp.logical_or(new.terminated, new.truncated)
        done = jnp.logical_or(done, time + 1 >= horizon) if horizon else done
        after = self.vector(new.observation), (new.state, time + 1)
        observation, state = jax.tree.map(partial(_select, done), self.reset(key_reset), after)
        return observation, state, self._reward_scale * jnp.float32(new.reward), done, {}


class Logged:
    """An environment of five values whose `info` has the return of the episode that ended last: gymnax' `LogWrapper`."""

    def __init__(self, environment: Any):
        self._environment = environment

    def reset(self, key: jax.Array, params: Any) -> tuple[jax.Array, Any]:
        """Observation and state; the state has both returns with it."""
        observation, state = self._environment.reset(key, params)
        return observation, (state, jnp.float32(0), jnp.float32(0))

    def step(self, key: jax.Array, state: Any, action: Any, params: Any) -> tuple[Any, ...]:
        """The five values."""
        inside, so_far, last = state
        observation, inside, reward, done, info = self._environment.step(key, inside, action, params)
        so_far = so_far + reward
        last = jnp.where(done, so_far, last)
        state = inside, jnp.where(done, 0, so_far), last
        info = info | {"returned_episode": done, "returned_episode_returns": last}
        return observation, state, reward, done, info


def _select(done: jax.Array, start: Any, after: Any) -> jax.Array:
    return lax.select(done, start, jnp.asarray(after, start.dtype))


def _spaces() -> Any:
    return importlib.import_module("gymnax.environments.spaces")


def _actions(environment: Any) -> ActionSpace:
    choices = getattr(environment, "num_actions", None)
    space = getattr(environment, "action_space", None)
    if space is None and choices is not None:
        return ActionSpace((), True, int(choices), f"{choices} actions")
    if not isinstance(space, ActionSpace) or (space.integer and not isinstance(space.num_values, int)):
        raise TypeError(f"environment.action_space: expected one choice or real numbers, received {space}.")
    return space


def _bounds(space: ActionSpace) -> tuple[np.ndarray, np.ndarray]:
    """Of each real number; infinite where there are none. They are given for all, for a row, or for each."""

    def full(bound: Any) -> np.ndarray:
        bound = np.asarray(bound, np.float32)
        return np.broadcast_to(
            bound.reshape(space.shape) if bound.size == math.prod(space.shape) else bound, space.shape
        )

    return full(-np.inf if space.low is None else space.low), full(np.inf if space.high is None else space.high)
