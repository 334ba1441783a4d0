r"""All batches of `n` trajectories out of `K`, with their probabilities, and what a function gives on each.

Three methods, by what is known of the estimator:

    degree      it is the mean over all subsets of d trajectories of itself: K^d batches of d, for any N
    multisets   it does not depend on the order: C(K + N - 1, N) batches, weighted by multinomial coefficients
    tuples      nothing is known: K^N batches

The number of batches is known, and refused if too large, before anything runs.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core.compiled import compiled, held
from logderiv.environments.tabular import TabularMDP
from logderiv.estimators.declaration import Bias
from logderiv.exact.enumeration import enumerate_trajectories, readable
from logderiv.likelihood.factors import log_factors
from logderiv.types import Estimate, Trajectory, as_policy, batch_info, check_params

Choice = Literal["degree", "multisets", "tuples"]

_STEPS = 2**16  # of trajectories, evaluated at a time
_NUMBERS = 2**21  # of output, held at a time
_UNDECLARED = Bias(order=0, factor=None, degree=None, reasons=("nothing is declared",))


@dataclasses.dataclass(frozen=True)
class Batches:
    """Which batches an expectation runs over.

    Attributes:
        method: How they were chosen.
        size: Trajectories in each.
        number: How many batches.
        probabilities: Of the single trajectories, float64, shape `(K,)`.
    """

    method: Choice
    size: int
    number: int
    probabilities: np.ndarray

    def chunks(self, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Indices `(rows, size)` and probabilities `(rows,)` of the batches, `rows` at a time; the last chunk is shorter."""
        outcomes = len(self.probabilities)
        multisets = itertools.combinations_with_replacement(range(outcomes), self.size)
        for start in range(0, self.number, rows):
            stop = min(start + rows, self.number)
            if self.method == "multisets":
                flat = itertools.chain.from_iterable(itertools.islice(multisets, stop - start))
                indices = np.fromiter(flat, np.int64).reshape(stop - start, self.size)
                repeats = _multinomial(indices)
            else:
                indices = np.stack(np.unravel_index(np.arange(start, stop), (outcomes,) * self.size), axis=-1)
                repeats = np.ones(stop - start)
            yield indices, repeats * np.prod(self.probabilities[indices], axis=-1)


