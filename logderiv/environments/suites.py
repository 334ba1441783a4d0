"""Environments of public suites that are written in JAX (gymnax and craftax, brax and MuJoCo Playground, jumanji), adapted."""

from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core import check
from logderiv._core.pytrees import pytree
from logderiv.environments._spaces import (
    ActionSpace,
    action_space,
    from_start,
    into_bounds,
    no_params,
    standard_promotion,
)
from logderiv.environments.gymnasium.adapter import Gymnasium
from logderiv.types import Environment, Key, Observation, State, Step

_PEELED = ("AutoResetWrapper", "EpisodeWrapper", "VmapAutoResetWrapper", "VmapWrapper")  # of brax and of jumanji
_NO_LIMIT = 2**30
_LIMITS = {"max_steps_in_episode": "time", "max_timesteps": "timestep"}  # of gymnax and of craftax: limit, clock


def as_environment(environment: Any) -> Any:
    """An environment of the protocol from one, or from an unmodified object of a suite, told by its attributes.

    | object of | has | becomes |
    |---|---|---|
    | gymnax 0.x and 1.x, craftax | `reset_env`, `step_env` | `Gymnax` |
    | brax, MuJoCo Playground | `action_size`, `observation_size` | `Brax` |
    | jumanji | `action_spec`, `observation_spec` | `Jumanji` |
    | Gymnasium | a class of that library | `Gymnasium` |

    No suite is imported for it.

    Args:
        environment: An object with `reset` and `step` of the protocol, or of one of the suites.

    Returns:
        The object itself, or its adapter.

    Raises:
        TypeError: None of them.
    """

    def has(*names: str) -> bool:
        return all(hasattr(environment, name) for name in names)

    expected = (
        "reset(key, params) and step(key, state, action, params), or an environment of gymnax (gymnax.make(id)[0]), craftax, brax, "
        "jumanji or Gymnasium"
    )
    check.made("environment", environment, has("reset", "step") or has("reset_env", "step_env"), expected)
    if has("reset_env", "step_env"):
        return Gymnax(environment)
    if has("action_size", "observation_size"):
        return Brax(environment)
    if has("action_spec", "observation_spec"):
        return Jumanji(environment)
    of_gymnasium = any(base.__module__.split(".")[0] == "gymnasium" for base in type(environment).__mro__)
    return Gymnasium.of(environment) if of_gymnasium else environment


@pytree(static=("environment", "horizon"))
class Brax(Environment):
    """A brax environment without its `AutoReset`, `Episode` and `Vmap` wrappers, which are peeled off if they are there.

    Those wrappers hide the last observation and start every episode alike. Here the state is `(brax State, t)`, `done`
    means terminated, and an episode is truncated after `horizon` steps. Actions lie in `[-1, 1]`; where an environment
    does not clip, the simulator clamps them to the range of its actuators.

    Attributes:
        environment: The brax object, static; compared by identity.
        horizon: Steps until truncation; by default the `episode_length` of the peeled wrapper, or 1000 as in brax.

    Raises:
        ValueError: The wrapper repeats actions: peeling it off would change the environment.
        TypeError: `environment` is none.
    """

    environment: Any
    horizon: int | None = None

    def __post_init__(self) -> None:
        _check("Brax", self.environment, "step", "brax.envs.create(name)")
        environment, horizon = self.environment, self.horizon
        while type(environment).__name__ in _PEELED:
            if getattr(environment, "action_repeat", 1) != 1:
                raise ValueError("environment: expected action_repeat=1; repeat actions inside it instead.")
            horizon = horizon or getattr(environment, "episode_length", None)
            environment = environment.env
        object.__setattr__(self, "environment", environment)
        object.__setattr__(self, "horizon", int(horizon or 1000))

    @property
    def action_space(self) -> ActionSpace:
        """What one action is."""
        return ActionSpace(
            (self.environment.action_size,), False, None, f"{self.environment.action_size} real numbers", -1.0, 1.0
        )

    def reset(self, key: Key, params: Any = None) -> tuple[Observation, State]:
        no_params(params, "brax")
        with standard_promotion():
            state = self.environment.reset(jax.random.key_data(key))  # brax reads batch sizes off the shape of keys
        return state.obs, (state, jnp.zeros((), jnp.int32))

    def step(self, key: Key, state: State, action: jax.Array, params: Any = None) -> Step:
        del key, params  # brax steps without randomness
        inner, time = state
        with standard_promotion():
            inner, time = self.environment.step(inner, action), time + 1
        reward = _scalar_reward(inner.reward, "pass the environment of one agent, not vmapped")
        return Step(inner.obs, (inner, time), reward, jnp.reshape(inner.done, ()) > 0, time >= self.horizon)


