r"""How near to what the device allows are likelihood and training, and how exact is float32 there?

One run, most important first, each part within a time of its own, results printed as they come: on a GPU five minutes in all. The device's limits: a copy, and products by dtype
and precision. Exactness: log P and the worst leaf of its gradient in float32 with one action only, so that no errors cancel, against float64 on the CPU. Likelihood: value and
gradient of the mean log P, MLP 4-64-2, beside the vectorized form and the installed libraries; everybody's products are exact ("highest"), times as they come by default
beside. Training: PPO on CartPole-v1 with exact products. Last, an experiment: value and gradient as one kernel (`fused_kernel`), which enters the library if it is four times as fast
as the faster of the library and the vectorized form, and exact to float32. A limit is the longer of reading the inputs once and doing the operations at the measured rates; what keeps activations in
memory, as all forms do here, stays far below it.

Finding (one H100 80GB, jax 0.11.2; a copy 2.18 TB/s, products of 8192^3 in bfloat16 620, float32 349 by default and 50 exact TFLOP/s): log P errs by 2e-8 to 7e-8 and its gradient by
5e-8 to 5e-7 from 10^3 to 10^7 steps, where products as they come by default make it 9e-6 and 3e-4. Likelihoods take 0.99 of the vectorized form's time at (10^6, 1), (1024, 1024) and
(65 536, 16), where they are one block, and 1.12 in blocks at 10^7 steps, with 0.27 of its memory; since then a block is three quarters of what it was, and adds up the gradients of parts of 15 625 rows, which was not measured. All forms
are at 2 to 3 % of the limit: the activations go through memory. PPO with 16 384 environments makes 45 M steps a second, 0.90 of PureJaxRL's style; fewer environments and the GRU were not
reached in the time there was. The kernel was not measured on a GPU yet.
"""

import functools
import importlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import logderiv as ld
from benchmarks import fused_kernel, harness, likelihood_speed, peers, training_speed
from benchmarks import likelihood_accuracy as accuracy
from benchmarks.harness import Bound, Report, Table, at_least, at_most
from benchmarks.rl_peers import Settings

OURS, VECTORIZED = "logderiv", "vectorized"
ERRORS = ("value", "gradient")
TIMES_AS_FAST = 4.0  # what a second way of doing the same would have to be
POLICIES = {"MLP 4-64-2": accuracy.MLP, "GRU 16": accuracy.GRU}
PRODUCTS = {"bfloat16": ("bfloat16", None), "float32": ("float32", None), "float32, highest": ("float32", "highest")}
BYTES_A_ROW = 4 * 4 + 4  # four observations and an action
OPERATIONS_A_ROW = 2 * (2 * (4 * 64 + 64 * 2) + 64 * 2)  # forwards, in the weights, in the hidden units


class Sizes(NamedTuple):
    """What is measured.

    Attributes:
        copy: Numbers that are copied.
        product: Rows and columns of the products' operands.
        lengths: Of trajectories whose errors are measured, by policy.
        points: `(T, B)` of the likelihoods.
        repeats: Calls whose median is a time.
        updates: Of one call of PPO, by number of environments.
        fused: Rows that one kernel takes.
        seconds: After which nothing more is begun: of exactness, likelihood, training and the kernel.
    """

    copy: int
    product: int
    lengths: Mapping[str, Sequence[int]]
    points: Sequence[tuple[int, int]]
    repeats: int
    updates: Mapping[int, int]
    fused: Sequence[int]
    seconds: tuple[float, float, float, float]


_LENGTHS = {"MLP 4-64-2": [10**n for n in range(3, 8)], "GRU 16": [10**3, 10**4, 10**5]}
_POINTS = ((10**7, 1), (10**6, 1), (1024, 1024), (65536, 16))
DEVICE = Sizes(
    1 << 28, 8192, _LENGTHS, _POINTS, 30, {16384: 5, 1024: 20, 4096: 5, 64: 20}, (10**6, 10**7), (80, 60, 100, 40)
)
CPU = Sizes(1 << 24, 1024, _LENGTHS, ((65536, 1), (1024, 64)), 15, {64: 8, 1024: 1}, (1000,), (120, 60, 120, 20))
QUICK = Sizes(
    1 << 22, 1024, {"MLP 4-64-2": [1000, 10**5], "GRU 16": [1000]}, CPU.points, 3, {64: 1}, CPU.fused, (60, 30, 60, 20)
)


