"""jumanji, whose steps speak the language of dm_env."""

from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core.pytrees import pytree
from logderiv.environments._spaces import ActionSpace, action_space, no_params, scalar_reward, standard_promotion
from logderiv.types import Environment, Key, Observation, State, Step

_PEELED = ("AutoResetWrapper", "VmapAutoResetWrapper", "VmapWrapper")


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
    """

    environment: Any
    horizon: int | None = None

    def __post_init__(self) -> None:
        environment = self.environment
        while type(environment).__name__ in _PEELED:
            environment = environment._env
        object.__setattr__(self, "environment", environment)
        horizon = getattr(environment, "time_limit", None) if self.horizon is None else self.horizon
        object.__setattr__(self, "horizon", horizon)

    @property
    def action_space(self) -> ActionSpace | None:
        """What one action is."""
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
        reward = scalar_reward(timestep.reward, "wrap several agents in jumanji's MultiToSingleWrapper")
        return Step(timestep.observation, state, reward, last & over, last & ~over)
