"""What the benchmarks share: timing, the machine's own floor, and the report: tables, bounds, a JSON row and a figure.

Times are medians of interleaved repeats, so that a change in the machine's load hits every candidate alike; compiling
is timed apart. A number is written beside what the machine itself can do, or it means nothing on another one.

A benchmark is a module with a question and a finding (its docstring), a computation, and `main(quick) -> Report`, which says
what to print, what has to hold, what to save and how to draw it. `publish` does all of that.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import random
import resource
import statistics
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import logderiv as ld
from benchmarks import RESULTS
from logderiv.plots.figures import COLORS, STYLES

ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("jax", "jaxlib", "optax", "numpy", "gymnax", "gymnasium")


class Compiled(NamedTuple):
    """A call that is ready to run.

    Attributes:
        run: Runs it and waits for the result; calling the object does the same.
        compile_seconds: Tracing, lowering and compiling.
        temp_bytes: Memory for intermediate values, as XLA's own analysis has it; `None` where it has none.
    """

    run: Callable[[], Any]
    compile_seconds: float
    temp_bytes: int | None

    def __call__(self) -> Any:
        """Run it."""
        return self.run()


class Bound(NamedTuple):
    """A number and what it is held to: at most `limit`, or at least."""

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the bound is kept; NaN keeps none."""
        return bool(self.value >= self.limit if self.at_least else self.value <= self.limit)

    def __str__(self) -> str:
        relation = ">=" if self.at_least else "<="
        return f"{'kept  ' if self.holds else 'MISSED'}  {self.name}: {self.value:.4g} {relation} {self.limit:g}"


def at_most(name: str, value: Any, limit: float) -> Bound:
    """`value` must not exceed `limit`."""
    return Bound(name, value, limit)


def at_least(name: str, value: Any, limit: float) -> Bound:
    """`value` must not be below `limit`."""
    return Bound(name, value, limit, at_least=True)


class Table(NamedTuple):
    """A table to print: the first column to the left, the others to the right.

    Attributes:
        title: What it shows.
        heads: The headings, `"n | error | ms"`.
        cells: How a row `r` is formatted below each: `"{r.n} | {r.error:.1e} | {r[seconds]:.2f}"`. A method is called; what is
            missing, `None` or NaN, is shown as a dash.
        rows: Of any kind.
        note: Lines below it.
    """

    title: str
    heads: str
    cells: str
    rows: Sequence[Any]
    note: str = ""

    def __str__(self) -> str:
        cells = [[_CELL.format(cell, r=row) for cell in self.cells.split(" | ")] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(self.heads.split(" | "), *cells, strict=True)]
        cells = [self.heads.split(" | "), ["-" * width for width in widths], *cells]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells]
        return "\n  ".join([f"\n{self.title}", *lines, *self.note.strip().splitlines()])


def cells(keys: Iterable[Any], spec: str = ".2f") -> str:
    """The part of `Table.cells` that shows these items of a row, all in the same format."""
    return " | ".join(f"{{r[{key}]:{spec}}}" for key in keys)


class _Cell(string.Formatter):
    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        try:
            return super().get_field(field_name, args, kwargs)
        except KeyError:
            return None, ""

    def format_field(self, value: Any, format_spec: str) -> str:
        value = value() if callable(value) else value
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        return "-" if missing else super().format_field(value, format_spec)


_CELL = _Cell()


class Report(NamedTuple):
    """What a benchmark found.

    Attributes:
        tables: To print, in this order.
        bounds: What has to hold on every machine.
        numbers: To save in the JSON row: numbers, arrays, named tuples, and lists and mappings of them.
        draw: Makes the figure, where there is one.
        timings: Bounds on times and other things that the machine and its load decide.
        summary: Lines to end with.
    """

    tables: Sequence[Table]
    bounds: Sequence[Bound]
    numbers: Mapping[str, Any]
    draw: Callable[[], Any] | None = None
    timings: Sequence[Bound] = ()
    summary: Sequence[str] = ()


