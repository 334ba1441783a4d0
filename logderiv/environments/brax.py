"""brax, and MuJoCo Playground, whose environments have the same two functions."""

from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core.pytrees import pytree
from logderiv.environments._spaces import ActionSpace, no_params, scalar_reward, standard_promotion
from logderiv.types import Environment, Key, Observation, State, Step

_PEELED = ("AutoResetWrapper", "EpisodeWrapper", "VmapWrapper")


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
    """

    environment: Any
    horizon: int | None = None

    def __post_init__(self) -> None:
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
        return ActionSpace((self.environment.action_size,), False, None, f"{self.environment.action_size} real numbers")

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
        reward = scalar_reward(inner.reward, "pass the environment of one agent, not vmapped")
        return Step(inner.obs, (inner, time), reward, jnp.reshape(inner.done, ()) > 0, time >= self.horizon)
