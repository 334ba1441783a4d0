"""Every batch of trajectories, or of other outcomes, that an estimator may be given, with its probability.

The batches of `N` trajectories out of `K`, by one of three methods:

    degree      the estimator is the mean over all subsets of d trajectories of itself: K^d batches of d, for any N
    multisets   it does not depend on the order: C(K + N - 1, N) batches, weighted by multinomial coefficients
    tuples      nothing is known: K^N batches

The number of batches is known, and refused if too large, before anything runs.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core import check
from logderiv._core.pytrees import jit
from logderiv.estimators.declaration import Structure
from logderiv.exact.enumeration import LIMIT
from logderiv.types import Params, State

Choice = Literal["degree", "multisets", "tuples"]

_STEPS = 2**16  # of trajectories, evaluated at a time
_NUMBERS = 2**21  # of output, evaluated at a time


class Ensemble(NamedTuple):
    """An estimator with every batch that it may be given; built by `ensemble`.

    Attributes:
        context: Estimator, parameters, state of the estimator, policy.
        outcomes: Every trajectory that can be drawn, leading axes `(K, T)`; or whatever a batch is made of.
        probabilities: Of the single outcomes, float64, shape `(K,)`.
        method: How the batches were chosen.
        size: Trajectories in each.
        number: How many batches.
        traced: Whether blocks of batches are evaluated in compiled code; else each is a call in Python.
    """

    context: tuple[Any, Params, State, Any]
    outcomes: Any
    probabilities: np.ndarray
    method: Choice
    size: int
    number: int
    traced: bool = True

    def evaluate(
        self, function: Callable[..., jax.Array], size: int, *options: Any
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Blocks of `(indices, probabilities, values)`, float64.

        `function(estimator, params, state, policy, batch, *options)`, one that lives at module level, gives a vector of
        `size` numbers for each batch. Memory is that of one block. Where order is said not to matter, some batches are
        first tried in another order.
        """
        length = jax.tree.leaves(self.outcomes)[0].shape[1]
        rows = max(1, min(_STEPS // (self.size * length), _NUMBERS // size, self.number))

        def values(indices: np.ndarray) -> np.ndarray:
            if not self.traced:
                return np.array([self._call(function, rows, options) for rows in indices], np.float64)
            padded = np.concatenate([indices, np.repeat(indices[:1], rows - len(indices), axis=0)])
            try:
                values = _on_batches(function, padded.astype(np.int32), self.outcomes, self.context, options)
            except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
                raise TypeError(
                    f"estimator: {type(self.context[0]).__name__} cannot be compiled, since it takes values of arrays in Python; "
                    "logderiv.exact.moments(..., traced=False) calls it for one batch after the other."
                ) from error
            return np.asarray(values, np.float64)[: len(indices)]

        if self.method == "multisets" and self.size > 1:
            self._check_symmetric(values, min(rows, 64))
        for indices, repeats in self._blocks(rows):
            yield indices, np.prod(repeats * self.probabilities[indices], axis=-1), values(indices)

    def _call(self, function: Callable[..., jax.Array], rows: np.ndarray, options: Any) -> np.ndarray:
        return np.asarray(
            function(*self.context, jax.tree.map(lambda x: jnp.asarray(x[rows]), self.outcomes), *options)
        )

    def _blocks(self, rows: int) -> Iterator[tuple[np.ndarray, Any]]:
        """Indices `(rows, size)` of the batches, and factors whose product is their number of orders; the last block is shorter."""
        outcomes, ordered = range(len(self.probabilities)), self.method != "multisets"
        multisets = itertools.combinations_with_replacement(outcomes, self.size)
        batches = itertools.product(outcomes, repeat=self.size) if ordered else multisets
        for _ in range(0, self.number, rows):
            flat = itertools.chain.from_iterable(itertools.islice(batches, rows))
            indices = np.fromiter(flat, np.int64).reshape(-1, self.size)
            yield indices, 1.0 if ordered else _multinomial(indices)

    def _check_symmetric(self, values: Callable[[np.ndarray], np.ndarray], number: int) -> None:
        random = np.random.default_rng(0)
        some = random.integers(len(self.probabilities), size=(number, self.size))
        first, second = values(some), values(random.permuted(some, axis=1))
        eps = max(float(jnp.finfo(jnp.result_type(x)).eps) for x in jax.tree.leaves(self.context[1]))
        scale = np.max(np.abs(first), initial=1.0, where=np.isfinite(first))
        if not np.allclose(first, second, rtol=0, atol=eps**0.5 * scale, equal_nan=True):
            raise ValueError(
                "estimator: its value changes with the order of the trajectories, so that multisets would be wrong; give it "
                "structure = Structure(symmetric=False), or pass method='tuples'."
            )


def structure(estimator: Any) -> Structure:
    """What an estimator says of itself; where it says nothing, as a plain function, that it is symmetric unless `symmetric` denies it."""
    return getattr(estimator, "structure", Structure(degree=None, symmetric=getattr(estimator, "symmetric", True)))


def ensemble(
    context: tuple,
    outcomes: Any,
    probabilities: Any,
    *,
    num: int,
    method: Choice | None = None,
    limit: int,
    traced: bool = True,
) -> Ensemble:
    """Every batch of `num` out of these trajectories, or other outcomes, `(K, T)` of known probabilities `(K,)`.

    `context` is what an estimator is called with: itself, parameters, its state (`None` for its first) and the policy.

    Raises:
        ValueError: Too many batches, too few trajectories, or a method that does not fit the estimator.
    """
    estimator, params, state, policy = context
    known = structure(estimator)
    known.check(num)
    drawn = np.flatnonzero(probabilities)  # what is never drawn has no part in an expectation
    outcomes = jax.tree.map(lambda x: np.asarray(x)[drawn], outcomes)
    method, size = _method_and_size(known, num, method)
    count = len(drawn)
    logarithm = _log_comb(count, size) if method == "multisets" else size * math.log(count)
    number, many = limit + 1, f"about 10^{logarithm / math.log(10):.0f}"
    if logarithm < math.log(limit) + 1:  # a far larger number would take too much time and memory to compute
        number = math.comb(count + size - 1, size) if method == "multisets" else count**size
        many = str(number)
    if number > limit or size > LIMIT:
        raise ValueError(
            f"num_trajectories, or num_samples: batches of {size} out of {count} trajectories ({method}) are {many} "
            f"evaluations of the estimator, more than limit={limit}. Lower the horizon or num_trajectories, raise limit, or declare what "
            "shrinks the number (structure). For total_return and reward_to_go with a fixed baseline "
            "logderiv.exact.weighted_score_moments lists no trajectories."
        )
    if state is None and hasattr(estimator, "init"):
        state = estimator.init(params)
    context = (estimator, params, state, policy)
    return Ensemble(context, outcomes, np.asarray(probabilities, np.float64)[drawn], method, size, number, traced)


@jit
def _on_batches(function: Any, indices: Any, outcomes: Any, context: Any, options: Any) -> jax.Array:
    def on_batch(rows: jax.Array) -> jax.Array:
        return function(*context, jax.tree.map(lambda x: x[rows], outcomes), *options)

    return jax.vmap(on_batch)(indices)


def _method_and_size(known: Structure, num_trajectories: int, method: Choice | None) -> tuple[Choice, int]:
    degree = known.degree
    by_degree = degree is not None and known.min_trajectories <= degree <= num_trajectories
    check.one_of(("degree", "multisets", "tuples", None), method=method)
    if method is None:
        method = "degree" if by_degree else "multisets" if known.symmetric else "tuples"
    if method == "degree" and not by_degree:
        raise ValueError(
            f"method: 'degree' needs an estimator that declares one of at most N = {num_trajectories}, received "
            f"structure.degree = {degree}; use 'multisets' or 'tuples'."
        )
    if method == "multisets" and not known.symmetric:
        raise ValueError("method: 'multisets' needs an estimator that is symmetric, this one is not; use 'tuples'.")
    return method, degree if method == "degree" and degree is not None else num_trajectories


def _log_comb(count: int, size: int) -> float:
    """Logarithm of the number of multisets of this size."""
    return math.lgamma(count + size) - math.lgamma(count) - math.lgamma(size + 1)


def _multinomial(indices: np.ndarray) -> np.ndarray:
    """Factors of the number of orders of each sorted row, n! over the factorials of its multiplicities."""
    run = np.ones(indices.shape)  # position within a run of equal entries; over the run they multiply to its factorial
    for j in range(1, indices.shape[1]):
        run[:, j] = np.where(indices[:, j] == indices[:, j - 1], run[:, j - 1] + 1, 1)
    return np.arange(1, indices.shape[1] + 1) / run
