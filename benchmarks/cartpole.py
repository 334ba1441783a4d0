r"""How many environment steps, and how long, does REINFORCE with each baseline need on CartPole-v1?

gymnax's CartPole-v1 with `ld.train`: rollouts, gradient and optax update in one compiled scan, eight seeds by `jax.vmap` in one program. A seed has
solved it when the mean return of five consecutive updates reaches 475, the bound that Gymnasium registers. Steps are real ones, padding not
counted. The policies of the run with reward-to-go and leave-one-out then play 100 episodes each in Farama's Gymnasium, the original simulator, which
shares no code with the one they were trained in.

Finding (2 CPU cores, jax 0.10.2): reward-to-go with leave-one-out solves it for every seed within 0.2 M steps, and carries over.
"""

import time
from typing import Any, NamedTuple

import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax

import logderiv as ld
from benchmarks import harness
from logderiv import plots

POLICY = ld.MLP(2, hidden=(64,))
SOLVED = 475.0
BEST = "reward-to-go, leave-one-out per step"
VARIANTS = {
    "total return": ld.score_function(credit=ld.total_return),
    "total return, leave-one-out per trajectory": ld.score_function(
        credit=ld.total_return, baseline=ld.baseline_leave_one_out(per="trajectory")
    ),
    "reward-to-go": ld.score_function(),
    BEST: ld.score_function(baseline=ld.baseline_leave_one_out()),
}


class Run(NamedTuple):
    """Training of several seeds.

    Attributes:
        params: Trained parameters, leading axis `(seeds,)`.
        returns: Mean return of each update, `(seeds, updates)`.
        steps: Environment steps so far, `(seeds, updates)`.
        compile_seconds: Tracing and compiling.
        seconds: Running the compiled program.
    """

    params: Any
    returns: np.ndarray
    steps: np.ndarray
    compile_seconds: float
    seconds: float

    @property
    def steps_to_solve(self) -> list[int | None]:
        """Per seed, the steps used when a mean over five updates first reaches 475; `None` if it never does."""
        found: list[int | None] = []
        for returns, steps in zip(self.returns, self.steps, strict=True):
            solved = np.convolve(returns, np.full(5, 0.2), mode="valid") >= SOLVED
            found.append(int(steps[int(np.argmax(solved)) + 4]) if solved.any() else None)
        return found


def train_seeds(estimator: ld.Estimator, *, seeds: int, updates: int, trajectories: int = 16) -> Run:
    """Train `seeds` policies side by side."""
    environment, environment_params = gymnax.make("CartPole-v1")
    world = ld.Gymnax(environment, environment_params)
    optimizer = ld.maximize(optax.adam(5e-3))

    def run(key: jax.Array) -> ld.Training:
        key_init, key_train = jax.random.split(key)
        params = POLICY.init(key_init, jnp.zeros(4))
        return ld.train(
            params,
            key_train,
            POLICY,
            world,
            estimator=estimator,
            optimizer=optimizer,
            num_updates=updates,
            num_trajectories=trajectories,
        )

    call = harness.compile_call(jax.vmap(run), jax.random.split(jax.random.key(0), seeds))
    start = time.perf_counter()
    result = call.run()
    seconds = time.perf_counter() - start
    steps = np.cumsum(np.asarray(result.metrics.num_steps), axis=1)
    return Run(result.params, np.asarray(result.metrics.mean_return), steps, call.compile_seconds, seconds)


def play_gymnasium(params: Any, *, episodes: int, greedy: bool = False) -> np.ndarray:
    """Returns of each trained policy in Gymnasium's own CartPole-v1. Shape `(seeds, episodes)`.

    All episodes advance side by side; an environment's rewards count until its first episode ends.
    """
    seeds = jax.tree.leaves(params)[0].shape[0]
    worlds = gymnasium.make_vec("CartPole-v1", num_envs=seeds * episodes, vectorization_mode="sync")

    def act(params: Any, key: jax.Array, observation: jax.Array) -> jax.Array:
        distribution = POLICY.apply(params, observation)
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


