r"""How fast are log P and its gradient, beside what people would write instead and beside what the machine can do?

Value and gradient of the mean log P of `B` trajectories of `T` steps in float32, for an MLP 4-64-2 with tanh: the library; a scan over time; everything
vectorized, in plain arrays and with each library of distributions that is installed; the best block that a search finds; and, as the floor, a single
pass in C that was fused by hand. Once on one core, once on all; compile time and memory apart. Then time and memory as `T` grows. How exact it is, is the
question of `likelihood_accuracy`.

Finding (2 CPU cores, jax 0.10.2, torch 2.13): on one core a vectorized form takes 3.9 to 5.1 times as long from 65 536 steps on, torch 6.4 to 9.9 times,
a scan 14 to 17 times for one trajectory and 3.5 to 5.8 times for batches; on two idle cores, which only the others use, 2.2 to 3.1, 3.7 to 6.4, 13 to 15 and 2.8 to 5.3. No other
block is more than 13 % faster. The library takes twice the time of the kernel in C, and no more than its five matrix products and tanh take on their
own in XLA: what is left lies in small products (4 and 2 columns), which the kernel fuses. One trajectory of 1024 steps is two blocks, and 1.7 times is all there is to gain.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import logderiv as ld
from benchmarks import harness, peers
from benchmarks.harness import Bound, Report, Table, at_least, at_most

MLP = ld.MLP(2, hidden=(64,))
POINTS = ((1024, 1), (65536, 1), (10**6, 1), (1024, 64), (1024, 1024), (65536, 16))
QUICK_POINTS = ((65536, 1), (1024, 64))
ROWS = (128, 256, 512, 1024, 2048, 4096)
LARGE = 65536  # rows from which the bounds against vectorized forms hold


def trajectories(length: int, num: int) -> ld.Trajectory:
    """Observations from a Normal in four dimensions, fair binary actions."""
    key_observation, key_action = jax.random.split(jax.random.key(0))
    observations = jax.random.normal(key_observation, (num, length, 4), jnp.float32)
    actions = jax.random.bernoulli(key_action, shape=(num, length)).astype(jnp.int32)
    return jax.block_until_ready(peers.trajectory(observations, actions))


def parameters() -> Any:
    """Weights of ordinary size."""
    return peers.parameters(MLP, jax.random.key(1))


def time_point(length: int, num: int) -> dict[str, Any]:
    """Every candidate at one point, interleaved: seconds, compile seconds and temporary bytes.

    A process of its own for each point: what an earlier one left to the allocator speeds large temporaries up or down.
    """
    params, taus = parameters(), trajectories(length, num)
    installed, _ = peers.libraries()
    functions = {
        "logderiv": peers.ours(MLP),
        "plain scan over t": peers.plain_scan(MLP),
        "vectorized": peers.vectorized,
    }
    functions |= installed if length * num >= LARGE else {}
    functions |= {f"rows {rows}": peers.ours(MLP, rows) for rows in ROWS}
    calls = {name: peers.compiled(function, params, taus) for name, function in functions.items()}
    others = {"torch": peers.torch_call(params, taus), "kernel in C": peers.kernel_call(params, taus)}
    others = {name: run for name, run in others.items() if run is not None}
    return {
        "seconds": harness.interleaved_medians(calls | others, 15 if length * num <= LARGE else 7),
        "compile_seconds": {name: call.compile_seconds for name, call in calls.items()},
        "temp_bytes": {name: call.temp_bytes for name, call in calls.items()},
    }


def block_floor(blocks: int = 128, rows: int = 512) -> dict[str, float]:
    """Seconds for what a pass over all blocks must do, each part in a loop of its own: five matrix products and a tanh."""
    keys = jax.random.split(jax.random.key(3), 3)
    widths = {"x": 4, "h": 64, "d": 2}  # inputs, hidden units, derivatives in the outputs
    x, h, d = (jax.random.normal(k, (blocks, rows, n), jnp.float32) for k, n in zip(keys, widths.values(), strict=True))
    first, last = jnp.ones((4, 64), jnp.float32), jnp.ones((64, 2), jnp.float32)

    def repeated(part: Any, *arrays: jax.Array) -> Any:
        """Adds the results up, so that none can be dropped."""
        start = jnp.zeros_like(part(*(a[0] for a in arrays)))
        return harness.compile_call(
            lambda xs: lax.scan(lambda total, x: (total + part(*x), None), start, xs)[0], arrays
        )

    parts = {
        "x W1": repeated(lambda x: x @ first, x),
        "h W2": repeated(lambda h: h @ last, h),
        "d W2'": repeated(lambda d: d @ last.T, d),
        "d' h": repeated(lambda d, h: d.T @ h, d, h),
        "x' z": repeated(lambda x, z: x.T @ z, x, h),
        "tanh": repeated(jnp.tanh, h),
    }
    return harness.interleaved_medians(parts, 15)


def growth(lengths: list[int], repeats: int = 5) -> list[dict[str, Any]]:
    """One trajectory of each length: compile seconds (median of `repeats`) and XLA's temporary bytes, library and vectorized."""
    params = parameters()

    def compile_anew(function: Any, taus: Any) -> tuple[float, int]:
        calls = []
        for _ in range(repeats):
            jax.clear_caches()
            calls.append(peers.compiled(function, params, taus))
        return sorted(call.compile_seconds for call in calls)[repeats // 2], calls[0].temp_bytes or 0

    rows = []
    for length in lengths:
        taus = shape(length)
        ours, vectorized = (compile_anew(f, taus) for f in (peers.ours(MLP), peers.vectorized))
        inputs = length * (4 * 4 + 4 + 1)
        row = {"T": length, "compile": ours[0], "temp": ours[1], "inputs": inputs, "vectorized": vectorized[1]}
        rows.append(row | {"beyond": ours[1] - inputs})
    return rows


def shape(length: int) -> Any:
    """Shapes and dtypes of one trajectory: enough to compile for it."""
    return jax.eval_shape(lambda: peers.trajectory(jnp.ones((1, length, 4), jnp.float32), jnp.ones((1, length), int)))


def peak_call(form: str, length: int) -> Any:
    """For `harness.peak_rss`: value and gradient of one long trajectory, ready to run."""
    function = peers.ours(MLP) if form == "logderiv" else peers.vectorized
    return peers.compiled(function, parameters(), trajectories(length, 1)).run


def bounds_of(place: str, point: tuple[int, int], seconds: dict[str, float]) -> list[Bound]:
    """What the times at one point are held to."""
    length, num = point
    ours, at = seconds["logderiv"], f"T = {length}, B = {num}, {place}"
    long = num == 1 and length >= LARGE
    found = [
        at_least(f"plain scan, {at}", seconds["plain scan over t"] / ours, 10 if long else 3.5),
        at_most(f"against the best block, {at}", ours / best_block(seconds), 1.2),
    ]
    if length * num >= LARGE:
        limits = dict.fromkeys(("vectorized", *peers.LIBRARIES, "torch"), 4.0 if place == "1 core" else 2.5)
        limits |= {"torch": 6.0} if place == "1 core" else {}
        found += [at_least(f"{n}, {at}", seconds[n] / ours, least) for n, least in limits.items() if n in seconds]
    if "kernel in C" in seconds and place == "1 core" and point == (65536, 1):
        found.append(at_most(f"kernel in C, {at}", ours / seconds["kernel in C"], 3.5))
    return found


def best_block(seconds: dict[str, float]) -> float:
    """Seconds with the best of `ROWS`."""
    return min(s for name, s in seconds.items() if name.startswith("rows"))


def memory_bounds(grown: list[dict[str, Any]]) -> list[Bound]:
    """What compiling and XLA's memory are held to as one trajectory grows."""
    short, million, longest = ({r["T"]: r for r in grown}[T] for T in (10**5, 10**6, 10**7))
    return [
        at_least("temporary memory, T = 10^6, vectorized over library", million["vectorized"] / million["temp"], 20),
        at_most("temporary bytes a step beyond the inputs, T = 10^7", longest["beyond"] / 10**7, 1.0),
        at_most("compile time, T = 10^7 over 10^5", longest["compile"] / short["compile"], 1.1),
        at_most("compile seconds, T = 10^7", longest["compile"], 1.0),
    ]


def main(quick: bool) -> Report:
    points, repeats = (QUICK_POINTS, 1) if quick else (POINTS, 5)
    timed = {
        place: [harness.on_cores(cores, "benchmarks.likelihood_speed:time_point", *point) for point in points]
        for place, cores in harness.places().items()
    }
    floor = block_floor()
    lengths, length = [10**n for n in range(3, 8)], 10**5 if quick else 10**6
    grown = growth(lengths[2:] if quick else lengths, repeats)
    peak = partial(harness.peak_rss, "benchmarks.likelihood_speed:peak_call")
    resident = {form: peak(form, length) for form in ("logderiv", "vectorized")}
    timings = []
    for place in [place for place, cores in harness.places().items() if cores]:
        for point, found in zip(points, timed[place], strict=True):
            timings += bounds_of(place, point, found["seconds"])
    parts = ", ".join(f"{name} {1e3 * seconds:.2f}" for name, seconds in floor.items())
    notes = (
        f"not installed: {', '.join(peers.libraries()[1]) or 'nothing'} (extra `peers`; torch by hand)\n"
        f"parts of (65536, 1), each alone in a loop: {parts}; together {1e3 * sum(floor.values()):.1f} ms\n"
        f"resident memory that the call adds, T = {length}: {', '.join(f'{k} {v >> 20} MiB' for k, v in resident.items())}"
    )
    tables = [*(_times(place, points, rows) for place, rows in timed.items()), _growth(grown, notes)]
    numbers = {"points": points, "timings": timed, "block_floor": floor, "growth": grown, "peak_resident": resident}
    return Report(tables, [], numbers, partial(_draw, points, timed, grown), timings + memory_bounds(grown))


def _times(place: str, points: Any, rows: list[dict[str, Any]]) -> Table:
    names = [n for n in rows[-1]["seconds"] if not n.startswith("rows")]
    shown = []
    for (length, num), row in zip(points, rows, strict=True):
        ours = row["seconds"]["logderiv"]
        ratios = {name: seconds / ours for name, seconds in row["seconds"].items()}
        shown.append(ratios | {"at": f"{length}, {num}", "logderiv": 1e3 * ours, "best": best_block(ratios)})
    return Table(
        f"Value and gradient of the mean log P, MLP 4-64-2, {place}: ms of the library, then times that of the others",
        " | ".join(["T, B", *names, "best block"]),
        f"{{r[at]}} | {harness.cells([*names, 'best'])}",
        shown,
    )


def _growth(grown: list[dict[str, Any]], notes: str) -> Table:
    kib = [{key: x / 2**10 if isinstance(x, int) and key != "T" else x for key, x in row.items()} for row in grown]
    return Table(
        "One trajectory as T grows: compile seconds, temporary KiB",
        "T | compile s | temporary | beyond a copy of the inputs | vectorized",
        "{r[T]} | {r[compile]:.2f} | " + harness.cells(("temp", "beyond", "vectorized"), ".0f"),
        kib,
        notes,
    )


def _draw(points: Any, timed: dict[str, Any], grown: list[dict[str, Any]]) -> Any:
    figure, (left, right) = harness.new_figure(ncols=2, figsize=(9, 4))
    place, rows = next(iter(timed.items()))
    names = ("logderiv", "plain scan over t", "vectorized", "torch", "kernel in C")
    for name, color in zip(names, harness.COLORS, strict=False):
        at = [(t, b, row["seconds"][name]) for (t, b), row in zip(points, rows, strict=True) if name in row["seconds"]]
        single = sorted((t, seconds) for t, b, seconds in at if b == 1)
        left.plot([t for t, _ in single], [s for _, s in single], "o-", color=color, label=name)
        left.plot([t * b for t, b, _ in at if b > 1], [s for _, b, s in at if b > 1], "o", color=color, mfc="none")
    left.set(
        xlabel="steps in all (open: batches)", ylabel="seconds", title=f"time, {place}", xscale="log", yscale="log"
    )
    for label, key in (("logderiv", "temp"), ("the inputs", "inputs"), ("vectorized", "vectorized")):
        right.plot([r["T"] for r in grown], [r[key] / 2**20 for r in grown], "o-", label=label)
    right.set(xlabel="T", ylabel="temporary MiB", title="memory", xscale="log", yscale="log")
    return figure
