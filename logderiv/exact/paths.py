"""Every path of a program: its exact expected cost, and the exact expectation of any derivative of an estimate of it."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from logderiv._core.arrays import is_traced, register_dataclass
from logderiv.distributions.interop import sample
from logderiv.exact.derivatives import Derivatives
from logderiv.exact.enumeration import LIMIT, readable
from logderiv.expectations.programs import Expectation, Program
from logderiv.expectations.tape import Tape, check_tape


@dataclasses.dataclass(frozen=True, eq=False)
class _Replayed(Tape):
    """A tape whose choices are given: the next one is `choices[position]`, and the one after it `stride` further on."""

    choices: Any = None
    used: Any = None
    position: Any = None
    stride: int = 1

    def split(self, num: int = 1) -> tuple[Self, jax.Array]:
        raise _cannot_list(f"{num} keys from split")

    def sample_pathwise(self, distribution: Any) -> tuple[Self, Any]:
        raise _cannot_list(f"a pathwise sample of {type(distribution).__name__}")

    def score(self, distribution: Any, value: Any, *, baseline: Any = 0.0) -> Self:
        del value, baseline
        raise _cannot_list(f"a choice of {type(distribution).__name__} that was drawn elsewhere")

    def sample(self, distribution: Any, *, baseline: Any = 0.0) -> tuple[Self, Any]:
        self._spend()
        like = jax.eval_shape(lambda key: sample(distribution, key), jax.random.key(0))
        if not (isinstance(like, jax.ShapeDtypeStruct) and like.shape == () and _discrete(like.dtype)):
            raise _cannot_list(f"a sample of {type(distribution).__name__}: {like}")
        value = self.choices.at[self.position].get(mode="fill", fill_value=-1).astype(like.dtype)
        used = self.used.at[self.position].set(True, mode="drop")
        drawn = dataclasses.replace(self, used=used, position=self.position + self.stride)
        return drawn._score(distribution, value, baseline), value

    def _fork(self, num: int) -> tuple[Self, Self]:
        def rows(x: jax.Array) -> jax.Array:
            return jnp.broadcast_to(x, (num, *x.shape))

        zeros, first = jnp.zeros(num, self.total.dtype), self.position + self.stride * jnp.arange(num, dtype=jnp.int32)
        parts = dataclasses.replace(
            self,
            bits=rows(self.bits),
            log_prob=zeros,
            total=zeros,
            choices=rows(self.choices),
            used=rows(self.used),
            position=first,
            stride=self.stride * num,
        )
        return dataclasses.replace(self), parts

    def _join(self, tapes: Any) -> Self:
        num = tapes.position.shape[0]
        most = jnp.max(
            tapes.position - self.stride * jnp.arange(num, dtype=jnp.int32)
        )  # the part with most choices; turns are taken
        used = self.used | jnp.any(tapes.used, axis=0)
        return dataclasses.replace(super()._join(tapes), used=used, position=most)


class _Direct(_Replayed):
    """Costs alone: no box, hence no score and no baseline."""

    @staticmethod
    def _box(log_prob: jax.Array) -> jax.Array:
        return jnp.ones_like(log_prob)


for _cls in (_Replayed, _Direct):
    _data = ("bits", "log_prob", "total", "choices", "used", "position")
    register_dataclass(_cls, _data, ("impl", "peers", "stride"), visit=Tape._hand_on)


def program_value(
    program: Program, params: Any, *args: Any, num_choices: int, num_outcomes: int, limit: int = LIMIT
) -> jax.Array:
    r"""$\sum_x P(x|\theta)\, C(x, \theta)$ over every path of a program: its expected cost, exact.

    P and C are differentiated as they are, at any order, and nothing is sampled: an oracle for `logderiv.expectation`. Differentiate
    it in forward mode where the program has a `lax.while_loop`.

    Args:
        program: `(params, tape, *args) -> tape`; all its randomness are single discrete choices made by `tape.sample`.
        params: Parameters.
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

    Example:
        >>> import logderiv as ld
        >>> def two_flips(logit, tape):
        ...     tape, first = tape.sample(ld.Bernoulli(logit))
        ...     tape, second = tape.sample(ld.Bernoulli(logit))
        ...     return tape.cost(first * second)
        >>> float(program_value(two_flips, 0.0, num_choices=2, num_outcomes=2))
        0.25
    """
    rows = _sequences(num_choices, num_outcomes, limit)
    probabilities, costs = jax.jit(lambda params, args: _outcomes(program, params, args, rows))(params, args)
    if not is_traced(probabilities):
        _check_sum(np.asarray(probabilities))
    return probabilities @ costs


def program_derivatives(
    expectation: Expectation,
    params: Any,
    *args: Any,
    order: int,
    num_choices: int,
    num_outcomes: int,
    limit: int = LIMIT,
) -> tuple[Derivatives, ...]:
    r"""$\mathbb{E}[\nabla^k \hat J]$ of what `logderiv.expectation` returns, beside $\nabla^k J$ of the exact value, for k = 0, 1, ..., `order`.

    Every tuple of `num_samples` paths is given to the estimate and differentiated there, its baseline and all. The two are
    equal, at every order, unless the program breaks a rule: a jump of the parameters into a cost, a choice that is not on the
    tape, a baseline that knows the choice.

    Args:
        expectation: What `logderiv.expectation` returned.
        params: Parameters; use float64.
        *args: Further arguments of the program.
        order: The highest `k`.
        num_choices: As in `program_value`.
        num_outcomes: As in `program_value`.
        limit: Refuse more tuples of paths.

    Returns:
        `Derivatives` of each order from 0, the value; axes follow the raveled parameters.

    Raises:
        ValueError, TypeError: As `program_value`; `order` below 0.
    """
    if not isinstance(order, int) or order < 0:
        raise ValueError(f"order: expected a whole number >= 0, received {order!r}.")
    program, number = expectation.program, expectation.num_samples
    paths, probabilities = _paths(program, params, args, num_choices, num_outcomes, limit)
    if len(paths) ** number > limit:
        raise ValueError(
            f"num_samples: {number} out of {len(paths)} paths are {readable(len(paths) ** number)} tuples, more than limit={limit}."
        )
    tuples = np.stack(np.unravel_index(np.arange(len(paths) ** number), (len(paths),) * number), axis=-1)
    weights = np.prod(probabilities[tuples], axis=-1)
    flat, unravel = ravel_pytree(params)

    def mean(flat: jax.Array, tuples: jax.Array, weights: jax.Array) -> jax.Array:
        def estimate(flat: jax.Array, rows: jax.Array) -> jax.Array:
            return expectation.on_tapes(unravel(flat), _tapes(_Replayed, rows, expectation.peers), *args)

        return weights @ jax.vmap(estimate, (None, 0))(flat, tuples)

    def value(flat: jax.Array, paths: jax.Array) -> jax.Array:
        return jnp.dot(*_outcomes(program, unravel(flat), args, paths))

    estimated = jax.jit(_derivatives(mean, order))(flat, paths[tuples], weights)
    exact = jax.jit(_derivatives(value, order))(flat, paths)
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(estimated, exact, strict=True)]
    return tuple(Derivatives(a, b, a - b, "tuples", len(tuples)) for a, b in pairs)


def _sequences(num_choices: int, num_outcomes: int, limit: int) -> np.ndarray:
    number = num_outcomes**num_choices
    if number > limit:
        raise ValueError(
            f"num_choices: {num_choices} choices of {num_outcomes} outcomes are {readable(number)} sequences, more than limit={limit}; "
            "take a smaller program."
        )
    every = itertools.product(range(num_outcomes), repeat=num_choices)
    return np.array(list(every), np.int32).reshape(number, num_choices)


def _paths(
    program: Program, params: Any, args: Any, num_choices: int, num_outcomes: int, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """The choices of every path that can happen, 0 where it makes none, shape `(K, num_choices)`; and its probability."""
    rows = _sequences(num_choices, num_outcomes, limit)
    probabilities = np.asarray(jax.jit(lambda params: _outcomes(program, params, args, rows)[0])(params), np.float64)
    _check_sum(probabilities)
    return rows[probabilities > 0], probabilities[probabilities > 0]


def _outcomes(program: Program, params: Any, args: Any, rows: Any) -> tuple[jax.Array, jax.Array]:
    """Probability and cost of each sequence of choices; of those that differ in choices not made, the one with zeros counts."""

    def one(tape: Any) -> Any:
        end: Any = program(params, tape, *args)
        check_tape(end, "the program")
        return end.log_prob, end.total, end.used

    log_probs, costs, used = jax.vmap(one)(_tapes(_Direct, rows, None))
    happens = jnp.all(used | (rows == 0), axis=-1) & (log_probs > -jnp.inf)
    return jnp.where(happens, jnp.exp(log_probs), 0), jnp.where(happens, costs, 0)


def _check_sum(probabilities: np.ndarray) -> None:
    total = float(np.sum(probabilities))
    if not abs(total - 1) < 1e-4:
        raise ValueError(
            f"program: the probabilities of its {np.sum(probabilities > 0)} paths sum to {total:.6g}, expected 1; does a path make more "
            "than num_choices choices, or has a choice more than num_outcomes outcomes?"
        )


def _tapes(cls: type[_Replayed], rows: Any, peers: str | None) -> _Replayed:
    rows = jnp.asarray(rows)
    starts = jax.vmap(lambda key: Tape.start(key, peers=peers))(jax.random.split(jax.random.key(0), len(rows)))
    used, position = jnp.zeros(rows.shape, bool), jnp.zeros(len(rows), jnp.int32)
    return cls(starts.bits, starts.log_prob, starts.total, starts.impl, peers, rows, used, position)


def _derivatives(function: Callable[..., jax.Array], order: int) -> Callable[..., tuple[jax.Array, ...]]:
    """The function and its derivatives up to that order in its first argument, forward."""
    if order == 0:
        return lambda *args: (function(*args),)
    lower = _derivatives(function, order - 1)

    def highest_and_all(*args: Any) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        values = lower(*args)
        return values[-1], values

    def derivatives(*args: Any) -> tuple[jax.Array, ...]:
        highest, values = jax.jacfwd(highest_and_all, has_aux=True)(*args)
        return *values, highest

    return derivatives


def _discrete(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.integer) or dtype == jnp.bool_


def _cannot_list(what: str) -> TypeError:
    return TypeError(
        f"program: expected every choice to be one integer from tape.sample, so that its paths can be listed; received {what}."
    )
