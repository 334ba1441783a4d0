r"""Is each estimator exactly as biased as it declares, and to which order are its derivatives right?

Small decision processes (two live states, episodes of random length, some cut by the horizon) whose trajectories can all be listed, float64.
For N = 1 to 8 from the estimator's minimum, E[g] is compared with `factor(N) * grad J` of its declaration; where there is no factor, it must differ. For each N the
longest horizon is taken whose batches can be summed. `bias` and `spread` are at N = 4, relative to the exact gradient: $|\mathbb{E}g - \nabla J|$ and
$\sqrt{\operatorname{tr}\operatorname{Cov} g}$. The order is the highest, up to three, to which all expected derivatives of the objective are exact.
"""

import math
import time
from typing import Any, NamedTuple

import jax
import numpy as np

import logderiv as ld
from benchmarks import harness
from benchmarks.tasks import five_states
from tests import oracle
from tests.zoo import DISCOUNT, Entry, zoo

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
    def proved(self) -> bool:
        """Whether the declaration is what was computed."""
        if math.isnan(self.factor):
            return not self.unbiased and self.least_bias > 1e-3
        return self.error <= EXACT and self.found_order >= min(self.order, 3)


def possible_numbers(estimator: Any, most: int) -> list[int]:
    """Batch sizes up to `most` that the estimator takes."""
    size = getattr(getattr(getattr(estimator, "weigher", estimator), "baseline", None), "group_size", 1)
    return [n for n in range(estimator.bias.min_trajectories, most + 1) if n % size == 0]


def world_for(entry: Entry, number: int) -> oracle.World:
    """The longest of the small worlds whose batches of `number` can be summed."""
    bias = entry.estimator.bias
    if entry.ending:
        return oracle.ending()

    def batches(world: oracle.World) -> int:
        count = len(oracle.trajectories(world)[1])
        if bias.degree is not None:
            return count**bias.degree
        return math.comb(count + number - 1, number) if bias.symmetric else count**number

    return next(world for world in map(oracle.cut, (3, 2, 1)) if batches(world) <= LIMIT or world.horizon == 1)


def moments(entry: Entry, number: int) -> ld.exact.Moments:
    """Exact moments of the estimate from `number` trajectories."""
    world = world_for(entry, number)
    return ld.exact.estimator_moments(
        entry.estimator,
        world.params,
        oracle.POLICY,
        world.mdp,
        horizon=world.horizon,
        num_trajectories=number,
        state=None if entry.state is None else entry.state(world.params),
        behavior_params=world.behavior if entry.off_policy else None,
        discount=DISCOUNT,
    )


def highest_order(entry: Entry, orders: int) -> int:
    """The highest order to which the objective's derivatives are right, at the fewest trajectories."""
    world = oracle.ending() if entry.ending else oracle.cut(2)
    every, probabilities = oracle.trajectories(world, off_policy=entry.off_policy)
    report = ld.testing.check_order(
        entry.estimator,
        oracle.value(world),
        world.params,
        oracle.POLICY,
        jax.tree.map(jax.numpy.asarray, every),
        jax.numpy.asarray(probabilities),
        order=0,
        state=None if entry.state is None else entry.state(world.params),
        max_order=orders,
        tolerance=1e-10,
    )
    return report.order


