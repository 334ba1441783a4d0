r"""Which estimator gives the most accurate gradient for its trajectories, and for its time?

Error of one estimate against the *exact* gradient, $\sqrt{\mathbb{E}|g - \nabla J|^2} / |\nabla J|$, for batches of N trajectories, on four tasks where
$\nabla J$ is known: the short corridor, five random states, the random walk of Arya et al. (2022) and a linear-quadratic task. Time is that
of drawing the batch and of the estimate, compiled, on this machine. Estimators with a state carry it from batch to batch,
and the first quarter of the batches is not counted. Off-policy ones get trajectories of other parameters.

`work` is seconds times squared error, which does not depend on N for an unbiased estimator: how long for a given accuracy. Where
an estimator's scale is arbitrary (divided by a deviation, by a length), `rescaled` is its error after the best scalar factor.

Sampled errors are held to computed ones: where `ld.exact.weighted_score_moments` gives the variance exactly, the two must agree.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import logderiv as ld
from benchmarks import harness
from benchmarks.tasks import Task, all_tasks, pathwise
from logderiv import plots

PATHWISE = "pathwise, through the dynamics"
SIZES = {"quick": ((8, 128), 4096), "full": ((4, 16, 64, 256), 16384)}  # batch sizes, and trajectories for each
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


def on_policy(task: Task) -> dict[str, Any]:
    """Estimators for trajectories drawn with the parameters themselves."""
    gamma, total = task.discount, ld.total_return
    exact = ld.baseline_value(task.state_value)
    learned = ld.baseline_learned_value(task.fit, lambda _: task.value_params, optax.sgd(0.2), num_steps=8)
    mean = float(jax.jit(task.value)(task.params))

    def score(**parts: Any) -> Any:
        return ld.score_function(discount=gamma, **parts)

    found = {
        "total return": score(credit=total),
        "total return, E[R] subtracted": score(credit=total, baseline=ld.baseline_constant(mean)),
        "total return, moving average": score(credit=total, baseline=ld.baseline_moving_average(0.9)),
        "total return, leave one out": score(credit=total, baseline=ld.baseline_leave_one_out(per="trajectory")),
        "total return, optimal scalar": score(credit=total, baseline=ld.baseline_optimal()),
        "reward-to-go": score(),
        "reward-to-go, leave one out": score(baseline=ld.baseline_leave_one_out()),
        "reward-to-go, optimal scalar": score(baseline=ld.baseline_optimal()),
        "reward-to-go, optimal per parameter": ld.optimal_per_parameter(discount=gamma),
        "reward-to-go, exact value": score(baseline=exact),
        "reward-to-go, learned value": score(baseline=learned),
        "gae(1), learned value": score(credit=ld.gae(1.0), baseline=learned),
        "gae(0.9), learned value": score(credit=ld.gae(0.9), baseline=learned),
        "gae(0.9), exact value": score(credit=ld.gae(0.9), baseline=exact),
        "gae(0), exact value": score(credit=ld.gae(0.0), baseline=exact),
        "DiCE, leave one out": score(surrogate=ld.dice_surrogate, baseline=ld.baseline_leave_one_out()),
        "PPO's first gradient, learned value": ld.ppo(baseline=learned, discount=gamma),
        "RLOO": ld.rloo(discount=gamma),
        "biased: batch mean": score(credit=total, baseline=ld.baseline_biased_batch_mean()),
        "biased: batch mean per step": score(baseline=ld.baseline_biased_batch_mean(per="step")),
        "biased: optimal in sample": score(baseline=ld.baseline_biased_optimal_in_sample()),
        "biased: standardized": score(baseline=ld.baseline_biased_standardized()),
        "biased: GRPO": ld.grpo(group_size=4, discount=gamma),
        "biased: Dr. GRPO": ld.dr_grpo(group_size=4, discount=gamma),
    }
    if gamma < 1:
        found["biased: gamma^t left out"] = ld.score_function_without_gamma_t(discount=gamma)
    return found


def off_policy(task: Task) -> dict[str, Any]:
    """Estimators for trajectories drawn with `task.behavior`."""
    exact, decision = ld.baseline_value(task.state_value), ld.importance_per_decision()

    def score(importance: Any, **parts: Any) -> Any:
        return ld.score_function(discount=task.discount, importance=importance, **parts)

    return {
        "off-policy: trajectory ratio": score(ld.importance_trajectory(), credit=ld.total_return),
        "off-policy: per decision": score(decision),
        "off-policy: per decision, leave one out": score(decision, baseline=ld.baseline_leave_one_out()),
        "off-policy: per decision, exact value": score(decision, baseline=exact),
        "off-policy: biased: self-normalized": score(ld.importance_self_normalized()),
        "off-policy: biased: truncated at 2": score(ld.importance_truncated(2.0)),
        "off-policy: biased: V-trace, exact value": ld.vtrace_gradient(baseline=exact, discount=task.discount),
    }


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
        def traces(params: Any, mdp: ld.TabularMDP) -> list[jax.Array]:
            values = ld.exact.state_values(params, policy, mdp, **options)
            powers = task.discount ** jnp.arange(task.horizon, dtype=values.dtype)
            weightings = (
                (ld.total_return, 0.0),
                (ld.total_return, mdp.initial @ values[0]),
                (ld.reward_to_go, 0.0),
                (ld.reward_to_go, powers[:, None] * values),
            )
            found = [
                ld.exact.weighted_score_moments(params, policy, mdp, credit=c, baseline=b, **options)
                for c, b in weightings
            ]
            return [jnp.trace(moments.covariance) for moments in found]

        names = ("total return", "total return, E[R] subtracted", "reward-to-go", "reward-to-go, exact value")
        return dict(zip(names, map(float, traces(*wide)), strict=True))


def draw(task: Task, params: Any, number: int, batches: int) -> tuple[Any, float]:
    """`batches` batches of `number` trajectories, and the seconds for one of them."""

    def batch(key: jax.Array) -> ld.Trajectory:
        keys = jax.random.split(key, number)
        return ld.rollout(params, keys, task.policy, task.environment, horizon=task.horizon)

    keys = jax.random.split(jax.random.key(number), batches)
    call = harness.compile_call(lambda keys: jax.lax.map(batch, keys), keys)
    seconds = harness.interleaved_medians({"draw": call.run}, repeats=1)["draw"]
    return call.run(), seconds / batches


def run_estimator(task: Task, estimator: Any, batches: ld.Trajectory) -> tuple[np.ndarray, float, float]:
    """Its estimate from each batch, one after the other; seconds for one, and for compiling."""

    def all_estimates(batches: ld.Trajectory) -> jax.Array:
        def step(state: Any, batch: ld.Trajectory) -> tuple[Any, jax.Array]:
            estimate, state = estimator.estimate(task.params, state, task.policy, batch)
            return state, ravel_pytree(estimate.grads)[0]

        return jax.lax.scan(step, estimator.init(task.params), batches)[1]

    return _timed(harness.compile_call(all_estimates, batches), len(batches.valid))


def run_pathwise(task: Task, number: int, batches: int) -> tuple[np.ndarray, float, float]:
    """As `run_estimator`, for reparameterized gradients, which draw their own trajectories."""

    def estimate(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, number)
        grads = jax.vmap(lambda key: ravel_pytree(pathwise(task, task.params, key))[0])(keys)
        return jnp.mean(grads, axis=0)

    keys = jax.random.split(jax.random.key(number), batches)
    return _timed(harness.compile_call(lambda keys: jax.lax.map(estimate, keys), keys), batches)


def _timed(call: harness.Compiled, batches: int) -> tuple[np.ndarray, float, float]:
    seconds = harness.interleaved_medians({"run": call.run}, repeats=3)["run"]
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


def frontier(
    task: Task, numbers: Sequence[int], total: int, names: Sequence[str] | None
) -> dict[str, dict[int, Point]]:
    """All estimators at all batch sizes, `total` trajectories for each."""
    exact = exact_gradient(task)
    wanted: Callable[[str], bool] = lambda name: names is None or name in names  # noqa: E731
    found: dict[str, dict[int, Point]] = {}
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


def disagreement(found: dict[str, dict[int, Point]], variances: dict[str, float]) -> float:
    """Largest deviation of a sampled mean squared error from the computed one, in standard errors."""
    return max(
        (
            abs(p.squared[0] - variance / number) / p.squared[1]
            for name, variance in variances.items()
            for number, p in found.get(name, {}).items()
        ),
        default=0.0,
    )


def main(quick: bool) -> None:
    numbers, total = SIZES["quick" if quick else "full"]
    names = QUICK if quick else None
    print(f"{f'quick: {len(QUICK)} estimators' if quick else 'every estimator'}, batches of {numbers} trajectories")
    results, bounds, figures = {}, [], {}
    for task in all_tasks():
        variances, found = exact_variances(task), frontier(task, numbers, total, names)
        results[task.name] = found
        _print(task, found, variances, numbers)
        if variances:
            worst = disagreement(found, variances)
            bounds.append(harness.Bound(f"{task.name}: sampled against computed variance, standard errors", worst, 5))
        figures[task.name] = {
            "gradient": exact_gradient(task),
            "variance": variances,
            "estimators": {n: {str(k): p._asdict() for k, p in points.items()} for n, points in found.items()},
        }
    walk = figures["random walk, n = 50"]
    spread = [math.sqrt(walk["variance"][name]) for name in ("total return", "total return, E[R] subtracted")]
    published = {"gradient": 7.558188, "deviation, plain": 34.8081, "deviation, mean subtracted": 10.5895}
    for (name, expected), ours in zip(published.items(), (float(walk["gradient"][0]), *spread), strict=True):
        bounds.append(harness.Bound(f"random walk, {name} {ours:.6g}: relative error", abs(ours / expected - 1), 5e-6))
    _draw(results, figures)
    harness.finish("estimator_frontier", figures, bounds, quick=quick)


def _print(task: Task, found: dict[str, dict[int, Point]], variances: dict[str, float], numbers: Sequence[int]) -> None:
    last = numbers[-1]
    rows = []
    for name, points in sorted(found.items(), key=lambda item: item[1][last].rmse):
        p = points[last]
        computed = (
            f"{math.sqrt(variances[name] / last) / np.linalg.norm(exact_gradient(task)):.3f}"
            if name in variances
            else ""
        )
        rows.append(
            (
                name,
                *(f"{points[n].rmse:.3f}" for n in numbers),
                f"{p.sem:.3f}",
                computed,
                f"{p.rescaled:.3f}",
                f"{1e3 * p.seconds:.3g}",
                f"{1e3 * p.seconds * p.rmse**2:.3g}",
            )
        )
    harness.print_table(
        f"{task.name}: relative error of one estimate from N trajectories",
        ("estimator", *(f"N = {n}" for n in numbers), "sem", "computed", "rescaled", "ms", "work, ms"),
        rows,
    )


def _draw(results: dict[str, dict[str, dict[int, Point]]], figures: dict[str, dict[str, Any]]) -> None:
    figure, axes = harness.new_figure(nrows=2, ncols=len(results), figsize=(4.6 * len(results), 9.6))
    for column, (title, found) in enumerate(results.items()):
        names = sorted(found, key=lambda name: MAIN.index(name) if name in MAIN else len(MAIN))
        numbers = {name: list(found[name]) for name in names}
        errors, sems, times = (
            {name: [scale * getattr(p, field) for p in found[name].values()] for name in names}
            for field, scale in (("rmse", 1), ("sem", 1), ("seconds", 1e3))
        )
        size, variances = np.linalg.norm(figures[title]["gradient"]), figures[title]["variance"]
        exact = {
            n: np.sqrt(variances[n] / np.asarray(numbers[n])) / size for n in names if n in variances and n in MAIN
        }
        options = {"sems": sems, "exact": exact, "background": set(names) - set(MAIN), "legend": False}
        plots.frontier(numbers, errors, ax=axes[0, column], **options)
        plots.frontier(times, errors, ax=axes[1, column], xlabel="time of one estimate, ms", **options)
        axes[0, column].set_title(title)
    for ax in axes[:, 1:].flat:
        ax.set_ylabel("")
    handles = {label: h for ax in axes[0] for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False)
    grey = "; grey: all other estimators" if any(set(found) - set(MAIN) for found in results.values()) else ""
    figure.suptitle(f"Dots: the error as computed{grey}")
    harness.save_figure(figure, "estimator_frontier")
