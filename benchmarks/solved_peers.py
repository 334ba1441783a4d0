"""Learning curves of the peers, from several seeds, with the seconds that training alone took; this file runs nothing."""

import itertools
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import logderiv as ld
from benchmarks import harness, peers_sb3, rl_peers
from benchmarks.peers_sb3 import SB3
from benchmarks.rl_peers import PEERS, Settings

MORE = 4  # times as many episodes of what was trained at last


class PeerCurve(NamedTuple):
    """Training of several seeds, evaluated on fresh episodes, actions sampled.

    Attributes:
        steps: Environment steps before each evaluation, `(seeds, points)`.
        returns: Mean return of each evaluation, `(seeds, points)`.
        final: Mean return of what was trained at last, on four times as many episodes, `(seeds,)`.
        compile_seconds: Tracing and compiling of the training; NaN where nothing is compiled.
        seconds: Training of all seeds, without evaluations: those of JAX side by side, those of stable-baselines3 one after another.
    """

    steps: np.ndarray
    returns: np.ndarray
    final: np.ndarray
    compile_seconds: float
    seconds: float


def peer_curves(
    name: str,
    environment: Any,
    settings: Settings,
    keys: jax.Array,
    *,
    num_updates: int,
    every: int,
    num_episodes: int,
    gymnasium: str | Callable[[], Any] | None = None,
    **options: Any,
) -> PeerCurve | None:
    """Train and evaluate one peer.

    Args:
        name: Of `rl_peers.PEERS`, or "stable-baselines3".
        environment: What the JAX peers step, and what evaluates them; rewards are unscaled there.
        settings: Of PPO.
        keys: One of each seed, `(seeds,)`; of stable-baselines3 only their number counts.
        num_updates: Of each run.
        every: Updates from one evaluation to the next.
        num_episodes: Of an evaluation.
        gymnasium: An id of Gymnasium, or what makes an environment: that of stable-baselines3.
        **options: More of `stable_baselines3.PPO`.

    Returns:
        The curves; `None` where the peer is not installed, or is to step an environment of Gymnasium and there is none.

    Raises:
        ValueError: `num_updates` is no multiple of `every`; no such peer.
    """
    if num_updates % every:
        raise ValueError(f"num_updates: expected a multiple of every = {every}, received {num_updates}.")
    counts = {"num_updates": num_updates, "every": every, "num_episodes": num_episodes}
    if name == SB3:
        if gymnasium is None:
            return None
        return _one_after_another(gymnasium, settings, len(keys), **counts, options=options)
    if name not in PEERS:
        raise ValueError(f"name: expected one of {[*PEERS, SB3]}, received {name!r}.")
    peer = PEERS[name](settings, environment)
    return None if peer is None else _side_by_side(peer, environment, settings, keys, **counts)


def _steps(settings: Settings, seeds: int, num_updates: int, every: int) -> np.ndarray:
    points = settings.batch * every * np.arange(1, num_updates // every + 1)
    return np.broadcast_to(points, (seeds, len(points)))


def _side_by_side(
    peer: rl_peers.Peer,
    environment: Any,
    settings: Settings,
    keys: jax.Array,
    num_updates: int,
    every: int,
    num_episodes: int,
) -> PeerCurve:
    """All seeds by one `vmap`, in a call that only trains."""
    keys, keys_evaluation = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    call = harness.compile_call(jax.vmap(lambda key: peer.train(key, num_updates, every)), keys)
    start = time.perf_counter()
    snapshots = call.run()
    seconds = time.perf_counter() - start
    evaluate = partial(_evaluated, ld.FunctionPolicy(peer.policy), environment, num_episodes)
    returns, final = map(np.asarray, jax.jit(partial(lax.map, evaluate))((snapshots, keys_evaluation)))
    return PeerCurve(_steps(settings, len(keys), num_updates, every), returns, final, call.compile_seconds, seconds)


def _evaluated(policy: Any, environment: Any, num_episodes: int, snapshots_and_key: Any) -> tuple[jax.Array, jax.Array]:
    """Mean returns of all snapshots of a seed, `(points,)`, and of the last one, on more episodes."""
    snapshots, key = snapshots_and_key
    key, key_last = jax.random.split(key)

    def mean_return(snapshot: Any, key: jax.Array, num: int) -> jax.Array:
        return jnp.mean(ld.evaluate(snapshot, key, policy, environment, num_episodes=num))

    each = jax.random.split(key, len(jax.tree.leaves(snapshots)[0]))
    returns = lax.map(lambda x: mean_return(x[0], x[1], num_episodes), (snapshots, each))
    return returns, mean_return(jax.tree.map(lambda x: x[-1], snapshots), key_last, MORE * num_episodes)


def _one_after_another(
    make: Any, settings: Settings, seeds: int, num_updates: int, every: int, num_episodes: int, options: Any
) -> PeerCurve | None:
    """stable-baselines3: the seeds in turn, the clock running while they learn; no two episodes of evaluations start from one seed."""
    returns, final, seconds, steps = [], [], 0.0, _steps(settings, seeds, num_updates, every)
    first = itertools.count(step=MORE * num_episodes)
    for seed in range(seeds):
        model = peers_sb3.stable_baselines3_ppo(settings, seed, make, **options)
        if model is None:
            return None
        start = time.perf_counter()
        snapshots = peers_sb3.stable_baselines3_train(model, settings, num_updates, every)
        seconds += time.perf_counter() - start
        mean_return = partial(peers_sb3.stable_baselines3_return, model, make=make)
        returns.append([mean_return(num_episodes, next(first), snapshot=snapshot) for snapshot in snapshots])
        final.append(mean_return(MORE * num_episodes, next(first)))
    return PeerCurve(steps, np.array(returns), np.array(final), math.nan, seconds)
