"""gymnax of both contracts, and craftax, which keeps the older one."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core.arrays import is_traced, register_dataclass
from logderiv.environments._spaces import ActionSpace, action_space, own_rules
from logderiv.types import Step

_NO_LIMIT = 2**30
_LIMITS = {"max_steps_in_episode": "time", "max_timesteps": "timestep"}  # of gymnax and of craftax: limit, clock


@dataclasses.dataclass(frozen=True)
class Gymnax:
    """A gymnax environment, of the 1.x or the 0.x contract, or a craftax one, without its auto-reset.

    Steps through `reset_env` and `step_env`. Where the environment has `is_truncated` (1.x), the two end signals are
    its own; otherwise it is stepped without its time limit, which is then applied here, so that an episode which merely
    ran out of time is not called terminated. Continuous actions outside their bounds are clipped by the environments.

    Attributes:
        environment: The gymnax object, static; compared by identity.
        params: Its parameters; `None` for `default_params`.
        horizon: Default number of steps of a rollout: `max_steps_in_episode` (craftax: `max_timesteps`) where it exists.
    """

    environment: Any
    params: Any = None
    horizon: int | None = None

    def __post_init__(self) -> None:
        if self.params is None:
            object.__setattr__(self, "params", self.environment.default_params)
        limit = getattr(self.params, _limit_name(self.params) or "", None)
        if self.horizon is None and limit is not None and not is_traced(limit):
            object.__setattr__(self, "horizon", int(limit))

    @property
    def action_space(self) -> ActionSpace | None:
        """What one action is."""
        return action_space(self.environment.action_space(self.params))

    def reset(self, key: jax.Array, params: Any = None) -> tuple[Any, Any]:
        """Draw a start; `key` is consumed."""
        with own_rules():
            return self.environment.reset_env(key, self.params if params is None else params)

    def step(self, key: jax.Array, state: Any, action: Any, params: Any = None) -> Step:
        """One raw transition; `key` is consumed."""
        params = self.params if params is None else params
        with own_rules():
            observation, state, reward, terminated, truncated = self._step(key, state, action, params)
        return Step(
            observation, state, jnp.asarray(reward), jnp.asarray(terminated, bool), jnp.asarray(truncated, bool)
        )

    def _step(self, key: jax.Array, state: Any, action: Any, params: Any) -> tuple[Any, ...]:
        if hasattr(self.environment, "is_truncated"):
            *new, _ = self.environment.step_env(key, state, action, params)
            return *new, self.environment.is_truncated(new[1], params)
        name = _limit_name(params)
        if name is None:
            *new, _ = self.environment.step_env(key, state, action, params)
            return *new, False
        *new, _ = self.environment.step_env(key, state, action, params.replace(**{name: _NO_LIMIT}))
        return *new, getattr(new[1], _LIMITS[name]) >= getattr(params, name)


def _limit_name(params: Any) -> str | None:
    return next((name for name in _LIMITS if hasattr(params, name)), None)


register_dataclass(Gymnax, ("params",), ("environment", "horizon"))
