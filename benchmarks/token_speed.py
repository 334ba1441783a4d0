r"""What do log-probabilities of tokens cost at a vocabulary of 50 000 to 130 000, in time and in memory?

Value and both gradients (hidden states and unembedding) of a weighted sum of the log-probabilities of N tokens, and of a sum of clipped ratios. Memory is
beyond inputs and outputs: XLA's plan; of PyTorch, timed before JAX takes the device's memory, its allocator's peak; on a CPU also the peak of resident
memory of one call in a process of its own. Beside a time stands that of three products at the rate that this machine has for the library's products.
Errors are norms against float64 on the same inputs; half precision rounds gradients once, at the end ("float32 weights": nowhere). Float32 products are exact in every form.

Finding, on 2 CPU cores (jax 0.10.2, D 256): at (N 2048, V 50 257) and (1024, 128 256) `token_sum` takes, of the time of `token_log_probs`, 0.61 to 0.76 and
0.71 to 0.83 in float32 with other work beside it, but 0.96 and 1.12 alone on a slower machine (three products 0.56 s, 284 GFLOP/s; bfloat16 0.94 and 0.93); of the
plain form's 0.79 and 0.74 there, `token_log_probs` 0.83 and 0.67. By XLA's profile of the first size `token_sum` spends 0.70 s of 0.95 in its three products, since with the whole
vocabulary at once they reach 130 to 190 GFLOP/s where blocks of 2000 rows reach 210 to 290, 0.07 in additions to the unembedding's gradient and 0.16 in passes over the logits. Holding the logits of 1024
tokens in blocks of the vocabulary (two loops, 206 MiB) took 0.73 to 0.81 s where it took 0.77 to 0.88 itself and four products in blocks 0.83: no more than a tenth, for twice the memory. Chunks of tokens, checkpointed, take 1.5 to 1.7 of the plain form's: each reads and adds to a whole
gradient of the unembedding. In float32 MiB are 99 and 251 for `token_sum`, 17 and 11 for `token_log_probs`, 1178 and 1503
for the plain form, 785 and 1002 for optax's; bfloat16 adds two copies of the unembedding in float32 to `token_sum` (its gradient, and what a CPU
multiplies) and one to `token_log_probs`. Errors at V 32 000: log-probabilities 4e-8 to 5e-8 in float32, bfloat16 and float16 alike, gradients 5e-7,
of bfloat16 2e-3 (one rounding; 5e-7 from float32 weights), of float16 2e-4; logits of standard deviation 8: 2e-7 and 2e-6; with a common mean of 8:
2e-7 and 4.5e-6, where the plain form loses the gradient in the hidden states of bfloat16 to 1.4e-2. In float16 the plain form's log-probabilities are
right to 2e-5, and to 1.5e-4 there.

Finding, on an H100 80GB (jax 0.11.2; copy 2.2 to 2.4 TB/s, products of 8192^3 in bfloat16 607 to 653 TFLOP/s, in float32 by default 347, `highest` 49, TF32_TF32_F32_X3 110,
BF16_BF16_F32_X6 96), bfloat16, D 4096, V 128 256, milliseconds (temporary GiB):

    N 8192                                     value and gradients   forward
    plain log-softmax                             41.0  (7.83)        13.6
    optax cross-entropy                           39.7  (5.87)
    token_sum                                     43.2  (2.49)        15.0    1.96 of them the float32 gradient of the unembedding
    token_sum with an entropy                     47.6  (3.44)
    token_sum, float32 weights, bfloat16 products 43.0  (2.46)
    token_log_probs, blocks of 8016 rows          63.0  (0.80)        17.2    (120 when operands were cast to float32 first)
                               16 032             60.6  (1.35)        16.3
                               32 064             57.8  (2.45)        15.3
    torch eager                                   51.6 (11.8)
    Liger fused cross-entropy                     64.4  (1.10)
    Liger GRPO                                   488.7  (3.99)
    N 32 768
    optax 168.5 (23.5), token_sum 170.6 (2.49), Liger 168.0 (1.47, accumulates in half precision), torch eager 216

Float32, N 4096, D 2048, V 50 257: token_log_probs 54.2 with three TF32 products for each (six in bfloat16, now the default, not timed), `highest` 89.2, the plain form at `highest` 51.4. Errors of log-probabilities,
d unembedding and d hidden there (N 512, D 1024, V 50 257): 3.6e-8, 1.6e-7, 2.9e-7 (2.5e-5, 2.9e-4, 3.0e-4 when products were XLA's default), in `highest` 6.4e-8, 4.1e-7,
2.0e-6; with logits of standard deviation 8 in `highest` 3.5e-7, 3.9e-6, 3.9e-6. So a loss that is a sum takes the time of all logits at once in a third of their memory, and single
log-probabilities half as much again in a tenth.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import logderiv as ld
from benchmarks import harness, token_peers
from benchmarks.harness import Bound, Report, Table, at_most
from logderiv.likelihood.logits import Arithmetic


class Size(NamedTuple):
    """N tokens, D features, V tokens in the vocabulary, and the dtype of hidden states and unembedding."""

    num: int
    width: int
    vocabulary: int
    dtype: str = "float32"


_PLACES = ((2048, 256, 32000), (2048, 256, 50257), (2048, 256, 128256), (1024, 256, 128256))
CPU_SIZES = tuple(Size(*place, dtype) for place in _PLACES for dtype in ("float32", "bfloat16"))
GPU_SIZES = (
    Size(8192, 4096, 128256, "bfloat16"),
    Size(32768, 4096, 128256, "bfloat16"),
    Size(4096, 2048, 50257),
)
QUICK_SIZES = (Size(128, 256, 50257),)
LARGEST_ERROR_SIZE = 256  # tokens
COMMON = "a common mean"
# Standard deviation of the logits, and that of what all logits of a token share.
KINDS = {"standard deviation 1": (1, 0), "standard deviation 8": (8, 0), COMMON: (1, 8)}
DTYPES = ("float32", "bfloat16", "float16")

SUM, CLIPPED, LOG_PROBS = "ld.token_sum", "ld.token_sum, clipped ratio", "ld.token_log_probs"
PLAIN, OPTAX, CHUNKED = "plain log-softmax", "optax cross-entropy", "plain, chunks of tokens, checkpointed"
FROM_FLOAT32 = "ld.token_sum, float32 weights"
Form = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def inputs(
    size: Size, *, deviation: float = 1.0, mean: float = 0.0
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Unembedding, hidden states, tokens and weights; the logits' standard deviation, and that of what those of a token share."""
    keys = jax.random.split(jax.random.key(0), 5)
    unembedding = jax.random.normal(keys[0], (size.vocabulary, size.width), jnp.float32)
    unembedding += mean / deviation * jax.random.normal(keys[4], (1, size.width), jnp.float32)
    hidden = deviation * jax.random.normal(keys[1], (size.num, size.width), jnp.float32)
    tokens = jax.random.randint(keys[2], (size.num,), 0, size.vocabulary, jnp.int32)
    weights = jax.random.normal(keys[3], (size.num,), jnp.float32)
    return (unembedding / math.sqrt(size.width)).astype(size.dtype), hidden.astype(size.dtype), tokens, weights


