"""The statistics of a `Normalized` policy, from batch to batch; of any other policy there are none, and nothing is done."""

import dataclasses
from functools import partial
from typing import Any

import jax

from logderiv._core import check
from logderiv._core.moments import RunningMoments
from logderiv.environments import _protocol
from logderiv.policies import Normalized, StepPolicy
from logderiv.types import State, Trajectories


def starting(policy: StepPolicy, environment: Any, environment_params: Any) -> StepPolicy:
    """A policy that is to be trained, with statistics of nothing where it is given without.

    Args:
        policy: The policy.
        environment: Where it acts, which says what an observation is.
        environment_params: Of the environment.

    Returns:
        The policy.

    Raises:
        ValueError: The statistics that are given are of other observations; no leaf of an observation is floating point.
    """
    if not isinstance(policy.policy, Normalized):
        return policy
    reset = partial(_protocol.reset, environment)
    observation, _ = jax.eval_shape(reset, jax.random.key(0), environment_params)
    first = RunningMoments.start(observation)
    if not jax.tree.leaves(first.mean):
        dtypes = sorted({str(x.dtype) for x in jax.tree.leaves(observation)})
        raise ValueError(
            f"policy: expected observations with floating-point numbers to normalize, received {', '.join(dtypes)}; "
            "take the policy without Normalized."
        )
    given = policy.policy.statistics
    if given is None:
        return at(policy, first)
    check.like("policy.statistics", given, first, hint="those of this environment's observations, of one seed")
    return policy


def statistics(policy: StepPolicy) -> State:
    """The statistics that a policy has, `()` where it is not normalized."""
    return policy.policy.statistics if isinstance(policy.policy, Normalized) else ()


def at(policy: StepPolicy, statistics: State) -> StepPolicy:
    """The policy with these statistics."""
    if not isinstance(policy.policy, Normalized):
        return policy
    return StepPolicy(dataclasses.replace(policy.policy, statistics=statistics))


def shown(policy: StepPolicy, drawn: Trajectories) -> tuple[Any, Trajectories]:
    """What weighs a batch and climbs is given: the inner policy, and the batch as that sees it."""
    if not isinstance(policy.policy, Normalized):
        return policy, drawn
    return policy.policy.inner, policy.policy.shown(drawn)


def measured(policy: StepPolicy, drawn: Trajectories) -> State:
    """The statistics for the next batch."""
    return policy.policy.measured(drawn) if isinstance(policy.policy, Normalized) else ()
