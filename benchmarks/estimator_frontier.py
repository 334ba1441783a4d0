r"""Which estimator gives the most accurate gradient for its trajectories, and for its time?

Error of one estimate against the *exact* gradient, $\sqrt{\mathbb{E}|g - \nabla J|^2} / |\nabla J|$, for batches of N trajectories, on four tasks where
$\nabla J$ is known: the short corridor, five random states, the random walk of Arya et al. (2022) and a linear-quadratic task; and for N runs of a
model in plain JAX, by the ways of making its choices. Time is that of drawing the batch and of the estimate, compiled, on this machine. Estimators with a state carry it from batch to batch,
and the first quarter of the batches is not counted. Off-policy ones get trajectories of other parameters.

`work` is seconds times squared error, which does not depend on N for an unbiased estimator: how long for a given accuracy. Where
an estimator's scale is arbitrary (divided by a deviation, by a length), `rescaled` is its error after the best scalar factor.

Sampled errors are held to computed ones: where `ld.exact.weighted_score_moments` gives the variance exactly, the two must agree.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import logderiv as ld
from benchmarks import program_frontier
from benchmarks.harness import Compiled, Report, Table, at_most, cells, compile_call, interleaved_medians, new_figure
from benchmarks.tasks import Task, all_tasks, pathwise
from logderiv import plots
from logderiv.estimators.advantages import Return, Standardized, ToGo
from logderiv.estimators.bootstrapped import GAE, VTrace
from logderiv.estimators.importance import Importance

PATHWISE = "pathwise, through the dynamics"
SIZES = {"quick": ((8, 64), 1024), "full": ((4, 16, 64, 256), 16384)}  # batch sizes, and trajectories for each
QUICK = ("total return", "reward-to-go", "reward-to-go, leave one out", "gae(0.9), learned value", PATHWISE)
MAIN = (
    "total return",
    "total return, leave one out",
    "reward-to-go",
    "reward-to-go, leave one out",
    "reward-to-go, exact value",
    "reward-to-go, learned value",
    "gae(0.9), learned value",
    "biased: batch mean per step",
    PATHWISE,
    *program_frontier.WAYS,
)


class Point(NamedTuple):
    """Errors and time of one estimator at one batch size.

    Attributes:
        rmse: Relative to the exact gradient.
        sem: Standard error of `rmse`.
        rescaled: `rmse` after multiplying by the best scalar.
        seconds: For drawing one batch and estimating from it.
        compile_seconds: Of the estimate.
        squared: Mean squared error, absolute, and its standard error.
    """

    rmse: float
    sem: float
    rescaled: float
    seconds: float
    compile_seconds: float
    squared: tuple[float, float]


Points = dict[str, dict[int, Point]]  # by estimator and batch size


def on_policy(task: Task) -> dict[str, Any]:
    """Estimators for trajectories drawn with the parameters themselves."""
    gamma = task.discount
    exact = ld.baselines.Value(task.state_value)
    learned = ld.baselines.LearnedValue(task.fit, lambda _: task.value_params, optax.sgd(0.2), num_steps=8)
    mean = float(jax.jit(task.value)(task.params))

    score = partial(ld.ScoreFunction, discount=gamma)
    found = {
        "total return": score(Return()),
        "total return, E[R] subtracted": score(Return(ld.baselines.Constant(mean))),
        "total return, moving average": score(Return(ld.baselines.MovingAverage(0.9))),
        "total return, leave one out": score(Return(ld.baselines.LeaveOneOut(per="trajectory"))),
        "total return, optimal scalar": score(Return(ld.baselines.Optimal())),
        "reward-to-go": score(ToGo()),
        "reward-to-go, leave one out": score(ToGo(ld.baselines.LeaveOneOut())),
        "reward-to-go, optimal scalar": score(ToGo(ld.baselines.Optimal())),
        "reward-to-go, optimal per parameter": ld.estimators.OptimalPerParameter(discount=gamma),
        "reward-to-go, exact value": score(ToGo(exact)),
        "reward-to-go, learned value": score(ToGo(learned)),
        "gae(1), learned value": score(GAE(1.0, learned)),
        "gae(0.9), learned value": score(GAE(0.9, learned)),
        "gae(0.9), exact value": score(GAE(0.9, exact)),
        "gae(0), exact value": score(GAE(0.0, exact)),
        "DiCE, leave one out": score(ToGo(ld.baselines.LeaveOneOut()), surrogate=ld.estimators.DiCE()),
        "PPO's first gradient, learned value": ld.PPO(ToGo(learned), discount=gamma),
        "RLOO": ld.RLOO(discount=gamma),
        "biased: batch mean": score(Return(ld.baselines.BatchMean())),
        "biased: batch mean per step": score(ToGo(ld.baselines.BatchMean(per="step"))),
        "biased: optimal in sample": score(ToGo(ld.baselines.Optimal(in_sample=True))),
        "biased: standardized": score(Standardized(ToGo())),
        "biased: GRPO": ld.GRPO(group_size=4, discount=gamma),
        "biased: Dr. GRPO": ld.estimators.DrGRPO(group_size=4, discount=gamma),
    }
    if gamma < 1:
        found["biased: gamma^t left out"] = ld.ScoreFunction(discount=gamma, gamma_t=False)
    return found


def off_policy(task: Task) -> dict[str, Any]:
    """Estimators for trajectories drawn with `task.behavior`."""
    exact, decision = ld.baselines.Value(task.state_value), Importance()
    parts = {
        "trajectory ratio": (Return(), Importance(per="trajectory")),
        "per decision": (ToGo(), decision),
        "per decision, leave one out": (ToGo(ld.baselines.LeaveOneOut()), decision),
        "per decision, exact value": (ToGo(exact), decision),
        "biased: self-normalized": (ToGo(), Importance(normalize=True)),
        "biased: truncated at 2": (ToGo(), Importance(truncate=2.0)),
        "biased: V-trace, exact value": (VTrace(exact), None),
    }
    score = partial(ld.ScoreFunction, discount=task.discount)
    return {f"off-policy: {name}": score(advantage, importance=i) for name, (advantage, i) in parts.items()}


def exact_gradient(task: Task) -> np.ndarray:
    """Of the raveled parameters, in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), task.params)
        return np.asarray(ravel_pytree(jax.jit(jax.grad(task.value))(wide))[0])