class Ensemble(NamedTuple):
    """An estimator with every batch that it may be given; see `ensemble`."""

    estimator: Any
    params: Any
    state: Any
    policy: Any
    trajectories: Trajectory
    batches: Batches

    def evaluate(
        self, function: Callable[..., jax.Array], size: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Chunks of `(indices, probabilities, values)`, float64.

        `function(estimator, params, state, policy, trajectories)` gives a vector of `size` numbers for each batch.
        Memory is that of one chunk. Where order is said not to matter, some batches are first tried in another order.
        """
        steps = self.batches.size * self.trajectories.valid.shape[-1]
        rows = max(1, min(_STEPS // steps, _NUMBERS // size, self.batches.number))
        context = tuple(map(held, (self.estimator, self.params, self.state, self.policy)))

        def values(indices: np.ndarray) -> np.ndarray:
            padded = np.concatenate([indices, np.repeat(indices[:1], rows - len(indices), axis=0)])
            values = compiled(_on_batches, padded.astype(np.int32), self.trajectories, *context, function=function)
            return np.asarray(values, np.float64)[: len(indices)]

        if self.batches.method == "multisets":
            self._check_symmetric(values, min(rows, 64))
        for indices, probabilities in self.batches.chunks(rows):
            yield indices, probabilities, values(indices)

    def _check_symmetric(self, values: Callable[[np.ndarray], np.ndarray], number: int) -> None:
        random = np.random.default_rng(0)
        some = random.integers(len(self.batches.probabilities), size=(number, self.batches.size))
        first, second = values(some), values(random.permuted(some, axis=1))
        eps = max(float(jnp.finfo(jnp.result_type(x)).eps) for x in jax.tree.leaves(self.params))
        scale = np.max(np.abs(first), initial=1.0, where=np.isfinite(first))
        if not np.allclose(first, second, rtol=0, atol=eps**0.5 * scale, equal_nan=True):
            raise ValueError(
                "estimator: its value changes with the order of the trajectories, so that multisets would be wrong; give it "
                "the attribute symmetric = False, or pass method='tuples'."
            )


def ensemble(
    estimator: Any,
    params: Any,
    policy: Any,
    mdp: TabularMDP,
    *,
    horizon: int,
    num_trajectories: int,
    state: Any,
    behavior_params: Any,
    behavior_policy: Any,
    method: Choice | None,
    limit: int,
) -> Ensemble:
    """Every batch that the behavior policy can draw; arguments as in `logderiv.exact.estimator_moments`.

    Raises:
        ValueError: Too many batches, too few trajectories, or a method that does not fit the estimator.
        TypeError: Not an estimator, or a parameter is not floating point.
    """
    check_params(params)
    estimator, policy = as_estimator(estimator), as_policy(policy)
    bias = getattr(estimator, "bias", _UNDECLARED)
    bias.check(num_trajectories)
    drawn_by = params if behavior_params is None else behavior_params
    drawing = policy if behavior_policy is None else as_policy(behavior_policy)
    every = enumerate_trajectories(mdp, horizon=horizon)
    logs, fixed = compiled(_log_likelihood, drawn_by, drawing, every, mdp)
    probabilities = _probabilities(np.asarray(logs), np.asarray(fixed), mdp)
    drawn = np.flatnonzero(probabilities)  # what is never drawn has no part in an expectation
    batches = _plan(estimator, bias, probabilities[drawn], num_trajectories, method, limit)
    if state is None and hasattr(estimator, "init"):
        state = estimator.init(params)
    trajectories = jax.tree.map(lambda x: np.asarray(x)[drawn], every._replace(behavior_log_probs=logs))
    return Ensemble(estimator, params, state, policy, trajectories, batches)


@dataclasses.dataclass(frozen=True)
class FunctionEstimator:
    """A plain function `(params, policy, trajectories) -> grads` as an estimator that declares nothing."""

    function: Callable[..., Any]

    @property
    def symmetric(self) -> bool:
        """The function's own attribute; true where it has none."""
        return getattr(self.function, "symmetric", True)

    def estimate(self, params: Any, state: Any, policy: Any, trajectories: Trajectory) -> tuple[Estimate, Any]:
        """The function's gradient."""
        return Estimate(self.function(params, policy, trajectories), batch_info(trajectories)), state


def as_estimator(estimator: Any) -> Any:
    """An estimator from one, or from a plain function `(params, policy, trajectories) -> grads`.

    Raises:
        TypeError: Neither of the two.
    """
    if hasattr(estimator, "estimate"):
        return estimator
    if callable(estimator):
        return FunctionEstimator(estimator)
    raise TypeError(
        "estimator: expected estimate(params, state, policy, trajectories) -> (Estimate, state), or a function "
        f"(params, policy, trajectories) -> grads; received {type(estimator).__name__}."
    )


def objective_discount(estimator: Any, discount: float | None) -> float:
    """The discount of the objective that an estimator is compared with: as given, else its own, else 1."""
    return getattr(estimator, "discount", 1.0) if discount is None else discount


def _on_batches(
    indices: jax.Array, trajectories: Trajectory, *context: Any, function: Callable[..., jax.Array]
) -> jax.Array:
    return jax.vmap(lambda rows: function(*context, jax.tree.map(lambda x: x[rows], trajectories)))(indices)


def _log_likelihood(params: Any, policy: Any, every: Trajectory, mdp: TabularMDP) -> tuple[jax.Array, jax.Array]:
    """Logarithms of the policy's factors `(K, T)`, and of start and dynamics together `(K,)`."""
    dynamics = jnp.where(every.valid, jax.vmap(mdp.log_factors)(every), 0)
    fixed = jax.vmap(mdp.log_initial)(every) + jnp.sum(dynamics, axis=-1)
    return log_factors(params, policy, every), fixed


def _probabilities(logs: np.ndarray, fixed: np.ndarray, mdp: TabularMDP) -> np.ndarray:
    """Probability of each trajectory, multiplied out in float64; raises unless they sum to one."""
    factors, world = np.exp(logs.astype(np.float64)), np.exp(fixed.astype(np.float64))
    probabilities = world * np.prod(factors, axis=-1)
    total = float(np.sum(probabilities))
    eps = max(float(jnp.finfo(x.dtype).eps) for x in (logs, fixed))
    if not abs(total - 1) <= eps**0.5:
        raise ValueError(
            f"policy: the probabilities of all trajectories sum to {total:.6g}, expected 1; does it choose between the "
            f"{mdp.num_actions} actions of the decision process?"
        )
    return probabilities


def _plan(
    estimator: Any,
    bias: Bias,
    probabilities: np.ndarray,
    num_trajectories: int,
    method: Choice | None,
    limit: int,
) -> Batches:
    degree, symmetric = bias.degree, getattr(estimator, "symmetric", bias.symmetric)
    by_degree = degree is not None and bias.min_trajectories <= degree <= num_trajectories
    if method is None:
        method = "degree" if by_degree else "multisets" if symmetric else "tuples"
    if method not in ("degree", "multisets", "tuples"):
        raise ValueError(f"method: expected 'degree', 'multisets', 'tuples' or None, received {method!r}.")
    if method == "degree" and not by_degree:
        raise ValueError(
            f"method: 'degree' needs an estimator that declares one of at most N = {num_trajectories}, received bias.degree = "
            f"{degree}; use 'multisets' or 'tuples'."
        )
    if method == "multisets" and not symmetric:
        raise ValueError("method: 'multisets' needs an estimator that is symmetric, this one is not; use 'tuples'.")
    size = degree if method == "degree" and degree is not None else num_trajectories
    outcomes = len(probabilities)
    number = math.comb(outcomes + size - 1, size) if method == "multisets" else outcomes**size
    if number > limit:
        raise ValueError(
            f"num_trajectories: batches of {size} out of {outcomes} trajectories ({method}) are {readable(number)} evaluations "
            f"of the estimator, more than limit={limit}. Lower the horizon or num_trajectories, raise limit, or declare what "
            "shrinks the number (bias.degree, symmetric). For total_return and reward_to_go with a fixed baseline "
            "logderiv.exact.weighted_score_moments lists no trajectories."
        )
    return Batches(method, size, number, probabilities)


def _multinomial(indices: np.ndarray) -> np.ndarray:
    """Number of orders of each sorted row: n! over the factorials of its multiplicities."""
    run = np.ones(indices.shape)  # position within a run of equal entries; over the run they multiply to its factorial
    for j in range(1, indices.shape[1]):
        run[:, j] = np.where(indices[:, j] == indices[:, j - 1], run[:, j - 1] + 1, 1)
    return math.factorial(indices.shape[1]) / np.prod(run, axis=1)
