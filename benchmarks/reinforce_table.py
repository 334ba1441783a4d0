r"""Which policy gradient learns which classic task, from how many environment steps, and how well does the result play?

The public REINFORCE table that JAX lacks: gymnax's CartPole, Acrobot, Pendulum and MountainCar, and two tasks of brax where it is installed; recipes of
`control_tasks` side by side, eight seeds of each by `jax.vmap` in one compiled program. The final policies play fresh episodes, actions sampled (and,
beside it, the likeliest ones): mean over seeds and its bootstrap interval. A seed has reached the threshold at the first of 24 evaluations in training
whose 32 episodes average it. Steps are real ones, padding and evaluation not counted. The PPO policies of CartPole then play in Farama's
Gymnasium, which shares no code with the simulator that they were trained in.

Finding (2 CPU cores, jax 0.10.2, gymnax 1.0.1): on CartPole-v1 every seed of PPO (98 k steps), A2C (492 k) and the natural gradient (260 k) returns 496 to 500
and of REINFORCE with leave-one-out (540 k) 482 to 500; without a baseline 480 on average, and of the total return alone 306. PPO returns -81 on Acrobot-v1
and -159 on Pendulum-v1, both after 295 k steps, every seed beyond the threshold; on Acrobot-v1 leave-one-out returns -94 for every seed, without it one
seed of eight never leaves -500, nor do four of A2C, whose constants are not tuned for it. Nobody gets up the hill of MountainCar-v0: -200, as published of
CleanRL's PPO.
"""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import bootstrap

import logderiv as ld
from benchmarks import control_tasks
from benchmarks.control_tasks import POINTS, Recipe, ScaledRewards, Task
from benchmarks.harness import Bound, Report, Table, at_least, at_most, compile_call, new_figure
from logderiv import plots

SEEDS = 8
TRANSFERRED = "CartPole-v1"
QUICK = ("reward-to-go, leave-one-out", "PPO")


class Run(NamedTuple):
    """Training of several seeds.

    Attributes:
        params: Trained parameters, leading axis `(seeds,)`.
        curve: Mean return of each evaluation, `(seeds, POINTS)`.
        steps: Environment steps until then, `(seeds, POINTS)`.
        final: Mean return of the final policy, actions sampled, `(seeds,)`.
        greedy: The same, likeliest actions.
        compile_seconds: Tracing and compiling, training and evaluation.
        seconds: Running the compiled program.
    """

    params: Any
    curve: np.ndarray
    steps: np.ndarray
    final: np.ndarray
    greedy: np.ndarray
    compile_seconds: float
    seconds: float

    def steps_to(self, threshold: float) -> np.ndarray:
        """Per seed, the steps used at the first evaluation that reaches the threshold; infinite if none does."""
        reached = self.curve >= threshold
        return np.where(reached.any(axis=1), self.steps[np.arange(len(self.steps)), reached.argmax(axis=1)], np.inf)

    def interval(self) -> tuple[float, float]:
        """The 95 % bootstrap interval over seeds of the final mean return."""
        generator = np.random.default_rng(0)
        found = bootstrap((self.final,), np.mean, n_resamples=2000, method="percentile", rng=generator)
        return float(found.confidence_interval.low), float(found.confidence_interval.high)

    def summary(self, threshold: float) -> dict[str, Any]:
        """What is printed and saved."""
        reached = self.steps_to(threshold)
        return {
            "final_return": self.final,
            "final_return_greedy": self.greedy,
            "interval": self.interval(),
            "steps": self.steps[:, -1],
            "steps_to_threshold": reached,
            "reached": f"{np.isfinite(reached).sum()} of {len(reached)}",
            "median": float(np.median(reached)),
            "compile_seconds": self.compile_seconds,
            "seconds": self.seconds,
        }