def plain(unembedding: jax.Array, hidden: jax.Array, tokens: jax.Array) -> jax.Array:
    """What one would write first."""
    log_probs = jax.nn.log_softmax(_logits(unembedding, hidden))
    return jnp.take_along_axis(log_probs, tokens[:, None], axis=1)[:, 0]


def chunked(unembedding: jax.Array, hidden: jax.Array, tokens: jax.Array) -> jax.Array:
    """The plain form of a few tokens at a time, recomputed on the way back."""
    one = jax.checkpoint(lambda x: plain(unembedding, *x))
    chunk = min(256 if jax.default_backend() == "cpu" else 1024, tokens.size)
    parts = (hidden.reshape(-1, chunk, hidden.shape[1]), tokens.reshape(-1, chunk))
    return lax.map(one, parts).reshape(-1)


def cross_entropy(unembedding: jax.Array, hidden: jax.Array, tokens: jax.Array) -> jax.Array:
    """Optax's loss of all logits."""
    return jnp.negative(optax.softmax_cross_entropy_with_integer_labels(_logits(unembedding, hidden), tokens))


def _logits(unembedding: jax.Array, hidden: jax.Array) -> jax.Array:
    """In float32 at least; a float32 product is exact on every device, as the library's is."""
    precision = "highest" if hidden.dtype == jnp.float32 else None
    logits = jnp.matmul(hidden, unembedding.T, precision=precision)
    return logits if logits.dtype == jnp.float64 else logits.astype(jnp.float32)


def _blocked(unembedding: jax.Array, hidden: jax.Array, tokens: jax.Array) -> jax.Array:
    return ld.token_log_probs(unembedding, hidden, tokens).log_probs