def limits_of_device(sizes: Sizes) -> dict[str, float]:
    """The rate of a copy in GB/s, read and written, and of products in TFLOP/s."""
    shape = (sizes.product,) * 3
    rates = {name: 1e-3 * harness.matmul_gflops(*shape, *how) for name, how in PRODUCTS.items()}
    return told({"copy": harness.copy_gb_per_s(sizes.copy)} | rates)


def limit_seconds(limits: Mapping[str, float], rows: int) -> float:
    """What value and gradient of so many rows take at least: reading them once, or the exact products."""
    return max(1e-9 * BYTES_A_ROW * rows / limits["copy"], 1e-12 * OPERATIONS_A_ROW * rows / limits["float32, highest"])


def exactness(sizes: Sizes) -> list[dict[str, Any]]:
    """Relative errors with one action only: the library's, and those of everything at once with the device's own products."""
    rows = []
    points = [(name, length) for name, lengths in sizes.lengths.items() for length in lengths]
    for name, length in within(sizes.seconds[0], points):
        policy, (params, tau) = POLICIES[name], accuracy.one_action(POLICIES[name], length)
        exact = reference(name, length)
        value, gradient = accuracy.errors(ld.log_prob, policy, params, tau, exact)
        row = {"policy": name, "T": length, "value": value, "gradient": gradient}
        if policy is accuracy.MLP:
            row["plain value"], row["plain gradient"] = accuracy.errors(_vectorized, policy, params, tau, exact)
        rows.append(told(row))
    return rows


@functools.cache
def reference(name: str, length: int) -> tuple[float, Any]:
    """Log P and its gradient in float64 where one action was taken only."""
    policy, (params, tau) = POLICIES[name], accuracy.one_action(POLICIES[name], length)
    return accuracy.exact_mlp(params, tau) if policy is accuracy.MLP else _by_scan(policy, params, tau)


def _vectorized(params: Any, _: Any, tau: ld.Trajectory) -> jax.Array:
    return peers.vectorized(params, jax.tree.map(lambda x: x[None], tau))


def _by_scan(policy: Any, params: Any, tau: ld.Trajectory) -> tuple[float, Any]:
    """Log P and its gradient in float64 on the CPU, step by step."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        arrays = jax.tree.map(np.asarray, (params, tau))
        params, tau = jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, arrays)
        function = jax.value_and_grad(lambda params, tau: accuracy.plain_log_prob(params, policy, tau))
        value, gradient = jax.device_get(jax.jit(function)(params, tau))
    return float(value), gradient


def likelihood(sizes: Sizes, limits: Mapping[str, float]) -> list[dict[str, Any]]:
    """Every form at every point: milliseconds with exact and with default products, beside the limit and the vectorized form."""
    rows = []
    functions = {OURS: peers.ours(likelihood_speed.MLP), VECTORIZED: peers.vectorized, **peers.libraries()[0]}
    for length, num in within(sizes.seconds[1], sizes.points):
        params, taus = likelihood_speed.parameters(), likelihood_speed.trajectories(length, num)
        as_they_come = {f"{name}, default": peers.compiled(f, params, taus) for name, f in functions.items()}
        with jax.default_matmul_precision("highest"):
            calls = {name: peers.compiled(f, params, taus) for name, f in functions.items()}
        seconds = harness.interleaved_medians(calls | as_they_come, sizes.repeats)
        least = limit_seconds(limits, length * num)
        for name, call in calls.items():
            row = {"at": f"{length}, {num}", "form": name, "ms": 1e3 * seconds[name], "of limit": least / seconds[name]}
            row |= {"over vectorized": seconds[name] / seconds[VECTORIZED]}
            row |= {"default ms": 1e3 * seconds[f"{name}, default"], "compile s": call.compile_seconds}
            row |= {"temporary MiB": (call.temp_bytes or 0) / 2**20}
            rows.append(told(row | {"limit ms": 1e3 * least, "limit MiB": BYTES_A_ROW * length * num / 2**20}))
    return rows


def training(sizes: Sizes, limits: Mapping[str, float]) -> list[dict[str, Any]]:
    """PPO with each number of environments: steps a second beside those of the operations' limit and of the peers."""
    rows = []
    for num, updates in within(sizes.seconds[2], list(sizes.updates.items())):
        settings = Settings(num_environments=num)
        with jax.default_matmul_precision("highest"):
            found = training_speed.throughput(settings, num_updates=updates, repeats=min(sizes.repeats, 7))
        most = 1e12 * limits["float32, highest"] / operations_a_step(settings)
        for name, row in found.items():
            rate = row["steps_per_s"]
            ratios = {"of limit": rate / most, "ours over": found[OURS]["steps_per_s"] / rate}
            rows.append(told({"environments": num, "form": name} | dict(row) | ratios))
    return rows