def train_seeds(task: Task, recipe: Recipe, *, seeds: int = SEEDS) -> Run:
    """Train `seeds` policies side by side, then let each play, once with its actions sampled and once with the likeliest."""
    world, every = task.make(), recipe.updates // POINTS
    scaled = world if task.reward_scale == 1.0 else ScaledRewards(world, task.reward_scale)
    observation = jax.eval_shape(world.reset, jax.random.key(0))[0]

    def run(key: jax.Array) -> tuple[Any, ...]:
        key_init, key_train, key_sampled, key_greedy = jax.random.split(key, 4)
        params = recipe.policy.init(key_init, jnp.zeros(observation.shape, observation.dtype))
        how = {"estimator": recipe.estimator, "optimizer": recipe.optimizer, "num_updates": recipe.updates}
        how |= recipe.batch | {"evaluation": ld.Evaluation(every=every, num_episodes=task.episodes)}
        result = ld.train(params, key_train, recipe.policy, scaled, **how)
        where = {"policy": recipe.policy, "environment": world, "num_episodes": 4 * task.episodes}
        play = partial(ld.evaluate, result.params, **where)
        final, greedy = jnp.mean(play(key=key_sampled)), jnp.mean(play(key=key_greedy, greedy=True))
        return result.params, result.metrics.evaluation, jnp.cumsum(result.metrics.num_steps), final, greedy

    call = compile_call(jax.vmap(run), jax.random.split(jax.random.key(0), seeds))
    start = time.perf_counter()
    params, curve, steps, final, greedy = call.run()
    seconds = time.perf_counter() - start
    curve, steps = (np.asarray(x)[:, every - 1 :: every] for x in (curve / task.reward_scale, steps))
    return Run(params, curve, steps, np.asarray(final), np.asarray(greedy), call.compile_seconds, seconds)


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


def main(quick: bool) -> Report:
    tasks = (control_tasks.cartpole(),) if quick else control_tasks.all_tasks()
    numbers: dict[str, Any] = {}
    bounds, tables, curves = [], [], {}
    for task in tasks:
        try:
            task.make()
        except ImportError as error:
            print(f"\n{task.name}: skipped, {error}")
            continue
        runs = {name: train_seeds(task, task.recipes[name]) for name in (QUICK if quick else task.recipes)}
        tables.append(_table(task, runs))
        numbers[task.name] = {name: run.summary(task.threshold) for name, run in runs.items()}
        bounds += _bounds(task, runs)
        curves[task.name] = (task, runs)
        if task.name == TRANSFERRED:
            played = play_gymnasium(task.recipes["PPO"].policy, runs["PPO"].params, episodes=20 if quick else 100)
            numbers["gymnasium"] = means = played.mean(axis=1)
            bounds.append(at_least("Gymnasium, PPO, mean over seeds", means.mean(), task.threshold))
    return Report(tables, bounds, numbers, partial(_draw, curves))


def _table(task: Task, runs: Mapping[str, Run]) -> Table:
    reached = f"{task.threshold:g} reached"
    published = [f"{who} {what}{f' after {k} steps' if k else ''}, {source}" for who, what, k, source in task.published]
    return Table(
        f"{task.name}, {SEEDS} seeds",
        f"recipe | return | 95 % interval | worst | greedy | steps | {reached} | median steps to it | compile s | run s",
        "{r[name]} | {r[final_return].mean:.1f} | {r[interval][0]:.1f} .. {r[interval][1]:.1f} | {r[final_return].min:.1f}"
        " | {r[final_return_greedy].mean:.1f} | {r[steps].mean:.3g} | {r[reached]} | {r[median]:.3g}"
        " | {r[compile_seconds]:.1f} | {r[seconds]:.1f}",
        [{"name": name} | run.summary(task.threshold) for name, run in runs.items()],
        "\n".join(f"published: {words}" for words in published),
    )


def _bounds(task: Task, runs: Mapping[str, Run]) -> list[Bound]:
    """How many seeds have to end above the threshold, and that PPO on CartPole does so within 100 k steps."""
    bounds = []
    for name in filter(task.held.get, runs):
        solved = np.sum(runs[name].final >= task.threshold)
        bounds.append(at_least(f"{task.name}, {name}: seeds that return {task.threshold:g}", solved, task.held[name]))
    if task.name == TRANSFERRED:
        bounds.append(at_most(f"{task.name}, PPO: steps", runs["PPO"].steps.max(), 100e3))
    return bounds


def _draw(curves: Mapping[str, tuple[Task, dict[str, Run]]]) -> Any:
    columns = min(len(curves), 3)
    rows = -(-len(curves) // columns)
    figure, axes = new_figure(figsize=(6.5 * columns, 4.5 * rows), nrows=rows, ncols=columns, squeeze=False)
    for ax in axes.flat[len(curves) :]:
        ax.remove()
    for ax, (task, runs) in zip(axes.flat, curves.values(), strict=False):
        returns, steps = ({name: getattr(run, field) for name, run in runs.items()} for field in ("curve", "steps"))
        plots.learning_curves(returns, steps=steps, threshold=task.threshold, ax=ax)
        ax.set(title=task.name, xscale="log", xlabel="environment steps (a curve ends with its slowest seed)")
    return figure