def _weighted(log_probs: Callable[..., jax.Array]) -> Form:
    def form(unembedding: jax.Array, hidden: jax.Array, tokens: jax.Array, weights: jax.Array) -> Any:
        found = log_probs(unembedding, hidden, tokens)
        return jnp.vdot(weights.astype(found.dtype), found), found

    return form


def _summed(term: Callable[..., jax.Array], compute_dtype: Any = None) -> Form:
    def form(unembedding: jax.Array, hidden: jax.Array, tokens: jax.Array, weights: jax.Array) -> Any:
        found = ld.token_sum(term, unembedding, hidden, tokens, weights, compute_dtype=compute_dtype)
        return found.value, found.numbers.log_prob

    return form


def weighted(token: Any, weight: jax.Array) -> jax.Array:
    """The term of the weighted sum."""
    return weight * token.log_prob


def clipped(token: Any, weight: jax.Array) -> jax.Array:
    """The term of PPO and GRPO."""
    ratio = jnp.exp(token.log_prob - token_peers.OLD_LOG_PROB)
    return jnp.minimum(ratio * weight, jnp.clip(ratio, 0.8, 1.2) * weight)


FORMS: dict[str, Form] = {
    SUM: _summed(weighted),
    CLIPPED: _summed(clipped),
    LOG_PROBS: _weighted(_blocked),
    PLAIN: _weighted(plain),
    OPTAX: _weighted(cross_entropy),
    CHUNKED: _weighted(chunked),
}


def value_and_gradients(form: Form) -> Callable[..., Any]:
    """Value and log-probabilities, and the gradients in the unembedding and the hidden states."""
    return jax.value_and_grad(form, (0, 1), has_aux=True)


def prepare(name: str, *size: Any) -> Callable[[], Any]:
    """The call of one candidate, ready to run; `harness.peak_rss` calls it in a process of its own."""
    arguments = inputs(Size(*size))
    if name == token_peers.TORCH:
        return token_peers.calls(*arguments)[name]
    return harness.compile_call(value_and_gradients(FORMS[name]), *arguments).run


