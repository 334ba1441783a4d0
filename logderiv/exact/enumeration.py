"""Every trajectory of a finite environment: of one that is a table, or of any deterministic function of its choices.

Both are first read as a graph of what can follow what. A table's nodes are its states; a deterministic environment is replayed
for every choice, so that each beginning of a trajectory is a node of its own. The trajectories are the paths of the graph.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core import check
from logderiv._core.arrays import summable
from logderiv._core.products import precision_of
from logderiv._core.pytrees import jit
from logderiv.environments import _protocol, as_environment
from logderiv.environments.rewards import RewardLaw
from logderiv.environments.tabular import TabularMDP
from logderiv.likelihood.probability import log_factors
from logderiv.types import Params, Step, Trajectory

LIMIT = 2**20
LONGEST = 2**16  # steps of a trajectory that is counted or listed
_STEPS = 2**27  # of all trajectories that are listed


class Listing(NamedTuple):
    """Every trajectory `(K, T)`, what of its probability depends on no policy (start times transitions), its start's number; `(K,)`."""

    trajectories: Trajectory
    weights: jax.Array
    starts: jax.Array


def count_trajectories(environment: Any, horizon: int) -> int:
    """Number of trajectories that start and transitions allow, whatever the policy; exact, however large, for tables.

    Args:
        environment: A `TabularMDP`, or a deterministic function of its choices, which `enumerate_trajectories` describes;
            concrete, not traced.
        horizon: `T`, at most 2^16.

    Returns:
        A Python integer.

    Raises:
        ValueError: The environment is replayed, and has more than 2^20 trajectories or is random; `horizon` out of range.
        TypeError: The environment is traced, or cannot be listed.
    """
    horizon = check.whole(at_most=LONGEST, horizon=horizon)
    return _count(_graph(environment, horizon, LIMIT), horizon)


def enumerate_trajectories(
    environment: Any, *, horizon: int, params: Params | None = None, policy: Any = None, limit: int = LIMIT
) -> Trajectory:
    """Every trajectory of at most `horizon` steps that start and transitions allow.

    Weigh them by `logderiv.prob(params, policy, trajectories, environment=environment)`, which sums to one.

    Args:
        environment: A `TabularMDP`, or any environment that is a deterministic function of its choices and has the attribute
            `num_actions`: actions are the integers below it. One whose start is drawn has also the attribute `starts`, a pair of
            the `environment_params` of every start, stacked, and their probabilities `(M,)`. Concrete, not traced.
        horizon: `T`, at most 2^16.
        params: Parameters of the policy that is thought to have drawn them.
        policy: With it `behavior_log_probs` are its log-factors; without it they are zero.
        limit: Refuse to list more.

    Returns:
        A `Trajectory` of shape `(K, T)`. Steps after the end of an episode are invalid.

    Raises:
        ValueError: There are more than `limit`, or more than 2^27 steps in all; `horizon` or `limit` is out of range; an
            environment that is no table draws something.
        TypeError: The environment is traced, or is neither a table nor has `num_actions`.

    Example:
        >>> import logderiv as ld
        >>> enumerate_trajectories(ld.environments.short_corridor(), horizon=3).valid.shape
        (8, 3)
    """
    every = list_trajectories(environment, horizon, limit).trajectories
    return every if policy is None else every._replace(behavior_log_probs=behavior_log_probs(params, policy, every))


