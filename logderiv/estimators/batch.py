"""A batch as advantages and baselines see it: what every one of them needs, computed once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from logderiv.types import Params, Policy, Trajectory


class Batch(NamedTuple):
    """Trajectories, or the steps of a stream as trajectories of one step, with the factors that their rewards are multiplied by.

    Shapes `(N, T)`; of a stream of E environments and T steps `(E T, 1)`.

    Attributes:
        steps: The trajectories.
        rewards: In float32 at least; 0 on invalid steps.
        discounts: 0 where the episode terminates, 1 elsewhere, in the dtype of the rewards.
        discount: γ of the objective, in that dtype. Shape `()`.
        inside: What multiplies `discounts` inside a sum of rewards that were already multiplied by `scale`: 1, or γ where γ^t
            is left out. Shape `()`.
        powers: γ^t with the step's time in its episode, or ones where it is left out. Shape `(1, T)` or `(N, T)`.
        step_ratios: π/b of each step; ones on policy.
        ratios: Importance weight of the choices up to each step; ones on policy.
        params: Parameters of the policy whose gradient is wanted, detached.
        policy: That policy.
        ends: Of a stream, whether the step is the last one of its episode, shape `(E, T)`; else `None`.
        values: v(s_t) and v(s_{t+1}) of an actor-critic's own value function; `None` without one.
    """

    steps: Trajectory
    rewards: jax.Array
    discounts: jax.Array
    discount: jax.Array
    inside: jax.Array
    powers: jax.Array
    step_ratios: jax.Array
    ratios: jax.Array
    params: Params
    policy: Policy
    ends: jax.Array | None = None
    values: tuple[jax.Array, jax.Array] | None = None

    @property
    def valid(self) -> jax.Array:
        """Which steps are real."""
        return self.steps.valid

    @property
    def scale(self) -> jax.Array:
        """What every reward is multiplied by before credit is given, the ratio times γ^t."""
        return self.powers * self.ratios


def in_groups(x: jax.Array, size: int) -> jax.Array:
    """Consecutive groups.

    Args:
        x: Shape `(N, ...)`.
        size: Trajectories in a group.

    Returns:
        Shape `(N / size, size, ...)`.

    Raises:
        ValueError: `size` does not divide N.
    """
    if x.shape[0] % size:
        raise ValueError(
            f"trajectories: expected a multiple of group_size = {size}, received {x.shape[0]}; "
            "the groups are consecutive: draw each prompt or start group_size times."
        )
    return x.reshape((x.shape[0] // size, size, *x.shape[1:]))


def averaged(weights: jax.Array, valid: jax.Array, per: str) -> tuple[jax.Array, jax.Array]:
    """What a mean over trajectories is taken of.

    Args:
        weights: Shape `(N, T)`.
        valid: Shape `(N, T)`.
        per: "step": every valid step; "trajectory": the first step of every trajectory.

    Returns:
        The weights, and 1 where they count: shape `(N, T)` per step, `(N, 1)` per trajectory.
    """
    if per == "trajectory":
        return weights[:, :1], jnp.ones_like(weights[:, :1])
    return weights, valid.astype(weights.dtype)