def exact_variances(task: Task) -> dict[str, float]:
    """Trace of the covariance of one trajectory's estimate, computed, for the four weightings where it can be."""
    if task.mdp is None:
        return {}
    mdp, policy = task.mdp
    options: dict[str, Any] = {"horizon": task.horizon, "discount": task.discount}
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), (task.params, mdp))

        @jax.jit
        def traces(params: Any, mdp: ld.environments.TabularMDP) -> list[jax.Array]:
            values = ld.exact.state_values(params, policy, mdp, **options)
            powers = task.discount ** jnp.arange(task.horizon, dtype=values.dtype)
            moments = partial(ld.exact.weighted_score_moments, params, policy, mdp, **options)
            total = [moments(credit=ld.advantages.total_return, baseline=b) for b in (0.0, mdp.initial @ values[0])]
            to_go = [moments(baseline=b) for b in (0.0, powers[:, None] * values)]
            return [jnp.trace(found.covariance) for found in total + to_go]

        names = ("total return", "total return, E[R] subtracted", "reward-to-go", "reward-to-go, exact value")
        return dict(zip(names, map(float, traces(*wide)), strict=True))


def draw(task: Task, params: Any, number: int, batches: int) -> tuple[Any, float]:
    """`batches` batches of `number` trajectories, and the seconds for one of them."""

    def batch(key: jax.Array) -> ld.Trajectory:
        keys = jax.random.split(key, number)
        return ld.rollout(params, keys, task.policy, task.environment, horizon=task.horizon)

    keys = jax.random.split(jax.random.key(number), batches)
    call = compile_call(lambda keys: jax.lax.map(batch, keys), keys)
    seconds = interleaved_medians({"draw": call}, repeats=1)["draw"]
    return call.run(), seconds / batches