def compile_call(function: Callable[..., Any], *args: Any) -> Compiled:
    """Compile `function(*args)` ahead of time."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    seconds = time.perf_counter() - start
    analysis = compiled.memory_analysis()
    temp = None if analysis is None else analysis.temp_size_in_bytes
    return Compiled(lambda: jax.block_until_ready(compiled(*args)), seconds, temp)


def interleaved_medians(runs: Mapping[str, Callable[[], Any]], repeats: int = 7) -> dict[str, float]:
    """Median seconds of each of `runs`, one of each per round after a round that is not counted.

    Each round has an order of its own: whoever runs after a candidate that swept the caches would pay for it every time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names, order = list(runs), random.Random(0)
    for round_ in range(repeats + 1):
        order.shuffle(names)
        for name in names:
            start = time.perf_counter()
            runs[name]()
            if round_ > 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def variance_and_sem(samples: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Variance along the last axis, and its standard error by the fourth moment."""
    variance = jnp.var(samples, axis=-1, ddof=1)
    fourth = jnp.mean((samples - jnp.mean(samples, axis=-1, keepdims=True)) ** 4, axis=-1)
    return variance, jnp.sqrt(jnp.maximum(fourth - variance**2, 0) / samples.shape[-1])


@functools.cache
def machine_floor() -> dict[str, float]:
    """What this machine does on its own: a float32 matrix product, a copy, and an elementwise exponential."""
    call = compile_call(jnp.exp, jnp.linspace(-1, 0, 1 << 22, dtype=jnp.float32))
    return {
        "matmul_float32_gflop_per_s": matmul_gflops(1024, 1024, 1024),
        "copy_gb_per_s": copy_gb_per_s(1 << 22),
        "exp_float32_giga_per_s": 1e-9 * (1 << 22) / interleaved_medians({"exp": call})["exp"],
    }


@functools.cache
def copy_gb_per_s(size: int) -> float:
    """What this machine copies, bytes read and written, of `size` float32 numbers; of a negation, since a copy might be elided."""
    call = compile_call(jnp.negative, jnp.ones(size, jnp.float32))
    return 8e-9 * size / interleaved_medians({"copy": call})["copy"]


@functools.cache
def matmul_gflops(m: int, k: int, n: int, dtype: str = "float32", precision: str | None = None) -> float:
    """What this machine does on an `(m, k)` by `(k, n)` product, 1e9 operations a second; numbers at random draw full power."""
    a, b = (jax.random.normal(jax.random.key(0), shape, dtype) for shape in ((m, k), (k, n)))
    call = compile_call(functools.partial(jnp.matmul, precision=precision), a, b)
    return 2e-9 * m * k * n / interleaved_medians({"matmul": call})["matmul"]


def machine() -> dict[str, Any]:
    """Processor, device and versions; nothing that names the host."""
    device = jax.devices()[0]
    return {
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "device": f"{jax.device_count()} x {device.platform} ({device.device_kind})",
        "python": platform.python_version(),
        "logderiv": ld.__version__,
        **{name: importlib.metadata.version(name) for name in _PACKAGES if importlib.util.find_spec(name)},
    }


def peak_memory_bytes() -> int:
    """The largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def peak_rss(prepare: str, *args: Any) -> int:
    """Resident bytes that one call adds at its peak, its result included, in a process of its own.

    Args:
        prepare: `"module:function"`. In the new process `function(*args)` makes everything ready, inputs and compiled
            program, and returns the call without arguments that is measured.
        args: What JSON can hold.
    """
    code = "import sys; from benchmarks import harness; harness._measure_peak(*sys.argv[1:])"
    return int(_last_line(code, prepare, args))


def places() -> dict[str, int | None]:
    """What timings are taken on, by name: one core and, where there are two, two; or the accelerator, `None` cores."""
    if jax.default_backend() != "cpu":
        return {jax.default_backend(): None}
    found: dict[str, int | None] = {"1 core": 1, "2 cores": 2}
    return found if (os.cpu_count() or 1) > 1 else {"1 core": 1}


def on_cores(cores: int | None, function: str, *args: Any) -> Any:
    """The result of `function(*args)`, given as `"module:function"`, in a process of its own on so many cores.

    Args:
        cores: How many, from those that this process may use. Where the system cannot bind a process, all. `None` for here and
            now, in this process, which may be the only one that an accelerator serves.
        function: In the new process, called before JAX has counted its threads.
        args: What JSON can hold, as must be the result.
    """
    return _named(function)(*args) if cores is None else _elsewhere(cores, function, args)


def on_devices(count: int, function: str, *args: Any) -> Any:
    """The result of `function(*args)` where there are at least `count` devices.

    Args:
        count: On a CPU a process of its own has so many virtual devices, on as many cores, at most all. On an accelerator, which
            may serve one process only, it is called here and now, and must itself take the first `count`.
        function: `"module:function"`, called with `args` in the process that has the devices.
        args: What JSON can hold, as must be the result.
    """
    if jax.default_backend() != "cpu":
        return _named(function)(*args)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    return _elsewhere(count, function, args, os.environ | {"XLA_FLAGS": flags.strip()})


def _elsewhere(cores: int, function: str, args: Sequence[Any], environment: Mapping[str, str] | None = None) -> Any:
    code = "import sys; from benchmarks import harness; harness._call(*sys.argv[1:])"
    if hasattr(os, "sched_setaffinity"):
        code = f"import os; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{cores}]); {code}"
    return json.loads(_last_line(code, function, args, environment))


def _call(function: str, args: str) -> None:
    print(json.dumps(_plain(_named(function)(*json.loads(args)))))


def _named(function: str) -> Callable[..., Any]:
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def _last_line(code: str, function: str, args: Sequence[Any], environment: Mapping[str, str] | None = None) -> str:
    """What a new process prints last."""
    command = [sys.executable, "-c", code, function, json.dumps(args)]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.splitlines()[-1]


def _measure_peak(prepare: str, args: str) -> None:
    run = _named(prepare)(*json.loads(args))
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux then counts the peak anew
    except OSError:
        before = peak_memory_bytes()
        run()
        print(peak_memory_bytes() - before)
    else:
        before = _status_bytes("VmRSS")
        run()
        print(max(0, _status_bytes("VmHWM") - before))


def _status_bytes(field: str) -> int:
    """A field of this process's status. Not `ru_maxrss`, which a child inherits from the process that started it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def publish(name: str, report: Report, *, quick: bool) -> list[Bound]:
    """Print the tables, the bounds, the machine and its floor; save the row and the figure; print the summary.

    Returns the bounds that were missed, those on times not counted.
    """
    print(*report.tables, sep="\n")
    for title, bounds in (("bounds", report.bounds), ("bounds on this machine's times", report.timings)):
        print(*([f"\n{title}", *bounds] if bounds else []), sep="\n  ")
    print("\nmachine  " + ", ".join(f"{key} {value}" for key, value in machine().items()))
    print("floor    " + ", ".join(f"{key} {value:.4g}" for key, value in machine_floor().items()))
    print(f"peak     {peak_memory_bytes() / 2**20:.0f} MiB resident")
    saved = [save_row(name, report, quick=quick), *([save_figure(name, report.draw)] if report.draw else [])]
    print(f"saved    {', '.join(path.name for path in saved)}")
    print(*(["", *report.summary] if report.summary else []), sep="\n")
    return [bound for bound in report.bounds if not bound.holds]


def save_row(name: str, report: Report, *, quick: bool) -> Path:
    """Append one line to `results/<name>.jsonl`: when, on what, its floor, and what was measured."""
    row = {
        "benchmark": name,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "quick": quick,
        "machine": machine(),
        "floor": machine_floor(),
        "peak_resident_bytes": peak_memory_bytes(),
        "numbers": report.numbers,
        "bounds": [bound._asdict() | {"holds": bound.holds} for bound in report.bounds],
        "timings": [bound._asdict() | {"holds": bound.holds} for bound in report.timings],
        "figure": f"{name}.png" if report.draw else None,
    }
    path = RESULTS / f"{name}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(_plain(row), allow_nan=False) + "\n")
    return path


def save_figure(name: str, draw: Callable[[], Any]) -> Path:
    """Write the figure that `draw` makes, in the style of all of them, to `results/<name>.png`; no screen is needed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cycle = importlib.import_module("cycler").cycler(color=COLORS, linestyle=2 * STYLES)
    style: Any = {"axes.grid": True, "grid.alpha": 0.3, "lines.markersize": 4}
    style |= {"legend.frameon": False, "legend.fontsize": "small"}
    with plt.rc_context(style | {"axes.prop_cycle": cycle}):
        figure = draw()
        for ax in figure.axes:  # whatever has names and no legend of its own
            if ax.get_legend() is None and ax.get_legend_handles_labels()[1] and not figure.legends:
                ax.legend()
        path = RESULTS / f"{name}.png"
        figure.savefig(path, dpi=120)
        plt.close(figure)
    return path


def new_figure(**options: Any) -> tuple[Any, Any]:
    """`plt.subplots` whose parts do not overlap."""
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained", **options)


def _plain(value: Any) -> Any:
    """What JSON can hold; infinities and NaN become words."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
