r"""How fast are log P and its gradient, beside what people would write instead and beside what the machine can do?

Value and gradient of the mean log P of `B` trajectories of `T` steps in float32, for an MLP 4-64-2 with tanh: the library; a scan over time; everything
vectorized, in plain arrays and with each library of distributions that is installed; the best block that a search finds; and, as the floor, a single
pass in C that was fused by hand. Once on one core, once on all; compile time and memory apart. Then time, memory and error as `T` grows.

Finding (2 CPU cores, jax 0.10.2, torch 2.13): on one core a vectorized form takes 3.9 to 5.1 times as long from 65 536 steps on, torch 6.4 to 9.9 times,
a scan 14 to 17 times for one trajectory and 3.5 to 5.8 times for batches; on two idle cores, which only the others use, 2.2 to 3.1, 3.7 to 6.4, 13 to 15 and 2.8 to 5.3. No other
block is more than 13 % faster. The library takes twice the time of the kernel in C, and no more than its five matrix products and tanh take on their
own in XLA: what is left lies in small products (4 and 2 columns), which the kernel fuses. One trajectory of 1024 steps is two blocks, and 1.7 times is all there is to gain.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import logderiv as ld
from benchmarks import harness, peers
from benchmarks.harness import Bound

MLP = ld.MLP(2, hidden=(64,))
POINTS = ((1024, 1), (65536, 1), (10**6, 1), (1024, 64), (1024, 1024), (65536, 16))
QUICK_POINTS = ((65536, 1), (1024, 64))
ROWS = (128, 256, 512, 1024, 2048, 4096)
LARGE = 65536  # rows from which the bounds against vectorized forms hold


def trajectories(length: int, num: int, *, one_action: bool = False) -> ld.Trajectory:
    """Observations from a Normal in four dimensions, fair binary actions or always the same one."""
    key_observation, key_action = jax.random.split(jax.random.key(0))
    observations = jax.random.normal(key_observation, (num, length, 4), jnp.float32)
    actions = jax.random.bernoulli(key_action, shape=(num, length)).astype(jnp.int32)
    ones = jnp.ones((num, length), jnp.float32)
    actions = jnp.zeros_like(actions) if one_action else actions
    return jax.block_until_ready(ld.Trajectory(observations, actions, ones, ones, ones > 0, ones, observations[:, 0]))


def parameters() -> Any:
    """Weights of ordinary size, away from the nearly uniform start."""
    params = MLP.init(jax.random.key(1), jnp.zeros(4, jnp.float32))
    leaves, structure = jax.tree.flatten(jax.tree.map(lambda x: x.astype(jnp.float32), params))
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noise = [0.3 * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    return structure.unflatten([x + e for x, e in zip(leaves, noise, strict=True)])


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
        **{name: function for name, function in installed.items() if length * num >= LARGE},
        **{f"rows {rows}": peers.ours(MLP, rows) for rows in ROWS},
    }
    calls = {name: peers.compiled(function, params, taus) for name, function in functions.items()}
    runs = {name: call.run for name, call in calls.items()}
    others = {"torch": peers.torch_call(params, taus), "kernel in C": peers.kernel_call(params, taus)}
    runs |= {name: run for name, run in others.items() if run is not None}
    return {
        "seconds": harness.interleaved_medians(runs, 15 if length * num <= LARGE else 7),
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
    return harness.interleaved_medians({name: call.run for name, call in parts.items()}, 15)


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
        taus = jax.eval_shape(lambda length=length: trajectories_shape(length))
        ours, vectorized = (compile_anew(f, taus) for f in (peers.ours(MLP), peers.vectorized))
        inputs = length * (4 * 4 + 4 + 1)
        rows.append({"T": length, "compile": ours[0], "temp": ours[1], "inputs": inputs, "vectorized": vectorized[1]})
    return rows


def trajectories_shape(length: int) -> ld.Trajectory:
    """What `jax.eval_shape` needs to know of one trajectory."""
    ones = jnp.ones((1, length), jnp.float32)
    return ld.Trajectory(
        jnp.ones((1, length, 4), jnp.float32), ones.astype(int), ones, ones, ones > 0, ones, jnp.ones((1, 4))
    )


def exact(params: Any, taus: ld.Trajectory) -> tuple[float, list[np.ndarray]]:
    """Log P and its gradient in float64 by numpy, written out by hand, in chunks."""
    (w1, b1), (w2, b2) = ([np.asarray(layer[k], np.float64) for k in ("weight", "bias")] for layer in params)
    total, grads = 0.0, [np.zeros_like(x) for x in (w1, b1, w2, b2)]
    for start in range(0, taus.actions.size, 1 << 16):
        x = np.asarray(taus.observations[0, start : start + (1 << 16)], np.float64)
        actions = np.asarray(taus.actions[0, start : start + (1 << 16)])
        hidden = np.tanh(x @ w1 + b1)
        outputs = hidden @ w2 + b2
        logs = outputs - np.logaddexp.reduce(outputs, axis=1, keepdims=True)
        total += math.fsum(logs[np.arange(len(x)), actions])
        d_outputs = np.eye(2)[actions] - np.exp(logs)
        d_hidden = d_outputs @ w2.T * (1 - hidden**2)
        for grad, term in zip(
            grads, (x.T @ d_hidden, d_hidden.sum(0), hidden.T @ d_outputs, d_outputs.sum(0)), strict=True
        ):
            grad += term
    return total, grads


def errors(length: int) -> dict[str, Any]:
    """Relative errors in float32 of log P and of the worst gradient leaf, for scores that add up (one action throughout)."""
    params, taus = parameters(), trajectories(length, 1, one_action=True)
    value, grads = exact(params, taus)
    candidates = {"logderiv": peers.ours(MLP), "plain scan over t": peers.plain_scan(MLP)}
    if length <= 10**6:
        candidates["vectorized"] = peers.vectorized
    found: dict[str, Any] = {"T": length}
    for name, function in candidates.items():
        got, got_grads = jax.jit(jax.value_and_grad(function))(params, taus)
        leaves = [got_grads[0]["weight"], got_grads[0]["bias"], got_grads[1]["weight"], got_grads[1]["bias"]]
        gaps = [
            np.linalg.norm(np.asarray(g, np.float64) - e) / np.linalg.norm(e)
            for g, e in zip(leaves, grads, strict=True)
        ]
        found[name] = {"value": abs(float(got) / value - 1), "gradient": float(max(gaps))}
    return found


def peak_call(form: str, length: int) -> Any:
    """For `harness.peak_rss`: value and gradient of one long trajectory, ready to run."""
    function = peers.ours(MLP) if form == "logderiv" else peers.vectorized
    return peers.compiled(function, parameters(), trajectories(length, 1)).run


def bounds_of(place: str, point: tuple[int, int], seconds: dict[str, float]) -> list[Bound]:
    """What the figures at one point are held to."""
    length, num = point
    ours, at = seconds["logderiv"], f"T = {length}, B = {num}, {place}"
    long = num == 1 and length >= LARGE
    found = [Bound(f"plain scan, {at}", seconds["plain scan over t"] / ours, 10 if long else 3.5, at_least=True)]
    best = min(s for name, s in seconds.items() if name.startswith("rows"))
    found.append(Bound(f"against the best block, {at}", ours / best, 1.2))
    if length * num >= LARGE:
        limit = 4.0 if place == "1 core" else 2.5
        for name in ("vectorized", *peers.LIBRARIES, "torch"):
            if name in seconds:
                least = 6.0 if name == "torch" and place == "1 core" else limit
                found.append(Bound(f"{name}, {at}", seconds[name] / ours, least, at_least=True))
    if "kernel in C" in seconds and place == "1 core" and (length, num) == (65536, 1):
        found.append(Bound(f"kernel in C, {at}", ours / seconds["kernel in C"], 3.5))
    return found


def main(quick: bool) -> None:
    points = QUICK_POINTS if quick else POINTS
    bounds: list[Bound] = []
    timings: dict[str, Any] = {}
    _, missing = peers.libraries()
    for place, cores in harness.places().items():
        rows = [harness.on_cores(cores, "benchmarks.likelihood_speed:time_point", *point) for point in points]
        timings[place] = rows
        names = [n for n in rows[-1]["seconds"] if not n.startswith("rows")]
        harness.print_table(
            f"Value and gradient of the mean log P, MLP 4-64-2, {place}: "
            "ms of the library, then times that of the others",
            ("T, B", *names, "best block"),
            [_cells(point, row["seconds"], names) for point, row in zip(points, rows, strict=True)],
        )
        if cores:
            bounds += [b for p, row in zip(points, rows, strict=True) for b in bounds_of(place, p, row["seconds"])]
    print(f"  not installed: {', '.join(missing) or 'nothing'} (extra `peers`; torch by hand)")

    floor = block_floor()
    parts = ", ".join(f"{name} {1e3 * seconds:.2f}" for name, seconds in floor.items())
    print(f"  parts of (65536, 1), each alone in a loop: {parts}; together {1e3 * sum(floor.values()):.1f} ms")

    lengths = [10**3, 10**4, 10**5, 10**6, 10**7]
    grown = growth(lengths)
    harness.print_table(
        "One trajectory as T grows",
        ("T", "compile s", "temporary MiB", "beyond a copy of the inputs", "vectorized MiB"),
        [
            (
                r["T"],
                f"{r['compile']:.2f}",
                *(f"{x / 2**20:.2f}" for x in (r["temp"], r["temp"] - r["inputs"], r["vectorized"])),
            )
            for r in grown
        ],
    )
    by_length = {r["T"]: r for r in grown}
    bounds += [
        Bound(
            "temporary memory, T = 10^6, vectorized over library",
            by_length[10**6]["vectorized"] / by_length[10**6]["temp"],
            20,
            at_least=True,
        ),
        Bound(
            "temporary bytes a step beyond the inputs, T = 10^7",
            (by_length[10**7]["temp"] - by_length[10**7]["inputs"]) / 10**7,
            1.0,
        ),
        Bound("compile time, T = 10^7 over 10^5", by_length[10**7]["compile"] / by_length[10**5]["compile"], 1.1),
        Bound("compile seconds, T = 10^7", by_length[10**7]["compile"], 1.0),
    ]
    peaks = {
        form: harness.peak_rss("benchmarks.likelihood_speed:peak_call", form, 10**5 if quick else 10**6)
        for form in ("logderiv", "vectorized")
    }
    print(
        f"  resident memory that the call adds, T = 10^{5 if quick else 6}: "
        + ", ".join(f"{k} {v / 2**20:.0f} MiB" for k, v in peaks.items())
    )

    error_rows = [errors(length) for length in ([10**3, 10**5] if quick else lengths)]
    _print_errors(error_rows)
    last = error_rows[-1]
    bounds += [
        Bound(f"relative error of the {k}, T = {last['T']:.0e}", last["logderiv"][k], 1e-6)
        for k in ("value", "gradient")
    ]
    _draw(points, timings, grown, error_rows)
    figures = {
        "points": points,
        "timings": timings,
        "missing": missing,
        "block_floor": floor,
        "growth": grown,
        "peak_resident": peaks,
        "errors": error_rows,
    }
    harness.finish("likelihood_speed", figures, bounds, quick=quick)


def _cells(point: tuple[int, int], seconds: dict[str, float], names: list[str]) -> tuple[str, ...]:
    ours = seconds["logderiv"]
    best = min(s for name, s in seconds.items() if name.startswith("rows"))
    others = (f"{seconds[n] / ours:.2f}" if n in seconds else "-" for n in names if n != "logderiv")
    return (f"{point[0]}, {point[1]}", f"{1e3 * ours:.2f}", *others, f"{best / ours:.2f}")


def _print_errors(rows: list[dict[str, Any]]) -> None:
    names = ("logderiv", "vectorized", "plain scan over t")
    harness.print_table(
        "Relative errors in float32, one action throughout: log P / worst leaf of its gradient",
        ("T", *names),
        [
            (f"{r['T']:.0e}", *(f"{r[n]['value']:.0e} / {r[n]['gradient']:.0e}" if n in r else "-" for n in names))
            for r in rows
        ],
    )


def _draw(points: Any, timings: dict[str, Any], grown: list[dict[str, Any]], error_rows: list[dict[str, Any]]) -> None:
    figure, (left, middle, right) = harness.new_figure(ncols=3, figsize=(13, 4))
    place, rows = next(iter(timings.items()))
    colors = {
        "logderiv": "#0072B2",
        "plain scan over t": "#D55E00",
        "vectorized": "#009E73",
        "torch": "#CC79A7",
        "kernel in C": "0.2",
    }
    for name, color in colors.items():
        found = [
            (length, num, row["seconds"][name])
            for (length, num), row in zip(points, rows, strict=True)
            if name in row["seconds"]
        ]
        single = sorted((length, seconds) for length, num, seconds in found if num == 1)
        batches = [(length * num, seconds) for length, num, seconds in found if num > 1]
        if single:
            left.plot(*zip(*single, strict=True), "o-", color=color, label=name, markersize=4)
        if batches:
            left.plot(*zip(*batches, strict=True), "o", color=color, markerfacecolor="none")
    left.set(
        xscale="log", yscale="log", xlabel="steps in all (open: batches)", ylabel="seconds", title=f"time, {place}"
    )
    lengths = [r["T"] for r in grown]
    for label, key, color in (
        ("logderiv", "temp", "#0072B2"),
        ("vectorized", "vectorized", "#009E73"),
        ("the inputs", "inputs", "0.6"),
    ):
        middle.plot(lengths, [r[key] / 2**20 for r in grown], "o-", color=color, label=label, markersize=4)
    middle.set(xscale="log", yscale="log", xlabel="T", ylabel="temporary MiB", title="memory")
    for name, color in list(colors.items())[:3]:
        found = [(r["T"], max(r[name]["gradient"], 1e-9)) for r in error_rows if name in r]
        right.plot(*zip(*found, strict=True), "o-", color=color, label=name, markersize=4)
    right.axhline(1e-6, color="0.2", linestyle=":", label="bound")
    right.set(xscale="log", yscale="log", xlabel="T", ylabel="relative error", title="gradient, worst leaf, float32")
    for ax in (left, middle, right):
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
    harness.save_figure(figure, "likelihood_speed")
