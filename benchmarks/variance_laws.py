r"""How fast does the variance of a policy gradient grow with the horizon, and what do reward-to-go and a baseline buy?

T independent coins that share one logit, heads with probability p and paid 1 each: the smallest world in which every weighting of the score is a closed form
in T. Without a baseline the variance grows as $T^3$, with one as $T^2$; reward-to-go takes a third of the former and a quarter of the latter. The closed forms are held to
the library's moments by dynamic programming (`ld.exact.weighted_score_moments`) and to estimates of the library from sampled trajectories.

Finding (2 CPU cores, jax 0.10.2, float64): dynamic programming equals the closed forms to 2e-11 for T = 1 to 1000; 10 000 sampled trajectories agree within 1.9 standard errors. Exponents of T
from 300 to 1000 are 2.98 to 3.00 without a baseline and 1.99 to 2.00 with one. At T = 1000 and p = 0.8 the value takes the variance of the total return, 1.0e8, to 1.3e4. On one coin it
does harm: there 0.0064 without and 0.0576 with it.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import logderiv as ld
from benchmarks.harness import COLORS, Report, Table, at_most, new_figure, variance_and_sem
from benchmarks.tasks import Timed

# One state, two actions, reward 1 for the second, no end.
_TABLES: Any = (np.ones(1), np.ones((1, 2, 1)), np.array([[0.0, 1.0]]), np.array([False]))  # on import JAX is not asked
COINS = ld.environments.TabularMDP(*_TABLES)
COIN = ld.FunctionPolicy(lambda logit, state: ld.Bernoulli(logit + 0.0 * state.astype(logit.dtype)))
TIMED_COIN = ld.FunctionPolicy(lambda logit, observation: COIN.apply(logit, observation[0]))
PROBABILITIES = (0.3, 0.8)
HORIZONS = {"quick": (1, 10, 100), "full": (1, 3, 10, 30, 100, 300, 1000)}
NUM_SAMPLES = {"quick": 1000, "full": 10_000}
WEIGHTINGS = {  # credit, and the two factors of p in its baseline: of the horizon, of the steps to go
    "total return": (ld.advantages.total_return, 0.0, 0.0),
    "total return, E[R] subtracted": (ld.advantages.total_return, 1.0, 0.0),
    "reward-to-go": (ld.advantages.reward_to_go, 0.0, 0.0),
    "reward-to-go, value subtracted": (ld.advantages.reward_to_go, 0.0, 1.0),
}


class Row(NamedTuple):
    """Variance of one trajectory's estimate: in closed form, computed, and sampled with its standard error."""

    p: float
    horizon: int
    weighting: str
    exact: float
    computed: float
    sampled: float
    sem: float

    @property
    def z(self) -> float:
        """Sampled against exact, in standard errors."""
        return (self.sampled - self.exact) / self.sem


def logit(p: Any) -> jax.Array:
    """Its logit."""
    return jnp.log(jnp.asarray(p)) - jnp.log1p(-jnp.asarray(p))


def laws(p: float, horizon: int) -> dict[str, float]:
    """The variances in closed form, of one trajectory and in the logit; from the moments of a Bernoulli variable.

    With x_t the centered outcomes (moments 0, w, k3, m4) the score is S = sum_t x_t. The total return minus b has the estimate
    (sum_t x_t + T p - b) S, whose variance is that of S^2 + (T p - b) S: Var S^2 = T m4 + (2 T^2 - 3 T) w^2, Var S = T w,
    Cov(S^2, S) = T k3. Reward-to-go is sum_t x_t (x_t + sum_{u > t} x_u + (T - t) p) for t = 0 .. T - 1, its terms x_t^2 + (T - t) p x_t
    and x_t x_u uncorrelated with one another. `tests/test_benchmarks_reproductions.py` lists all outcomes of a few coins instead.
    """
    t, w = horizon, p * (1 - p)
    k3, m4 = w * (1 - 2 * p), w * (1 - 3 * w)
    return {
        "total return": t**3 * p**2 * w + 2 * t**2 * p * k3 + t * m4 + (2 * t**2 - 3 * t) * w**2,
        "total return, E[R] subtracted": t * m4 + (2 * t**2 - 3 * t) * w**2,
        "reward-to-go": t * (m4 - w**2)
        + p**2 * w * t * (t + 1) * (2 * t + 1) / 6
        + p * k3 * t * (t + 1)
        + w**2 * t * (t - 1) / 2,
        "reward-to-go, value subtracted": t * (m4 - w**2) + w**2 * t * (t - 1) / 2,
    }


@functools.partial(jax.jit, static_argnames=("horizon", "weighting"))
def computed(p: jax.Array, *, horizon: int, weighting: str) -> ld.exact.ScoreMoments:
    """Mean and variance of one trajectory's estimate in the logit of `p`, by dynamic programming."""
    credit, whole, rest = WEIGHTINGS[weighting]
    left = (horizon - jnp.arange(horizon, dtype=p.dtype))[:, None]
    baseline = p * (whole * horizon + rest * left)
    return ld.exact.weighted_score_moments(logit(p), COIN, COINS, horizon=horizon, credit=credit, baseline=baseline)


