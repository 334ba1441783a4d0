r"""What do log-probabilities of tokens cost at a vocabulary of 50 000 to 130 000, in time and in memory?

Value and both gradients (hidden states and unembedding) of a weighted sum of log-probabilities of N = 2048 tokens, D = 256, float32. Candidates run
interleaved in one process; peak resident memory is that of one call in a process of its own. The floor is what the four products take at this
machine's rate for such blocks, with two exponentials for each number; the plain form needs three products. Errors are against float64.

Finding (2 CPU cores, jax 0.10.2, torch 2.13): blocks of the vocabulary take 0.81 of the plain form's time at V = 50 257 and 0.53 at 128 256 (one core:
0.76 and 0.34), with 17 and 20 MiB where it takes 1178 and 3006; they reach 0.8 of the floor. Optax's cross-entropy, which keeps fewer copies of the
logits, takes 0.88 and 0.62 of the plain form's time and 785 and 2004 MiB; torch 1.9 and 1.5. Cutting the tokens instead costs 1.5 to 1.7 times the
plain form's time: each chunk reads and adds to a whole gradient of the unembedding. With bfloat16 inputs log-probabilities keep seven digits, where
the plain form keeps two or three.
"""

import importlib.util
import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import logderiv as ld
from benchmarks import harness
from benchmarks.harness import Bound, Report, Table, at_most

WIDTH = 256
SIZES = ((2048, 32000), (2048, 50257), (2048, 128256))
QUICK_SIZES = ((256, 50257),)
CHUNK = 256
OURS, PLAIN = "logderiv", "plain log-softmax"


def plain(unembedding: jax.Array, hidden: jax.Array, tokens: jax.Array) -> jax.Array:
    """What one would write first."""
    log_probs = jax.nn.log_softmax(hidden @ unembedding.T)
    return jnp.take_along_axis(log_probs, tokens[:, None], axis=1)[:, 0]


def chunked(unembedding: jax.Array, hidden: jax.Array, tokens: jax.Array) -> jax.Array:
    """The plain form of `CHUNK` tokens at a time, recomputed on the way back."""
    one = jax.checkpoint(lambda x: plain(unembedding, *x))
    chunk = min(CHUNK, tokens.size)
    parts = (hidden.reshape(-1, chunk, hidden.shape[1]), tokens.reshape(-1, chunk))
    return lax.map(one, parts).reshape(-1)


def cross_entropy(unembedding: jax.Array, hidden: jax.Array, tokens: jax.Array) -> jax.Array:
    """Optax's loss of all logits."""
    return -optax.softmax_cross_entropy_with_integer_labels(hidden @ unembedding.T, tokens)


def blocked(unembedding: jax.Array, hidden: jax.Array, tokens: jax.Array) -> jax.Array:
    """The library."""
    return ld.token_log_probs(unembedding, hidden, tokens).log_probs


FORMS: dict[str, Callable[..., jax.Array]] = {
    OURS: blocked,
    PLAIN: plain,
    "plain, chunks of 256 tokens, checkpointed": chunked,
    "optax cross-entropy": cross_entropy,
}
TORCH, HAS_TORCH = "torch cross-entropy", importlib.util.find_spec("torch") is not None


