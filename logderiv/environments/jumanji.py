"""jumanji, whose steps speak the language of dm_env."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from logderiv.environments._spaces import ActionSpace, action_space, no_params, own_rules, scalar_reward
from logderiv.types import Step

_PEELED = ("AutoResetWrapper", "VmapAutoResetWrapper", "VmapWrapper")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Jumanji:
    """A jumanji environment without its auto-reset wrappers, which are peeled off if they are there.

    A last step is terminated where its discount is 0 and truncated where it is not. Several of the environments (Snake,
    Maze and others) say discount 0 at their own time limit too: that is a termination here, as there, and their
    observations carry the step count. Observations are jumanji's own pytrees, with the `action_mask` in them:

        policy = ld.FunctionPolicy(lambda params, o: ld.Categorical(ld.masked(network(params, o.grid), o.action_mask)))

    Attributes:
        environment: The jumanji object, static; compared by identity.
        horizon: Default number of steps of a rollout: the environment's `time_limit` where it has one.
    """

    environment: Any
    horizon: int | None = None

    def __post_init__(self) -> None:
        environment = self.environment
        while type(environment).__name__ in _PEELED:
            environment = environment._env
        object.__setattr__(self, "environment", environment)
        if self.horizon is None and getattr(environment, "time_limit", None) is not None:
            object.__setattr__(self, "horizon", int(environment.time_limit))

    @property
    def action_space(self) -> ActionSpace | None:
        """What one action is."""
        return action_space(self.environment.action_spec)

    def reset(self, key: jax.Array, params: Any = None) -> tuple[Any, Any]:
        """Draw a start; `key` is consumed, its raw data passed on: the state keeps a key, which standing still would use twice."""
        no_params(params, "jumanji")
        with own_rules():
            state, timestep = self.environment.reset(jax.random.key_data(key))
        return timestep.observation, state

    def step(self, key: jax.Array, state: Any, action: jax.Array, params: Any = None) -> Step:
        """One raw transition; jumanji keeps its key in the state."""
        del key
        no_params(params, "jumanji")
        with own_rules():
            state, timestep = self.environment.step(state, action)
            last, discount = timestep.last(), timestep.discount
        reward = scalar_reward(
            timestep.reward, "wrap an environment of several agents in jumanji's MultiToSingleWrapper"
        )
        over = jnp.all(discount == 0)
        return Step(timestep.observation, state, reward, last & over, last & ~over)
