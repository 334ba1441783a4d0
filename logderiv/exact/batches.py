"""All batches of `n` trajectories out of `K`, with their probabilities, and what a function gives on each.

Three methods, by what is known of the estimator:

    degree      it is the mean over all subsets of d trajectories of itself: K^d batches of d, for any N
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
from jax import lax

from logderiv._core import check
from logderiv._core.pytrees import jit, pytree
from logderiv.estimators.declaration import Structure
from logderiv.exact.enumeration import readable
from logderiv.policies import as_policy
from logderiv.types import Estimate, Params, State, Trajectory, batch_info

Choice = Literal["degree", "multisets", "tuples"]

_STEPS = 2**16  # of trajectories, evaluated at a time
_NUMBERS = 2**21  # of output, evaluated at a time


def structure(estimator: Any) -> Structure:
    """What an estimator says of itself, and nothing where it says nothing."""
    return getattr(estimator, "structure", Structure(degree=None))


@pytree(static=("function",))
class FunctionEstimator:
    """A plain function `(params, policy, trajectories) -> grads` as an estimator that declares nothing."""

    function: Callable[..., Any]

    @property
    def structure(self) -> Structure:
        """Nothing is assumed but what the function's own attribute `symmetric` says."""
        return Structure(degree=None, symmetric=getattr(self.function, "symmetric", True))

    def estimate(self, params: Params, state: State, policy: Any, trajectories: Trajectory) -> tuple[Estimate, State]:
        """The function's gradient."""
        return Estimate(self.function(params, policy, trajectories), batch_info(trajectories)), state


def as_estimator(estimator: Any) -> Any:
    """An estimator from one, or from a plain function `(params, policy, trajectories) -> grads`; else raises `TypeError`."""
    if hasattr(estimator, "estimate"):
        return estimator
    if callable(estimator):
        return FunctionEstimator(estimator)
    raise TypeError(
        "estimator: expected estimate(params, state, policy, trajectories) -> (Estimate, state), or a function "
        f"(params, policy, trajectories) -> grads; received {type(estimator).__name__}."
    )


def objective(estimator: Any, params: Params, state: State, policy: Any, trajectories: Trajectory) -> Any:
    """The estimator's objective on one batch; its weights are computed at `params` and detached."""
    weights = lax.stop_gradient(estimator.advantages(params, state, policy, trajectories)[0])
    return lambda params: estimator.objective(params, policy, trajectories, weights)


class Ensemble(NamedTuple):
    """An estimator with every batch that it may be given; built by `ensemble`.

    Attributes:
        context: Estimator, parameters, state of the estimator, policy.
        trajectories: Every one that can be drawn, leading axes `(K, T)`.
        probabilities: Of the single trajectories, float64, shape `(K,)`.
        method: How the batches were chosen.
        size: Trajectories in each.
        number: How many batches.
    """

    context: tuple[Any, Params, State, Any]
    trajectories: Trajectory
    probabilities: np.ndarray
    method: Choice
    size: int
    number: int

    def evaluate(
        self, function: Callable[..., jax.Array], size: int, *options: Any
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Blocks of `(indices, probabilities, values)`, float64.

        `function(estimator, params, state, policy, trajectories, *options)`, one that lives at module level, gives a vector of
        `size` numbers for each batch. Memory is that of one block. Where order is said not to matter, some batches are
        first tried in another order.
        """
        rows = max(1, min(_STEPS // (self.size * self.trajectories.valid.shape[-1]), _NUMBERS // size, self.number))

        def values(indices: np.ndarray) -> np.ndarray:
            padded = np.concatenate([indices, np.repeat(indices[:1], rows - len(indices), axis=0)])
            values = _on_batches(function, padded.astype(np.int32), self.trajectories, self.context, options)
            return np.asarray(values, np.float64)[: len(indices)]

        if self.method == "multisets":
            self._check_symmetric(values, min(rows, 64))
        for indices, repeats in self._blocks(rows):
            yield indices, repeats * np.prod(self.probabilities[indices], axis=-1), values(indices)

    def _blocks(self, rows: int) -> Iterator[tuple[np.ndarray, Any]]:
        """Indices `(rows, size)` of the batches, and how many orders of each there are; the last block is shorter."""
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


def ensemble(
    context: tuple, trajectories: Trajectory, probabilities: Any, *, num: int, method: Choice | None, limit: int
) -> Ensemble:
    """Every batch of `num` out of these trajectories `(K, T)` of known probabilities `(K,)`.

    `context` is what an estimator is called with: itself, parameters, its state (`None` for its first) and the policy.

    Raises:
        ValueError: Too many batches, too few trajectories, or a method that does not fit the estimator.
    """
    estimator, params, state, policy = context
    known = structure(estimator)
    known.check(num)
    drawn = np.flatnonzero(probabilities)  # what is never drawn has no part in an expectation
    trajectories = jax.tree.map(lambda x: np.asarray(x)[drawn], trajectories)
    method, size = _method_and_size(known, num, method)
    outcomes = len(drawn)
    number = math.comb(outcomes + size - 1, size) if method == "multisets" else outcomes**size
    if number > limit:
        raise ValueError(
            f"num_trajectories: batches of {size} out of {outcomes} trajectories ({method}) are {readable(number)} evaluations "
            f"of the estimator, more than limit={limit}. Lower the horizon or num_trajectories, raise limit, or declare what "
            "shrinks the number (structure). For total_return and reward_to_go with a fixed baseline "
            "logderiv.exact.weighted_score_moments lists no trajectories."
        )
    if state is None and hasattr(estimator, "init"):
        state = estimator.init(params)
    context = (estimator, params, state, as_policy(policy))
    return Ensemble(context, trajectories, np.asarray(probabilities, np.float64)[drawn], method, size, number)


@jit
def _on_batches(function: Any, indices: Any, trajectories: Trajectory, context: Any, options: Any) -> jax.Array:
    def on_batch(rows: jax.Array) -> jax.Array:
        return function(*context, jax.tree.map(lambda x: x[rows], trajectories), *options)

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


def _multinomial(indices: np.ndarray) -> np.ndarray:
    """Number of orders of each sorted row: n! over the factorials of its multiplicities."""
    run = np.ones(indices.shape)  # position within a run of equal entries; over the run they multiply to its factorial
    for j in range(1, indices.shape[1]):
        run[:, j] = np.where(indices[:, j] == indices[:, j - 1], run[:, j - 1] + 1, 1)
    return math.factorial(indices.shape[1]) / np.prod(run, axis=1)
