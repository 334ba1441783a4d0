r"""When does a score function beat the pathwise and the measure-valued gradient, and by how much?

Figures 2 and 3 of Mohamed et al. (2020): variance of one sample's gradient of $\mathbb{E} f(x)$, $x \sim N(\mu, \sigma^2)$ at $\mu = \sigma = 1$, in both
parameters against $k$, for the costs $(x - k)^2$, $\exp(-k x^2)$ and $\cos(k x)$. The variances are *computed*: quadrature, in float64, of the square of what
each estimator of the library returns for given noise. They are held to closed forms at every $k$ of the curves, to independent 25-digit quadrature where
there is one, and to the variance of samples drawn through the public calls. "Variance reduction" is, as there, the optimal constant baseline for the score function.

Finding (2 CPU cores, jax 0.10.2, float64): computed variances equal the closed forms to 5e-13 along all curves and 25-digit quadrature to 3e-14; those of 200 000
samples agree within 2.9 standard errors, the worst of 112. No estimator wins everywhere, as in the paper: for a square the pathwise gradient has 4 in mu whatever k, the score
function 495 at k = -3 (134 with its optimal baseline); where the cost is sharp or oscillates the order turns round from k = 1 or so on, and at cos(5 x) it is 12.5 for pathwise and 0.5
for the score. The coupled measure-valued gradient, two costs a sample, is the lowest for both of these in mu; in sigma it is not where the peak is sharp: 0.117 against 0.009 at exp(-10 x^2).
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

import logderiv as ld
from benchmarks.harness import COLORS, Report, Table, at_most, new_figure, variance_and_sem
from logderiv.expectations.measures import NormalNoise, normal_derivative

Cost = Callable[[jax.Array], jax.Array]
COSTS: dict[str, Callable[[Any, jax.Array], jax.Array]] = {
    "square": lambda k, x: jnp.square(x - k),
    "exp": lambda k, x: jnp.exp(-k * jnp.square(x)),
    "cos": lambda k, x: jnp.cos(k * x),
}
TITLES = {"square": "$(x - k)^2$", "exp": "$\\exp(-k x^2)$", "cos": "$\\cos(k x)$"}
ESTIMATORS = {
    "score": ld.expectations.gradients_score,
    "pathwise": ld.expectations.gradients_pathwise,
    "measure": ld.expectations.gradients_measure_valued,
}
CURVES = {"square": np.linspace(-3, 3, 61), "exp": np.geomspace(0.1, 10, 61), "cos": np.geomspace(0.1, 10, 121)}
FLOORS = {"square": 0.3, "exp": 1e-3, "cos": 1e-5}  # of the figure: some variances have zeros
# Of the table; exp(3 x^2) has no expectation.
POINTS = {"square": (-3.0, 0.0, 3.0), "exp": (0.0, 0.1, 1.0, 3.0, 10.0), "cos": (-3.0, 0.0, 0.5, 2.0, 3.0, 5.0)}
NUM_SAMPLES = {"quick": 4000, "full": 200_000}
BASELINE = "score, optimal baseline"
COLUMNS = ("score", BASELINE, "pathwise", "measure")
# Variances in the order of COLUMNS, in mu and then in sigma, at mu = sigma = 1: rounded from 25 digits, by quadrature of the second moment of
# each estimator's definition with mpmath. `tests/test_benchmarks_reproductions.py` has that program.
INDEPENDENT: dict[tuple[str, float], tuple[float, ...]] = {
    ("square", -3.0): (495.0, 134.0, 4.0, 17.487330863050413,
        1546.0, 664.0, 72.0, 68.0),
    ("square", 0.0): (30.0, 14.0, 4.0, 1.0929581789406508,
        136.0, 64.0, 12.0, 8.0),
    ("square", 3.0): (87.0, 38.0, 4.0, 4.371832715762603,
        346.0, 184.0, 24.0, 20.0),
    ("exp", 0.1): (0.5635315618898886, 0.040467687391508946, 0.016290195397523258, 0.002509089065031912,
        0.9353838253479677, 0.14099056142526273, 0.0277699519817964, math.nan),
    ("exp", 1.0): (0.17575024444333243, 0.07222168957667807, 0.2117233929941279, 0.012567615545902987,
        0.1766904939400678, 0.11278397859028116, 0.17573120997871328, math.nan),
    ("exp", 10.0): (0.07694042071430049, 0.060196624651543774, 0.9416294409671413, 0.020655795952496368,
        0.009034595011883279, 0.008739076075540924, 0.8920460195789811, math.nan),
    ("cos", 0.5): (0.4552483844792485, 0.11786407892327413, 0.039284645226441026, 0.008275467093107353,
        0.7986578979269952, 0.4601021190878403, 0.08751285493822507, math.nan),
    ("cos", 2.0): (0.4410694687299561, 0.41252264607813394, 1.9398634671927397, 0.22408251939841003,
        0.9279806114070651, 0.9216368730399935, 1.9426719028604287, math.nan),
    ("cos", 5.0): (0.4999999996807385, 0.4999999990370684, 12.499999999680739, 0.2957168356376542,
        0.9999999993015732, 0.999999844122885, 12.499999999301574, math.nan),
}  # fmt: skip


def normal(params: dict[str, jax.Array]) -> ld.Normal:
    """N(mu, sigma^2)."""
    return ld.Normal(params["mu"], params["sigma"])


# Quadrature: Gauss-Legendre on [-12, 12], [0, 12] or [0, 1] with the density as weight.


def _nodes(low: float, high: float, density: Callable[[np.ndarray], np.ndarray], num: int = 400) -> Any:
    x, w = np.polynomial.legendre.leggauss(num)
    x = low + (high - low) * (x + 1) / 2
    return x, w * (high - low) / 2 * density(x)


def _gauss(x: np.ndarray) -> np.ndarray:
    return np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


GAUSS = _nodes(-12, 12, _gauss)
MAXWELL = _nodes(-12, 12, lambda x: x**2 * _gauss(x))
RAYLEIGH = _nodes(0, 12, lambda x: x * np.exp(-(x**2) / 2))
UNIFORM = _nodes(0, 1, np.ones_like, num=60)


def moments(values: Any, weights: np.ndarray) -> jax.Array:
    """Mean and variance of values with these weights, `(2,)`."""
    mean = jnp.sum(weights * values)
    return jnp.stack([mean, jnp.sum(weights * jnp.square(values - mean))])


def point(mu: float, sigma: float) -> dict[str, jax.Array]:
    """Parameters of `normal`."""
    return {"mu": jnp.asarray(mu), "sigma": jnp.asarray(sigma)}


def score_term(params: Any, x: jax.Array, distribution: Any, cost: Cost, baseline: Any = 0.0) -> Any:
    """(f(x) - b) ∇ log p(x), as a tape differentiates it, for a choice that is given."""

    def surrogate(params: Any) -> jax.Array:
        tape = ld.Tape.start(jax.random.key(0))
        return tape.score(distribution(params), x, baseline=baseline).cost(cost(x)).total

    return jax.grad(surrogate)(params)


def by_quadrature(name: str, cost: Cost, mu: float, sigma: float, baseline: Any = 0.0) -> tuple[jax.Array, jax.Array]:
    """Exact mean and variance of one sample of an estimator: in mu, and in sigma, `(2,)` each."""
    params = point(mu, sigma)
    if name == "measure":
        zero = jnp.zeros(())

        def at(w: jax.Array, m: jax.Array, u: jax.Array) -> ld.Normal:
            return normal_derivative(normal(params), cost, NormalNoise(zero, w, m, u))

        by_mu = jax.vmap(lambda w: at(w, zero, zero).loc)(jnp.asarray(RAYLEIGH[0]))
        m, u = np.meshgrid(MAXWELL[0], UNIFORM[0], indexing="ij")
        by_sigma = jax.vmap(lambda m, u: at(zero, m, u).scale)(jnp.ravel(m), jnp.ravel(u))
        return moments(by_mu, RAYLEIGH[1]), moments(by_sigma, np.outer(MAXWELL[1], UNIFORM[1]).ravel())
    if name == "score":
        x = mu + sigma * jnp.asarray(GAUSS[0])
        each = jax.vmap(lambda x: score_term(params, x, normal, cost, baseline))(x)
    else:
        each = jax.vmap(lambda e: jax.grad(lambda p: cost(p["mu"] + p["sigma"] * e))(params))(jnp.asarray(GAUSS[0]))
    return moments(each["mu"], GAUSS[1]), moments(each["sigma"], GAUSS[1])


def optimal_baselines(cost: Cost, mu: float, sigma: float) -> tuple[jax.Array, jax.Array]:
    r"""$\mathbb{E}[f s^2] / \mathbb{E}[s^2]$ with the score `s` in mu, and in sigma.

    References:
        Mohamed et al. (2020), eq. 65.
    """
    x = mu + sigma * jnp.asarray(GAUSS[0])
    score = jax.vmap(lambda x: score_term(point(mu, sigma), x, normal, jnp.ones_like))(x)
    squares = [GAUSS[1] * jnp.square(score[leaf]) for leaf in ("mu", "sigma")]
    mu_best, sigma_best = (jnp.sum(square * cost(x)) / jnp.sum(square) for square in squares)
    return mu_best, sigma_best


@functools.partial(jax.jit, static_argnames="name")
def computed(name: str, ks: jax.Array) -> jax.Array:
    """Variances of one sample at mu = sigma = 1, `(K, 2, 4)`: in mu and sigma, in the order of `COLUMNS`."""

    def at(k: jax.Array) -> jax.Array:
        cost = functools.partial(COSTS[name], k)
        baselines = enumerate(optimal_baselines(cost, 1.0, 1.0))
        best = [by_quadrature("score", cost, 1.0, 1.0, b)[i][1] for i, b in baselines]
        score, pathwise, measure = (by_quadrature(e, cost, 1.0, 1.0) for e in ESTIMATORS)
        return jnp.stack([jnp.stack([score[i][1], best[i], pathwise[i][1], measure[i][1]]) for i in (0, 1)])

    return jax.lax.map(at, ks)


def closed_forms(name: str, k: float, mu: float = 1.0, sigma: float = 1.0) -> np.ndarray:
    """The same variances in closed form, `(2, 4)`; one of them, `exp` by measures in sigma, as a single integral."""
    v, s, m = sigma**2, sigma, mu - k
    if name == "square":
        in_mu = [15 * v + 14 * m**2 + m**4 / v, 6 * v + 8 * m**2, 4 * v, m**2 * (16 / math.pi - 4)]
        in_sigma = [74 * v + 60 * m**2 + 2 * m**4 / v, 24 * v + 40 * m**2, 8 * v + 4 * m**2, 4 * m**2 + 4 * v]
        return np.array([in_mu, in_sigma])
    first, second = _tilted(name, k, mu, sigma)
    gradient = np.array([first[1], first[2] - first[0]]) / s

    def with_squared_scores(z: np.ndarray) -> np.ndarray:
        return np.array([z[2], z[4] - 2 * z[2] + z[0]]) / v

    score = with_squared_scores(second)
    best = score - with_squared_scores(first) ** 2 / (np.array([1, 2]) / v)
    if name == "exp":
        x_squared = [mu**2 * second[i] + 2 * mu * s * second[i + 1] + v * second[i + 2] for i in (0, 2)]
        pathwise = 4 * k**2 * np.array(x_squared)
    else:
        pathwise = k**2 * np.array([1 - second[0], 1 - second[2]])
    sides_mu, crossed = _coupled(name, k, mu, sigma)
    measure = np.array([sides_mu / (2 * math.pi * v), (second[2] + second[0] - 2 * crossed) / v])
    return np.stack([score, best, pathwise, measure], axis=1) - gradient[:, None] ** 2


def _tilted(name: str, k: float, mu: float, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """E[f z^p] and E[f^2 z^p] for p = 0 to 4, with x = mu + sigma z."""

    def exponential(c: float) -> np.ndarray:  # exp(-c x^2) tilts z to another Normal
        d = 1 + 2 * c * sigma**2
        n = -2 * c * mu * sigma / d
        powers = [1, n, n**2 + 1 / d, n**3 + 3 * n / d, n**4 + 6 * n**2 / d + 3 / d**2]
        return math.exp(-c * mu**2 / d) / math.sqrt(d) * np.array(powers)

    def cosine(c: float) -> np.ndarray:  # E[z^p exp(i t z)] = i^p He_p(t) exp(-t^2 / 2)
        t = c * sigma
        hermite = np.array([1, t, t**2 - 1, t**3 - 3 * t, t**4 - 6 * t**2 + 3])
        return np.real(np.exp(1j * c * mu) * 1j ** np.arange(5) * hermite) * math.exp(-(t**2) / 2)

    if name == "exp":
        return exponential(k), exponential(2 * k)
    return cosine(k), (cosine(0) + cosine(2 * k)) / 2


def _coupled(name: str, k: float, mu: float, sigma: float) -> tuple[float, float]:
    """E (f(mu + sigma W) - f(mu - sigma W))^2, and E f(mu + sigma M) f(mu + sigma M U)."""
    if name == "cos":
        a, t = k * mu, k * sigma
        sides = 4 * math.sin(a) ** 2 * math.sqrt(2) * t * scipy.special.dawsn(math.sqrt(2) * t)
        near, far = math.exp(-(t**2) / 2), math.exp(-2 * t**2)
        return sides, (math.cos(2 * a) * (2 * far - near) + near) / 2
    d = 1 + 4 * k * sigma**2
    b = 4 * k * mu * sigma / d
    folded = 2 / d * math.exp(-(b**2) * d / 2) + math.sqrt(2 * math.pi / d) * b * math.erf(b * math.sqrt(d / 2))
    sides = math.exp(-2 * k * mu**2) * (math.exp(b**2 * d / 2) * folded - 2 / d)
    u, weights = UNIFORM
    c, e = 1 + 2 * k * sigma**2 * (1 + u**2), 2 * k * mu * sigma * (1 + u)
    return sides, float(np.sum(weights * np.exp(e**2 / (2 * c) - 2 * k * mu**2) * (e**2 / c**2 + 1 / c) / np.sqrt(c)))


class Row(NamedTuple):
    """Variances of one sample of one estimator in one parameter.

    Attributes:
        cost: Its name.
        k: Its parameter.
        parameter: 'mu' or 'sigma'.
        estimator: One of `COLUMNS`.
        independent: By 25-digit quadrature, NaN where there is none.
        exact: In closed form.
        computed: By quadrature over the estimator's own samples.
        sampled: Of draws.
        sem: Standard error of `sampled`.
    """

    cost: str
    k: float
    parameter: str
    estimator: str
    independent: float
    exact: float
    computed: float
    sampled: float
    sem: float

    @property
    def z(self) -> float:
        """Sampled against exact, in standard errors; 0 where neither varies."""
        difference = self.sampled - self.exact
        return 0.0 if abs(difference) < 1e-12 else difference / self.sem if self.sem else math.inf


@functools.partial(jax.jit, static_argnames=("name", "num_samples"))
def sampled(name: str, key: jax.Array, ks: jax.Array, *, num_samples: int) -> tuple[jax.Array, jax.Array]:
    """Variances of draws and their standard errors, each as `computed`."""
    params = point(1.0, 1.0)

    def at(inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        k, key = inputs
        cost = functools.partial(COSTS[name], k)
        draw = [functools.partial(f, params, distribution=normal, cost=cost) for f in ESTIMATORS.values()]
        best = [functools.partial(draw[0], baseline=b) for b in optimal_baselines(cost, 1.0, 1.0)]
        keys = jax.random.split(key, 5)
        score, mu_best, sigma_best, pathwise, measure = (
            f(key, num_samples=num_samples) for f, key in zip((draw[0], *best, *draw[1:]), keys, strict=True)
        )
        columns = (score, {"mu": mu_best["mu"], "sigma": sigma_best["sigma"]}, pathwise, measure)
        samples = jnp.stack([jnp.stack([c[leaf] for c in columns]) for leaf in ("mu", "sigma")])
        return variance_and_sem(samples)

    return jax.lax.map(at, (ks, jax.random.split(key, ks.shape[0])))


def error(ours: Any, exact: Any) -> float:
    """The largest relative error; of variances below 0.001 relative to that."""
    return float(np.max(np.abs(np.asarray(ours) - exact) / (np.abs(exact) + 1e-3)))


def table(name: str, key: jax.Array, num_samples: int) -> list[Row]:
    """All variances at the points of one cost; `key` is consumed."""
    ks = jnp.asarray(POINTS[name])
    ours = np.asarray(computed(name, ks))
    draws, sems = map(np.asarray, sampled(name, key, ks, num_samples=num_samples))
    rows = []
    for index, k in enumerate(POINTS[name]):
        independent = np.reshape(INDEPENDENT.get((name, k), (math.nan,) * 8), (2, 4))
        arrays = (independent, closed_forms(name, k), ours[index], draws[index], sems[index])
        for (i, parameter), (j, column) in itertools.product(enumerate(("mu", "sigma")), enumerate(COLUMNS)):
            rows.append(Row(name, k, parameter, column, *(float(a[i, j]) for a in arrays)))
    return rows


def main(quick: bool) -> Report:
    num_samples = NUM_SAMPLES["quick" if quick else "full"]
    grids = {name: grid[::10] if quick else grid for name, grid in CURVES.items()}
    rows, curves, errors = [], {}, {}
    with jax.enable_x64(True):
        for name, key in zip(COSTS, jax.random.split(jax.random.key(0), len(COSTS)), strict=True):
            rows += table(name, key, num_samples)
            curves[name] = np.asarray(computed(name, jnp.asarray(grids[name])))
            errors[name] = error(curves[name], np.array([closed_forms(name, k) for k in grids[name]]))
    shown = Table(
        f"Variance of one sample, mu = sigma = 1: exact, by 25-digit quadrature, computed, and of {num_samples} samples",
        "cost, k, parameter, estimator | exact | 25 digits | computed | sampled | std. error | z",
        "{r.cost}, {r.k:g}, {r.parameter}, {r.estimator} | {r.exact:.8g} | {r.independent:.8g} | {r.computed:.8g} | {r.sampled:.4g} | {r.sem:.2g} | {r.z:.2f}",
        rows,
    )
    known = [error(r.computed, r.independent) for r in rows if not math.isnan(r.independent)]
    bounds = [
        at_most("computed against closed form, at the points", max(error(r.computed, r.exact) for r in rows), 1e-9),
        *(at_most(f"the same, along the curve of {name}", value, 1e-9) for name, value in errors.items()),
        at_most("computed against independent quadrature", max(known), 1e-9),
        at_most("sampled against exact, standard errors", max(abs(r.z) for r in rows), 4),
    ]
    numbers = {"rows": rows, "k": grids, "curves": curves, "parameters": ("mu", "sigma")}
    return Report([shown], bounds, numbers, functools.partial(_draw, grids, curves, rows))


def _draw(grids: dict[str, np.ndarray], curves: dict[str, np.ndarray], rows: list[Row]) -> Any:
    figure, axes = new_figure(nrows=2, ncols=len(curves), figsize=(13, 7.5), squeeze=False)
    parameters = enumerate(("mu", "sigma"))
    for (i, parameter), (column, (name, values)) in itertools.product(parameters, enumerate(curves.items())):
        ax, grid = axes[i, column], grids[name]
        for j, (estimator, color) in enumerate(zip(COLUMNS, COLORS, strict=False)):
            ax.plot(grid, values[:, i, j], color=color, label=estimator if ax is axes[0, 0] else None)
            drawn = [r for r in rows if (r.cost, r.parameter, r.estimator) == (name, parameter, estimator)]
            shown = [r for r in drawn if grid[0] <= r.k <= grid[-1] and r.sampled > 0]
            ax.errorbar([r.k for r in shown], [r.sampled for r in shown], [r.sem for r in shown], fmt="o", color=color)
        ax.set(yscale="log", xlabel="k", xscale="linear" if name == "square" else "log", ylim=(FLOORS[name], None))
        ax.set(title=f"{TITLES[name]}, in $\\{parameter}$", ylabel="variance of one sample")
    figure.suptitle("Lines: computed. Points: sampled")
    return figure
