"""Every path of a program or a model: its exact expected cost, and the exact expectation of any derivative of an estimate of it."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core import check
from logderiv._core.arrays import check_params, refuse_complex, wide
from logderiv._core.products import precision_of
from logderiv._core.pytrees import jit
from logderiv.exact.batches import ensemble
from logderiv.exact.draws import all_draws, tapes_of
from logderiv.exact.enumeration import LIMIT, LONGEST
from logderiv.exact.estimators import Moments, bias_and_covariance, derivative
from logderiv.expectations.programs import Expectation, Program, end_of
from logderiv.expectations.tape import Tape
from logderiv.types import Params

MODES = {"forward": jax.jacfwd, "reverse": jax.jacrev}


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
        TypeError: The program has randomness that cannot be listed: a choice without finitely many outcomes, or a key of its tape.
            What it draws with any other key is not seen, and counts as a constant.

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
    probabilities, costs = _outcomes(params, Expectation(program), args, choices)
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
    modes: Sequence[Literal["forward", "reverse"]] = ("forward",),
    limit: int = LIMIT,
) -> tuple[Moments, ...]:
    """E[∇ᵏ Ĵ] of what `logderiv.expectation` returns, beside ∇ᵏ J of the exact value, for k = 0, 1, ..., `order`.

    Every batch of `num_samples` paths is given to the estimate and differentiated there, its baseline and all. The two are
    equal, at every order, unless the program breaks a rule: a jump of the parameters into a cost, a choice of known law that is scored
    by another one, a baseline that knows the choice. What the program draws with a key of its own counts as a constant on both sides.

    Args:
        params: Parameters; use float64.
        expectation: What `logderiv.expectation` returned.
        *args: Further arguments of the program.
        order: The highest `k`.
        num_choices: The most choices that a path makes.
        num_outcomes: The most outcomes `0, 1, ...` that a choice has.
        modes: How the estimate is differentiated, the first derivative first; the last one is repeated. `jax.hessian` is
            `("reverse", "forward")`.
        limit: Refuse to list more than so many sequences of choices, and of paths.

    Returns:
        `Moments` of each order from 0, the value; axes follow the raveled parameters. The covariance, at order 1, is `None`
        where choices of several worlds, or of two runs, are drawn on common keys from different laws.

    Raises:
        ValueError: Too many sequences or batches; the paths' probabilities do not sum to one; `order` below 0.
        TypeError: The program has randomness that cannot be listed.
    """
    order = check.whole(at_least=0, order=order)
    for mode in modes:
        check.one_of(MODES, modes=mode)
    jacobians = tuple(MODES[mode] for mode in modes)
    check_params(params)
    params, choices = wide(params), _sequences(num_choices, num_outcomes, limit)
    expectation = expectation.up_to_date()
    probabilities = np.asarray(_outcomes(params, expectation, args, choices)[0], np.float64)
    _check_sum(probabilities)
    paths, found = choices[probabilities > 0], all_draws(expectation, params, args, choices)
    members, groups = [], expectation.num_samples // expectation.together
    for draws in found:
        _check_sum(draws.probabilities)
        context = (expectation, params, args, None if draws.world is None else np.int32(draws.world))
        members.append(ensemble(context, draws.tapes, draws.probabilities, num=groups, limit=limit))

    def of_order(k: int) -> Moments:
        exact = np.asarray(_exact(params, expectation, args, paths, k), np.float64)
        parts = [exact] + [np.zeros_like(exact)] * (len(members) - 1)  # what the world's share is compared with
        shares = [
            bias_and_covariance(x, _of_runs, part, groups, k, jacobians) for x, part in zip(members, parts, strict=True)
        ]
        bias, number = (
            np.sum([share[0] for share in shares], axis=0).reshape(exact.shape),
            sum(x.number for x in members),
        )
        covariance = shares[0][1] if found[0].joint else None
        return Moments(exact + bias, exact, bias, covariance, members[0].method, number)

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


@jit
def _outcomes(params: Params, expectation: Expectation, args: Any, choices: Any) -> tuple[jax.Array, jax.Array]:
    """Probability and cost of each sequence of choices; of those that differ in choices not made, the one with zeros counts."""

    def one(tape: Tape) -> tuple[jax.Array, jax.Array]:
        end = end_of(expectation.program, params, tape, args, expectation.has_aux)
        happens = jnp.all(end.source.used | (tape.source.choices == 0)) & jnp.all(end.source.log_probs > -jnp.inf)
        return jnp.where(happens, jnp.exp(jnp.sum(end.source.log_probs)), 0), jnp.where(happens, end.total, 0)

    params = wide(params)
    return jax.vmap(one)(tapes_of(choices, box=jnp.ones_like))


@jit
def _exact(params: Params, expectation: Expectation, args: Any, paths: Any, order: int) -> jax.Array:
    def value(params: Params) -> jax.Array:
        return jnp.dot(*_outcomes(params, expectation, args, paths), precision=precision_of())

    return derivative(value, params, order, (jax.jacfwd,))


def _of_runs(
    expectation: Expectation, params: Params, args: Any, world: Any, tapes: Tape, order: int, modes: Any
) -> jax.Array:
    return derivative(lambda params: _mean(expectation, params, args, world, tapes), params, order, modes).ravel()


@jit
def _mean(expectation: Expectation, params: Params, args: Any, world: Any, tapes: Tape) -> jax.Array:
    """What is estimated on these tapes; a function of its own, which is traced once for derivatives of all orders."""
    return expectation.on_tapes(params, tapes, *args, world=world).mean


def _check_sum(probabilities: np.ndarray) -> None:
    total = float(np.sum(probabilities))
    if not abs(total - 1) < 1e-4:
        raise ValueError(
            f"program: the probabilities of its {np.sum(probabilities > 0)} paths sum to {total:.6g}, expected 1; does a path make more "
            "than num_choices choices, or has a choice more than num_outcomes outcomes?"
        )
