r"""Does the score of a marginal likelihood come out right by Fisher's identity, exactly and by posterior samples?

The flow of the Nile, 1871-1970, as a random walk plus noise: the level is hidden, and $\nabla\log p(y)$ is the score of the complete data averaged over
the levels that the data leave possible. Once by the smoothed moments, once by levels drawn from the posterior; both are held to the derivative of the
Kalman filter, and the likelihoods, in five conventions, to published ones. The conventions differ in what the start contributes: a known prior,
counted in full; or a diffuse one, where the first flow only places the level and the other 99 count.

Finding (2 CPU cores, jax 0.10.2, float64): log-likelihoods in every convention equal independent ones to 6e-16. The score by Fisher's identity and by the
filter equals the derivative of the dense normal density to 5e-11, at the estimate, where terms of 50 cancel to 5e-4, and to 1e-12 elsewhere; the
printed scores of Durbin & Koopman's table 2.1 come out too. 200 000 posterior paths give (21.159 +- 0.010, 3.777 +- 0.016) for (21.167, 3.763); 1000
give the larger to 1 %. L-BFGS from (1000, 100 000) reaches the published maximum with a score of 1e-14.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import Report, Table, at_most, new_figure
from logderiv._core.pytrees import pytree
from logderiv.processes import LocalLevel, LocalLevelParams, StateSpaceModel, fisher_score, fisher_score_samples

# Annual flow at Aswan in 10^8 m^3, 1871-1970: public domain, as in R's `datasets::Nile`.
VOLUMES = (
    1120, 1160, 963, 1210, 1160, 1160, 813, 1230, 1370, 1140, 995, 935, 1110, 994, 1020, 960, 1180, 799, 958, 1140,
    1100, 1210, 1150, 1250, 1260, 1220, 1030, 1100, 774, 840, 874, 694, 940, 833, 701, 916, 692, 1020, 1050, 969,
    831, 726, 456, 824, 702, 1120, 1100, 832, 764, 821, 768, 845, 864, 862, 698, 845, 744, 796, 1040, 759,
    781, 865, 845, 944, 984, 897, 822, 1010, 771, 676, 649, 846, 812, 742, 801, 1040, 860, 874, 848, 890,
    744, 749, 838, 1050, 918, 986, 797, 923, 975, 815, 1020, 906, 901, 1170, 912, 746, 919, 718, 714, 740,
)  # fmt: skip
ESTIMATE = (15099.0, 1469.1)  # Durbin & Koopman's variances
NUM_PATHS = {"quick": 10_000, "full": 200_000}
ROUGH_START = (1e3, 1e5)
# Variances, prior, log-likelihood and score in log variances, from the density of the dense normal distribution.
POINTS = (
    (ESTIMATE, (0.0, 1e7), -641.5855784594153, (-0.0005181076315629298, -0.0006128195448447157)),
    ((10000.0, 1000.0), (0.0, 1e7), -646.3253756034903, (21.166549415387802, 3.7628993419063357)),
    ((20000.0, 500.0), (1000.0, 1e4), -639.7808644322238, (-6.128380763623691, 0.6722454351149667)),
    (ESTIMATE, (1120.0, 15099.0), -638.3959146811769, (-0.06334957594216369, -0.04260430626481482)),
)
TABLE = (  # Durbin & Koopman (2012), table 2.1: q, log-likelihood, the same to all digits, score
    (1.0, "-495.68", -495.68510454586243, "-3.32"),
    (0.0360, "-492.53", -492.52899871259416, "0.93"),
    (0.0745, "-492.10", -492.10458515619024, "0.25"),
    (0.0974, "-492.07", -492.0707107709038, "-0.001"),
    (0.0973, "-492.07", -492.0707103176316, "0.0"),
)
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Row(NamedTuple):
    """A number of ours beside the printed one, and beside one computed independently to all digits, where there are such.

    Attributes:
        kind: What it is bounded with.
        quantity: What it is.
        printed: As in the source, with its number of decimals.
        exact: From a dense normal distribution, statsmodels, or an optimizer of another library.
        ours: By Kalman filter or Fisher's identity.
    """

    kind: str
    quantity: str
    printed: str
    exact: float
    ours: float

    @property
    def difference(self) -> float:
        """Relative, from the exact one."""
        return abs(self.ours / self.exact - 1)

    @property
    def misprinted(self) -> bool:
        """Whether ours is more than a unit of the last printed digit away; the book's -495.68 is cut, not rounded."""
        decimals = len(self.printed.partition(".")[2])
        return bool(self.printed) and not abs(self.ours - float(self.printed)) <= 10.0**-decimals


