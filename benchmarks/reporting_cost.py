"""What do a progress bar and a log cost a training run?

A compiled loop whose updates wait, for 0.1 s and for 1 ms, as a host waits for its accelerator, then updates that do nothing, and
`ld.train` on the short corridor; each with no reporter, the bar, a CSV file and TensorBoard's event files, alone and together.
Cost is the time of a run beside that of the same run without reporters, in percent and in microseconds per update. The loop
stands still while the host writes, so that nothing is hidden by waiting; updates that compute for so long vary by more than is
to be measured.

Finding (2 CPU cores that did other work too, jax 0.10.2, tensorboardX 2.6.5): at 10 updates a second the bar costs 0.9 % of the run, the CSV file 0.3 %, TensorBoard
1.6 %, all of them 1.8 %. A call of the host, which comes about every 0.2 s, takes about a millisecond. On updates that do nothing the bar costs 4 us an update, the
CSV file 7 and TensorBoard about 44: beyond 1000 updates a second give `TensorBoardWriter` an `every`.
"""

import contextlib
import functools
import importlib.util
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.experimental import io_callback

import logderiv as ld
from benchmarks import harness
from logderiv.training.reporting.bar import Bar
from logderiv.training.reporting.scan import Reporter

WAITS = {"0.1 s": 0.1, "1 ms": 1e-3, "nothing": 0.0}
SIZES = {  # updates in a run, and pairs of runs
    "quick": {"0.1 s": (10, 1), "1 ms": (200, 2), "nothing": (10_000, 2), "ld.train": (200, 2)},
    "full": {"0.1 s": (20, 5), "1 ms": (1000, 7), "nothing": (50_000, 7), "ld.train": (500, 15)},
}


class Row(NamedTuple):
    """Seven numbers, as a training run has them."""

    mean_return: jax.Array
    num_steps: jax.Array
    num_episodes: jax.Array
    truncated_fraction: jax.Array
    grad_norm: jax.Array
    num_nonfinite: jax.Array
    evaluation: jax.Array


class Cost(NamedTuple):
    """Of one set of reporters at one speed.

    Attributes:
        rate: Updates a second without them.
        percent: Of the run's time; the median over pairs of runs.
        microseconds: Per update.
    """

    rate: float
    percent: float
    microseconds: float


def reporter_sets(folder: Path) -> dict[str, tuple[Reporter, ...]]:
    """Each alone, and all together."""
    found: dict[str, tuple[Reporter, ...]] = {"bar": (Bar(),), "CSV": (ld.CSVWriter(folder / "run.csv"),)}
    if importlib.util.find_spec("tensorboardX"):
        found["TensorBoard"] = (ld.TensorBoardWriter(folder / "events"),)
    return found | {"together": tuple(reporter for reporters in found.values() for reporter in reporters)}


def run(seconds: float, num_updates: int, reporters: tuple[Reporter, ...]) -> Any:
    """A training loop that waits in place of drawing trajectories."""

    def wait(x: Any) -> Any:
        time.sleep(seconds)
        return x

    def update(x: jax.Array, index: jax.Array) -> tuple[jax.Array, Row]:
        x = io_callback(wait, x, x) if seconds else 0.999 * x
        return x, Row(x, index, index, x, x, index, x)

    return ld.reports.scan(update, jnp.float32(1), 0, num_updates, total=num_updates, reporters=reporters)


def costs(runs: Mapping[str, Callable[[], Any]], num_updates: int, repeats: int) -> dict[str, Cost]:
    """Of each of `runs`, held against the one named `nothing` that ran just before it, so that load which comes and goes drops out."""
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in runs if name != "nothing"}
    for repeat in range(repeats + 1):
        for name, found in pairs.items():
            pair = (_seconds(runs["nothing"]), _seconds(runs[name]))
            if repeat:  # the first opens files and warms up
                found.append(pair)
    return {
        name: Cost(
            num_updates / statistics.median(before for before, _ in found),
            100 * statistics.median(after / before - 1 for before, after in found),
            1e6 * statistics.median(after - before for before, after in found) / num_updates,
        )
        for name, found in pairs.items()
    }


def _seconds(call: Callable[[], Any]) -> float:
    with contextlib.redirect_stderr(io.StringIO()):  # the bar is drawn, but not here
        start = time.perf_counter()
        call()
        jax.effects_barrier()
        return time.perf_counter() - start


def loop_costs(seconds: float, num_updates: int, repeats: int, folder: Path) -> dict[str, Cost]:
    """Of the loop whose updates take so many seconds."""
    calls = {
        name: harness.compile_call(functools.partial(run, seconds, num_updates, reporters))
        for name, reporters in ({"nothing": ()} | reporter_sets(folder)).items()
    }
    return costs({name: call.run for name, call in calls.items()}, num_updates, repeats)


def train_costs(num_updates: int, repeats: int, folder: Path) -> dict[str, Cost]:
    """Of `ld.train`, REINFORCE on the short corridor with 16 trajectories an update."""
    estimator, optimizer = ld.score_function(baseline=ld.baseline_leave_one_out()), ld.maximize(optax.adam(1e-2))
    options = {"estimator": estimator, "optimizer": optimizer, "num_updates": num_updates, "num_trajectories": 16}

    def call(reporters: tuple[Reporter, ...]) -> Any:
        key, environment = jax.random.key(0), ld.short_corridor(horizon=50)
        found = ld.train(jnp.zeros(2), key, ld.shared_softmax, environment, writers=reporters, **options)
        return jax.block_until_ready(found)

    sets = {"nothing": ()} | reporter_sets(folder)
    return costs({name: functools.partial(call, reporters) for name, reporters in sets.items()}, num_updates, repeats)


def main(quick: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        sizes = SIZES["quick" if quick else "full"]
        found = {name: loop_costs(WAITS[name], *sizes[name], path / "loop") for name in WAITS}
        found["ld.train"] = train_costs(*sizes["ld.train"], path / "train")
    rows = [
        (
            f"{loop}: {name}",
            *((f"{c.rate:.4g}", f"{c.percent:.2f}") if loop != "nothing" else "--"),
            f"{c.microseconds:.3g}",
        )
        for loop, by_name in found.items()
        for name, c in by_name.items()
    ]
    harness.print_table("What reporting costs", ("update: reporters", "updates/s", "% of the run", "us/update"), rows)
    bounds = [
        harness.Bound(f"updates of 0.1 s, {name}: % of the run", c.percent, 2) for name, c in found["0.1 s"].items()
    ]
    figures = {loop: {name: c._asdict() for name, c in by_name.items()} for loop, by_name in found.items()}
    harness.finish("reporting_cost", figures, bounds, quick=quick)
