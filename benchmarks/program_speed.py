r"""What do plain calls cost beside a tape by hand, and beside the same estimator written out in JAX?

Value and gradient of an expected cost: 64 runs of 1000 steps, in each of which a coin is flipped, a second one where the first shows a one, and a cost is paid;
score function with costs charged to what came before, float32. The three draw the same numbers of choices; plain calls and tape the same choices. Compile
time apart from run time, temporary memory as XLA has it, operations counted in what was compiled. NumPyro's `TraceGraph_ELBO` does not take a choice inside `scan`
and `cond` with costs along the way. What it can express is a second table: an evidence bound of a chain of 20 coins, each with a name, 64 runs, the same estimator
(`benchmarks/program_elbo.py`); where NumPyro is not installed its row is left out.

Finding (2 CPU cores, jax 0.10.2): plain calls take the time and the memory of the tape, 1.3 % more operations and 0.1 s more to compile; both take 1.4 to 1.6 times the
form by hand, which draws from the probability where the library draws from the logit, exact in both tails.

The bound of 20 coins takes NumPyro (0.22) 0.9 of the time of plain calls unrolled, as it has to be, and 1.1 to 1.4 times that of plain calls in a scan, which it
does not take; it compiles in 3.9 s, they in 7.6 and 0.8.

Bounds: plain calls and tape return the same numbers; the form by hand the same expectation within five standard errors; NumPyro's
gradient has the exact mean, and the variance of plain calls, within five standard errors, where no gradient at all is more than ten away.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import logderiv as ld
from benchmarks import harness, program_elbo
from benchmarks.harness import Bound, Report, Table, at_least, at_most
from logderiv.estimators import box

PARAMS = jnp.array([0.2, -0.3], jnp.float32)
SIZES = {False: (64, 1000), True: (8, 50)}  # runs, steps
COINS = {False: 20, True: 5}  # of the evidence bound


def first_logit(params: jax.Array, level: jax.Array) -> jax.Array:
    """Of the first coin of a step."""
    return params[0] + params[1] * level


def moved(level: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    """The level that the next step starts from, bounded."""
    return jnp.tanh(0.9 * level + first - second)


def plain_calls(steps: int) -> Callable[[jax.Array], None]:
    """The model."""

    def model(params: jax.Array) -> None:
        def flip(logit: jax.Array) -> jax.Array:
            return ld.sample(ld.Bernoulli(logit)).astype(jnp.float32)

        def step(level: jax.Array, _: None) -> tuple[jax.Array, None]:
            first = flip(first_logit(params, level))
            second = lax.cond(first > 0, lambda: flip(params[1] * level), lambda: jnp.zeros((), jnp.float32))
            level = moved(level, first, second)
            ld.cost(level)
            return level, None

        lax.scan(step, jnp.zeros((), jnp.float32), None, length=steps)

    return model


def by_tape(steps: int) -> Callable[..., ld.Tape]:
    """The same program with its tape in hand."""

    def program(params: jax.Array, tape: ld.Tape) -> ld.Tape:
        def flip(tape: ld.Tape, logit: jax.Array) -> tuple[ld.Tape, jax.Array]:
            tape, x = tape.sample(ld.Bernoulli(logit))
            return tape, x.astype(jnp.float32)

        def step(carry: Any, _: None) -> tuple[Any, None]:
            tape, level = carry
            tape, first = flip(tape, first_logit(params, level))
            tape, second = lax.cond(
                first > 0,
                lambda tape: flip(tape, params[1] * level),
                lambda tape: (tape, jnp.zeros((), jnp.float32)),
                tape,
            )
            level = moved(level, first, second)
            return (tape.cost(level), level), None

        (tape, _), _ = lax.scan(step, (tape, jnp.zeros((), jnp.float32)), None, length=steps)
        return tape

    return program


def by_hand(steps: int, runs: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The surrogate written out: Σ_t c_t □(log P of the choices up to t)."""

    def log_prob(x: jax.Array, logit: jax.Array) -> jax.Array:
        return -jnp.logaddexp(0, jnp.where(x > 0, -logit, logit))

    def run(params: jax.Array, key: jax.Array) -> jax.Array:
        def flip(key: jax.Array, logit: jax.Array) -> tuple[jax.Array, jax.Array]:
            x = jax.random.bernoulli(key, jax.nn.sigmoid(lax.stop_gradient(logit))).astype(jnp.float32)
            return x, log_prob(x, logit)

        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            level, logs, total = carry
            keys = jax.random.split(key)
            first, log = flip(keys[0], first_logit(params, level))
            zeros = (jnp.zeros((), jnp.float32),) * 2
            second, other = lax.cond(first > 0, lambda: flip(keys[1], params[1] * level), lambda: zeros)
            level, logs = moved(level, first, second), logs + log + other
            return (level, logs, total + level * box(logs)), None

        return lax.scan(step, (jnp.zeros((), jnp.float32),) * 3, jax.random.split(key, steps))[0][2]

    return lambda params, key: jnp.mean(jax.vmap(run, (None, 0))(params, jax.random.split(key, runs)))


def operations(function: Callable[..., Any], *args: Any) -> int:
    """Lines of the compiled program that compute something."""
    text = jax.jit(function).lower(*args).compile().as_text() or ""
    return sum(" = " in line for line in text.splitlines())


