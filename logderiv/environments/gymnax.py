"""gymnax of both contracts, and craftax, which keeps the older one."""

from typing import Any

import jax.numpy as jnp

from logderiv._core.arrays import is_traced
from logderiv._core.pytrees import pytree
from logderiv.environments._spaces import ActionSpace, action_space, standard_promotion
from logderiv.types import Environment, Key, Observation, State, Step

_NO_LIMIT = 2**30
_LIMITS = {"max_steps_in_episode": "time", "max_timesteps": "timestep"}  # of gymnax and of craftax: limit, clock


@pytree(static=("environment", "horizon"))
class Gymnax(Environment):
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

    def reset(self, key: Key, params: Any = None) -> tuple[Observation, State]:
        with standard_promotion():
            return self.environment.reset_env(key, self.params if params is None else params)

    def step(self, key: Key, state: State, action: Any, params: Any = None) -> Step:
        params = self.params if params is None else params
        own, limit = hasattr(self.environment, "is_truncated"), _limit_name(params)
        unlimited = params if own or limit is None else params.replace(**{limit: _NO_LIMIT})
        truncated: Any = False
        with standard_promotion():
            observation, state, reward, terminated, _ = self.environment.step_env(key, state, action, unlimited)
            if own:
                truncated = self.environment.is_truncated(state, params)
            elif limit is not None:
                truncated = getattr(state, _LIMITS[limit]) >= getattr(params, limit)
        ends = jnp.asarray(terminated, bool), jnp.asarray(truncated, bool)
        return Step(observation, state, jnp.asarray(reward), *ends)


def _limit_name(params: Any) -> str | None:
    return next((name for name in _LIMITS if hasattr(params, name)), None)
