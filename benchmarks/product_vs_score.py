r"""At which length does a product of probabilities stop being usable, and what goes on?

T equal factors p, the policy's only parameter being p itself: $P = p^T$, $\nabla P = T p^{T-1}$, $\nabla\log P = T/p$. The product side
is `ld.prob` and its direct differentiation, the score side `jax.grad(ld.log_prob)` and `ld.grad_prob`, all in the dtype
under test and held against exact arithmetic (mpmath, 50 digits) with the factor as that dtype rounds it.

Finding (2 CPU cores, jax 0.10.2): in float32 a product of fair coins is gone at T = 127, in float64 at 1023; its gradient one step later, and the
gradient of its logarithm is inf or NaN from there on. The score form goes on to T = 10^6 in every dtype, except that a float16 *parameter* cannot
hold a gradient above 65504; keep the parameters in float32 and it goes on as well.

XLA's CPU backend flushes subnormal numbers to zero in bfloat16, float32 and float64 but keeps them in float16, where a
product can come to rest above zero: the smallest numbers times 0.99 or 0.9 round to themselves. Its ratio grad P / P is
then finite and meaningless. In float16 grad log(P) fails before P does, because its 1 / P passes 65504.
A gradient has the dtype of its parameter. grad log P = T / p passes float16's largest number, 65504, at T = 65504 p, and
the signed-log gradient is built from it. With the parameter in float32 and the factors still in float16 it goes on.
In half precision log(p) itself is rounded to 11 bits (float16) or 8 (bfloat16): that is the error left there.
The gradient of a bfloat16 product takes time quadratic in T on XLA's CPU backend (a loop's stacked bfloat16 results are
converted as a whole at every step), so it is timed at T = 4096 only.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
from jax import lax

import logderiv as ld
from benchmarks import peers
from benchmarks.harness import Report, Table, at_most, compile_call, interleaved_medians, new_figure
from logderiv import plots
from logderiv._core.pytrees import pytree
from logderiv.likelihood.probability import all_factors, running_product

DTYPES = ("float16", "bfloat16", "float32", "float64")
FACTORS = (0.99, 0.9, 0.5, 1 / 3, 0.25, 0.1, 0.01)
LONG = 10**6
QUANTITIES = ("log P", "grad log P")
METHODS = ("the product", "a plain scan of logarithms", "logderiv, value_and_grad")


@pytree
class Outcome:
    """A distribution of which one outcome is observed: all that matters is that outcome's probability."""

    value: jax.Array

    def prob(self, action: Any) -> jax.Array:  # noqa: ARG002
        """The probability itself."""
        return self.value

    def log_prob(self, action: Any) -> jax.Array:  # noqa: ARG002
        """Its logarithm."""
        return jnp.log(self.value)


@pytree(static=("dtype",))
class EqualFactors:
    """A policy whose parameter is the probability of every step, rounded to `dtype`."""

    dtype: str

    initial_carry = None
    log_factors = None

    def apply(self, params: jax.Array, observation: Any) -> Outcome:
        """The same outcome at every step."""
        del observation
        return Outcome(params.astype(self.dtype))


class Collapse(NamedTuple):
    """Where the product form ends for one dtype and factor; each `T` is the first at which it happens, `None` never.

    Attributes:
        prob: P is zero.
        grad: grad P, by direct differentiation, is zero.
        ratio: grad P / P is inf or NaN.
        log_grad: The gradient of log(P), the logarithm taken of the product, is inf or NaN.
        last_prob: The product at the greatest length tried: not zero if rounding has made it a fixed point.
    """

    dtype: str
    factor: float
    prob: int | None
    grad: int | None
    ratio: int | None
    log_grad: int | None
    last_prob: float


def steps(length: int) -> ld.Trajectory:
    """A trajectory whose content does not matter."""
    return peers.trajectory(jnp.zeros(length, jnp.int8), jnp.zeros(length, jnp.int8))


def first_steps(trajectory: ld.Trajectory, num: Any) -> ld.Trajectory:
    """Its first `num` steps, the others marked as padding: every length with one compiled program."""
    return trajectory._replace(valid=jnp.arange(trajectory.valid.shape[0], dtype=jnp.int32) < num)