class Average(NamedTuple):
    """Mean and standard error of the first so many scores, and how many errors off the exact score: `(2,)` each."""

    paths: int
    mean: np.ndarray
    sem: np.ndarray
    z: np.ndarray


@pytree
class DiffuseLevel(StateSpaceModel):
    r"""The local level after a first observation, from a diffuse start: $\mu_1 | y_0 \sim N(y_0, \sigma_\epsilon^2 + \sigma_\eta^2)$.

    References:
        Durbin & Koopman (2012), Time Series Analysis by State Space Methods, 2nd ed., section 2.9.
    """

    first_observation: float = float(VOLUMES[0])

    def matrices(self, params: LocalLevelParams) -> Any:
        """Those of the local level, with the variances in the start."""
        level = LocalLevel(initial_mean=self.first_observation).matrices(params)
        return level._replace(initial_covariance=level.state_covariance + level.observation_covariance)


DIFFUSE = DiffuseLevel()


def flows() -> jax.Array:
    """The series in the default precision."""
    return jnp.asarray(VOLUMES, jnp.zeros(()).dtype)


def log_variances(variances: tuple[float, float]) -> LocalLevelParams:
    """Parameters at two variances."""
    return LocalLevelParams(*jnp.log(jnp.asarray(variances)))


@jax.jit
def diffuse_log_likelihood(params: LocalLevelParams) -> jax.Array:
    """Of the last 99 flows given the first."""
    return DIFFUSE.log_likelihood(params, flows()[1:])


@jax.jit
def concentrated(ratio: jax.Array) -> tuple[jax.Array, jax.Array]:
    r"""Durbin & Koopman's concentrated log-likelihood at $q = \sigma_\eta^2 / \sigma_\epsilon^2$, and its derivative by $\log q$.

    Both variances scale with $\sigma_\epsilon^2$, and at $(1, q)$ the score along that scale is $\tfrac12 (\sum_t v_t^2 / F_t - 99)$:
    it tells the best scale. There the derivative is the score in the level variance alone, here by Fisher's identity.
    Constants are left out as they do.

    References:
        Durbin & Koopman (2012), section 2.10.2 and table 2.1.
    """
    count = len(VOLUMES) - 1
    at_one = LocalLevelParams(jnp.zeros_like(ratio), jnp.log(ratio))
    log_scale = jnp.log1p(2 * sum(fisher_score(at_one, DIFFUSE, flows()[1:])) / count)
    best = jax.tree.map(lambda x: x + log_scale, at_one)
    value = diffuse_log_likelihood(best) + count * (HALF_LOG_2PI + 0.5)
    return value, fisher_score(best, DIFFUSE, flows()[1:]).log_level_variance


def maximum_likelihood(start: tuple[float, float], num_steps: int = 40) -> tuple[np.ndarray, float, float]:
    """L-BFGS on the log-variances, diffuse start: the variances, the log-likelihood, and the largest score left by Fisher's identity."""
    optimizer = optax.lbfgs()

    def loss(params: LocalLevelParams) -> jax.Array:
        return -diffuse_log_likelihood(params)

    def step(carry: Any, _: None) -> tuple[Any, None]:
        params, state = carry
        value, grads = optax.value_and_grad_from_state(loss)(params, state=state)
        updates, state = optimizer.update(grads, state, params, value=value, grad=grads, value_fn=loss)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(params: LocalLevelParams) -> Any:
        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), None, length=num_steps)
        score = fisher_score(params, DIFFUSE, flows()[1:])
        return jnp.exp(jnp.stack(params)), -loss(params), jnp.max(jnp.abs(jnp.stack(score)))

    variances, value, score = run(log_variances(start))
    return np.asarray(variances), float(value), float(score)