def run_estimator(task: Task, estimator: Any, batches: ld.Trajectory) -> tuple[np.ndarray, float, float]:
    """Its estimate from each batch, one after the other; seconds for one, and for compiling."""

    def all_estimates(batches: ld.Trajectory) -> jax.Array:
        def step(state: Any, batch: ld.Trajectory) -> tuple[Any, jax.Array]:
            estimate, state = estimator.estimate(task.params, state, task.policy, batch)
            return state, ravel_pytree(estimate.grads)[0]

        return jax.lax.scan(step, estimator.init(task.params), batches)[1]

    return _timed(compile_call(all_estimates, batches), len(batches.valid))


def run_pathwise(task: Task, number: int, batches: int) -> tuple[np.ndarray, float, float]:
    """As `run_estimator`, for reparameterized gradients, which draw their own trajectories."""

    def estimate(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, number)
        grads = jax.vmap(lambda key: ravel_pytree(pathwise(task, task.params, key))[0])(keys)
        return jnp.mean(grads, axis=0)

    keys = jax.random.split(jax.random.key(number), batches)
    return _timed(compile_call(lambda keys: jax.lax.map(estimate, keys), keys), batches)


def _timed(call: Compiled, batches: int) -> tuple[np.ndarray, float, float]:
    seconds = interleaved_medians({"run": call}, repeats=3)["run"]
    return np.asarray(call.run(), np.float64), seconds / batches, call.compile_seconds


