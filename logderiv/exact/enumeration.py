"""Every trajectory of a finite decision process."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core.arrays import check_whole, is_traced
from logderiv._core.compiled import compiled
from logderiv.environments.tabular import TabularMDP
from logderiv.estimators.credit import discount_factors
from logderiv.likelihood.factors import log_factors
from logderiv.likelihood.probability import prob
from logderiv.types import Trajectory

LIMIT = 2**20


def count_trajectories(mdp: TabularMDP, horizon: int) -> int:
    """Number of trajectories that the start and the dynamics allow, whatever the policy; exact, however large."""
    initial, transition, _, terminal = _tables(mdp)
    successors = [[np.flatnonzero(row) for row in table] for table in transition]
    counts = [1] * mdp.num_states
    for _ in range(horizon):
        counts = [
            1 if terminal[s] else sum(counts[new] for row in successors[s] for new in row)
            for s in range(mdp.num_states)
        ]
    return sum(counts[s] for s in np.flatnonzero(initial))


def enumerate_trajectories(
    mdp: TabularMDP, *, horizon: int, params: Any = None, policy: Any = None, limit: int = LIMIT
) -> Trajectory:
    r"""Every trajectory of at most `horizon` steps that the start and the dynamics allow.

    Weigh them by `logderiv.prob(params, policy, trajectories, environment=mdp)`, which sums to one.

    Args:
        mdp: The decision process; concrete, not traced.
        horizon: `T`.
        params: Parameters of the policy that is thought to have drawn them.
        policy: With it `behavior_log_probs` are its log-factors; without it they are zero.
        limit: Refuse to list more.

    Returns:
        A `Trajectory` of shape `(K, T)`. Steps after termination are invalid.

    Raises:
        ValueError: There are more than `limit`, or `horizon` is below 1.
        TypeError: `mdp` is traced.

    Example:
        >>> import logderiv as ld
        >>> enumerate_trajectories(ld.short_corridor(), horizon=3).valid.shape
        (8, 3)
    """
    check_whole(horizon=horizon)
    count = count_trajectories(mdp, horizon)
    if count > limit:
        raise ValueError(
            f"mdp: {mdp.num_states} states and {mdp.num_actions} actions have {readable(count)} trajectories of {horizon} steps, more than "
            f"limit={limit}. Lower the horizon, or use what costs O(T S^2 A): logderiv.exact.value, gradient, hessian, fisher "
            "and weighted_score_moments, with a policy of the state alone."
        )
    initial, transition, reward, terminal = _tables(mdp)
    edges = np.argwhere(transition > 0)  # rows (s, a, s')
    by_state = [edges[edges[:, 0] == s] for s in range(mdp.num_states)]
    paths = np.flatnonzero(initial)[:, None]  # states visited; -1 after the end
    actions = np.zeros((len(paths), 0), int)
    for _ in range(horizon):
        last = paths[:, -1]
        ended = (last < 0) | terminal[last]
        choices = [np.array([[0, 0, -1]]) if end else by_state[s] for s, end in zip(last, ended, strict=True)]
        repeats = [len(c) for c in choices]
        rows = np.concatenate(choices)
        paths = np.concatenate([np.repeat(paths, repeats, axis=0), rows[:, 2:]], axis=1)
        actions = np.concatenate([np.repeat(actions, repeats, axis=0), rows[:, 1:2]], axis=1)

    valid = paths[:, 1:] >= 0
    states = np.where(valid, paths[:, :-1], 0)
    length = valid.sum(axis=1)
    final = np.take_along_axis(paths, length[:, None], axis=1)[:, 0]
    terminates = valid & (np.arange(horizon) == length[:, None] - 1) & terminal[final][:, None]
    dtype = mdp.reward.dtype
    every = Trajectory(
        observations=jnp.asarray(states, jnp.int32),
        actions=jnp.asarray(actions, jnp.int32),
        rewards=jnp.asarray(np.where(valid, reward[states, actions], 0), dtype),
        discounts=jnp.asarray(np.where(terminates, 0, 1), dtype),
        valid=jnp.asarray(valid),
        behavior_log_probs=jnp.zeros(valid.shape, dtype),
        final_observation=jnp.asarray(final, jnp.int32),
    )
    if policy is None:
        return every
    return every._replace(behavior_log_probs=compiled(log_factors, params, policy, every))


def returns(trajectories: Trajectory, discount: float = 1.0) -> jax.Array:
    r"""$\sum_t \gamma^t r_t$ over the valid steps, shape `(*batch,)`."""
    rewards = jnp.where(trajectories.valid, trajectories.rewards, 0)
    return rewards @ discount_factors(discount, rewards.shape[-1], rewards.dtype)


def expected_return(
    params: Any, policy: Any, mdp: TabularMDP, *, horizon: int, discount: float = 1.0, limit: int = LIMIT
) -> jax.Array:
    r"""$\sum_\tau P(\tau|\theta) \sum_t \gamma^t r_t$ over every trajectory: `value` by enumeration, for any policy.

    Differentiable in `params` at any order; the products P are differentiated directly. `mdp` must be concrete.

    Raises:
        ValueError: As `enumerate_trajectories`.
    """
    every = enumerate_trajectories(mdp, horizon=horizon, limit=limit)
    probabilities = prob(params, policy, every, environment=mdp)
    return probabilities @ returns(every, discount).astype(probabilities.dtype)


def readable(count: int) -> str:
    """A whole number in few characters."""
    return str(count) if count < 10**9 else f"about 10^{len(str(count)) - 1}"


def _tables(mdp: TabularMDP) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    if is_traced(mdp.initial, mdp.transition, mdp.reward, mdp.terminal):
        raise TypeError(
            "mdp: expected a concrete decision process to enumerate, received one that is traced; build it outside the function "
            "that is compiled, or use dynamic programming."
        )
    return (
        np.asarray(mdp.initial),
        np.asarray(mdp.transition),
        np.asarray(mdp.reward),
        np.asarray(mdp.terminal),
    )