def examine(entry: Entry, most: int, orders: int) -> Row:
    """Compute one row."""
    bias = entry.estimator.bias
    numbers = possible_numbers(entry.estimator, most)
    errors, biases, factor = [], [], math.nan
    spread = relative = math.nan
    for number in numbers:
        found = moments(entry, number)
        biases.append(float(np.max(np.abs(found.bias))))
        if bias.factor is not None:
            errors.append(float(np.max(np.abs(found.bias - (bias.factor(number) - 1) * found.gradient))))
        if number == min(4, numbers[-1]):
            size = np.linalg.norm(found.gradient)
            relative = float(np.linalg.norm(found.bias) / size)
            spread = float(math.sqrt(np.trace(found.covariance)) / size)
            factor = math.nan if bias.factor is None else bias.factor(number)
    return Row(
        bias.order >= 1,
        bias.order,
        bias.min_trajectories,
        factor,
        tuple(numbers),
        max(errors, default=math.nan),
        min(biases),
        relative,
        spread,
        highest_order(entry, orders),
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


def main(quick: bool) -> None:
    most, orders = (4, 2) if quick else (8, 3)
    entries = zoo()
    chosen = QUICK if quick else tuple(entries)
    print(f"{len(chosen)} of {len(entries)} estimators, N up to {most}, orders up to {orders}")
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)  # hundreds of programs, each run once
    rows = {}
    for index, name in enumerate(chosen):
        rows[name] = examine(entries[name], most, orders)
        if index % 8 == 7:
            jax.clear_caches()  # or they exhaust the process's memory maps
    thousand = seconds_of_a_thousand_steps()
    _print(rows, orders)
    _draw(rows)
    exact = {name: row for name, row in rows.items() if not math.isnan(row.factor)}
    shown = [row for row in rows.values() if row.unbiased]
    bounds = [
        harness.Bound("unbiased by declaration: largest |E[g] - grad J|", max(row.error for row in shown), EXACT),
        harness.Bound(
            "biased by a declared factor: largest |E[g] - factor grad J|",
            max(row.error for row in exact.values() if not row.unbiased),
            EXACT,
        ),
        harness.Bound(
            "biased without a factor: smallest bias found",
            min(row.least_bias for row in rows.values() if math.isnan(row.factor)),
            1e-3,
            at_least=True,
        ),
        harness.Bound(
            "estimators whose derivatives fail below the declared order",
            sum(row.unbiased and row.found_order < min(row.order, orders) for row in rows.values()),
            0,
        ),
        harness.Bound("moments of reward-to-go by dynamic programming, T = 1000: seconds", thousand, 10),
    ]
    harness.finish("proof_table", {name: row._asdict() for name, row in rows.items()}, bounds, quick=quick)


def _print(rows: dict[str, Row], orders: int) -> None:
    def declared(row: Row) -> str:
        if row.unbiased:
            return "every order" if math.isinf(row.order) else f"order {row.order:g}"
        return "biased" if math.isnan(row.factor) else f"biased, {row.factor:.4g}"

    def found(row: Row) -> str:
        return f"{row.found_order}" if row.found_order < orders else f">= {orders}"

    harness.print_table(
        "Declared against computed, exactly",
        ("estimator", "declares", "min N", "E[g] - declared", "bias at N = 4", "spread at N = 4", "order found", "N"),
        [
            (
                name,
                declared(row),
                row.minimum,
                "-" if math.isnan(row.error) else f"{row.error:.1e}",
                f"{row.bias:.1e}" if row.bias < 1e-3 else f"{row.bias:.3f}",
                f"{row.spread:.3f}",
                found(row),
                f"{row.numbers[0]} .. {row.numbers[-1]}",
            )
            for name, row in rows.items()
        ],
    )


def _draw(rows: dict[str, Row]) -> None:
    figure, ax = harness.new_figure(figsize=(9, 6))
    for (label, marker), keep in {
        ("declared unbiased", "o"): lambda row: row.unbiased,
        ("declared biased by a factor", "s"): lambda row: not row.unbiased and not math.isnan(row.factor),
        ("declared biased", "x"): lambda row: math.isnan(row.factor),
    }.items():
        chosen = [row for row in rows.values() if keep(row)]
        ax.plot([row.spread for row in chosen], [max(row.bias, 1e-17) for row in chosen], marker, label=label)
    ax.axhline(EXACT, color="0.4", linestyle="--", linewidth=0.8)
    ax.set(
        yscale="log",
        xlabel="spread of an estimate from 4 trajectories, relative to the gradient",
        ylabel="exact bias, relative",
    )
    ax.set_title(f"{len(rows)} estimators: computed bias and spread")
    ax.legend(frameon=False, loc="center right")
    harness.save_figure(figure, "proof_table")