def fused(sizes: Sizes) -> list[dict[str, Any]]:
    """One kernel, in each shape that it compiles in, beside the library and the vectorized form: milliseconds, errors, times as fast."""
    try:
        importlib.import_module("jax.experimental.pallas.triton")
    except ImportError as error:
        print(f"  without the kernel: {error}", flush=True)
        return []
    rows = []
    for num in within(sizes.seconds[3], sizes.fused):
        params, tau = accuracy.one_action(accuracy.MLP, num)
        log_probs = {OURS: ld.log_prob, VECTORIZED: _vectorized}
        with jax.default_matmul_precision("highest"):
            calls = {name: _value_and_grad(function, params, tau) for name, function in log_probs.items()}
        calls |= _kernels(params, tau)
        seconds = harness.interleaved_medians(calls, sizes.repeats)
        fastest = min(seconds[name] for name in log_probs)
        for name, call in calls.items():
            value, gradient = accuracy.gaps(call(), reference("MLP 4-64-2", num))
            row = {"rows": num, "form": name, "ms": 1e3 * seconds[name], "value": value, "gradient": gradient}
            rows.append(told(row | {"times as fast": fastest / seconds[name]}))
    return rows


def _value_and_grad(function: Any, params: Any, tau: ld.Trajectory) -> harness.Compiled:
    return harness.compile_call(
        jax.value_and_grad(lambda params, tau: function(params, accuracy.MLP, tau)), params, tau
    )


