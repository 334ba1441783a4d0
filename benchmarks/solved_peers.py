"""Learning curves of the peers, from several seeds, with the seconds that training alone took; this file runs nothing."""

import itertools
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
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
from benchmarks.seeds import MORE, POINTS, Run


class Counts(NamedTuple):
    """How long a run is, and how it is evaluated.

    Attributes:
        num_updates: Of the run.
        every: Updates from one evaluation to the next.
        num_episodes: Of an evaluation.
    """

    num_updates: int
    every: int
    num_episodes: int

    def steps(self, settings: Settings, seeds: int) -> np.ndarray:
        """Environment steps before each evaluation, `(seeds, points)`."""
        points = settings.batch * self.every * np.arange(1, self.num_updates // self.every + 1)
        return np.broadcast_to(points, (seeds, len(points)))


def peer_runs(recipe: Mapping[str, Any], rate: float, gymnasium: Any, *, seeds: int, episodes: int) -> dict[str, Run]:
    """What the peers that are installed make of a task by the settings that the library's PPO has there.

    Args:
        recipe: What `ld.train` takes: PPO as an actor-critic, on a stream.
        rate: Its learning rate, which falls to 0.
        gymnasium: What stable-baselines3 steps; `None` leaves it out. Environments of Gymnasium are for stable-baselines3 alone.
        seeds: How many.
        episodes: Of each evaluation.

    Returns:
        Runs by name.
    """
    world, num_updates = recipe["environment"], recipe["num_updates"]
    names = [] if isinstance(world, ld.environments.Gymnasium) else list(PEERS)
    counts = {"num_updates": num_updates, "every": num_updates // POINTS, "num_episodes": episodes}
    runs = {}
    for name in [*names, SB3]:
        keys = jax.random.split(jax.random.key(0), seeds)
        run = peer_curves(name, world, settings_of(recipe, rate), keys, gymnasium=gymnasium, **counts)
        runs |= {} if run is None else {name: run}
    return runs


def settings_of(recipe: Mapping[str, Any], rate: float) -> Settings:
    """The peers' settings for a recipe of the library, the learning rate `rate` falling to 0."""
    estimator, batch = recipe["estimator"], recipe["batch"]
    advantage: Any = estimator.actor.advantage.advantage  # below `Standardized`
    scale = getattr(advantage, "scale", None)  # of `ScaledRewards`
    return Settings(
        num_environments=batch.num_environments,
        num_steps=batch.num_steps,
        epochs=recipe["epochs"],
        minibatches=recipe["minibatches"],
        learning_rate=rate,
        discount=estimator.actor.discount,
        lambda_=(advantage.advantage if scale else advantage).lambda_,
        clip=estimator.actor.clip,
        entropy_weight=estimator.entropy_weight or 0.0,
        value_weight=estimator.value_weight,
        anneal=True,
        normalize=isinstance(recipe["policy"], ld.policies.Normalized),
        reward_scale=1 / scale if scale else 1.0,
    )


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
) -> Run | None:
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

    Returns:
        The curves; `None` where the peer is not installed, or is to step an environment of Gymnasium and there is none.

    Raises:
        ValueError: `num_updates` is no multiple of `every`; no such peer.
    """
    if num_updates % every:
        raise ValueError(f"num_updates: expected a multiple of every = {every}, received {num_updates}.")
    counts = Counts(num_updates, every, num_episodes)
    if name == SB3:
        if gymnasium is None:
            return None
        return _on_all_cores(gymnasium, settings, len(keys), counts)
    if name not in PEERS:
        raise ValueError(f"name: expected one of {[*PEERS, SB3]}, received {name!r}.")
    peer = PEERS[name](settings, environment)
    return None if peer is None else _side_by_side(peer, environment, settings, keys, counts)


def _side_by_side(peer: rl_peers.Peer, environment: Any, settings: Settings, keys: jax.Array, counts: Counts) -> Run:
    """All seeds by one `vmap`, in a call that only trains."""
    keys, keys_evaluation = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    call = harness.compile_call(jax.vmap(lambda key: peer.train(key, counts.num_updates, counts.every)), keys)
    start = time.perf_counter()
    snapshots = call.run()
    seconds = time.perf_counter() - start
    evaluate = partial(_evaluated, ld.FunctionPolicy(peer.policy), environment, counts.num_episodes)
    returns, final = map(np.asarray, jax.jit(partial(lax.map, evaluate))((snapshots, keys_evaluation)))
    return Run(counts.steps(settings, len(keys)), returns, final, call.compile_seconds, seconds)


def _evaluated(policy: Any, environment: Any, num_episodes: int, snapshots_and_key: Any) -> tuple[jax.Array, jax.Array]:
    """Mean returns of all snapshots of a seed, `(points,)`, and of the last one, on more episodes."""
    snapshots, key = snapshots_and_key
    key, key_last = jax.random.split(key)

    def mean_return(snapshot: Any, key: jax.Array, num: int) -> jax.Array:
        return jnp.mean(ld.evaluate(snapshot, key, policy, environment, num_episodes=num))

    each = jax.random.split(key, len(jax.tree.leaves(snapshots)[0]))
    returns = lax.map(lambda x: mean_return(x[0], x[1], num_episodes), (snapshots, each))
    return returns, mean_return(jax.tree.map(lambda x: x[-1], snapshots), key_last, MORE * num_episodes)


def _on_all_cores(make: Any, settings: Settings, seeds: int, counts: Counts) -> Run | None:
    """stable-baselines3: as many seeds at once as there are cores, one thread each, the clock running while they learn."""
    if not rl_peers.installed("stable_baselines3", "gymnasium"):
        return None
    workers = min(seeds, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(partial(_one_seed, make, settings, counts), range(seeds)))
    returns, final, seconds = map(np.array, zip(*found, strict=True))
    return Run(counts.steps(settings, seeds), returns, final, math.nan, seconds.sum() / workers)


def _one_seed(make: Any, settings: Settings, counts: Counts, seed: int) -> tuple[list[float], float, float]:
    """Mean returns of all snapshots and of the last one, training seconds; no two episodes of evaluations start from one seed."""
    model = peers_sb3.stable_baselines3_ppo(settings, seed, make)
    start = time.perf_counter()
    snapshots = peers_sb3.stable_baselines3_train(model, settings, counts.num_updates, counts.every)
    seconds = time.perf_counter() - start
    last = MORE * counts.num_episodes
    first = itertools.count(seed * (len(snapshots) + 1) * last, last)
    mean_return = partial(peers_sb3.stable_baselines3_return, model, make=make)
    returns = [mean_return(counts.num_episodes, next(first), snapshot=snapshot) for snapshot in snapshots]
    return returns, mean_return(last, next(first)), seconds
