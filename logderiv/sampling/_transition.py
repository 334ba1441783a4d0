"""The one way in which a step is drawn."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from logderiv._core import check
from logderiv._core.arrays import floating
from logderiv.distributions.interop import log_prob, sample
from logderiv.environments import check_action
from logderiv.policies import StepPolicy
from logderiv.types import Key, Observation, Params, State, Step, Trajectory


class Place(NamedTuple):
    """Where a trajectory stands.

    Attributes:
        observation: What the next action will be chosen on.
        state: The environment's own.
        carry: The policy's memory.
    """

    observation: Observation
    state: State
    carry: Any


def transition(
    params: Params, key_action: Key, key_step: Key, policy: StepPolicy, world: tuple[Any, Any], place: Place
) -> tuple[Trajectory, jax.Array, Place]:
    """One action, and what the environment makes of it.

    Args:
        params: Parameters of the policy, detached.
        key_action: Consumed.
        key_step: Consumed.
        policy: What acts.
        world: The environment, and the parameters that are passed to it.
        place: Where the trajectory stands.

    Returns:
        The step as a trajectory without a time axis, `final_observation` being the one after it; whether the episode ends with it,
        terminated or truncated; and the next place.

    Raises:
        ValueError, TypeError: What `step` returned does not fit what `reset` did; the action does not fit the environment.
    """
    environment, environment_params = world
    distribution, carry = policy.step(params, place.carry, place.observation)
    action = sample(distribution, key_action)
    check_action(environment, distribution, action)
    new = Step(*environment.step(key_step, place.state, action, environment_params))
    reward, log = floating(new.reward), log_prob(distribution, action)
    discount, valid = jnp.where(new.terminated, 0, 1).astype(reward.dtype), jnp.ones((), bool)
    step = Trajectory(place.observation, action, reward, discount, valid, log, new.observation)
    return step, new.terminated | new.truncated, _same_leaves(Place(new.observation, new.state, carry), place)


def _same_leaves(new: Place, old: Place) -> Place:
    """`new` in the dtypes of `old`: what step returned, against what reset did."""
    check.like("environment, (observation, state, carry) after step", tuple(new), tuple(old), hint="as after reset")

    def leaf(path: Any, a: Any, b: Any) -> Any:
        before, after = jnp.result_type(b), jnp.result_type(a)
        if jnp.issubdtype(after, jnp.inexact) and not jnp.issubdtype(before, jnp.inexact):
            raise TypeError(
                f"environment: leaf {jax.tree_util.keystr(path)} of (observation, state, carry) is {before} after reset and "
                f"{after} after step; let reset return {after} too, or fractions would be cut off."
            )
        return jnp.asarray(a, before)

    return jax.tree_util.tree_map_with_path(leaf, new, old)