def collapses(dtype: str, factors: Sequence[float]) -> list[Collapse]:
    """Where the product form ends, for all `factors` with one compiled program."""
    smallest = float(jnp.finfo(dtype).smallest_subnormal)
    length = math.ceil(1.1 * math.log(smallest) / math.log(max(factors))) + 8
    if dtype == "float16" and max(factors) > 0.5:
        length = LONG  # the product may come to rest above zero, so look as far as the score form goes
    tau, policy = steps(length), EqualFactors(dtype)

    def prob(p: jax.Array, part: ld.Trajectory) -> jax.Array:
        """P; in half precision not by the library, which takes the product in float32."""
        if jnp.finfo(dtype).bits >= 32:
            return ld.prob(p, policy, part)
        factors = all_factors(p, policy, tau).astype(dtype)
        return running_product(jnp.where(part.valid, factors, jnp.ones_like(factors)))[-1]

    @jax.jit
    def first_zero(p: jax.Array) -> jax.Array:
        """The number of factors at which the running product becomes zero, 0 if it never does."""
        running = running_product(all_factors(p, policy, tau).astype(dtype))
        return jnp.where(running[-1] == 0, jnp.argmax(running == 0) + 1, 0)

    @jax.jit
    def product_forms(p: jax.Array, num: jax.Array) -> dict[str, jax.Array]:
        part = first_steps(tau, num)
        value, grad = jax.value_and_grad(prob)(p, part)
        log_grad = jax.grad(lambda p: jnp.log(prob(p, part)))(p)
        return {"prob": value, "grad": grad, "ratio": grad / value, "log_grad": log_grad}

    def collapse(factor: float) -> Collapse:
        p = jnp.asarray(factor, dtype)
        at = cache(lambda num: jax.device_get(product_forms(p, jnp.int32(num))))
        zero = int(first_zero(p)) or None
        guess = zero or math.ceil(math.log(jnp.finfo(dtype).tiny) / math.log(factor))
        return Collapse(
            dtype,
            factor,
            zero,
            first_length(lambda num: at(num)["grad"] == 0, guess, length),
            first_length(lambda num: not np.isfinite(at(num)["ratio"]), guess, length),
            first_length(lambda num: not np.isfinite(at(num)["log_grad"]), guess, length),
            float(at(length)["prob"]),
        )

    return [collapse(factor) for factor in factors]


def first_length(fails: Callable[[int], Any], guess: int, limit: int) -> int | None:
    """The first number of steps in `1 .. limit` at which `fails`, which must stay true from there on; `None` if none."""
    low, high, stride = guess - 1, guess, 1
    while low > 0 and fails(low):
        low, high, stride = low - stride, low, 2 * stride
    low, stride = max(low, 0), 1
    while not fails(high):
        if high == limit:
            return None
        low, high, stride = high, min(high + stride, limit), 2 * stride
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(middle) else (middle, high)
    return high


class Survival(NamedTuple):
    """The score side after 10^6 steps: relative errors against exact arithmetic.

    Attributes:
        params: Dtype of the parameter.
        score: Of grad log P.
        log_prob: Of log P, from `ld.log_prob`.
        log_grad_prob: Of log|grad P|, from `ld.grad_prob`.
        score_overflows: First `T` at which the score is infinite, `None` if it never is.
    """

    dtype: str
    params: str
    factor: float
    score: float
    log_prob: float
    log_grad_prob: float
    score_overflows: int | None


