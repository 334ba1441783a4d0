r"""Is each estimator exactly as biased as it declares, and to which order are its derivatives right?

Small decision processes (two live states, episodes of random length, some cut by the horizon) whose trajectories can all be listed, float64.
For N = 1 to 8 from the estimator's minimum, E[g] is compared with `factor(N) * grad J` of its declaration; where there is no factor, it must differ. For each N the
longest horizon is taken whose batches can be summed. `bias` and `spread` are at N = 4, relative to the exact gradient: $|\mathbb{E}g - \nabla J|$ and
$\sqrt{\operatorname{tr}\operatorname{Cov} g}$. The order is the highest, up to three, to which all expected derivatives of the objective are exact.
"""

import math
import time
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

import logderiv as ld
from benchmarks.harness import Report, Table, at_least, at_most, new_figure
from benchmarks.tasks import five_states
from tests import oracle
from tests.zoo import DISCOUNT, ending, off_policy, possible_numbers, seen, zoo

LIMIT = 20_000  # batches for one expectation
EXACT = 1e-12
QUICK = (
    "total return",
    "reward-to-go",
    "reward-to-go, gamma^t left out",
    "given value",
    "leave one out per step",
    "leave one out per trajectory",
    "biased: batch mean",
    "biased: standardized",
    "per decision",
    "biased: self-normalized",
    "DiCE, given value",
    "GRPO",
    "Dr. GRPO",
)


class Row(NamedTuple):
    """What an estimator declares and what was computed.

    Attributes:
        unbiased: Declared.
        order: Declared; infinity for every order.
        minimum: Fewest trajectories, declared.
        factor: Declared `E[g] / grad J` at N = 4; NaN where there is none.
        numbers: The N that were summed.
        error: Largest `|E[g] - factor(N) grad J|` over N and parameters; NaN where there is no factor.
        least_bias: Smallest `max |E[g] - grad J|` over N.
        bias: `|E[g] - grad J| / |grad J|` at N = 4.
        spread: `sqrt(tr Cov[g]) / |grad J|` at N = 4.
        found_order: Highest order found exact, at most three.
    """

    unbiased: bool
    order: float
    minimum: int
    factor: float
    numbers: tuple[int, ...]
    error: float
    least_bias: float
    bias: float
    spread: float
    found_order: int

    @property
    def declares(self) -> str:
        """The declaration in words."""
        if self.unbiased:
            return "every order" if math.isinf(self.order) else f"order {self.order:g}"
        return "biased" if math.isnan(self.factor) else f"biased, {self.factor:.4g}"

    @property
    def proved(self) -> bool:
        """Whether the declaration is what was computed."""
        if math.isnan(self.factor):
            return not self.unbiased and self.least_bias > 1e-3
        return self.error <= EXACT and self.found_order >= min(self.order, 3)


def world_for(estimator: Any, number: int) -> oracle.World:
    """The longest of the small worlds whose batches of `number` can be summed."""
    structure = estimator.structure
    if ending(estimator):
        return oracle.ending()

    def batches(world: oracle.World) -> int:
        count = len(oracle.trajectories(world)[1])
        if structure.degree is not None:
            return count**structure.degree
        return math.comb(count + number - 1, number) if structure.symmetric else count**number

    return next(world for world in map(oracle.cut, (3, 2, 1)) if batches(world) <= LIMIT or world.horizon == 1)


def moments(estimator: Any, number: int) -> ld.exact.Moments:
    """Exact moments of the estimate from `number` trajectories."""
    world = world_for(estimator, number)
    where = {"horizon": world.horizon, "num_trajectories": number, "discount": DISCOUNT}
    where |= {"state": seen(estimator, world.params)}
    where |= {"behavior_params": world.behavior if off_policy(estimator) else None}
    return ld.exact.moments(world.params, oracle.POLICY, world.mdp, estimator, **where)


def highest_order(estimator: Any, orders: int) -> int:
    """The highest order to which the objective's derivatives are right, at the fewest trajectories."""
    world = oracle.ending() if ending(estimator) else oracle.cut(2)
    every, probabilities = oracle.trajectories(world, off_policy=off_policy(estimator))
    every, probabilities = jax.tree.map(jax.numpy.asarray, (every, probabilities))
    how = {"order": None, "max_order": orders, "tolerance": 1e-10, "state": seen(estimator, world.params)}
    problem = (oracle.value(world), every, probabilities)
    return ld.testing.check_order(world.params, oracle.POLICY, estimator, *problem, **how).order


