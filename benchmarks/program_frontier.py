"""Ways of making the choices of a model, for the table and the figure of `estimator_frontier`.

Cells wait in a queue; in each of six steps the first one divides, with probability σ(θ₁ + θ₂ times the length of the queue), or dies,
and every cell that waits costs 1. N counts runs of the model: an estimate by the alternative path takes two for each sample. The
exact gradient enumerates every choice; the computed errors list every path, and for pairs every cell of their uniform numbers.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import logderiv as ld
from benchmarks.harness import compile_call, interleaved_medians

NAME = "six steps of a queue, by choices"
STEPS = 6
PARAMS = (0.2, -0.1)
WAYS: dict[str, dict[str, Any]] = {
    "score": {},
    "score, leave one out": {"baseline": "leave_one_out"},
    "score, antithetic": {"draws": "antithetic"},
    "score, antithetic, leave one out": {"draws": "antithetic", "baseline": "leave_one_out"},
    "alternative": {"method": "alternative"},
}


def least(name: str) -> int:
    """The fewest runs that a way takes."""
    options = WAYS[name]
    return (2 if "draws" in options or "method" in options else 1) * (2 if "baseline" in options else 1)


def queue(params: jax.Array, method: str) -> None:
    """The model."""

    def handle(waiting: jax.Array) -> jax.Array:
        logit = params[0] + params[1] * waiting.astype(params.dtype)
        waiting = waiting - 1 + 2 * ld.sample(ld.Bernoulli(logit), method=method)
        ld.cost(waiting)
        return waiting

    def step(waiting: jax.Array, _: None) -> tuple[jax.Array, None]:
        return lax.cond(waiting > 0, handle, lambda waiting: waiting, waiting), None

    lax.scan(step, jnp.int32(1), None, length=STEPS)


def objective(number: int, method: str = "score", **options: Any) -> ld.expectations.Expectation:
    """The expectation that takes so many runs."""

    def model(params: jax.Array) -> None:
        queue(params, method)

    runs = 2 if method == "alternative" else 1
    return ld.expectation(model, num_samples=number // runs, **options)


def exact_gradient() -> np.ndarray:
    """In float64, every choice enumerated."""
    with jax.enable_x64(True):
        every = jax.jit(jax.grad(objective(1, "enumerate")))
        return np.asarray(every(jnp.asarray(PARAMS, jnp.float64), jax.random.key(0)))


def exact_variances() -> dict[str, float]:
    """Trace of the covariance of an estimate, times its runs, where it falls with their number alone: computed."""
    found = {}
    with jax.enable_x64(True):
        params = jnp.asarray(PARAMS, jnp.float64)
        for name, runs in (("score", 1), ("score, antithetic", 2)):
            estimate = objective(runs, **WAYS[name])
            moments = ld.exact.program_derivatives(params, estimate, order=1, num_choices=STEPS, num_outcomes=2)[1]
            found[name] = runs * float(np.trace(moments.covariance))
    return found


def estimates(name: str, number: int, batches: int) -> tuple[np.ndarray, float, float]:
    """Gradients from so many runs each; seconds for one, and for compiling."""
    gradient = jax.grad(objective(number, **WAYS[name]))
    params = jnp.asarray(PARAMS, jnp.float32)
    keys = jax.random.split(jax.random.key(number), batches)
    call = compile_call(lambda keys: lax.map(lambda key: gradient(params, key), keys), keys)
    seconds = interleaved_medians({"run": call}, repeats=3)["run"]
    return np.asarray(call.run(), np.float64), seconds / batches, call.compile_seconds