@jax.jit
def evaluate(model: LocalLevel, params: LocalLevelParams) -> tuple[jax.Array, LocalLevelParams, LocalLevelParams]:
    """Log-likelihood, and its score by Fisher's identity and by the filter."""
    value, by_filter = jax.value_and_grad(model.log_likelihood)(params, flows())
    return value, fisher_score(params, model, flows()), by_filter


def score_rows() -> list[Row]:
    """At `POINTS`: log-likelihood, and the score in log variances both ways."""
    rows = []
    for variances, (mean, variance), exact, scores in POINTS:
        value, identity, by_filter = evaluate(LocalLevel(mean, variance), log_variances(variances))
        where = f"({variances[0]:g}, {variances[1]:g}), N({mean:g}, {variance:g})"
        rows.append(Row("log-likelihood", f"log-likelihood {where}", "", exact, float(value)))
        for name, score, a, b in zip(("noise", "level"), scores, identity, by_filter, strict=True):
            rows.append(Row("score", f"  d/dlog {name} variance, Fisher's identity", "", score, float(a)))
            rows.append(Row("score", f"  d/dlog {name} variance, filter", "", score, float(b)))
    return rows


def convention_rows() -> list[Row]:
    """The likelihood with a diffuse start, as software and the book print it."""
    kind, ours = "log-likelihood", float(diffuse_log_likelihood(log_variances(ESTIMATE)))
    rows = [Row(kind, "diffuse, 99 terms (KFAS)", "-632.5456", -632.5456251156737, ours)]
    rows += [Row(kind, "diffuse, 100 constants (statsmodels)", "", -633.4645636488787, ours - HALF_LOG_2PI)]
    for ratio, printed, exact, score in TABLE:
        value, derivative = concentrated(jnp.asarray(ratio))
        rows.append(Row(kind, f"concentrated, q = {ratio:.4f}", printed, exact, float(value)))
        rows.append(Row("printed", "  d/dlog q, Fisher's identity", score, math.nan, float(derivative)))
    return rows


def maximum_rows(variances: np.ndarray, value: float) -> list[Row]:
    """The maximum, with a diffuse start."""
    noise, level = 15098.518324329432, 1469.1763602642088
    return [
        Row("log-likelihood", "maximum, L-BFGS: log-likelihood", "-632.5456", -632.545625103041, value),
        Row("maximum", "  noise variance", "15099", noise, variances[0]),
        Row("maximum", "  level variance", "", level, variances[1]),
        Row("maximum", "  their ratio q", "0.0973", level / noise, variances[1] / variances[0]),
    ]


