r"""Does REINFORCE learn the short corridor as the book's figures 13.1 and 13.2 show it, step size by step size?

Three states that look alike, the middle one with its actions swapped (Sutton & Barto 2018, example 13.1). One update after each step of a finished episode, in its order,
with the parameters as they have become by then (the boxes "REINFORCE" of section 13.3 and 13.4, $\gamma = 1$):
$\theta \leftarrow \theta + \alpha\, G_t \nabla\log\pi_\theta(a_t|s_t)$; and with a baseline $w \leftarrow w + \alpha_w (G_t - w)$ and $G_t - w$ in place of $G_t$.
The start is right at 0.05 of the time; no action is taken less often than that, while the score goes on as of a softmax, so that no run is stuck.

Every episode is drawn by `ld.rollout` at the shortest of a few horizons that lets all runs end: with the same key a longer one begins with the same steps.
The mean return of 400 runs is held to an independent numpy program of the same protocol, in four windows of the curve.

Finding (2 CPU cores, jax 0.10.2): means of the last 100 of 1000 episodes are -12.26 +- 0.18, -12.30 +- 0.05 and -14.89 +- 0.07 for step sizes 2^-12, 2^-13 and 2^-14, and -11.96 +- 0.06 with
a baseline, against -12.01 +- 0.11, -12.31 +- 0.05, -14.91 +- 0.07 and -11.99 +- 0.07: the differences are within 1.2 of their standard errors there, and within 1.4 in all 16 windows. In
episodes 100 to 150 the mean is -12.2 with a baseline, and -19.8 for the fastest without one. All 1.6 million episodes take 100 s of processor time.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import logderiv as ld
from benchmarks.harness import Report, Table, at_most, new_figure
from logderiv import plots

LEAST = 0.05  # probability of the rarer action
START = (0.5 * math.log(19), -0.5 * math.log(19))  # logits of left and right
OPTIMUM = -(6 + 4 * math.sqrt(2))
HORIZONS = (64, 256, 1024)
SIZES = {"quick": (32, 12), "full": (400, 1000)}  # runs, and episodes of each
WINDOWS = {"first 10": (0, 10), "100 to 150": (100, 150), "400 to 500": (400, 500), "last 100": (900, 1000)}


class Setting(NamedTuple):
    r"""Step sizes of policy and baseline, and what an independent program finds with 400 runs.

    Attributes:
        step: $\alpha$.
        baseline_step: $\alpha_w$; 0 leaves the baseline at 0.
        expected: Mean return in `WINDOWS`.
        sem: Standard error of the last of them.
    """

    step: float
    baseline_step: float
    expected: tuple[float, float, float, float]
    sem: float


# Means of 400 runs of a numpy program, one of which is `by_the_book` of `tests/test_benchmarks_reproductions.py` after each of 1000 episodes that a
# loop of coin tosses draws: the step sizes of the book's captions, a start at 0.05, a reward of -1 for every step, the last one included.
REFERENCE_RUNS = 400
SETTINGS = {
    "alpha = 2^-12": Setting(2.0**-12, 0, (-68.97075, -19.68135, -12.8495, -12.010225), 0.11389475075014432),
    "alpha = 2^-13": Setting(2.0**-13, 0, (-74.16325, -27.96565, -15.1153, -12.308), 0.054620669164703574),
    "alpha = 2^-14": Setting(2.0**-14, 0, (-78.85075, -40.302, -20.968875, -14.91465), 0.06725981113376694),
    "baseline, alpha = 2^-9, alpha_w = 2^-6": Setting(
        2.0**-9, 2.0**-6, (-54.0635, -12.11325, -12.099525, -11.994625), 0.07263046639281272
    ),
}


class Learner(NamedTuple):
    """Logits of left and right, and the value of the start, `()`."""

    logits: jax.Array
    value: jax.Array


class Row(NamedTuple):
    """Ours and the independent program's mean return in one window, with the standard error of each."""

    setting: str
    window: str
    expected: float
    expected_sem: float
    ours: float
    sem: float

    @property
    def z(self) -> float:
        """Their difference in its standard errors."""
        return (self.ours - self.expected) / math.hypot(self.sem, self.expected_sem)


def _bounded(logits: jax.Array, state: jax.Array) -> ld.Categorical:
    """The softmax of all states, kept away from 0: its score is that of a softmax with these probabilities."""
    drawn = ld.shared_softmax.apply(logits, state).logits
    bounded = jnp.clip(jax.nn.softmax(drawn), LEAST, 1 - LEAST)
    return ld.Categorical(drawn + lax.stop_gradient(jnp.log(bounded) - drawn))


POLICY = ld.FunctionPolicy(_bounded)


def learn(learner: Learner, tau: ld.Trajectory, step: jax.Array, baseline_step: jax.Array) -> Learner:
    """The book's updates along one finished episode."""
    returns = ld.advantages.reward_to_go(tau.rewards, tau.discounts)

    def update(learner: Learner, inputs: tuple[ld.Trajectory, jax.Array]) -> tuple[Learner, None]:
        one, to_go = inputs
        error = to_go - learner.value
        score = jax.grad(ld.log_prob)(learner.logits, POLICY, one)
        new = Learner(learner.logits + step * error * score, learner.value + baseline_step * error)
        return jax.tree.map(lambda a, b: jnp.where(one.valid[0], a, b), new, learner), None

    steps = jax.tree.map(lambda x: x[:, None], tau._replace(final_observation=None))  # trajectories of one step
    steps = steps._replace(final_observation=tau.observations)
    return lax.scan(update, learner, (steps, returns))[0]