def point(grads: np.ndarray, exact: np.ndarray, seconds: float, compile_seconds: float) -> Point:
    """Errors of estimates, the first quarter of them left out."""
    grads = grads[len(grads) // 4 :]
    squares = np.sum((grads - exact) ** 2, axis=1)
    mean, sem = float(np.mean(squares)), float(np.std(squares, ddof=1) / math.sqrt(len(squares)))
    size = float(np.sum(exact**2))
    along, energy = float(np.mean(grads @ exact)), float(np.mean(np.sum(grads**2, axis=1)))
    rmse = math.sqrt(mean / size)
    rescaled = math.sqrt(max(0.0, 1 - along**2 / (energy * size)))
    return Point(rmse, sem / (2 * rmse * size), rescaled, seconds, compile_seconds, (mean, sem))


def frontier(task: Task, numbers: Sequence[int], total: int, names: Sequence[str] | None) -> Points:
    """All estimators at all batch sizes, `total` trajectories for each."""
    exact = exact_gradient(task)
    found: Points = {}

    def wanted(name: str) -> bool:
        return names is None or name in names

    for number in numbers:
        batches = max(total // number, 64)
        for params, estimators in ((task.params, on_policy(task)), (task.behavior, off_policy(task))):
            chosen = {name: estimator for name, estimator in estimators.items() if wanted(name)}
            if not chosen:
                continue
            drawn, seconds = draw(task, params, number, batches)
            for name, estimator in chosen.items():
                grads, own, compiling = run_estimator(task, estimator, drawn)
                found.setdefault(name, {})[number] = point(grads, exact, seconds + own, compiling)
        if task.mdp is None and wanted(PATHWISE):
            grads, seconds, compiling = run_pathwise(task, number, batches)
            found.setdefault(PATHWISE, {})[number] = point(grads, exact, seconds, compiling)
    return found


def _of_programs(numbers: Sequence[int], total: int) -> tuple[dict[str, float], Points, np.ndarray]:
    """Computed variances, errors of all ways at all numbers of runs, and the exact gradient."""
    exact = program_frontier.exact_gradient()
    found: Points = {}
    for name in program_frontier.WAYS:
        for number in (n for n in numbers if n >= program_frontier.least(name)):
            grads, seconds, compiling = program_frontier.estimates(name, number, max(total // number, 64))
            found.setdefault(name, {})[number] = point(grads, exact, seconds, compiling)
    return program_frontier.exact_variances(), found, exact


def disagreement(found: Points, variances: dict[str, float]) -> float:
    """Largest deviation of a sampled mean squared error from the computed one, in standard errors."""
    pairs = [(p, variance / n) for name, variance in variances.items() for n, p in found.get(name, {}).items()]
    return max((abs(p.squared[0] - expected) / p.squared[1] for p, expected in pairs), default=0.0)


def main(quick: bool) -> Report:
    numbers, total = SIZES["quick" if quick else "full"]
    names = QUICK if quick else None
    results, tables, bounds, saved = {}, [], [], {}
    measured = {
        task.name: (exact_variances(task), frontier(task, numbers, total, names), exact_gradient(task))
        for task in all_tasks()
    }
    measured[program_frontier.NAME] = _of_programs(numbers, total)
    for name, (variances, found, gradient) in measured.items():
        results[name] = found
        tables.append(_table(name, found, variances, gradient))
        if variances:
            worst = disagreement(found, variances)
            bounds.append(at_most(f"{name}: sampled against computed variance, standard errors", worst, 5))
        saved[name] = {"gradient": gradient, "variance": variances, "estimators": found}
    walk = saved["random walk, n = 50"]
    spread = [math.sqrt(walk["variance"][name]) for name in ("total return", "total return, E[R] subtracted")]
    published = {"gradient": 7.558188, "deviation, plain": 34.8081, "deviation, mean subtracted": 10.5895}
    for (name, expected), ours in zip(published.items(), (walk["gradient"][0], *spread), strict=True):
        bounds.append(at_most(f"random walk, {name} {ours:.6g}: relative error", abs(ours / expected - 1), 5e-6))
    return Report(tables, bounds, saved, partial(_draw, results, saved))


def _table(title: str, found: dict[str, dict[int, Point]], variances: dict[str, float], gradient: np.ndarray) -> Table:
    size = np.linalg.norm(gradient)
    rows = []
    for name, points in found.items():
        last, p = list(points.items())[-1]
        computed = math.sqrt(variances[name] / last) / size if name in variances else None
        row = p._asdict() | {f"N = {n}": point.rmse for n, point in points.items()}
        rows.append(
            row | {"name": name, "computed": computed, "ms": 1e3 * p.seconds, "work": 1e3 * p.seconds * p.rmse**2}
        )
    numbers = [f"N = {n}" for n in next(iter(found.values()))]
    return Table(
        f"{title}: relative error of one estimate from N trajectories",
        " | ".join(["estimator", *numbers, "sem", "computed", "rescaled", "ms", "compile s", "work, ms"]),
        f"{{r[name]}} | {cells([*numbers, 'sem', 'computed', 'rescaled'], '.3f')}"
        " | {r[ms]:.3g} | {r[compile_seconds]:.2f} | {r[work]:.3g}",
        sorted(rows, key=lambda row: row["rmse"]),
    )


def _draw(results: dict[str, dict[str, dict[int, Point]]], saved: dict[str, dict[str, Any]]) -> Any:
    figure, axes = new_figure(nrows=2, ncols=len(results), figsize=(4.6 * len(results), 9.6))
    for column, (title, found) in enumerate(results.items()):
        names = sorted(found, key=lambda name: MAIN.index(name) if name in MAIN else len(MAIN))
        numbers = {name: list(found[name]) for name in names}
        errors, sems, times = (
            {name: [scale * getattr(p, field) for p in found[name].values()] for name in names}
            for field, scale in (("rmse", 1), ("sem", 1), ("seconds", 1e3))
        )
        size, variances = np.linalg.norm(saved[title]["gradient"]), saved[title]["variance"]
        known = [name for name in names if name in variances and name in MAIN]
        exact = {name: np.sqrt(variances[name] / np.asarray(numbers[name])) / size for name in known}
        of_runs = title == program_frontier.NAME
        options = {"sems": sems, "exact": exact, "background": set(names) - set(MAIN), "legend": of_runs}
        label = "runs of the model, N" if of_runs else "trajectories in a batch, N"
        plots.frontier(numbers, errors, ax=axes[0, column], xlabel=label, **options)
        plots.frontier(times, errors, ax=axes[1, column], xlabel="time of one estimate, ms", **options)
        axes[0, column].set_title(title)
    for ax in axes[:, 1:].flat:
        ax.set_ylabel("")
    handles = {label: h for ax in axes[0, :-1] for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5)
    figure.suptitle("Dots: the error as computed; grey: all other estimators, where there are any")
    return figure
