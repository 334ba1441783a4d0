"""What the benchmarks share: timing, the machine's own floor, tables, bounds, JSON rows and figures.

Times are medians of interleaved repeats, so that a change in the machine's load hits every candidate alike; compiling
is timed apart. A figure is written beside what the machine itself can do, or it means nothing on another one.
"""

import functools
import importlib
import importlib.metadata
import json
import math
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import logderiv as ld

RESULTS = Path(__file__).resolve().parent.parent / "results"
_PACKAGES = ("jax", "jaxlib", "optax", "numpy", "gymnax", "gymnasium")


class Compiled(NamedTuple):
    """A call that is ready to run.

    Attributes:
        run: Runs it and waits for the result.
        compile_seconds: Tracing, lowering and compiling.
        temp_bytes: Memory for intermediate values, as XLA's own analysis has it; `None` where it has none.
    """

    run: Callable[[], Any]
    compile_seconds: float
    temp_bytes: int | None


class Bound(NamedTuple):
    """A figure and what it is held to: at most `limit`, or at least."""

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the bound is kept; NaN keeps none."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


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


@functools.cache
def machine_floor() -> dict[str, float]:
    """What this machine does on its own: a float32 matrix product, a copy, and an elementwise exponential."""
    size, length = 1024, 1 << 22
    matrix = jnp.ones((size, size), jnp.float32)
    vector = jnp.linspace(-1, 0, length, dtype=jnp.float32)
    calls = {
        "matmul": compile_call(jnp.matmul, matrix, matrix),
        "copy": compile_call(jnp.negative, vector),  # reads and writes everything; a plain copy might be elided
        "exp": compile_call(jnp.exp, vector),
    }
    seconds = interleaved_medians({name: call.run for name, call in calls.items()})
    return {
        "matmul_float32_gflop_per_s": 2e-9 * size**3 / seconds["matmul"],
        "copy_gb_per_s": 2e-9 * vector.nbytes / seconds["copy"],
        "exp_float32_giga_per_s": 1e-9 * length / seconds["exp"],
    }


@functools.cache
def matmul_gflops(m: int, k: int, n: int) -> float:
    """What this machine does in float32 on an `(m, k)` by `(k, n)` product, 1e9 operations a second."""
    call = compile_call(jnp.matmul, jnp.ones((m, k), jnp.float32), jnp.ones((k, n), jnp.float32))
    return 2e-9 * m * k * n / interleaved_medians({"matmul": call.run})["matmul"]


def machine() -> dict[str, Any]:
    """Processor, device and versions; nothing that names the host."""
    device = jax.devices()[0]
    return {
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "device": f"{jax.device_count()} x {device.platform} ({device.device_kind})",
        "python": platform.python_version(),
        "logderiv": ld.__version__,
        **{name: version for name in _PACKAGES if (version := _version(name))},
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
    if cores is None:
        return _named(function)(*args)
    code = "import sys; from benchmarks import harness; harness._call(*sys.argv[1:])"
    if hasattr(os, "sched_setaffinity"):
        code = f"import os; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{cores}]); {code}"
    return json.loads(_last_line(code, function, args))


def on_devices(count: int, function: str, *args: Any) -> Any:
    """The result of `function(*args)` where there are at least `count` devices.

    Args:
        count: On a CPU a process of its own has so many virtual devices, on as many cores, at most all. On an accelerator, which
            may serve one process only, it is called here and now, and must itself take the first `count`.
        function: As in `on_cores`.
        args: Likewise.
    """
    if jax.default_backend() != "cpu":
        return _named(function)(*args)
    flag = f"--xla_force_host_platform_device_count={count}"
    before = os.environ.get("XLA_FLAGS")
    os.environ["XLA_FLAGS"] = f"{before or ''} {flag}".strip()
    try:
        return on_cores(count, function, *args)
    finally:
        if before is None:
            del os.environ["XLA_FLAGS"]
        else:
            os.environ["XLA_FLAGS"] = before


def _call(function: str, args: str) -> None:
    print(json.dumps(_plain(_named(function)(*json.loads(args)))))


def _named(function: str) -> Callable[..., Any]:
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def _last_line(code: str, function: str, args: Sequence[Any]) -> str:
    """What a new process prints last."""
    command = [sys.executable, "-c", code, function, json.dumps(args)]
    root = Path(__file__).resolve().parent.parent
    return subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]


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


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Aligned columns: the first to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    print(f"\n{title}")
    for i, row in enumerate(cells):
        rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        print("  " + "  ".join((row[0].ljust(widths[0]), *rest)))
        if i == 0:
            print("  " + "  ".join("-" * width for width in widths))


def finish(name: str, figures: Mapping[str, Any], bounds: Sequence[Bound], *, quick: bool) -> list[Bound]:
    """Print the bounds, the machine and its floor; save the row. Returns the bounds that were missed."""
    if bounds:
        print("\nbounds")
    for bound in bounds:
        relation = ">=" if bound.at_least else "<="
        verdict = "kept  " if bound.holds else "MISSED"
        print(f"  {verdict}  {bound.name}: {bound.value:.4g} {relation} {bound.limit:g}")
    floor = machine_floor()
    print("\nmachine  " + ", ".join(f"{key} {value}" for key, value in machine().items()))
    print("floor    " + ", ".join(f"{key} {value:.4g}" for key, value in floor.items()))
    print(f"peak     {peak_memory_bytes() / 2**20:.0f} MiB resident")
    path = save_row(name, figures, bounds, quick=quick)
    print(f"saved    {path.parent.name}/{path.name}")
    return [bound for bound in bounds if not bound.holds]


def save_row(name: str, figures: Mapping[str, Any], bounds: Sequence[Bound] = (), *, quick: bool) -> Path:
    """Append one line to `results/<name>.jsonl`: when, on what, its floor, and what was measured."""
    row = {
        "benchmark": name,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "quick": quick,
        "machine": machine(),
        "floor": machine_floor(),
        "peak_resident_bytes": peak_memory_bytes(),
        "figures": figures,
        "bounds": [bound._asdict() | {"holds": bound.holds} for bound in bounds],
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(_plain(row), allow_nan=False) + "\n")
    return path


def save_figure(figure: Any, name: str) -> Path:
    """Write a matplotlib figure to `results/<name>.png`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.png"
    figure.savefig(path, dpi=120)
    print(f"figure   {path.parent.name}/{path.name}")
    return path


def new_figure(**options: Any) -> tuple[Any, Any]:
    """`plt.subplots` on a backend that needs no screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained", **options)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _plain(value: Any) -> Any:
    """What JSON can hold; infinities and NaN become words."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (np.ndarray, jax.Array)):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
