"""Every trajectory of a finite decision process."""

import jax.numpy as jnp
import numpy as np

from logderiv.environments.tabular import TabularMDP
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


def enumerate_trajectories(mdp: TabularMDP, *, horizon: int, limit: int = LIMIT) -> Trajectory:
    r"""Every trajectory of at most `horizon` steps that the start and the dynamics allow.

    Weigh them by `logderiv.prob(params, policy, trajectories, environment=mdp)`, which sums to one. `behaviour_log_probs`
    are zero, to be filled with `logderiv.log_factors`.

    Args:
        mdp: The decision process; concrete, not traced.
        horizon: `T`.
        limit: Refuse to list more.

    Returns:
        A `Trajectory` of shape `(K, T)`.

    Raises:
        ValueError: There are more than `limit`, or `horizon` is below 1.
    """
    if horizon < 1:
        raise ValueError(f"horizon: expected a whole number >= 1, received {horizon}.")
    count = count_trajectories(mdp, horizon)
    if count > limit:
        raise ValueError(
            f"enumerate_trajectories: {count:.3g} trajectories at horizon {horizon}, more than limit={limit}; lower the horizon, "
            "or use logderiv.exact.value and gradient, which cost O(T S^2 A)."
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
    return Trajectory(
        observations=jnp.asarray(states, jnp.int32),
        actions=jnp.asarray(actions, jnp.int32),
        rewards=jnp.asarray(np.where(valid, reward[states, actions], 0), dtype),
        discounts=jnp.asarray(np.where(terminates, 0, 1), dtype),
        valid=jnp.asarray(valid),
        behaviour_log_probs=jnp.zeros(valid.shape, dtype),
        final_observation=jnp.asarray(final, jnp.int32),
    )


def _tables(mdp: TabularMDP) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.asarray(mdp.initial),
        np.asarray(mdp.transition),
        np.asarray(mdp.reward),
        np.asarray(mdp.terminal),
    )