def survivals(dtype: str, params: str, factors: Sequence[float], long: int = LONG) -> list[Survival]:
    """The score side after `long` steps, factors in `dtype`, the parameter in `params`."""
    tau, policy = steps(long), EqualFactors(dtype)

    @jax.jit
    def score_forms(p: jax.Array, num: jax.Array) -> Any:
        part = first_steps(tau, num)
        score = jax.grad(ld.log_prob)(p, policy, part)
        return score, ld.log_prob(p, policy, part), ld.grad_prob(p, policy, part).logabs

    def survival(factor: float) -> Survival:
        p = jnp.asarray(factor, params)
        rounded = float(p.astype(dtype))
        values = score_forms(p, jnp.int32(long))
        exact = exact_forms(rounded, long)
        score, logp, log_grad = (relative_error(float(x), e) for x, e in zip(values, exact, strict=True))
        overflows = None
        if not np.isfinite(float(values[0])):
            fails = cache(lambda num: not np.isfinite(score_forms(p, jnp.int32(num))[0]))
            overflows = first_length(fails, int(float(jnp.finfo(params).max) * rounded), long)
        return Survival(dtype, params, factor, score, logp, log_grad, overflows)

    return [survival(factor) for factor in factors]


def exact_forms(factor: float, length: int) -> tuple[Any, Any, Any]:
    """`T / p`, `T log p` and `log(T p^(T - 1))`, to 50 digits."""
    with mpmath.workdps(50):
        p, num = mpmath.mpf(factor), mpmath.mpf(length)
        return num / p, num * mpmath.log(p), mpmath.log(num) + (num - 1) * mpmath.log(p)


def relative_error(value: float, exact: Any) -> float:
    """`|value - exact| / |exact|`; inf or NaN where `value` is."""
    if not math.isfinite(value):
        return abs(value)
    with mpmath.workdps(50):
        return float(abs((mpmath.mpf(value) - exact) / exact))


def errors_by_length(factor: float, lengths: Sequence[int]) -> dict[str, dict[str, list[float]]]:
    """Relative errors of log P and grad log P in float32, in the order of `METHODS`."""
    tau, policy = steps(max(lengths)), EqualFactors("float32")

    @jax.jit
    def forms(p: jax.Array, num: jax.Array) -> Any:
        part = first_steps(tau, num)
        value, grad = jax.value_and_grad(ld.prob)(p, policy, part)
        plain = jax.value_and_grad(_plain_log_prob)(p, part.valid)
        return (jnp.log(value), grad / value), plain, jax.value_and_grad(ld.log_prob)(p, policy, part)

    p = jnp.float32(factor)
    found: dict[str, dict[str, list[float]]] = {quantity: {name: [] for name in METHODS} for quantity in QUANTITIES}
    for length in lengths:
        exact_score, exact_logp, _ = exact_forms(float(p), length)
        for name, values in zip(METHODS, forms(p, jnp.int32(length)), strict=True):
            for quantity, value, exact in zip(QUANTITIES, values, (exact_logp, exact_score), strict=True):
                found[quantity][name].append(relative_error(float(value), exact))
    return found


def _plain_log_prob(p: jax.Array, valid: jax.Array) -> jax.Array:
    return lax.scan(lambda total, v: (total + jnp.where(v, jnp.log(p), 0), None), jnp.float32(0), valid)[0]


def times(dtype: str, length: int) -> dict[str, float]:
    """Milliseconds of the product's gradient, the score and the signed-log gradient, and the seconds of compiling all."""
    args = (jnp.asarray(0.9, dtype), EqualFactors(dtype), steps(length))
    functions = {"product": jax.value_and_grad(ld.prob), "score": jax.value_and_grad(ld.log_prob)}
    functions["signed-log"] = ld.grad_prob
    if dtype == "bfloat16" and length > 10**4:
        del functions["product"]  # quadratic in T, see the note that is printed
    calls = {name: compile_call(function, *args) for name, function in functions.items()}
    seconds = interleaved_medians(calls, repeats=5)
    compiling = sum(call.compile_seconds for call in calls.values())
    return {name: 1e3 * s for name, s in seconds.items()} | {"compile_s": compiling}