def episode(
    learners: Learner, keys: jax.Array, setting: tuple[jax.Array, jax.Array], horizons: Sequence[int]
) -> tuple[Learner, jax.Array, jax.Array]:
    """One episode of every run and the updates after it: learners, returns, and the share that no horizon let end."""
    horizon, *longer = horizons
    again = jax.random.clone(keys)  # the same episodes once more, to their end
    environment = ld.environments.short_corridor(horizon=horizon)
    taus = jax.vmap(lambda logits, key: ld.rollout(logits, key, POLICY, environment))(learners.logits, keys)
    truncated_fraction = ld.types.batch_info(taus).truncated_fraction

    def accept() -> tuple[Learner, jax.Array, jax.Array]:
        new = jax.vmap(learn, (0, 0, None, None))(learners, taus, *setting)
        return new, jnp.sum(taus.rewards, axis=1), truncated_fraction

    if not longer:
        return accept()
    return lax.cond(truncated_fraction > 0, lambda: episode(learners, again, setting, longer), accept)


def train(settings: Sequence[Setting], *, runs: int, episodes: int) -> tuple[np.ndarray, float]:
    """Returns of every episode of every run, `(settings, runs, episodes)`, and the largest share of episodes cut short."""

    @jax.jit
    def all_settings(steps: jax.Array, baseline_steps: jax.Array, keys: jax.Array) -> Any:
        start = Learner(jnp.broadcast_to(jnp.array(START), (runs, 2)), jnp.zeros(runs))

        def one(inputs: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
            step, baseline_step, key = inputs

            def body(carry: tuple[Learner, jax.Array], _: None) -> Any:
                learners, key = carry
                key, now = jax.random.split(key)
                keys = jax.random.split(now, runs)
                learners, returns, truncated_fraction = episode(learners, keys, (step, baseline_step), HORIZONS)
                return (learners, key), (returns, truncated_fraction)

            return lax.scan(body, (start, key), None, length=episodes)[1]

        return lax.map(one, (steps, baseline_steps, keys))

    steps, baseline_steps = (jnp.array([s[i] for s in settings], float) for i in (0, 1))
    keys = jax.random.split(jax.random.key(0), len(settings))
    returns, truncated_fraction = all_settings(steps, baseline_steps, keys)
    return np.asarray(returns, np.float64).swapaxes(1, 2), float(jnp.max(truncated_fraction))


def compare(found: dict[str, np.ndarray]) -> list[Row]:
    """Mean returns of those windows that the curves reach, beside the independent ones."""
    rows = []
    for name, returns in found.items():
        runs, episodes = returns.shape
        for index, (window, (first, end)) in enumerate(WINDOWS.items()):
            if end > episodes:
                continue
            means = returns[:, first:end].mean(axis=1)
            sem = float(means.std(ddof=1)) / math.sqrt(runs)
            last = index == len(WINDOWS) - 1  # its error is known there; elsewhere it is as ours for its runs
            expected_sem = SETTINGS[name].sem if last else sem * math.sqrt(runs / REFERENCE_RUNS)
            rows.append(Row(name, window, SETTINGS[name].expected[index], expected_sem, float(means.mean()), sem))
    return rows


def main(quick: bool) -> Report:
    runs, episodes = SIZES["quick" if quick else "full"]
    returns, truncated_fraction = train(list(SETTINGS.values()), runs=runs, episodes=episodes)
    found = dict(zip(SETTINGS, returns, strict=True))
    rows = compare(found)
    table = Table(
        f"Mean return of {runs} runs in windows of the {episodes} episodes; optimum {OPTIMUM:.4f}",
        "setting, episodes | numpy, 400 runs | its error | ours | std. error | difference / its error",
        "{r.setting}, {r.window} | {r.expected:.3f} | {r.expected_sem:.3f} | {r.ours:.3f} | {r.sem:.3f} | {r.z:.2f}",
        rows,
    )
    bounds = [at_most("episodes cut by the horizon, largest share of one batch", truncated_fraction, 0)]
    for window in dict.fromkeys(r.window for r in rows):
        worst = max(abs(r.z) for r in rows if r.window == window)
        bounds.append(at_most(f"episodes {window}: standard errors from the independent mean", worst, 3))
    curves = {name: returns.mean(axis=0) for name, returns in found.items()}
    return Report([table], bounds, {"rows": rows, "curves": curves}, partial(_draw, found))


def _draw(found: dict[str, np.ndarray]) -> Any:
    figure, axes = new_figure(ncols=2, figsize=(12, 4.5), sharey=True)
    plain = [name for name in found if not SETTINGS[name].baseline_step]
    both = [name for name in found if name not in plain] + plain[1:2]
    panels = {"figure 13.1: three step sizes": plain, "figure 13.2: with a baseline, and without": both}
    for ax, (title, names) in zip(axes, panels.items(), strict=True):
        plots.learning_curves({name: found[name] for name in names}, threshold=OPTIMUM, ax=ax)
        ax.set(title=title, xlabel="episode", ylabel="total reward of the episode, mean over runs", ylim=(-90, -5))
        ax.text(0, OPTIMUM + 1.5, r"$v_*(s_0) = -11.66$", color="0.4")
    return figure
