"""What do a progress bar and a log cost a training run?

`ld.train` with an optimizer that waits for 0.1 s and for 1 ms in each update, as a host waits for its accelerator, then with
updates that do next to nothing, and REINFORCE on the short corridor; each with no reporter, the bar, a CSV file and
TensorBoard's event files, alone and together. Cost is the time of a run beside that of the same run without reporters, in
percent and in microseconds per update. The loop stands still while the host writes, so that nothing is hidden by waiting.
The batches of the runs that wait are so large that the host looks on after every update, which costs most.

Finding: to be measured anew on an idle machine; under load, about 1 ms of the processor for each look of the host.
"""

import contextlib
import functools
import importlib.util
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import logderiv as ld
from benchmarks.harness import Report, Table, at_most
from logderiv.training.reporting import Bar, CSVWriter, Reporter, TensorBoardWriter

SIZES = {  # updates in a run, and pairs of runs
    "quick": {"0.1 s": (10, 1), "1 ms": (200, 2), "nothing": (10_000, 2), "ld.train": (200, 2)},
    "full": {"0.1 s": (20, 5), "1 ms": (1000, 7), "nothing": (50_000, 7), "ld.train": (500, 15)},
}
WAITS = {"0.1 s": 0.1, "1 ms": 1e-3}


def waiting(seconds: float) -> optax.GradientTransformation:
    """An optimizer that stands still for so long and changes nothing."""

    def wait(updates: Any) -> Any:
        time.sleep(seconds)
        return updates

    def update(updates: Any, _: Any) -> Any:
        return jax.tree.map(lambda x: 0.0 * x, jax.pure_callback(wait, updates, updates))

    return optax.stateless(update)


def loop(name: str) -> tuple[Any, ld.Episodes, optax.GradientTransformation]:
    """Environment, batch and optimizer."""
    if name == "ld.train":
        return ld.environments.short_corridor(horizon=50), ld.Episodes(16), optax.adam(1e-2)
    transition = jnp.tile(jnp.array([0.0, 1.0]), (2, 2, 1))
    initial, reward = jnp.array([1.0, 0.0]), jnp.array([[0.0, 1.0], [0.0, 0.0]])
    bandit = ld.environments.TabularMDP(initial, transition, reward, jnp.array([False, True]))
    if name == "nothing":
        return bandit, ld.Episodes(2, horizon=1), optax.sgd(0.0)
    return bandit, ld.Episodes(256, horizon=128), waiting(WAITS[name])  # whose episodes all end after one step


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
    found: dict[str, tuple[Reporter, ...]] = {"bar": (Bar(),), "CSV": (CSVWriter(folder / "run.csv"),)}
    if importlib.util.find_spec("tensorboardX"):
        found["TensorBoard"] = (TensorBoardWriter(folder / "events"),)
    return found | {"together": tuple(reporter for reporters in found.values() for reporter in reporters)}


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
        return time.perf_counter() - start


def loop_costs(name: str, num_updates: int, repeats: int, folder: Path) -> dict[str, Cost]:
    """Of one `loop`."""
    world, batch, optimizer = loop(name)
    estimator = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()))
    options = {"estimator": estimator, "optimizer": optimizer, "num_updates": num_updates}

    def call(reporters: Sequence[Reporter]) -> Any:
        start = (jnp.zeros(2), jax.random.key(0), ld.shared_softmax, world, batch)
        return jax.block_until_ready(ld.train(*start, reporters=reporters, **options))

    sets = {"nothing": ()} | reporter_sets(folder)
    return costs({name: functools.partial(call, reporters) for name, reporters in sets.items()}, num_updates, repeats)


def main(quick: bool) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        sizes = SIZES["quick" if quick else "full"]
        found = {name: loop_costs(name, *size, Path(folder) / name) for name, size in sizes.items()}
    table = Table(
        "What reporting costs",
        "update: reporters | updates/s | % of the run | us/update",
        "{r[0]}: {r[1]} | {r[2].rate:.4g} | {r[2].percent:.2f} | {r[2].microseconds:.3g}",
        [(loop, name, cost) for loop, by_name in found.items() for name, cost in by_name.items()],
    )
    timings = [at_most(f"updates of 0.1 s, {name}: % of the run", c.percent, 2) for name, c in found["0.1 s"].items()]
    return Report([table], [], found, timings=timings)
