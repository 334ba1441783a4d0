"""Environments of public suites behind the two-function protocol, unmodified."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from logderiv._arrays import is_traced, register_dataclass
from logderiv.types import Step

_NO_LIMIT = 2**30


@dataclasses.dataclass(frozen=True)
class Gymnax:
    """A gymnax environment, of the 1.x or the 0.x contract, without its auto-reset.

    Steps through `reset_env` and `step_env`. Where the environment has `is_truncated` (1.x), the two end signals are
    its own; otherwise (0.x) it is stepped without its time limit, which is then applied here, so that an episode
    which merely ran out of time is not called terminated.

    Attributes:
        environment: The gymnax object, static; compared by identity.
        params: Its parameters; `None` for `default_params`.
        horizon: Default number of steps of a rollout: `params.max_steps_in_episode` where it exists.
    """

    environment: Any
    params: Any = None
    horizon: int | None = None

    def __post_init__(self) -> None:
        if self.params is None:
            object.__setattr__(self, "params", self.environment.default_params)
        limit = getattr(self.params, "max_steps_in_episode", None)
        if self.horizon is None and limit is not None and not is_traced(limit):
            object.__setattr__(self, "horizon", int(limit))

    def reset(self, key: jax.Array, params: Any = None) -> tuple[Any, Any]:
        """Draw a start; `key` is consumed."""
        return self.environment.reset_env(key, self.params if params is None else params)

    def step(self, key: jax.Array, state: Any, action: Any, params: Any = None) -> Step:
        """One raw transition; `key` is consumed."""
        params = self.params if params is None else params
        if hasattr(self.environment, "is_truncated"):
            observation, state, reward, terminated, _ = self.environment.step_env(key, state, action, params)
            truncated = self.environment.is_truncated(state, params)
        elif hasattr(params, "max_steps_in_episode"):
            unlimited = params.replace(max_steps_in_episode=_NO_LIMIT)
            observation, state, reward, terminated, _ = self.environment.step_env(key, state, action, unlimited)
            truncated = state.time >= params.max_steps_in_episode
        else:
            observation, state, reward, terminated, _ = self.environment.step_env(key, state, action, params)
            truncated = False
        return Step(
            observation,
            state,
            jnp.asarray(reward),
            jnp.asarray(terminated, bool),
            jnp.asarray(truncated, bool),
        )


register_dataclass(Gymnax, ("params",), ("environment", "horizon"))


def as_environment(environment: Any) -> Any:
    """An environment of the protocol from one, or from a gymnax object.

    Raises:
        TypeError: Neither of the two.
    """
    if hasattr(environment, "reset_env") and hasattr(environment, "step_env"):
        return Gymnax(environment)
    if hasattr(environment, "reset") and hasattr(environment, "step"):
        return environment
    raise TypeError(
        "environment: expected reset(key, params) and step(key, state, action, params), or a gymnax environment; "
        f"received {type(environment).__name__}."
    )