@pytree(static=("environment", "horizon", "clip"))
class Gymnax(Environment):
    """A gymnax environment, of the 1.x or the 0.x contract, or a craftax one, without its auto-reset.

    Steps through `reset_env` and `step_env`. Where the environment has `is_truncated` (1.x), the two end signals are
    its own; otherwise it is stepped without its time limit, which is then applied here, so that an episode which merely
    ran out of time is not called terminated. Continuous actions outside their bounds are clipped by the environments, after some
    have counted what they cost: `MountainCarContinuous-v0`, where exploring is then dear.

    Attributes:
        environment: The gymnax object, static; compared by identity.
        params: Its parameters; `None` for `default_params`.
        horizon: Default number of steps of a rollout: `max_steps_in_episode` (craftax: `max_timesteps`) where it exists.
        clip: Whether real actions are clipped to their bounds before the environment sees them, as stable-baselines3 does.

    Raises:
        TypeError: `environment` is none.
    """

    environment: Any
    params: Any = None
    horizon: int | None = None
    clip: bool = False

    def __post_init__(self) -> None:
        _check("Gymnax", self.environment, "step_env", "gymnax.make(id)[0]")
        if self.params is None:
            object.__setattr__(self, "params", self.environment.default_params)
        limit = getattr(self.params, _limit_name(self.params) or "", None)
        if self.horizon is None and limit is not None and not check.is_traced(limit):
            object.__setattr__(self, "horizon", int(limit))

    @property
    def action_space(self) -> Any:
        """What one action is; a dictionary or tuple where it has parts."""
        with jax.ensure_compile_time_eval():
            return action_space(self.environment.action_space(self.params))

    def reset(self, key: Key, params: Any = None) -> tuple[Observation, State]:
        with standard_promotion():
            return self.environment.reset_env(key, self.params if params is None else params)

    def step(self, key: Key, state: State, action: Any, params: Any = None) -> Step:
        params = self.params if params is None else params
        own, limit = hasattr(self.environment, "is_truncated"), _limit_name(params)
        unlimited = params if own or limit is None else params.replace(**{limit: _NO_LIMIT})
        truncated, space = False, getattr(self.environment, "action_space", None)
        if space is not None:
            action = from_start(space(params), into_bounds(space(params), action) if self.clip else action)
        with standard_promotion():
            observation, state, reward, terminated, _ = self.environment.step_env(key, state, action, unlimited)
            if own:
                truncated = self.environment.is_truncated(state, params)
            elif limit is not None:
                truncated = getattr(state, _LIMITS[limit]) >= getattr(params, limit)
        return Step(observation, state, jnp.asarray(reward), *(jnp.asarray(x, bool) for x in (terminated, truncated)))


def _check(suite: str, environment: Any, method: str, example: str) -> None:
    check.made(suite, environment, hasattr(environment, method), f"an environment, such as {example}")


def _limit_name(params: Any) -> str | None:
    return next((name for name in _LIMITS if hasattr(params, name)), None)


@pytree(static=("environment", "horizon"))
class Jumanji(Environment):
    """A jumanji environment without its auto-reset wrappers, which are peeled off if they are there.

    A last step is terminated where its discount is 0 and truncated where it is not. Several of the environments (Snake,
    Maze and others) say discount 0 at their own time limit too: that is a termination here, as there, and their
    observations carry the step count. Observations are jumanji's own pytrees, with the `action_mask` in them:

        policy = ld.FunctionPolicy(lambda params, o: ld.Categorical(ld.masked(network(params, o.grid), o.action_mask)))

    Attributes:
        environment: The jumanji object, static; compared by identity.
        horizon: Default number of steps of a rollout: the environment's `time_limit` where it has one.

    Raises:
        TypeError: `environment` is none.
    """

    environment: Any
    horizon: int | None = None

    def __post_init__(self) -> None:
        _check("Jumanji", self.environment, "step", "jumanji.make(id)")
        environment = self.environment
        while type(environment).__name__ in _PEELED:
            environment = environment._env
        object.__setattr__(self, "environment", environment)
        horizon = getattr(environment, "time_limit", None) if self.horizon is None else self.horizon
        object.__setattr__(self, "horizon", horizon)

    @property
    def action_space(self) -> Any:
        """What one action is; a dictionary or tuple where it has parts."""
        with jax.ensure_compile_time_eval():
            return action_space(self.environment.action_spec)

    def reset(self, key: Key, params: Any = None) -> tuple[Observation, State]:
        no_params(params, "jumanji")
        # The state keeps the key, which standing still would use twice: its raw data are passed on.
        with standard_promotion():
            state, timestep = self.environment.reset(jax.random.key_data(key))
        return timestep.observation, state

    def step(self, key: Key, state: State, action: jax.Array, params: Any = None) -> Step:
        del key, params  # jumanji keeps its own in the state
        with standard_promotion():
            state, timestep = self.environment.step(state, action)
            last, over = timestep.last(), jnp.all(timestep.discount == 0)
        reward = _scalar_reward(timestep.reward, "wrap several agents in jumanji's MultiToSingleWrapper")
        return Step(timestep.observation, state, reward, last & over, last & ~over)


def _scalar_reward(reward: Any, advice: str) -> jax.Array:
    """A reward, checked to be one number."""
    if jnp.size(reward) != 1:
        raise ValueError(f"environment: expected a scalar reward, received shape {jnp.shape(reward)}; {advice}.")
    return jnp.reshape(jnp.asarray(reward), ())