def examine(estimator: Any, most: int, orders: int) -> Row:
    """Compute one row."""
    declaration = estimator.declaration
    numbers = possible_numbers(estimator, most)
    found, factors = {n: moments(estimator, n) for n in numbers}, {n: declaration.factor(n) for n in numbers}
    errors = [np.max(np.abs(found[n].bias - (f - 1) * found[n].exact)) for n, f in factors.items() if f is not None]
    middle = min(4, numbers[-1])
    size, factor = np.linalg.norm(found[middle].exact), factors[middle]
    return Row(
        unbiased=declaration.order >= 1,
        order=declaration.order,
        minimum=estimator.structure.min_trajectories,
        factor=math.nan if factor is None else factor,
        numbers=tuple(numbers),
        error=float(max(errors, default=math.nan)),
        least_bias=min(float(np.max(np.abs(m.bias))) for m in found.values()),
        bias=float(np.linalg.norm(found[middle].bias) / size),
        spread=float(math.sqrt(np.trace(found[middle].covariance)) / size),
        found_order=highest_order(estimator, orders),
    )


def seconds_of_a_thousand_steps() -> float:
    """Compiling and computing mean and covariance of reward-to-go on five states, three actions, T = 1000: no batch is listed."""
    task = five_states()
    assert task.mdp is not None
    mdp, policy = task.mdp
    start = time.perf_counter()
    moments = jax.jit(lambda params: ld.exact.weighted_score_moments(params, policy, mdp, horizon=1000))(task.params)
    jax.block_until_ready(moments)
    return time.perf_counter() - start


def main(quick: bool) -> Report:
    most, orders = (4, 2) if quick else (8, 3)
    jax.config.update("jax_disable_most_optimizations", True)  # hundreds of programs, each run once
    rows = {}
    with jax.enable_x64(True):
        entries = zoo()
        for index, name in enumerate(QUICK if quick else entries):
            rows[name] = examine(entries[name], most, orders)
            if index % 8 == 7:
                jax.clear_caches()  # or they exhaust the process's memory maps
        thousand = seconds_of_a_thousand_steps()
    table = Table(
        f"Declared against computed, exactly: {len(rows)} of {len(entries)} estimators, N up to {most}, orders up to {orders}",
        "estimator | declares | min N | E[g] - declared | bias at N = 4 | spread at N = 4 | order found | N",
        "{r[0]} | {r[1].declares} | {r[1].minimum} | {r[1].error:.1e} | {r[1].bias:.2g} | {r[1].spread:.3f}"
        " | {r[1].found_order} | {r[1].numbers[0]} .. {r[2]}",
        [(name, row, row.numbers[-1]) for name, row in rows.items()],
    )
    unbiased, biased = ([r.error for r in rows.values() if r.unbiased == kind] for kind in (True, False))
    failing = sum(row.unbiased and row.found_order < min(row.order, orders) for row in rows.values())
    unknown = [row.least_bias for row in rows.values() if math.isnan(row.factor)]
    bounds = [
        at_most("unbiased by declaration: largest |E[g] - grad J|", max(unbiased), EXACT),
        at_most("biased by a declared factor: largest |E[g] - factor grad J|", np.nanmax(biased), EXACT),
        at_least("biased without a factor: smallest bias found", min(unknown), 1e-3),
        at_most("estimators whose derivatives fail below the declared order", failing, 0),
    ]
    timings = [at_most("moments of reward-to-go by dynamic programming, T = 1000: seconds", thousand, 10)]
    return Report([table], bounds, rows, partial(_draw, rows), timings)


def _draw(rows: dict[str, Row]) -> Any:
    figure, ax = new_figure(figsize=(14, 7))
    for label, marker, chosen in (
        ("declared unbiased", "o", [r for r in rows.values() if r.unbiased]),
        ("declared biased by a factor", "s", [r for r in rows.values() if r.declares.startswith("biased,")]),
        ("declared biased", "x", [r for r in rows.values() if r.declares == "biased"]),
    ):
        ax.plot([r.spread for r in chosen], [max(r.bias, 1e-17) for r in chosen], marker, label=label)
    ax.axhline(EXACT, color="0.4", linestyle="--", linewidth=0.8)
    ax.set(yscale="log", xlabel="spread of an estimate from 4 trajectories, relative to the gradient")
    ax.set(ylabel="exact bias, relative", title=f"{len(rows)} estimators: computed bias and spread")
    ax.legend(loc="center right")
    for number, row in enumerate(rows.values(), 1):
        ax.annotate(str(number), (row.spread, max(row.bias, 1e-17)), (3, 3), textcoords="offset points", fontsize=6)
    names = "\n".join(f"{number} {name}" for number, name in enumerate(rows, 1))
    ax.text(1.01, 1, names, va="top", fontsize=6, transform=ax.transAxes)
    return figure