def main(quick: bool) -> Report:
    long, factors = (10**5, FACTORS[1:4]) if quick else (LONG, FACTORS)
    found, survived, seconds = [], [], []
    for dtype in DTYPES:
        with jax.enable_x64(dtype == "float64"):
            found += collapses(dtype, factors[:2]) + collapses(dtype, factors[2:])
            for params in dict.fromkeys((dtype, "float64" if dtype == "float64" else "float32")):
                survived += survivals(dtype, params, factors, long)
            seconds += [{"dtype": dtype, "T": length} | times(dtype, length) for length in (4096, long)[quick:]]
    worst = [s for s in survived if s.dtype == s.params == "float32"]
    where = f"float32, T = {long:.0e}, worst factor"
    bounds = [at_most(f"log_prob, {where}", max(s.log_prob for s in worst), 1e-5)]
    bounds += [at_most(f"grad_prob, {where}", max(s.log_grad_prob for s in worst), 1e-5)]
    lengths = np.unique(np.geomspace(1, long, 13 if quick else 37).astype(int)).tolist()
    errors = errors_by_length(0.9, lengths)
    numbers = {"collapse": found, "survival": survived, "seconds": seconds}
    numbers |= {"lengths": lengths, "relative_error": errors}
    return Report(_tables(found, survived, seconds, long), bounds, numbers, partial(_draw, found, lengths, errors))


def _tables(found: list[Collapse], survived: list[Survival], seconds: list[dict[str, Any]], long: int) -> list[Table]:
    worst = []
    for dtype, params in dict.fromkeys((s.dtype, s.params) for s in survived):
        group = [s for s in survived if (s.dtype, s.params) == (dtype, params)]
        overflow = [s.score_overflows for s in group if s.score_overflows]
        where = f"{min(overflow)} .. {max(overflow)}" if overflow else "never"
        worst.append((dtype, params, *np.max([(s.score, s.log_prob, s.log_grad_prob) for s in group], axis=0), where))
    return [
        Table(
            "The product of T equal factors: the first T at which ..., - for never; and where the product comes to rest",
            "dtype | factor | P = 0 | grad P = 0 | grad P / P inf or NaN | grad log(P) inf or NaN | last P",
            "{r.dtype} | {r.factor:.4g} | {r.prob} | {r.grad} | {r.ratio} | {r.log_grad} | {r.last_prob:.3g}",
            found,
        ),
        Table(
            f"The score side at T = {long:.0e}, worst factor: relative error against exact arithmetic",
            "factors | parameter | grad log P | log P | log|grad P| | score overflows from T",
            "{r[0]} | {r[1]} | {r[2]:.1e} | {r[3]:.1e} | {r[4]:.1e} | {r[5]}",
            worst,
        ),
        Table(
            "Time in ms, median of 5 interleaved runs: value and gradient",
            "dtype | T | product | score | signed-log | compiling all, s",
            "{r[dtype]} | {r[T]} | {r[product]:.3g} | {r[score]:.3g} | {r[signed-log]:.3g} | {r[compile_s]:.2f}",
            seconds,
        ),
    ]


def _draw(found: list[Collapse], lengths: list[int], errors: dict[str, dict[str, list[float]]]) -> Any:
    figure, axes = new_figure(ncols=3, figsize=(15, 4.6))
    ends = {c.factor: c.prob for c in found if c.dtype == "float32"}
    for ax, (quantity, curves) in zip(axes[:2], errors.items(), strict=True):
        plots.relative_error(lengths, curves, floor=1e-9, ax=ax)
        ax.set(title=f"{quantity}, float32, factors of 0.9", ylim=(5e-10, 1))
        ax.axvline(ends[0.9], color="0.4", linestyle=":", label=f"product 0 from T = {ends[0.9]}; cross: last T before")
        ax.legend(loc="upper left")
    for dtype, marker, size in zip(DTYPES, "osD^", (6, 11, 5, 6), strict=False):
        points = [(f"{c.factor:.3g}", c.log_grad) for c in found if c.dtype == dtype and c.log_grad]
        fill = "none" if dtype == "bfloat16" else "full"  # it lies under float32, which has the same range
        axes[2].plot(*zip(*points, strict=True), marker=marker, markersize=size, fillstyle=fill, label=dtype)
    axes[2].axhline(lengths[-1], color="0.4", linestyle="--", linewidth=0.8)
    axes[2].text(0.98, 0.8 * lengths[-1], "the score form is still right here", va="top")
    axes[2].set(yscale="log", xlabel="size of each factor", ylabel="number of steps T")
    axes[2].set_title("first T at which grad log(product) is not finite")
    axes[2].legend(loc="lower left")
    return figure
