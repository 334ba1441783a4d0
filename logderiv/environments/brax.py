"""brax, and MuJoCo Playground, whose environments have the same two functions."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from logderiv.environments._spaces import ActionSpace, no_params, own_rules, scalar_reward
from logderiv.types import Step

_PEELED = ("AutoResetWrapper", "EpisodeWrapper", "VmapWrapper")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Brax:
    """A brax environment without its `AutoReset`, `Episode` and `Vmap` wrappers, which are peeled off if they are there.

    Those wrappers hide the last observation and start every episode alike. Here the state is `(brax State, t)`, `done`
    means terminated, and an episode is truncated after `horizon` steps. Actions lie in `[-1, 1]`; where an environment
    does not clip, the simulator clamps them to the range of its actuators.

    Attributes:
        environment: The brax object, static; compared by identity.
        horizon: Steps until truncation; by default the `episode_length` of the peeled wrapper, or 1000 as in brax.

    Raises:
        ValueError: The wrapper repeats actions: peeling it off would change the environment.
    """

    environment: Any
    horizon: int | None = None

    def __post_init__(self) -> None:
        environment, horizon = self.environment, self.horizon
        while type(environment).__name__ in _PEELED:
            if getattr(environment, "action_repeat", 1) != 1:
                raise ValueError(
                    "environment: expected action_repeat=1; repeat actions inside the environment instead."
                )
            horizon = horizon or getattr(environment, "episode_length", None)
            environment = environment.env
        object.__setattr__(self, "environment", environment)
        object.__setattr__(self, "horizon", int(horizon or 1000))

    @property
    def action_space(self) -> ActionSpace:
        """What one action is."""
        return ActionSpace((self.environment.action_size,), False, None, f"{self.environment.action_size} real numbers")

    def reset(self, key: jax.Array, params: Any = None) -> tuple[Any, Any]:
        """Draw a start; `key` is consumed, its raw data passed on: brax reads batch sizes off the shape of keys."""
        no_params(params, "brax")
        with own_rules():
            state = self.environment.reset(jax.random.key_data(key))
        return state.obs, (state, jnp.zeros((), jnp.int32))

    def step(self, key: jax.Array, state: Any, action: jax.Array, params: Any = None) -> Step:
        """One raw transition, which brax makes without randomness."""
        del key
        no_params(params, "brax")
        state, time = state
        with own_rules():
            state = self.environment.step(state, action)
        time = time + 1
        reward = scalar_reward(state.reward, "pass the environment of one agent, not vmapped")
        return Step(state.obs, (state, time), reward, jnp.reshape(state.done, ()) > 0, time >= self.horizon)
