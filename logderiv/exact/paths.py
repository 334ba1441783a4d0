"""Every path of a program: its exact expected cost, and the exact expectation of any derivative of an estimate of it."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core import check
from logderiv._core.arrays import check_params, refuse_complex, wide
from logderiv._core.products import precision_of
from logderiv._core.pytrees import jit
from logderiv.estimators.surrogates import box
from logderiv.exact.enumeration import LIMIT, LONGEST
from logderiv.exact.estimators import Moments, bias_and_covariance, derivative, ensemble
from logderiv.expectations.programs import Expectation, Program, end_of
from logderiv.expectations.sources import Given
from logderiv.expectations.tape import Tape
from logderiv.types import Params


def program_value(
    params: Params, program: Program, *args: Any, num_choices: int, num_outcomes: int, limit: int = LIMIT
) -> jax.Array:
    """Σ_x P(x|θ) C(x, θ) over every path x of a program: its expected cost, exact.

    Nothing is sampled: an oracle for `logderiv.expectation`.

    Args:
        params: Parameters.
        program: `(params, tape, *args) -> tape`; all its randomness are single discrete choices made by `tape.sample`.
        *args: Further arguments of the program.
        num_choices: The most choices that a path makes.
        num_outcomes: The most outcomes `0, 1, ...` that a choice has.
        limit: Refuse to list more than so many sequences, `num_outcomes ** num_choices`.

    Returns:
        A scalar.

    Raises:
        ValueError: Too many sequences; or, outside transformations, the paths' probabilities do not sum to one: `num_choices` or
            `num_outcomes` is too small.
        TypeError: The program has randomness that cannot be listed.

    Gradients: P and C are differentiated as they are, at any order; in forward mode only where the program has a `lax.while_loop`.

    Example:
        >>> import logderiv as ld
        >>> def two_flips(logit, tape):
        ...     tape, first = tape.sample(ld.Bernoulli(logit))
        ...     tape, second = tape.sample(ld.Bernoulli(logit))
        ...     return tape.cost(first * second)
        >>> float(program_value(0.0, two_flips, num_choices=2, num_outcomes=2))
        0.25
    """
    refuse_complex(params=params)
    choices = _sequences(num_choices, num_outcomes, limit)
    probabilities, costs = _outcomes(params, program, args, choices)
    if not check.is_traced(probabilities):
        _check_sum(np.asarray(probabilities))
    return jnp.dot(probabilities, costs, precision=precision_of())


def program_derivatives(
    params: Params,
    expectation: Expectation,
    *args: Any,
    order: int,
    num_choices: int,
    num_outcomes: int,
    limit: int = LIMIT,
) -> tuple[Moments, ...]:
    """E[∇ᵏ Ĵ] of what `logderiv.expectation` returns, beside ∇ᵏ J of the exact value, for k = 0, 1, ..., `order`.

    Every batch of `num_samples` paths is given to the estimate and differentiated there, its baseline and all. The two are
    equal, at every order, unless the program breaks a rule: a jump of the parameters into a cost, a choice that is not on the
    tape, a baseline that knows the choice.

    Args:
        params: Parameters; use float64.
        expectation: What `logderiv.expectation` returned.
        *args: Further arguments of the program.
        order: The highest `k`.
        num_choices: The most choices that a path makes.
        num_outcomes: The most outcomes `0, 1, ...` that a choice has.
        limit: Refuse to list more than so many sequences of choices, and of paths.

    Returns:
        `Moments` of each order from 0, the value; axes follow the raveled parameters.

    Raises:
        ValueError: Too many sequences or batches; the paths' probabilities do not sum to one; `order` below 0.
        TypeError: The program has randomness that cannot be listed.
    """
    order = check.whole(at_least=0, order=order)
    check_params(params)
    params, choices = wide(params), _sequences(num_choices, num_outcomes, limit)
    probabilities = np.asarray(_outcomes(params, expectation.program, args, choices)[0], np.float64)
    _check_sum(probabilities)
    paths, probabilities = choices[probabilities > 0], probabilities[probabilities > 0]
    context, tapes = (expectation, params, args, None), _tapes(paths, peers=expectation.peers)
    members = ensemble(context, tapes, probabilities, num=expectation.num_samples, limit=limit)

    def of_order(k: int) -> Moments:
        exact = np.asarray(_exact(params, expectation.program, args, paths, k), np.float64)
        bias, covariance = bias_and_covariance(members, _of_runs, exact, expectation.num_samples, k)
        return Moments(exact + bias, exact, bias, covariance, members.method, members.number)

    return tuple(of_order(k) for k in range(order + 1))


def _sequences(num_choices: int, num_outcomes: int, limit: int) -> np.ndarray:
    """Every sequence of choices, shape `(K, num_choices)`."""
    num_choices = check.whole(at_least=0, at_most=LONGEST, num_choices=num_choices)
    num_outcomes, limit = check.whole(num_outcomes=num_outcomes, limit=limit)
    digits = num_choices * math.log10(num_outcomes)
    if digits > math.log10(limit) + 1 or (count := num_outcomes**num_choices) > limit:
        raise ValueError(
            f"num_choices: {num_choices} out of {num_outcomes} outcomes are about 10^{digits:.1f} sequences, more than limit={limit}; "
            "take a smaller program."
        )
    places = num_outcomes ** np.arange(num_choices)[::-1]
    return (np.arange(count)[:, None] // places % num_outcomes).astype(np.int32)


def _tapes(choices: Any, *, peers: str | None = None, box: Callable[[jax.Array], jax.Array] = box) -> Tape:
    """Tapes whose choices are given, one for each row."""
    zeros = jnp.zeros(choices.shape[:-1])
    return Tape(Given.of(choices), zeros, zeros, peers=peers, box=box)


@jit
def _outcomes(params: Params, program: Program, args: Any, choices: Any) -> tuple[jax.Array, jax.Array]:
    """Probability and cost of each sequence of choices; of those that differ in choices not made, the one with zeros counts."""

    def one(tape: Tape) -> tuple[jax.Array, jax.Array, Any]:
        end = end_of(program, params, tape, args)
        return end.source.log_prob, end.total, end.source

    params = wide(params)
    log_probs, costs, source = jax.vmap(one)(_tapes(choices, box=jnp.ones_like))
    happens = jnp.all(source.used | (choices == 0), axis=-1) & (log_probs > -jnp.inf)
    return jnp.where(happens, jnp.exp(log_probs), 0), jnp.where(happens, costs, 0)


@jit
def _exact(params: Params, program: Program, args: Any, paths: Any, order: int) -> jax.Array:
    def value(params: Params) -> jax.Array:
        return jnp.dot(*_outcomes(params, program, args, paths), precision=precision_of())

    return derivative(value, params, order, jax.jacfwd)


def _of_runs(expectation: Expectation, params: Params, args: Any, _: None, tapes: Tape, order: int) -> jax.Array:
    return derivative(lambda params: expectation.on_tapes(params, tapes, *args).mean, params, order, jax.jacfwd).ravel()


def _check_sum(probabilities: np.ndarray) -> None:
    total = float(np.sum(probabilities))
    if not abs(total - 1) < 1e-4:
        raise ValueError(
            f"program: the probabilities of its {np.sum(probabilities > 0)} paths sum to {total:.6g}, expected 1; does a path make more "
            "than num_choices choices, or has a choice more than num_outcomes outcomes?"
        )
