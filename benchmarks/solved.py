r"""Which tasks are solved, from how many environment steps and in how many seconds, beside other libraries?

Each configuration of `solved_tasks` trains several seeds side by side, one compiled program by `jax.vmap`. A seed has solved a task at the first of 24
evaluations in training whose episodes average the threshold, actions sampled; steps are real ones, padding and evaluation not counted. Seconds are those steps over
the steps a second of all seeds together, measured apart from evaluations and after compiling. Interquartile means over seeds with 95 % bootstrap
intervals. CartPole, Acrobot and Pendulum are learnt by other estimators as well; the policies of CartPole then play in Farama's Gymnasium, which shares no code
with the simulator that they were trained in. FrozenLake ends beside its exact optimum, its policies' values computed.

Finding (2 CPU cores, jax 0.10.2, gymnax 1.0.1, rejax 0.1.3, stable-baselines3 2.9.2; beside the peers): every seed of CartPole-v1 reaches 475 after 25 k
steps, in 1.4 s for all eight; so does stable-baselines3, in 10 s; PureJaxRL's style and rejax, which take a cut for an end, do with five and three seeds of eight.
Acrobot, Pendulum, MountainCarContinuous and both tasks of brax are solved by every seed here, in 0.44 to 0.72 of the seconds of the next peer, in no more steps than the best one beyond the
intervals. Of MinAtar, a million steps each, SpaceInvaders is best here (130 against 116 and 110); on Breakout and Asterix PureJaxRL's style ends higher, 25.4 against 23.1 and 1.89 against
1.71, with intervals that overlap, and one and two of five seeds here stay below its mark. LunarLander, two choices a step, is solved by every seed after 164 k steps,
54 s for all five; by stable-baselines3 after 295 k, 107 s.

`python -m benchmarks solved --peers` trains PPO in PureJaxRL's style, rejax and stable-baselines3 with the same hyperparameters in the same run, where the extra
`rl-peers` is installed; LunarLander needs the extra `box2d`.
"""

import dataclasses
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

import logderiv as ld
from benchmarks import solved_tasks
from benchmarks.harness import (
    Bound,
    Report,
    Table,
    at_least,
    at_most,
    compile_call,
    interleaved_medians,
    new_figure,
)
from benchmarks.seeds import MORE, POINTS, Run, interquartile_mean, interval
from benchmarks.solved_peers import peer_runs
from benchmarks.solved_tasks import Recipe, Task
from logderiv import plots

OURS = "PPO"
QUICK = (solved_tasks.CARTPOLE,)
QUICK_OTHERS = ("reward-to-go, leave-one-out",)
MINUTES = 40.0
TRANSFERRED = "CartPole-v1"
MISSING = (ImportError, gymnasium.error.DependencyNotInstalled)


def train_seeds(recipe: Recipe, *, seeds: int, episodes: int, repeats: int = 3) -> Run:
    """Train `seeds` policies side by side and let each play; then time as many without evaluations, over a few updates."""
    every = recipe["num_updates"] // POINTS
    policy = recipe["policy"]
    world, few = recipe["environment"], max(1, 2 * every)
    first = jax.eval_shape(world.reset, jax.random.key(0))[0]
    observation = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)

    def train(key: jax.Array, **changed: Any) -> Any:
        key_init, key_train = jax.random.split(key)
        return ld.train(policy.init(key_init, observation), key_train, **recipe | changed)

    def run(key: jax.Array) -> tuple[Any, ...]:
        key, key_final = jax.random.split(key)
        result = train(key, evaluation=ld.Evaluation(every=every, num_episodes=episodes))
        trained = policy
        if isinstance(policy, ld.policies.Normalized):
            trained = dataclasses.replace(policy, statistics=result.state.statistics)
        final = ld.evaluate(result.params, key_final, trained, world, num_episodes=MORE * episodes)
        metrics = result.metrics
        return jnp.cumsum(metrics.num_steps), metrics.evaluation, jnp.mean(final), result.params

    keys = jax.random.split(jax.random.key(0), seeds)
    steps, returns, final, params = jax.jit(jax.vmap(run))(keys)
    steps, returns = (np.asarray(x)[:, every - 1 :: every] for x in (steps, returns))
    call = compile_call(jax.vmap(lambda key: train(key, num_updates=few)), keys)
    rate = float(np.sum(call.run().metrics.num_steps)) / interleaved_medians({OURS: call}, repeats)[OURS]
    return Run(steps, returns, np.asarray(final), call.compile_seconds, steps[:, -1].sum() / rate, params)


