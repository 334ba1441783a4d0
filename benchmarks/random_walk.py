r"""How noisy are score-function estimates on the random walk of Arya et al., exactly, and what did they print?

The protocol of arXiv:2210.08572, section 5, as in the tutorial `random_walk` of StochasticAD.jl: from 0, up with probability exp(-X / p), else down; the
derivative of E[X_n^2] at n = 10, 20, ..., 100 and p = 2 n; the standard deviation of one estimate from 10 000 of them. The score function stands there
without and with a mean subtracted ("CV"), beside their stochastic triples. The tutorial prints a figure, no numbers; `PUBLISHED` is read off its
markers (docs/src/images/compare_score.png, centers of the discs, good to 0.05). Ours are computed for every n without sampling, then sampled.

Finding (2 CPU cores, jax 0.10.2): the published discs lie within 4.3 % of the exact deviations, the noise of their 10 000 samples; ours within 2.1 standard
errors. Plain grows like n^1.40, with the mean subtracted like n^1.06, and the order of their figure stands: triples, mean subtracted, plain. Reward-to-go with the
exact state value, which no baseline of theirs used, nearly halves the deviation of the mean subtracted (11.6 for 21.4 at n = 100); from n = 20 on the triples
stay below it (6.6): an estimate that couples two walks sees more than a score does.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import logderiv as ld
from benchmarks import harness

NUMBERS = tuple(range(10, 101, 10))
QUICK = (10, 50, 100)
PUBLISHED = {  # by n; two discs are hidden behind others at small n
    "plain": {20: 9.72, 30: 17.38, 40: 25.43, 50: 35.04, 60: 45.21, 70: 56.72, 80: 67.69, 90: 81.06, 100: 95.72},
    "mean subtracted": {30: 6.32, 40: 8.63, 50: 10.40, 60: 12.59, 70: 14.75, 80: 17.08, 90: 20.03, 100: 21.49},
    "stochastic triples": {
        10: 1.03, 20: 1.63, 30: 2.21, 40: 2.85, 50: 3.46, 60: 4.08, 70: 4.75, 80: 5.26, 90: 5.83, 100: 6.55,
    },
}  # fmt: skip
ESTIMATORS = {
    "plain": ld.score_function(credit=ld.total_return),
    "mean subtracted": ld.score_function(credit=ld.total_return, baseline=ld.baseline_leave_one_out(per="trajectory")),
}


class Exact(NamedTuple):
    """Value, derivative and the standard deviation of one estimate."""

    value: float
    slope: float
    deviations: dict[str, float]


def exact(n: int) -> Exact:
    """Everything about `n` steps at `p = 2 n`, in float64, by dynamic programming."""
    with jax.enable_x64(True):
        walk = ld.processes.random_walk(n)

        @jax.jit
        def run(p: jax.Array) -> Any:
            value, slope = jax.value_and_grad(ld.exact.value)(p, walk.policy, walk, horizon=n)
            values = ld.exact.state_values(p, walk.policy, walk, horizon=n)[:n]

            def variance(credit: Any, baseline: jax.Array) -> jax.Array:
                found = ld.exact.weighted_score_moments(
                    p, walk.policy, walk, horizon=n, credit=credit, baseline=baseline
                )
                return found.covariance[0, 0]

            constant = jnp.stack([jnp.zeros_like(value), value])
            total = jax.vmap(lambda b: variance(ld.total_return, b))(constant)
            togo = jax.vmap(lambda b: variance(ld.reward_to_go, b))(jnp.stack([jnp.zeros_like(values), values]))
            return value, slope, jnp.concatenate([total, togo])

        value, slope, variances = run(jnp.asarray(2.0 * n))
        names = (*ESTIMATORS, "reward-to-go", "reward-to-go, exact value")
        return Exact(
            float(value), float(slope), {k: math.sqrt(float(v)) for k, v in zip(names, variances, strict=True)}
        )


def sampled(n: int, samples: int) -> dict[str, tuple[float, float]]:
    """Standard deviation of `samples` estimates, and the standard error of their variance relative to it."""
    walk, p = ld.processes.random_walk(n), jnp.asarray(2.0 * n)

    @jax.jit
    def run(key: jax.Array) -> dict[str, jax.Array]:
        taus = ld.rollout(p, jax.random.split(key, samples), walk.policy, walk)
        return {
            name: ld.diagnostics.per_trajectory_gradients(e, p, (), walk.policy, taus, batch_size=1000)
            for name, e in ESTIMATORS.items()
        }

    found = {}
    for name, x in run(jax.random.key(n)).items():
        squares = np.square(np.asarray(x, float) - np.mean(x, dtype=float))
        found[name] = (math.sqrt(squares.mean()), float(squares.std() / squares.mean() / math.sqrt(samples)))
    return found


def growth(deviations: Sequence[float], numbers: Sequence[int]) -> float:
    """The exponent between the first and the last n."""
    return math.log(deviations[-1] / deviations[0]) / math.log(numbers[-1] / numbers[0])


def main(quick: bool) -> None:
    numbers, samples = (QUICK, 10_000) if quick else (NUMBERS, 10_000)
    known = {n: exact(n) for n in numbers}
    found = {n: sampled(n, samples) for n in numbers}
    names = list(known[numbers[0]].deviations)
    rows = []
    for n in numbers:
        cells: list[Any] = [n, f"{known[n].value:.6f}", f"{known[n].slope:.6f}"]
        for name in ESTIMATORS:
            printed = PUBLISHED[name].get(n)
            cells += [
                "" if printed is None else f"{printed:.2f}",
                f"{known[n].deviations[name]:.2f}",
                f"{found[n][name][0]:.2f}",
            ]
        rows.append((*cells, *(f"{known[n].deviations[x]:.2f}" for x in names[2:]), PUBLISHED["stochastic triples"][n]))
    harness.print_table(
        "Standard deviation of one estimate of dE[X^2]/dp, p = 2 n: read off the published figure | exact | 10 000 samples",
        (
            "n",
            "E[X^2]",
            "slope",
            *("published", "plain", "sampled"),
            *("published", "mean subtr.", "sampled"),
            "reward-to-go",
            "with state value",
            "triples, published",
        ),
        rows,
    )
    exponents = {name: growth([known[n].deviations[name] for n in numbers], numbers) for name in names}
    print("  growth with n: " + ", ".join(f"{name} n^{x:.2f}" for name, x in exponents.items()))

    z = max(
        abs((found[n][name][0] / known[n].deviations[name]) ** 2 - 1) / found[n][name][1]
        for n in numbers
        for name in ESTIMATORS
    )
    off = max(
        abs(PUBLISHED[name][n] / known[n].deviations[name] - 1)
        for name in ESTIMATORS
        for n in numbers
        if n in PUBLISHED[name]
    )
    bounds = [
        harness.Bound("sampled against exact variance, standard errors", z, 5),
        harness.Bound("published against exact deviation, relative", off, 0.06),
        harness.Bound("derivative at n = 50, p = 100, against 7.558188", abs(known[50].slope - 7.558188), 5e-7),
        harness.Bound(
            "order: plain over mean subtracted, at least",
            min(known[n].deviations["plain"] / known[n].deviations["mean subtracted"] for n in numbers),
            1,
            at_least=True,
        ),
        harness.Bound(
            "order: mean subtracted over published triples, at least",
            min(known[n].deviations["mean subtracted"] / PUBLISHED["stochastic triples"][n] for n in numbers),
            1,
            at_least=True,
        ),
    ]
    _draw(numbers, known, found)
    figures = {
        "exact": {n: e._asdict() for n, e in known.items()},
        "sampled": found,
        "published": PUBLISHED,
        "growth": exponents,
    }
    harness.finish("random_walk", figures, bounds, quick=quick)


def _draw(numbers: Sequence[int], known: dict[int, Exact], found: dict[int, dict[str, tuple[float, float]]]) -> None:
    figure, ax = harness.new_figure(figsize=(6, 4.5))
    colors = dict(zip(known[numbers[0]].deviations, ("#D55E00", "#009E73", "#CC79A7", "0.2"), strict=True))
    for name, color in colors.items():
        ax.plot(numbers, [known[n].deviations[name] for n in numbers], "-", color=color, label=f"{name}, exact")
        if name in ESTIMATORS:
            ax.plot(numbers, [found[n][name][0] for n in numbers], "x", color=color)
    for name, points in PUBLISHED.items():
        ax.plot(list(points), list(points.values()), "o", mfc="none", color=colors.get(name, "#0072B2"))
    ax.plot([], [], "x", color="0.4", label="10 000 samples")
    ax.plot([], [], "o", mfc="none", color="0.4", label="published (blue: stochastic triples)")
    ax.set(xlabel="n", ylabel="standard deviation of one estimate", xscale="log", yscale="log")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, fontsize=8)
    harness.save_figure(figure, "random_walk")