def main(quick: bool) -> None:
    names = ("reward-to-go", BEST) if quick else tuple(VARIANTS)
    runs = {}
    for name in names:
        small = quick and name != BEST
        runs[name] = train_seeds(VARIANTS[name], seeds=4 if small else 8, updates=40 if small else 100)
    if quick:
        print(f"\nquick: 40 updates of 4 seeds, except for '{BEST}': 100 updates of 8 seeds")
    harness.print_table(
        "CartPole-v1 (gymnax), MLP 4-64-2, adam 5e-3, 16 trajectories an update, discount 1",
        ("variant", "solved", "steps to 475: median", "most", "last return", "compile s", "run s", "steps/s"),
        [_row(name, run) for name, run in runs.items()],
    )

    best = runs[BEST]
    played = play_gymnasium(best.params, episodes=100)
    means = played.mean(axis=1)
    print(f"\nGymnasium CartPole-v1, the policies of '{BEST}', 100 episodes each, actions sampled")
    print("  mean return per seed  " + "  ".join(f"{x:.1f}" for x in means))
    print(f"  over all of them      {means.mean():.1f}, episodes that reach 500: {np.mean(played == 500):.0%}")
    figures: dict[str, Any] = {"variants": {name: _figures(run) for name, run in runs.items()}}
    figures["gymnasium_mean_return"] = means
    if not quick:
        greedy = play_gymnasium(best.params, episodes=100, greedy=True).mean(axis=1)
        print("  likeliest action      " + "  ".join(f"{x:.1f}" for x in greedy))
        figures["gymnasium_mean_return_greedy"] = greedy

    most = [np.inf if steps is None else float(steps) for steps in best.steps_to_solve]
    bounds = [
        harness.Bound("steps to 475, slowest of 8 seeds, reward-to-go + leave-one-out", max(most), 300e3),
        harness.Bound("Gymnasium mean return, all seeds", float(means.mean()), SOLVED, at_least=True),
        harness.Bound("Gymnasium mean return, worst seed", float(means.min()), SOLVED, at_least=True),
    ]
    _draw(runs)
    harness.finish("cartpole", figures, bounds, quick=quick)


def _row(name: str, run: Run) -> tuple[Any, ...]:
    solved = [steps for steps in run.steps_to_solve if steps is not None]
    everyone = len(solved) == len(run.returns)
    return (
        name,
        f"{len(solved)} of {len(run.returns)}",
        f"{np.median(solved):,.0f}" if solved else "-",
        f"{max(solved):,}" if everyone else f"> {run.steps[:, -1].max():,}",
        f"{run.returns[:, -10:].mean():.0f}",
        f"{run.compile_seconds:.1f}",
        f"{run.seconds:.1f}",
        f"{run.steps[:, -1].sum() / run.seconds:,.0f}",
    )


def _figures(run: Run) -> dict[str, Any]:
    return {
        "steps_to_475": run.steps_to_solve,
        "last_return": run.returns[:, -10:].mean(axis=1),
        "compile_seconds": run.compile_seconds,
        "seconds": run.seconds,
        "steps_per_second": run.steps[:, -1].sum() / run.seconds,
    }


def _draw(runs: dict[str, Run]) -> None:
    figure, ax = harness.new_figure(figsize=(9, 5))
    plots.learning_curves(
        {name: run.returns for name, run in runs.items()},
        steps={name: run.steps for name, run in runs.items()},
        threshold=SOLVED,
        ax=ax,
    )
    ax.set(ylim=(0, 510), title="CartPole-v1: mean over seeds with its 95 % bootstrap interval")
    ax.set_xlabel("environment steps (a curve ends with its slowest seed)")
    ax.text(0, SOLVED + 4, "475", va="bottom", color="0.4")
    harness.save_figure(figure, "cartpole")