def optimum(mdp: ld.environments.TabularMDP) -> float:
    """max_π E[sum of rewards within its horizon], by V_t(s) = max_a Σ_s' p(s'|s,a) (r(s,a,s') + V_{t+1}(s')) in float64."""
    transition, live = np.asarray(mdp.transition, np.float64), ~np.asarray(mdp.terminal)
    reward = np.asarray(mdp.reward, np.float64).reshape(*transition.shape[:2], -1)
    values = np.zeros(mdp.num_states)
    for _ in range(mdp.horizon or 0):
        values = live * (transition * (reward + values)).sum(axis=2).max(axis=1)
    return float(np.asarray(mdp.initial, np.float64) @ values)


def play_gymnasium(policy: Any, params: Any, *, episodes: int, greedy: bool = False) -> np.ndarray:
    """Returns of each trained policy in Gymnasium's own CartPole-v1. Shape `(seeds, episodes)`.

    All episodes advance side by side; an environment's rewards count until its first episode ends.
    """
    seeds = jax.tree.leaves(params)[0].shape[0]
    worlds = gymnasium.make_vec("CartPole-v1", num_envs=seeds * episodes, vectorization_mode="sync")

    def act(params: Any, key: jax.Array, observation: jax.Array) -> jax.Array:
        distribution = policy.apply(params, observation)
        return distribution.mode() if greedy else distribution.sample(key)

    @jax.jit
    def act_all(key: jax.Array, observations: jax.Array) -> jax.Array:
        observations = observations.reshape((seeds, episodes, -1))
        keys = jax.random.split(key, (seeds, episodes))
        return jax.vmap(jax.vmap(act, (None, 0, 0)))(params, keys, observations).reshape(-1)

    returns, alive = np.zeros(seeds * episodes), np.ones(seeds * episodes, bool)
    observations, _ = worlds.reset(seed=0)
    key = jax.random.key(1)
    while alive.any():
        key, key_act = jax.random.split(key)
        actions = np.asarray(act_all(key_act, observations))
        observations, rewards, terminated, truncated, _ = worlds.step(actions)
        returns += np.where(alive, rewards, 0.0)
        alive &= ~(terminated | truncated)
    worlds.close()
    return returns.reshape((seeds, episodes))


class Found(NamedTuple):
    """What was trained on a task.

    Attributes:
        task: The task.
        ours: Runs of the library, `OURS` first.
        peers: Runs of other libraries.
        beside: What else was computed of the trained policies: `gymnasium` or `exact` returns, `(seeds,)`; the `optimum`.
    """

    task: Task
    ours: Mapping[str, Run]
    peers: Mapping[str, Run]
    beside: Mapping[str, Any]

    @property
    def threshold(self) -> float:
        """The task's, or where it has no usual one and peers were run, the best peer's."""
        if self.task.usual or not self.peers:
            return self.task.threshold
        best = max((run.final for run in self.peers.values()), key=interquartile_mean)
        low, high = interval(best)
        return interquartile_mean(best) - (high - low) / 2

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Of the table."""
        return [{"name": name} | run.summary(self.threshold) for name, run in {**self.ours, **self.peers}.items()]


def _size(task: Task) -> dict[str, int]:
    return {"seeds": task.seeds, "episodes": task.episodes}


def find(task: Task, recipe: Recipe, *, quick: bool) -> Found:
    """Train by all of a task's recipes, in a quick run by two of them."""
    others = {name: other for name, other in task.by_others().items() if not quick or name in QUICK_OTHERS}
    runs = {name: train_seeds(each, **_size(task)) for name, each in ({OURS: recipe} | others).items()}
    best, beside = runs[OURS], {}
    if task.gymnasium == TRANSFERRED:
        played = play_gymnasium(recipe["policy"], best.params, episodes=20 if quick else 100)
        beside["gymnasium"] = played.mean(axis=1)
    if isinstance(recipe["environment"], ld.environments.TabularMDP):
        mdp = recipe["environment"]
        value = partial(ld.exact.value, policy=recipe["policy"], environment=mdp, horizon=mdp.horizon or 0)
        beside["exact"] = np.asarray(jax.jit(jax.vmap(value))(best.params))
        beside["optimum"] = optimum(mdp)
    return Found(task, runs, {}, beside)