def inputs(num: int, vocabulary: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Unembedding, hidden states, tokens and weights: logits of standard deviation 1."""
    keys = jax.random.split(jax.random.key(0), 4)
    unembedding = jax.random.normal(keys[0], (vocabulary, WIDTH), jnp.float32) / math.sqrt(WIDTH)
    hidden = jax.random.normal(keys[1], (num, WIDTH), jnp.float32)
    tokens = jax.random.randint(keys[2], (num,), 0, vocabulary, jnp.int32)
    return unembedding, hidden, tokens, jax.random.normal(keys[3], (num,), jnp.float32)


def value_and_gradients(form: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Of the weighted sum, in the unembedding and the hidden states."""

    def value(unembedding: jax.Array, hidden: jax.Array, tokens: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.vdot(weights, form(unembedding, hidden, tokens))

    return jax.value_and_grad(value, (0, 1))


def prepare(name: str, num: int, vocabulary: int) -> Callable[[], Any]:
    """The call of one candidate, ready to run; `harness.peak_rss` calls it in a process of its own."""
    if name == TORCH:
        return _torch_call(num, vocabulary)
    return harness.compile_call(value_and_gradients(FORMS[name]), *inputs(num, vocabulary)).run


def _torch_call(num: int, vocabulary: int) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    unembedding, hidden, tokens, weights = (torch.from_numpy(np.array(x)) for x in inputs(num, vocabulary))
    tokens = tokens.long()

    def run() -> Any:
        leaves = unembedding.requires_grad_(), hidden.requires_grad_()
        log_probs = -torch.nn.functional.cross_entropy(leaves[1] @ leaves[0].T, tokens, reduction="none")
        return torch.autograd.grad(torch.dot(weights, log_probs), leaves)

    return run


def measure(num: int, vocabulary: int, *, repeats: int, resident: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Seconds, compile seconds and memory beyond inputs and outputs in MiB, for every candidate."""
    arguments = inputs(num, vocabulary)
    calls = {n: harness.compile_call(value_and_gradients(form), *arguments) for n, form in FORMS.items()}
    runs: dict[str, Callable[[], Any]] = calls | ({TORCH: _torch_call(num, vocabulary)} if HAS_TORCH else {})
    seconds = harness.interleaved_medians(runs, repeats)
    outputs = 4 * WIDTH * (num + vocabulary)
    rows = {}
    for name in runs:
        peak, call = None, calls.get(name)
        if name in resident and jax.default_backend() == "cpu":
            peak = (harness.peak_rss("benchmarks.token_speed:prepare", name, num, vocabulary) - outputs) / 2**20
        temp = call.temp_bytes / 2**20 if call and call.temp_bytes is not None else None
        rows[name] = {"seconds": seconds[name], "compile_seconds": call and call.compile_seconds}
        rows[name] |= {"temp_mib": temp, "resident_mib": peak}
    return rows


def floor_seconds(num: int, vocabulary: int) -> float:
    """Four products at the best rate of any shape tried, and two exponentials in cache for each number."""
    block = min(512, vocabulary)
    shapes = ((1024, 1024, 1024), (num, WIDTH, block), (num, block, WIDTH), (block, num, WIDTH))
    rate = max(harness.matmul_gflops(*shape) for shape in shapes)
    call = harness.compile_call(jnp.exp, jnp.zeros(1 << 18, jnp.float32))
    exponential = harness.interleaved_medians({"exp": call}, 51)["exp"] / (1 << 18)
    return num * vocabulary * (8e-9 * WIDTH / rate + 2 * exponential)


def errors(num: int, vocabulary: int) -> dict[str, dict[str, float]]:
    """Relative errors (norms) of log-probabilities and both gradients against float64 on the same inputs."""
    single = inputs(num, vocabulary)
    found = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        unembedding, hidden = (x.astype(dtype) for x in single[:2])
        with jax.enable_x64(True):
            wide = (x.astype(jnp.float64) for x in (unembedding, hidden))
            exact = jax.device_get(_everything(plain)(*wide, *single[2:]))
        for name, form in ((OURS, blocked), (PLAIN, plain)):
            ours = jax.device_get(_everything(form)(unembedding, hidden, *single[2:]))
            found[f"{name}, {jnp.dtype(dtype).name}"] = {
                quantity: float(np.linalg.norm(np.asarray(x, np.float64) - e) / np.linalg.norm(e))
                for quantity, x, e in zip(("log_probs", "d_unembedding", "d_hidden"), ours, exact, strict=True)
            }
    return found


def _everything(form: Callable[..., jax.Array]) -> Callable[..., Any]:
    @jax.jit
    def run(unembedding: jax.Array, hidden: jax.Array, tokens: jax.Array, weights: jax.Array) -> Any:
        log_probs, pull = jax.vjp(lambda w, h: form(w, h, tokens), unembedding, hidden)
        return log_probs, *pull(weights.astype(log_probs.dtype))

    return run


def _timings(measured: dict[tuple[int, int], dict[str, dict[str, Any]]]) -> list[Bound]:
    limits = {"temp_mib": ("temporary memory", 0.1), "resident_mib": ("peak resident memory", 0.1)}
    limits |= {"seconds": ("time", 1.05)}
    bounds = []
    for (num, vocabulary), rows in measured.items():
        for key, (quantity, limit) in limits.items():
            ours, theirs = rows[OURS][key], rows[PLAIN][key]
            if ours is not None and theirs is not None:
                name = f"{quantity} over {PLAIN}'s, N = {num}, V = {vocabulary}"
                bounds.append(at_most(name, ours / theirs, limit))
    return bounds


def _error_bounds(found: dict[str, dict[str, float]]) -> list[Bound]:
    limits = {"float32": (1e-6, 1e-5), "bfloat16": (1e-6, 2**-8)}  # half precision rounds gradients once, at the end
    return [
        at_most(f"error of {quantity}, {dtype}", error, limits[dtype][quantity != "log_probs"])
        for dtype in limits
        for quantity, error in found[f"{OURS}, {dtype}"].items()
    ]


def main(quick: bool) -> Report:
    sizes, repeats, resident = (QUICK_SIZES, 2, (OURS, PLAIN)) if quick else (SIZES, 5, (*FORMS, TORCH))
    measured = {size: measure(*size, repeats=repeats, resident=resident) for size in sizes}
    floors = {size: floor_seconds(*size) for size in sizes}
    found = errors(64 if quick else 256, sizes[0][1])
    tables = [_table(*size, rows, floors[size]) for size, rows in measured.items()]
    tables.append(
        Table(
            f"Relative errors against float64, V = {sizes[0][1]}",
            "form, inputs | log-probabilities | d unembedding | d hidden",
            "{r[form]} | " + harness.cells(("log_probs", "d_unembedding", "d_hidden"), ".1e"),
            [{"form": name} | row for name, row in found.items()],
            "" if HAS_TORCH else "not installed, left out: torch",
        )
    )
    sizes = [{"num": n, "vocabulary": v, "floor_seconds": floors[n, v], "forms": f} for (n, v), f in measured.items()]
    numbers, draw = {"sizes": sizes, "errors": found}, partial(_draw, measured)
    return Report(tables, _error_bounds(found), numbers, draw, _timings(measured))


def _table(num: int, vocabulary: int, rows: dict[str, dict[str, Any]], floor: float) -> Table:
    plain, seconds = rows[PLAIN]["seconds"], {name: row["seconds"] for name, row in rows.items()}
    derived = {n: {"form": n, "ms": 1e3 * s, "ratio": s / plain, "floor": floor / s} for n, s in seconds.items()}
    return Table(
        f"Value and both gradients, N = {num}, D = {WIDTH}, V = {vocabulary}, medians of interleaved runs",
        "form | ms | over plain | floor over time | compile s | temporary MiB | resident MiB",
        "{r[form]} | {r[ms]:.0f} | {r[ratio]:.2f} | {r[floor]:.2f} | {r[compile_seconds]:.2f}"
        " | {r[temp_mib]:.0f} | {r[resident_mib]:.0f}",
        [derived[name] | row for name, row in rows.items()],
        f"floor {1e3 * floor:.0f} ms: four products and two exponentials; the three products of the plain form need less",
    )


def _draw(measured: dict[tuple[int, int], dict[str, dict[str, Any]]]) -> Any:
    figure, (left, right) = harness.new_figure(ncols=2, figsize=(10, 4))
    vocabularies = [v for _, v in measured]
    for name in next(iter(measured.values())):
        for ax, key, scale in ((left, "seconds", 1e6), (right, "temp_mib", 2**10)):
            values = [scale * (rows[name][key] or math.nan) / n for (n, _), rows in measured.items()]
            ax.plot(vocabularies, values, "o-", label=name)
    left.set(xlabel="vocabulary", ylabel="microseconds per token", ylim=(0, None), xticks=vocabularies)
    right.set(xlabel="vocabulary", ylabel="temporary KiB per token", yscale="log", xticks=vocabularies)
    return figure