def sampled(num_samples: int) -> dict[str, np.ndarray]:
    """Scores at (10000, 1000) of posterior paths, `(num_samples, 2)`, and what they estimate; with the smoothed level."""
    model, params = LocalLevel(), log_variances((10000.0, 1000.0))

    @jax.jit
    def run(params: LocalLevelParams, key: jax.Array) -> Any:
        few = min(num_samples, 1000)

        def draw(key: jax.Array) -> jax.Array:
            return jnp.stack(fisher_score_samples(params, key, model, flows(), num_samples=few), axis=1)

        scores = jax.lax.map(draw, jax.random.split(key, max(num_samples // 1000, 1)))
        exact = jnp.stack(jax.grad(model.log_likelihood)(params, flows()))
        smoothed = model.smooth(log_variances(ESTIMATE), flows()).states
        return scores.reshape(-1, 2), exact, smoothed.mean[:, 0], smoothed.covariance[:, 0, 0]

    names = ("scores", "exact", "level", "variance")
    return dict(zip(names, map(np.asarray, run(params, jax.random.key(0))), strict=True))


def main(quick: bool) -> Report:
    total = NUM_PATHS["quick" if quick else "full"]
    with jax.enable_x64(True):
        variances, value, left = maximum_likelihood(ROUGH_START)
        rows = [*score_rows(), *convention_rows(), *maximum_rows(variances, value)]
        found = sampled(total)
    points = running(found["scores"], found["exact"])
    tables = [
        Table(
            "Nile, local level: printed, computed independently, and ours (float64)",
            "quantity | printed | independent | ours | relative difference",
            "{r.quantity} | {r.printed} | {r.exact:.12g} | {r.ours:.12g} | {r.difference:.0e}",
            rows,
        ),
        Table(
            f"Score at (10000, 1000) from paths of the posterior; exact ({found['exact'][0]:.6f}, {found['exact'][1]:.6f})",
            "paths | noise | std. error | z | level | std. error | z",
            "{r.paths} | {r.mean[0]:.4f} | {r.sem[0]:.4f} | {r.z[0]:.4f} | {r.mean[1]:.4f} | {r.sem[1]:.4f} | {r.z[1]:.4f}",
            points,
        ),
    ]
    limits = {"log-likelihood": 1e-11, "score": 1e-8, "maximum": 1e-6}
    differences = {kind: max(r.difference for r in rows if r.kind == kind) for kind in limits}
    misprinted = sum(r.misprinted for r in rows)
    worst = np.max(np.abs(points[-1].z))
    bounds = [
        *(at_most(f"{kind}, relative difference", differences[kind], limit) for kind, limit in limits.items()),
        at_most("printed numbers that ours miss by more than a unit of the last digit", misprinted, 0),
        at_most("score left at the maximum", left, 1e-5),
        at_most(f"sampled score, {total} paths: standard errors from the exact one", worst, 4.5),
        at_most("its standard error, relative", np.max(points[-1].sem / np.abs(found["exact"])), 0.03),
    ]
    numbers = {"rows": rows, "sampled": points, "exact": found["exact"]}
    return Report(tables, bounds, numbers, partial(_draw, found, points))


def running(scores: np.ndarray, exact: np.ndarray) -> list[Average]:
    """Mean and standard error of the first 10, 30, 100, ... rows, and of all."""
    sizes = [round(10 ** (k / 2)) for k in range(2, 20) if 10 ** (k / 2) < len(scores)] + [len(scores)]
    moments = [(n, scores[:n].mean(axis=0), scores[:n].std(axis=0, ddof=1) / math.sqrt(n)) for n in sizes]
    return [Average(n, mean, sem, (mean - exact) / sem) for n, mean, sem in moments]


def _draw(found: dict[str, np.ndarray], points: list[Average]) -> Any:
    figure, (left, right) = new_figure(ncols=2, figsize=(12, 4.5))
    years, spread = np.arange(1871, 1971), 1.96 * np.sqrt(found["variance"])
    left.plot(years, VOLUMES, ".", color="0.4", label="flow")
    left.plot(years, found["level"], label="smoothed level")
    left.fill_between(years, found["level"] - spread, found["level"] + spread, color="C0", alpha=0.2, label="95 %")
    left.set(xlabel="year", ylabel=r"flow at Aswan, $10^8$ m$^3$ a year")
    sizes, means, sems, _ = (np.array(column) for column in zip(*points, strict=True))
    for i, name in enumerate(("log noise variance", "log level variance")):
        right.axhline(found["exact"][i], color=f"C{i + 1}", lw=1)
        right.errorbar(sizes * (1 + 0.05 * i), means[:, i], 2 * sems[:, i], label=name, fmt="o", color=f"C{i + 1}")
    right.set(xscale="log", xlabel="paths drawn from the posterior", ylabel="score, two standard errors")
    return figure