def main(quick: bool, peers: bool = False) -> Report:
    found, seconds = [], 0.0
    for task in QUICK if quick else solved_tasks.TASKS:
        begin = time.perf_counter()
        try:
            recipe = task.recipe()
        except MISSING as error:
            print(f"{task.name}: left out, {error}")
            continue
        each = find(task, recipe, quick=quick)
        seconds += time.perf_counter() - begin
        found.append(
            each._replace(peers=peer_runs(recipe, task.rate, task.gymnasium, **_size(task))) if peers else each
        )
        print(f"{task.name}: {time.perf_counter() - begin:.0f} s", *map(_line, found[-1].rows), sep="\n  ", flush=True)
    numbers = {each.task.name: {row["name"]: row for row in each.rows} | dict(each.beside) for each in found}
    timings = [bound for each in found for bound in _timings(each)]
    return Report(
        [_table(each) for each in found],
        [bound for each in found for bound in _bounds(each)],
        numbers,
        partial(_draw, found),
        [*timings, at_most("minutes, peers not counted", seconds / 60, MINUTES)],
    )


def _line(row: Mapping[str, Any]) -> str:
    reached = f"{row['reached']} solved it after {row['steps_mean']:.3g} steps, {row['seconds_to_threshold']:.3g} s"
    return f"{row['name']}: {row['final_mean']:.4g} at the end; {reached}"


def _table(found: Found) -> Table:
    task, threshold = found.task, found.threshold
    published = [f"{who} {what}{f' after {k} steps' if k else ''}, {source}" for who, what, k, source in task.published]
    goal = f"{threshold:.4g}{'' if task.usual else ', the best of the peers less half its interval,'}"
    beside = [f"{name}: {np.array2string(np.asarray(x), precision=4)}" for name, x in found.beside.items()]
    return Table(
        f"{task.name}, {task.seeds} seeds; {goal} reached",
        "candidate | final | 95 % | worst | steps | reached | steps to it | 95 % | steps/s | s to it | compile s",
        "{r[name]} | {r[final_mean]:.4g} | {r[final_interval][0]:.4g} .. {r[final_interval][1]:.4g} | {r[final].min:.4g}"
        " | {r[steps]:.3g} | {r[reached]} | {r[steps_mean]:.3g} | {r[steps_interval][0]:.3g} .. {r[steps_interval][1]:.3g}"
        " | {r[steps_per_s]:.3g} | {r[seconds_to_threshold]:.3g} | {r[compile_seconds]:.1f}",
        found.rows,
        "\n".join([*(f"published: {words}" for words in published), *beside]),
    )


def _bounds(found: Found) -> list[Bound]:
    """Seeds that reach the threshold, or end above it; steps beside the best peer's; what was computed beside."""
    task, threshold, ours = found.task, found.threshold, found.ours[OURS]
    name = f"{task.name}, {OURS}"
    reached = np.isfinite(ours.steps_to(threshold)).sum()
    bounds = [at_least(f"{name}: seeds that reach {threshold:.4g}", reached, task.seeds)]
    for other in filter(task.held.get, found.ours):
        solved = np.sum(found.ours[other].final >= threshold)
        bounds.append(at_least(f"{task.name}, {other}: seeds that return {threshold:g}", solved, task.held[other]))
    if task.gymnasium == TRANSFERRED:
        bounds.append(at_most(f"{name}: steps", ours.steps.max(), 100e3))
    for where in {"gymnasium", "exact"} & set(found.beside):
        bounds.append(at_least(f"{name}: worst seed's {where} return", found.beside[where].min(), threshold))
    if found.peers:
        best = min((run.steps_to(threshold) for run in found.peers.values()), key=interquartile_mean)
        ratio = interval(ours.steps_to(threshold))[0] / interval(best)[1]
        bounds.append(at_most(f"{name}: steps, low end of 95 %, over the best peer's high end", ratio, 1.0))
    return bounds


def _timings(found: Found) -> list[Bound]:
    """Seconds to the threshold over those of each peer."""
    seconds = {row["name"]: row["seconds_to_threshold"] for row in found.rows}
    words = f"{found.task.name}: seconds to the threshold, {OURS} over"
    return [at_most(f"{words} {name}", seconds[OURS] / seconds[name], 1.0) for name in found.peers]


def _draw(found: list[Found]) -> Any:
    columns = min(len(found), 3)
    rows = -(-len(found) // columns)
    figure, axes = new_figure(figsize=(6.5 * columns, 4.5 * rows), nrows=rows, ncols=columns, squeeze=False)
    for ax in axes.flat[len(found) :]:
        ax.remove()
    for ax, each in zip(axes.flat, found, strict=False):
        runs = {**each.ours, **each.peers}
        returns, steps = ({name: getattr(run, field) for name, run in runs.items()} for field in ("returns", "steps"))
        plots.learning_curves(returns, steps=steps, threshold=each.threshold, ax=ax)
        ax.set(title=each.task.name, xscale="log", xlabel="environment steps (a curve ends with its slowest seed)")
    return figure