@functools.partial(jax.jit, static_argnames=("longest", "num_samples"))
def sampled(
    p: jax.Array, horizons: jax.Array, key: jax.Array, *, longest: int, num_samples: int
) -> tuple[jax.Array, jax.Array]:
    """Variances of the library's estimates and their standard errors, `(horizons, weightings)` each.

    All horizons use the same trajectories: the first steps of a long one are a short one.
    """
    keys = jax.random.split(key, num_samples)
    taus = ld.rollout(logit(p), keys, TIMED_COIN, Timed(COINS), horizon=longest)

    def at(horizon: jax.Array) -> tuple[jax.Array, jax.Array]:
        short = taus._replace(valid=jnp.broadcast_to(jnp.arange(longest) < horizon, taus.valid.shape))
        return variance_and_sem(jnp.stack([_estimates(w, p, horizon, short) for w in WEIGHTINGS]))

    return jax.lax.map(at, horizons)


def _estimates(weighting: str, p: jax.Array, horizon: jax.Array, taus: ld.Trajectory) -> jax.Array:
    credit, whole, rest = WEIGHTINGS[weighting]

    def value(steps: jax.Array, observation: Any) -> jax.Array:
        return p * (whole * steps + rest * (steps - observation[1].astype(p.dtype)))

    baseline = ld.baselines.Value(value, lambda _: horizon.astype(p.dtype))
    estimator = ld.ScoreFunction(ld.advantages.Credit(credit, baseline))
    return ld.diagnostics.per_trajectory_gradients(logit(p), TIMED_COIN, taus, estimator)


def table(p: float, horizons: tuple[int, ...], num_samples: int, key: jax.Array) -> list[Row]:
    """Every weighting at every horizon; `key` is consumed."""
    where = jnp.asarray(p)
    draws = sampled(where, jnp.asarray(horizons), key, longest=max(horizons), num_samples=num_samples)
    variances, sems = map(np.asarray, draws)
    rows = []
    for i, horizon in enumerate(horizons):
        for j, (weighting, exact) in enumerate(laws(p, horizon).items()):
            ours = computed(where, horizon=horizon, weighting=weighting).covariance
            rows.append(Row(p, horizon, weighting, exact, float(ours[0, 0]), float(variances[i, j]), float(sems[i, j])))
    return rows


def slope(rows: list[Row], p: float, weighting: str) -> float:
    """Exponent of T between the two longest horizons, computed."""
    short, long = [r for r in rows if (r.p, r.weighting) == (p, weighting)][-2:]
    return math.log(long.computed / short.computed) / math.log(long.horizon / short.horizon)


def main(quick: bool) -> Report:
    size = "quick" if quick else "full"
    horizons, num_samples = HORIZONS[size], NUM_SAMPLES[size]
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), len(PROBABILITIES))
        rows = [r for p, key in zip(PROBABILITIES, keys, strict=True) for r in table(p, horizons, num_samples, key)]
    slopes = {w: {str(p): slope(rows, p, w) for p in PROBABILITIES} for w in WEIGHTINGS}
    variances = Table(
        f"Variance of one trajectory's estimate: closed form, computed, and of {num_samples} trajectories",
        "p, T, weighting | exact | computed | sampled | std. error | z",
        "{r.p}, {r.horizon}, {r.weighting} | {r.exact:.10g} | {r.computed:.10g} | {r.sampled:.5g} | {r.sem:.2g} | {r.z:.2f}",
        rows,
    )
    exponents = Table(
        f"Exponent of T, from T = {horizons[-2]} to {horizons[-1]}",
        " | ".join(["weighting", *(f"p = {p}" for p in PROBABILITIES)]),
        " | ".join(["{r[0]}", *(f"{{r[1][{p}]:.4f}}" for p in PROBABILITIES)]),
        list(slopes.items()),
    )
    bounds = [
        at_most("computed against closed form, relative", max(abs(r.computed / r.exact - 1) for r in rows), 1e-9),
        at_most("sampled against closed form, standard errors", max(abs(r.z) for r in rows), 4),
    ]
    numbers = {"rows": rows, "slopes": slopes}
    return Report([variances, exponents], bounds, numbers, functools.partial(_draw, rows, slopes))


def _draw(rows: list[Row], slopes: dict[str, dict[str, float]]) -> Any:
    figure, axes = new_figure(ncols=len(PROBABILITIES), figsize=(12, 4.8), sharey=True)
    for ax, p in zip(axes, PROBABILITIES, strict=True):
        for weighting, color in zip(WEIGHTINGS, COLORS, strict=False):
            shown = [r for r in rows if (r.p, r.weighting) == (p, weighting)]
            lengths = [r.horizon for r in shown]
            label = f"{weighting}: slope {slopes[weighting][str(p)]:.2f}"
            ax.plot(lengths, [r.computed for r in shown], color=color, label=label)
            ax.errorbar(lengths, [r.sampled for r in shown], [r.sem for r in shown], fmt="o", color=color)
        ax.set(xscale="log", yscale="log", xlabel="steps, T", title=f"heads with probability {p}")
    axes[0].set_ylabel("variance of one trajectory's estimate")
    figure.suptitle("Lines: computed. Points: sampled. Slopes at the longest horizons")
    return figure