def _kernels(params: Any, tau: ld.Trajectory) -> dict[str, harness.Compiled]:
    """By shape; one that does not compile or run on this device is named."""
    calls, inputs = {}, fused_kernel.Rows(tau.observations, tau.actions, tau.valid)
    for shape in fused_kernel.INTERPRETED if jax.default_backend() == "cpu" else fused_kernel.SHAPES:
        name = f"kernel {shape.rows} x {shape.programs}"
        try:
            call = harness.compile_call(functools.partial(fused_kernel.value_and_grad, shape), params, inputs)
            call.run()
            calls[name] = call
        except Exception as error:  # whatever a device raises; the other shapes are still of interest
            print(f"  without {name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
    return calls


def operations_a_step(settings: Settings) -> float:
    """Of PPO's two networks 4-64-64-x: once forwards to collect, and in each epoch forwards and, twice that, backwards."""
    weights = sum(4 * 64 + 64 * 64 + 64 * outputs for outputs in (2, 1))
    return 2 * weights * (1 + 3 * settings.epochs)


def within(seconds: float, items: Sequence[Any]) -> Iterator[Any]:
    """The items, up to one that would not be done in time if it took as long as the longest before it."""
    start, longest = time.perf_counter(), 0.0
    for position, item in enumerate(items):
        begun = time.perf_counter()
        if begun + longest > start + seconds:
            print(f"  {seconds:g} s are not enough for {', '.join(map(str, items[position:]))}", flush=True)
            return
        yield item
        longest = max(longest, time.perf_counter() - begun)


def told(row: dict[str, Any]) -> dict[str, Any]:
    """The row, printed as soon as it is known: whoever stops the run has what was measured until then."""
    cells = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
    print(f"  {', '.join(cells)}", flush=True)
    return row


def main(quick: bool) -> Report:
    sizes = QUICK if quick else CPU if jax.default_backend() == "cpu" else DEVICE
    limits = limits_of_device(sizes)
    errors = exactness(sizes)
    likelihoods, trained, kernels = likelihood(sizes, limits), training(sizes, limits), fused(sizes)
    exact = {f"{row['policy']}, T = {row['T']:.0e}": row for row in errors}
    exact |= {f"{row['form']}, {row['rows']:.0e} rows": row for row in kernels if row["form"] not in (OURS, VECTORIZED)}
    bounds = [at_most(f"error of the {w}, {name}", row[w], 2e-6) for name, row in exact.items() for w in ERRORS]
    numbers = {"limits": limits, "exactness": errors, "likelihood": likelihoods, "training": trained, "fused": kernels}
    timings = likelihood_bounds(likelihoods) + training_bounds(trained)
    timings += [] if jax.default_backend() == "cpu" else verdicts(kernels)
    return Report(_tables(**numbers), bounds, numbers, timings=timings)


def likelihood_bounds(rows: Sequence[Mapping[str, Any]]) -> list[Bound]:
    """Times beside the vectorized form at each point, memory at the one that needs most."""
    ours, vectorized = ([row for row in rows if row["form"] == name] for name in (OURS, VECTORIZED))
    bounds = [at_most(f"time over the vectorized form's, T, B = {r['at']}", r["over vectorized"], 1.1) for r in ours]
    if ours:
        one, other = (max(row["temporary MiB"] for row in found) for found in (ours, vectorized))
        bounds.append(at_most("temporary memory over the vectorized form's, where that is largest", one / other, 0.25))
    return bounds


def training_bounds(rows: Sequence[Mapping[str, Any]]) -> list[Bound]:
    """PPO is no slower than a peer."""
    others = [row for row in rows if row["form"] != OURS]
    return [
        at_least(f"PPO steps/s over {r['form']}, {r['environments']} environments", r["ours over"], 1.0) for r in others
    ]


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[Bound]:
    """Whether the kernel enters the library, by the shape that is the fastest at each number of rows."""
    name = "fused kernel, times as fast as the faster of the library and the vectorized form"
    best = dict.fromkeys((row["rows"] for row in rows), 0.0)  # where no shape compiles
    for row in rows:
        if row["form"] not in (OURS, VECTORIZED):
            best[row["rows"]] = max(best[row["rows"]], row["times as fast"])
    return [at_least(f"{name}, {num:.0e} rows", found, TIMES_AS_FAST) for num, found in best.items()]


def _tables(limits: Any, exactness: Any, likelihood: Any, training: Any, fused: Any) -> list[Table]:
    tables = [
        Table(
            "The device",
            " | ".join(["copy GB/s", *(f"{name} TFLOP/s" for name in PRODUCTS)]),
            harness.cells(limits, ".4g"),
            [limits],
        ),
        Table(
            "Relative errors in float32, one action only: the library, then everything at once with the device's own products",
            "policy | T | log P | gradient | plain log P | plain gradient",
            "{r[policy]} | {r[T]} | " + harness.cells(("value", "gradient", "plain value", "plain gradient"), ".1e"),
            exactness,
        ),
        Table(
            "Value and gradient of the mean log P, exact products; beside, with the device's own",
            "T, B | form | ms | of limit | over vectorized | default ms | temporary MiB | compile s | limit ms | limit MiB",
            "{r[at]} | {r[form]} | {r[ms]:.3f} | {r[of limit]:.3f} | {r[over vectorized]:.2f} | {r[default ms]:.3f}"
            " | {r[temporary MiB]:.1f} | {r[compile s]:.1f} | {r[limit ms]:.3f} | {r[limit MiB]:.1f}",
            likelihood,
        ),
        Table(
            "PPO on CartPole-v1, 128 steps, 4 epochs of 4 minibatches, exact products",
            "environments | form | steps/s | of limit | logderiv over it | compile s",
            "{r[environments]} | {r[form]} | {r[steps_per_s]:.0f} | {r[of limit]:.3f} | {r[ours over]:.2f} | {r[compile_s]:.1f}",
            training,
        ),
        Table(
            "Value and gradient of log P, MLP 4-64-2, one action only: one kernel beside the others, exact products",
            "rows | form | ms | times as fast | log P | gradient",
            "{r[rows]} | {r[form]} | {r[ms]:.3f} | {r[times as fast]:.2f} | " + harness.cells(ERRORS, ".1e"),
            fused,
        ),
    ]
    return [table for table in tables if table.rows]