def list_trajectories(environment: Any, horizon: int, limit: int = LIMIT) -> Listing:
    """What `enumerate_trajectories` lists, and the probability of start and transitions."""
    horizon, limit = check.whole(at_most=LONGEST, horizon=horizon), check.whole(limit=limit)
    graph, most = _graph(environment, horizon, limit), min(limit, _STEPS // horizon)
    if (count := _count(graph, horizon, most)) > most:
        bound = f"limit={limit}" if most == limit else f"{most}, which is 2^27 steps"
        raise _too_many(environment, f"at least {readable(count)}", horizon, bound)
    start, edges = _paths(graph, horizon)
    valid, dtype = edges >= 0, graph.reward.dtype
    edges = np.where(valid, edges, 0)
    final = graph.target[np.take_along_axis(edges, valid.sum(axis=1, keepdims=True) - 1, axis=1)[:, 0]]
    source = np.where(valid, graph.source[edges], 0)
    weights = graph.start_probability[start] * np.prod(graph.probability[edges], axis=1, where=valid)
    every: Any = dict(
        observations=jax.tree.map(lambda x: x[source], graph.observations),
        actions=np.where(valid, graph.action[edges], 0).astype(np.int32),
        rewards=np.where(valid, graph.reward[edges], 0).astype(dtype),
        discounts=np.where(valid & graph.terminated[edges], 0, 1).astype(dtype),
        valid=valid,
        behavior_log_probs=np.zeros(valid.shape, dtype),
        final_observation=jax.tree.map(lambda x: x[final], graph.observations),
    )
    with jax.ensure_compile_time_eval():
        return Listing(Trajectory(**jax.tree.map(jnp.asarray, every)), summable(weights), jnp.asarray(start))


def returns(trajectories: Trajectory, discount: Any = 1.0) -> jax.Array:
    """sum_t γ^t r_t over the valid steps, shape `(*batch,)`."""
    rewards = jnp.where(trajectories.valid, trajectories.rewards, 0)
    powers = jnp.asarray(discount, rewards.dtype) ** jnp.arange(rewards.shape[-1], dtype=rewards.dtype)
    return jnp.matmul(rewards, powers, precision=precision_of())


def readable(count: int) -> str:
    """A whole number in few characters."""
    return str(count) if count < 10**9 else f"about 10^{len(str(count)) - 1}"


behavior_log_probs = jit(log_factors)


class _Graph(NamedTuple):
    """Nodes, each with an observation, and edges, sorted by the node that they leave. NumPy arrays."""

    observations: Any
    start: np.ndarray
    start_probability: np.ndarray
    source: np.ndarray
    action: np.ndarray
    target: np.ndarray
    probability: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    ended: np.ndarray


def _graph(environment: Any, horizon: int, limit: int) -> _Graph:
    if check.is_traced(*jax.tree.leaves(environment)):
        raise TypeError(
            "environment: expected a concrete one to enumerate, received one that is traced; build it outside the function "
            "that is compiled, or use dynamic programming."
        )
    if isinstance(environment, TabularMDP):
        return _of_tables(environment)
    with jax.ensure_compile_time_eval():
        return _replayed(environment, horizon, limit)


def _of_tables(mdp: TabularMDP) -> _Graph:
    initial, terminal = np.asarray(mdp.initial), np.asarray(mdp.terminal)
    source, action, target, probability, reward = _steps_of_tables(mdp)
    states, ended = np.arange(mdp.num_states, dtype=np.int32), terminal[target]
    steps = action, target, probability, reward, ended, ended
    return _Graph(states, np.flatnonzero(initial), initial[initial != 0], source, *steps)


def _steps_of_tables(mdp: TabularMDP) -> tuple[np.ndarray, ...]:
    """State, action and next state of every step that is possible, its probability and its reward; equal rewards are one step."""
    transition = np.asarray(mdp.transition)
    if not isinstance(mdp.reward, RewardLaw):
        step, reward = np.nonzero(transition > 0), np.asarray(mdp.reward)
        return *step, transition[step], reward[step[: reward.ndim]]
    values, chances = np.asarray(mdp.reward.values), np.asarray(mdp.reward.probabilities)
    chances = transition[..., None] * (chances[:, :, None] if chances.ndim == 3 else chances)
    values = np.broadcast_to(values[:, :, None] if values.ndim == 3 else values, chances.shape)
    found = np.nonzero(chances > 0)
    rows, place = np.unique(np.stack([*found[:3], values[found]], axis=1), axis=0, return_inverse=True)
    probability = np.bincount(place.ravel(), chances[found], minlength=len(rows)).astype(chances.dtype)
    return *rows[:, :3].astype(int).T, probability, rows[:, 3].astype(values.dtype)


def _replayed(environment: Any, horizon: int, limit: int) -> _Graph:
    """The tree of all choices, grown by one level after the other; every action adds a node."""
    actions = getattr(environment, "num_actions", None)
    if actions is None:
        raise TypeError(
            "environment: expected a TabularMDP, or an attribute num_actions, so that the sequences of actions "
            f"0 .. num_actions - 1 can be replayed; received {type(environment).__name__}."
        )
    stepper, actions = as_environment(environment), check.whole(num_actions=actions)
    inputs, starts = getattr(environment, "starts", (None, np.ones(1)))
    starts = np.asarray(summable(starts, "environment.starts"))
    before = _deterministic(_reset, len(starts), stepper, inputs)
    nodes, levels = [before[0]], []
    live, first, finished, size = np.arange(len(starts), dtype=np.int32), 0, 0, len(starts)
    while len(live) > 0 and len(levels) < horizon:
        if finished + len(live) * actions > limit:
            raise _too_many(environment, "too many", horizon, f"limit={limit}")
        source = first + np.repeat(live, actions)
        new, inputs = _deterministic(_step, len(source), stepper, before, inputs, live, actions)
        before, first, size = new[:2], first + size, len(source)
        ended = np.asarray(new.terminated | new.truncated)
        live, finished = np.flatnonzero(~ended).astype(np.int32), finished + ended.sum()
        nodes.append(new.observation)
        levels.append((source, new.reward, new.terminated, ended))
    source, reward, terminated, ended = map(np.concatenate, zip(*levels, strict=True))
    edge, observations = np.arange(len(source)), jax.tree.map(lambda *x: np.concatenate(x), *nodes)
    steps = edge % actions, len(starts) + edge, np.ones(len(edge)), reward, terminated, ended
    return _Graph(observations, np.arange(len(starts)), starts, source, *steps)


def _reset(keys: jax.Array, environment: Any, inputs: Any) -> tuple[Any, Any]:
    return jax.vmap(partial(_protocol.reset, environment))(keys, inputs)


def _step(keys: jax.Array, environment: Any, before: Any, inputs: Any, live: Any, actions: int) -> tuple[Step, Any]:
    """Every action in each of the live states."""
    rows, action = jnp.repeat(live, actions), jnp.tile(jnp.arange(actions, dtype=jnp.int32), live.shape[0])
    before, inputs = jax.tree.map(lambda x: x[rows], (before, inputs))
    new = jax.vmap(partial(_protocol.step, environment))(keys, before, action, inputs)
    hint = "to be listed, one reward a step and not one for each player"
    check.fields("environment: ", new, reward=rows.shape, hint=hint)
    return new, inputs


@jit
def _alike(function: Callable[..., Any], number: int, *arguments: Any) -> tuple[Any, jax.Array]:
    """`function(keys, *arguments)`, and whether it is the same for other keys, more of them where there are few."""
    keys = jax.random.split(jax.random.key(0), (max(2, 64 // number), number))
    several = jax.vmap(lambda keys: function(keys, *arguments))(keys)
    leaves = [x for x in jax.tree.leaves(several) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
    same = [jnp.all((x == x[:1]) | (x != x)) for x in leaves]
    return jax.tree.map(lambda x: x[0], several), jnp.all(jnp.stack(same))


def _deterministic(function: Callable[..., Any], number: int, *arguments: Any) -> Any:
    result, alike = _alike(function, number, *arguments)
    if not alike:
        raise ValueError(
            "environment: expected one without randomness of its own to replay, received one that depends on the key; give the "
            "tables (logderiv.environments.TabularMDP), or the attribute starts where only the start is drawn."
        )
    return result


def _count(graph: _Graph, horizon: int, most: float = math.inf) -> int:
    """The number of paths of so many steps; once there are more than `most`, that of fewer steps, since further ones only add paths."""
    nodes = jax.tree.leaves(graph.observations)[0].shape[0]
    counts = np.ones(nodes, object)  # of Python's integers: they grow without bound
    for _ in range(horizon):
        following = np.zeros(nodes, object)
        np.add.at(following, graph.source, np.where(graph.ended, 1, counts[graph.target]))
        settled, counts = np.array_equal(counts, following), following
        if settled or sum(counts[graph.start]) > most:
            break
    return int(sum(counts[graph.start]))


def _paths(graph: _Graph, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """The start of every path `(K,)`, as an index into `graph.start`, and its edges `(K, T)`, -1 after the end."""
    nodes = jax.tree.leaves(graph.observations)[0].shape[0]
    first = np.searchsorted(graph.source, np.arange(nodes + 1))
    start, node = np.arange(len(graph.start)), graph.start
    edges = np.zeros((len(start), 0), int)
    for _ in range(horizon):
        ended = node < 0
        if ended.all():
            return start, np.pad(edges, ((0, 0), (0, horizon - edges.shape[1])), constant_values=-1)
        repeats = np.where(ended, 1, np.diff(first)[node])
        within = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        new = np.where(np.repeat(ended, repeats), -1, np.repeat(first[node], repeats) + within)
        start = np.repeat(start, repeats)
        edges = np.concatenate([np.repeat(edges, repeats, axis=0), new[:, None]], axis=1)
        node = np.where((new < 0) | graph.ended[new], -1, graph.target[new])
    return start, edges


def _too_many(environment: Any, count: str, horizon: int, bound: str) -> ValueError:
    states = f"{environment.num_states} states and " if isinstance(environment, TabularMDP) else ""
    return ValueError(
        f"environment: {states}{environment.num_actions} actions have {count} trajectories of {horizon} steps, more than "
        f"{bound}. Lower the horizon, or use what costs O(T S^2 A): logderiv.exact.value, gradient, hessian, fisher "
        "and weighted_score_moments, with a TabularMDP and a policy of the state alone."
    )