def main(quick: bool) -> Report:
    """Measure the three forms."""
    runs, steps = SIZES[quick]
    key = jax.random.key(0)
    forms = {
        "plain calls": ld.expectation(plain_calls(steps), num_samples=runs),
        "tape": ld.expectation(by_tape(steps), num_samples=runs),
        "by hand": by_hand(steps, runs),
    }
    rows, compiled = _measured(forms, key)
    (value, slope), (same, same_slope) = (compiled[name].run() for name in ("plain calls", "tape"))
    table = _table(f"Value and gradient of {runs} runs of {steps} steps", rows, "by hand")
    bounds_of_coins, coins, coin_table = _of_coins(runs, COINS[quick], key)
    apart = float(jnp.max(jnp.abs(slope - same_slope)) / jnp.max(jnp.abs(same_slope)))
    bounds = [
        at_most("plain calls against tape, value", abs(float(value - same)), 0),
        at_most("plain calls against tape, gradient, relative", apart, 1e-5),
        at_most(
            "plain calls against by hand, value, standard errors",
            _apart(forms["plain calls"], forms["by hand"], key),
            5,
        ),
        *bounds_of_coins,
    ]
    times = [rows[name]["seconds"] for name in ("plain calls", "tape")]
    timings = [at_most("plain calls over tape, time", times[0] / times[1], 1.1)]
    return Report([table, coin_table], bounds, {"rows": rows, "coins": coins}, partial(_draw, rows), timings)


def _measured(forms: dict[str, Any], key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    """Numbers of each form, and its compiled value and gradient."""
    functions = {name: jax.value_and_grad(form) for name, form in forms.items()}
    compiled = {name: harness.compile_call(function, PARAMS, key) for name, function in functions.items()}
    seconds = harness.interleaved_medians({name: x.run for name, x in compiled.items()})
    rows = {
        name: {
            "seconds": seconds[name],
            "compile_seconds": x.compile_seconds,
            "temp_mib": (x.temp_bytes or 0) / 2**20,
            "operations": operations(functions[name], PARAMS, key),
        }
        for name, x in compiled.items()
    }
    return rows, compiled


def _table(title: str, rows: dict[str, Any], unit: str) -> Table:
    shown = [
        (n, 1e3 * r["seconds"], r["seconds"] / rows[unit]["seconds"], r["compile_seconds"], r) for n, r in rows.items()
    ]
    return Table(
        title,
        f"form | ms | times {unit} | compile s | temporary MiB | operations",
        "{r[0]} | {r[1]:.3f} | {r[2]:.2f} | {r[3]:.2f} | {r[4][temp_mib]:.2f} | {r[4][operations]}",
        shown,
    )


def _of_coins(runs: int, steps: int, key: jax.Array) -> tuple[list[Bound], dict[str, Any], Table]:
    """The evidence bound by plain calls and by NumPyro."""
    forms = program_elbo.forms(runs, steps)
    rows, _ = _measured(forms, key)
    theirs = program_elbo.NUMPYRO in forms
    bounds = _same_estimator(key) if theirs else []
    said = "" if theirs else f"; {program_elbo.OPTIONAL} is not installed, its row is left out"
    title = f"Value and gradient of an evidence bound of {steps} coins, {runs} runs{said}"
    return bounds, rows, _table(title, rows, program_elbo.UNROLLED)


def _same_estimator(key: jax.Array) -> list[Bound]:
    """Gradients of single runs of five coins: their mean beside the exact one, and their variance beside each other's."""
    forms, point = program_elbo.forms(1, COINS[True]), jnp.array([1.2, -0.8], jnp.float32)
    keys = jax.random.split(key, 20_000)
    ours, theirs = (
        np.asarray(jax.jit(jax.vmap(jax.grad(forms[name]), (None, 0)))(point, keys), np.float64)
        for name in (program_elbo.UNROLLED, program_elbo.NUMPYRO)
    )
    size = {"num_choices": COINS[True], "num_outcomes": 2}
    seen = program_elbo.data(COINS[True])
    exact = jax.grad(lambda params: ld.exact.program_value(params, program_elbo.scanned, seen, **size))(point)
    errors = np.std(theirs, axis=0) / np.sqrt(len(keys))
    squares = [np.square(x - np.mean(x, axis=0)) for x in (ours, theirs)]
    spread = np.sqrt(sum(np.var(x, axis=0) for x in squares) / len(keys))
    apart = np.abs(np.mean(theirs, axis=0) - np.asarray(exact)) / errors
    return [
        at_most("NumPyro's gradient against the exact one, standard errors", np.max(apart), 5),
        at_least("no gradient against the exact one, standard errors", np.max(np.abs(exact) / errors), 10),
        at_most(
            "plain calls against NumPyro, variance of the gradient, standard errors",
            np.max(np.abs(np.mean(squares[0], axis=0) - np.mean(squares[1], axis=0)) / spread),
            5,
        ),
    ]


def _apart(ours: Callable[..., Any], other: Callable[..., Any], key: jax.Array) -> float:
    """The difference of two means in standard errors, from 32 of each."""
    keys = jax.random.split(key, 32)
    means = [jax.jit(jax.vmap(form, (None, 0)))(PARAMS, keys) for form in (ours, other)]
    error = jnp.sqrt(sum(jnp.var(x, ddof=1) for x in means) / len(keys))
    return float(jnp.abs(jnp.mean(means[0]) - jnp.mean(means[1])) / error)


def _draw(rows: dict[str, Any]) -> Any:
    figure, axes = harness.new_figure(ncols=2, figsize=(9, 3))
    for ax, (field, label) in zip(axes, (("seconds", "run, s"), ("compile_seconds", "compile, s")), strict=True):
        ax.barh(list(rows)[::-1], [row[field] for row in rows.values()][::-1])
        ax.set(xlabel=label)
    return figure