def measure(
    size: Size, others: Mapping[str, dict[str, Any]], *, repeats: int, resident: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Seconds, compile seconds, memory beyond inputs and outputs in MiB, and errors, for every candidate, beside what is known of the others.

    Memory is what XLA plans for a program. What a process of its own takes on a CPU is measured of those named `resident`.
    """
    arguments, rows, calls = inputs(size), {}, {}
    for name, form in FORMS.items():
        try:
            calls[name] = call = harness.compile_call(value_and_gradients(form), *arguments)
            if jax.default_backend() != "cpu":
                call()
        except RuntimeError as error:
            if not token_peers.is_out_of_memory(error):
                raise
            rows[name] = {"failed": "out of memory"}
            calls.pop(name, None)
        else:
            temp = None if call.temp_bytes is None else call.temp_bytes / 2**20
            rows[name] = {"compile_seconds": call.compile_seconds, "temp_mib": temp}
    timed = {"seconds": calls}
    if jax.default_backend() != "cpu":
        timed["forward"] = {n: harness.compile_call(lambda *x, form=FORMS[n]: form(*x)[0], *arguments) for n in calls}
    for key, runs in timed.items():
        for name, seconds in harness.interleaved_medians(runs, repeats).items():
            rows[name][key] = seconds
    small = size._replace(num=min(size.num, LARGEST_ERROR_SIZE))
    for name, found in errors(small, [n for n in (SUM, LOG_PROBS, PLAIN, OPTAX) if n in calls]).items():
        rows[name] |= {"log_prob_error": found["log_probs"], "worst": max(found["d_unembedding"], found["d_hidden"])}
    rows |= {name: dict(row) for name, row in others.items()}
    outputs = sum(x.nbytes for x in arguments[:2])
    for name in rows:
        if name in resident and jax.default_backend() == "cpu":
            peak = harness.peak_rss("benchmarks.token_speed:prepare", name, *size)
            rows[name]["resident_mib"] = (peak - outputs) / 2**20
    return rows


def errors(size: Size, names: Sequence[str], **kind: float) -> dict[str, dict[str, float]]:
    """Relative errors (norms) of log-probabilities and both gradients against float64 on the same inputs."""
    given = inputs(size, **kind)
    with jax.enable_x64(True):
        wide = (x.astype(jnp.float64) for x in given[:2])
        exact = jax.device_get(_everything(FORMS[PLAIN])(*wide, *given[2:]))
    found = {}
    for name in names:
        form, arguments = FORMS.get(name), given
        if form is None:  # half precision in the products alone: gradients are rounded nowhere
            form = _summed(weighted, given[0].dtype)
            arguments = (*(x.astype(jnp.float32) for x in given[:2]), *given[2:])
        ours = jax.device_get(_everything(form)(*arguments))
        found[name] = {
            quantity: float(np.linalg.norm(np.asarray(x, np.float64) - e) / np.linalg.norm(e))
            for quantity, x, e in zip(("log_probs", "d_unembedding", "d_hidden"), ours, exact, strict=True)
        }
    return found


def _everything(form: Form) -> Callable[..., Any]:
    @jax.jit
    def run(*arguments: jax.Array) -> Any:
        (_, log_probs), gradients = value_and_gradients(form)(*arguments)
        return log_probs, *gradients

    return run


def all_errors(size: Size, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Those of the library and the plain form, for every kind of logits and every dtype."""
    rows = []
    for kind in kinds:
        for dtype in DTYPES:
            names = [SUM, *([FROM_FLOAT32] if dtype != "float32" else []), LOG_PROBS, PLAIN]
            deviation, mean = KINDS[kind]
            for name, found in errors(size._replace(dtype=dtype), names, deviation=deviation, mean=mean).items():
                rows.append({"form": name, "dtype": dtype, "kind": kind} | found)
    return rows


def product_rate(size: Size) -> float:
    """Matrix products as the library takes them, 1e9 operations a second: the best of large ones and of those of blocks."""
    how = Arithmetic.of(None, size.dtype, size.dtype)
    block = min(512, size.vocabulary)
    of_blocks = [(size.num, size.width, block), (size.num, block, size.width), (block, size.num, size.width)]
    shapes = [(1024, 1024, 1024), *of_blocks]
    if jax.default_backend() != "cpu":
        shapes = [(8192, 8192, 8192)]
    return max(harness.matmul_gflops(*shape, jnp.dtype(how.operands).name, how.precision) for shape in shapes)


Measured = Mapping[Size, Mapping[str, Mapping[str, Any]]]


def timing_bounds(measured: Measured, backend: str) -> list[Bound]:
    """On times and memory, of those candidates that were measured."""
    if backend == "cpu":
        ratios = [
            (LOG_PROBS, "seconds", (PLAIN,), 1.05),
            (LOG_PROBS, "temp_mib", (PLAIN,), 0.1),
            (LOG_PROBS, "resident_mib", (PLAIN,), 0.1),
            (SUM, "seconds", (LOG_PROBS,), 0.85),
        ]
    else:
        ratios = [
            (LOG_PROBS, "seconds", (PLAIN,), 1.5),
            (LOG_PROBS, "forward", (PLAIN,), 1.2),
            (SUM, "seconds", (PLAIN, OPTAX), 1.2),
        ]
    bounds = []
    for size, rows in measured.items():
        at = ", ".join(map(str, size))
        for ours, key, theirs, limit in ratios:
            mine, others = rows[ours].get(key), [rows[name][key] for name in theirs if rows[name].get(key) is not None]
            if mine is not None and others:
                bounds.append(
                    at_most(f"{key} of {ours} over that of {' or '.join(theirs)}, {at}", mine / min(others), limit)
                )
        # A chunk's logits, and in float32 the gradient of the unembedding, on a CPU the unembedding itself, too.
        chunks, copies = (3 * 256 * size.vocabulary * 4 / 2**20, 2) if backend == "cpu" else (1536, 1)
        limits = {SUM: chunks + copies * 4 * size.vocabulary * size.width / 2**20}
        for name, limit in (limits | ({} if backend == "cpu" else {LOG_PROBS: 1024})).items():
            if rows[name].get("temp_mib") is not None:
                bounds.append(at_most(f"temporary MiB of {name}, {at}", rows[name]["temp_mib"], limit))
    return bounds


def _error_bounds(rows: Sequence[Mapping[str, Any]]) -> list[Bound]:
    """Half precision rounds gradients once, at the end; where a device rounds derivatives of the logits, too, what all rows share does not cancel."""
    limits = {"float32": (1e-6, 1e-5), "bfloat16": (1e-6, 2**-8)}
    return [
        at_most(
            f"error of {quantity}, {row['form']}, {row['dtype']}, {row['kind']}",
            row[quantity],
            limits[row["dtype"]][i > 0],
        )
        for row in rows
        for i, quantity in enumerate(("log_probs", "d_unembedding", "d_hidden"))
        if row["form"] != PLAIN and row["dtype"] in limits
        if row["dtype"] == "float32" or row["kind"] != COMMON
    ]


def main(quick: bool) -> Report:
    backend = jax.default_backend()
    sizes, repeats = (QUICK_SIZES, 2) if quick else (CPU_SIZES, 5) if backend == "cpu" else (GPU_SIZES, 5)
    resident = () if quick else (SUM, LOG_PROBS, PLAIN, OPTAX, token_peers.TORCH)
    others = {size: token_peers.measure(inputs(size), repeats=repeats) for size in sizes}
    token_peers.release()
    measured = {size: measure(size, others[size], repeats=repeats, resident=resident) for size in sizes}
    rates = {size: product_rate(size) for size in sizes}
    errors_of, kinds = Size(256, 256, 32000) if backend == "cpu" else Size(512, 1024, 50257), list(KINDS)
    if quick:
        errors_of, kinds = Size(32, 256, 8000), kinds[:1]
    found = all_errors(errors_of, kinds)
    tables = [_table(size, rows, rates[size]) for size, rows in measured.items()]
    left_out = token_peers.available()[1]
    tables.append(
        Table(
            f"Relative errors against float64, N = {errors_of.num}, D = {errors_of.width}, V = {errors_of.vocabulary}",
            "logits, dtype, form | log-probabilities | d unembedding | d hidden",
            "{r[kind]}, {r[dtype]}, {r[form]} | " + harness.cells(("log_probs", "d_unembedding", "d_hidden"), ".1e"),
            found,
            f"not installed, left out: {', '.join(left_out)}" if left_out else "",
        )
    )
    numbers = [size._asdict() | {"product_gflops": rates[size], "forms": forms} for size, forms in measured.items()]
    bounds, timings = _error_bounds(found), timing_bounds(measured, backend)
    return Report(tables, bounds, {"sizes": numbers, "errors": found}, partial(_draw, measured), timings)


def _table(size: Size, rows: Mapping[str, Mapping[str, Any]], rate: float) -> Table:
    least = 6e-9 * size.num * size.width * size.vocabulary / rate
    first = rows[PLAIN].get("seconds", math.nan)
    derived = {}
    for name, row in rows.items():
        seconds, forward = row.get("seconds", math.nan), row.get("forward", math.nan)
        derived[name] = {"form": name, "ms": 1e3 * seconds, "forward ms": 1e3 * forward}
        derived[name] |= {"over plain": seconds / first, "of products": least / seconds}
    failed = [f"{name}: {row['failed']}" for name, row in rows.items() if "failed" in row]
    products = f"the machine's own products, {rate:.0f} GFLOP/s here: three take {1e3 * least:.0f} ms"
    return Table(
        f"Value and both gradients, {size.dtype}, N = {size.num}, D = {size.width}, V = {size.vocabulary}, medians",
        "form | ms | forward ms | over plain | three products over it | temporary MiB | resident MiB"
        " | error log p | of gradients | compile s",
        "{r[form]} | {r[ms]:.1f} | {r[forward ms]:.1f} | {r[over plain]:.2f} | {r[of products]:.2f}"
        " | {r[temp_mib]:.0f} | {r[resident_mib]:.0f} | {r[log_prob_error]:.1e} | {r[worst]:.1e} | {r[compile_seconds]:.1f}",
        [derived[name] | dict(row) for name, row in rows.items()],
        "\n".join([f"{products}; errors of at most {LARGEST_ERROR_SIZE} tokens", *failed]),
    )


def _draw(measured: Measured) -> Any:
    figure, axes = harness.new_figure(ncols=2, figsize=(12, 4.5))
    labels = [f"{size.num}, {size.vocabulary}\n{size.dtype}" for size in measured]
    names = list(dict.fromkeys(name for rows in measured.values() for name in rows))
    for name in names:
        for ax, key, scale in zip(axes, ("seconds", "temp_mib"), (1e6, 2**10), strict=True):
            found = [rows.get(name, {}).get(key) for rows in measured.values()]
            values = [math.nan if x is None else scale * x / size.num for x, size in zip(found, measured, strict=True)]
            ax.plot(labels, values, "o-", label=name)
    axes[0].set(ylabel="microseconds per token", ylim=(0, None))
    axes[1].set(ylabel="temporary KiB per token", yscale="log")
    for ax in axes:
        ax.tick_params(axis="x", labelsize=7)
    return figure
