"""Exact expectation and covariance of any estimator, by a sum over all batches."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from logderiv._core.compiled import Held, compiled
from logderiv.environments.tabular import TabularMDP
from logderiv.exact.batches import Choice, Ensemble, ensemble, objective_discount
from logderiv.exact.dynamic import gradient, has_memory
from logderiv.exact.enumeration import LIMIT
from logderiv.types import Trajectory


class Moments(NamedTuple):
    """What an estimator is worth: its exact first two moments. Leaves are NumPy arrays of dtype float64.

    Attributes:
        mean: E[g]; pytree of `params`.
        covariance: Cov[g] of the raveled gradient, in the order of `jax.flatten_util.ravel_pytree`; shape `(D, D)`.
        bias: E[g] - grad J; pytree of `params`.
        gradient: The exact grad J; pytree of `params`.
        method: `"degree"`, `"multisets"` or `"tuples"`.
        num_evaluations: How many batches the estimator was evaluated on.
    """

    mean: Any
    covariance: np.ndarray
    bias: Any
    gradient: Any
    method: Choice
    num_evaluations: int


def estimator_moments(
    estimator: Any,
    params: Any,
    policy: Any,
    mdp: TabularMDP,
    *,
    horizon: int,
    num_trajectories: int,
    state: Any = None,
    behavior_params: Any = None,
    behavior_policy: Any = None,
    discount: float | None = None,
    method: Choice | None = None,
    limit: int = LIMIT,
) -> Moments:
    r"""E[g], Cov[g] and the bias of any estimator for N trajectories: a sum over all batches that can be drawn.

    With a declared degree d (`bias.degree`) $g_N$ is the mean over d-subsets of $h = g_d$, so that E does not depend on N and

    $\mathrm{Cov}[g_N] = \binom{N}{d}^{-1} \sum_{c=1}^{d} \binom{d}{c} \binom{N-d}{d-c}\, \zeta_c$ with
    $\zeta_c = \mathrm{Cov}\,\mathbb{E}[h \mid \tau_1, \ldots, \tau_c]$

    ($\zeta_1 / N$ for d = 1), from K^d evaluations. Else C(K+N-1, N) multisets where the estimator is symmetric (its attribute
    `symmetric` or its bias's, true where absent; some batches are tried in another order), else K^N tuples.

    Compiles and loops by itself: arguments are concrete. Memory is that of one chunk of batches and `(D, D)`, and
    `(K, D)` for degree 2.

    Args:
        estimator: An `Estimator`, any object with `estimate(params, state, policy, trajectories) -> (Estimate, state)`, or a
            function `(params, policy, trajectories) -> grads`.
        params: Parameters of the policy.
        policy: The policy, on states.
        mdp: A decision process small enough to list its trajectories.
        horizon: `T`.
        num_trajectories: `N`.
        state: The estimator's state; `None` for `estimator.init(params)`.
        behavior_params: The trajectories are drawn with these, and `behavior_log_probs` filled from them; `None` for `params`.
        behavior_policy: The trajectories are drawn by this; `None` for `policy`.
        discount: Of the objective that the bias refers to; `None` for the estimator's own attribute `discount`, 1 where it
            has none.
        method: Forces one of the three.
        limit: Refuse more evaluations of the estimator.

    Returns:
        `Moments`.

    Raises:
        ValueError: Too many trajectories or batches; fewer than `bias.min_trajectories`; the gradient does not have the structure
            and shapes of `params`; the estimator depends on the order and does not say so.
        TypeError: Not an estimator; a parameter is not floating point.

    Example:
        >>> import jax.numpy as jnp, logderiv as ld
        >>> estimator = ld.score_function(baseline=ld.baseline_leave_one_out(per="trajectory"))
        >>> moments = estimator_moments(
        ...     estimator, jnp.zeros(2), ld.shared_softmax, ld.short_corridor(), horizon=5, num_trajectories=3
        ... )
        >>> moments.method, bool(abs(moments.bias).max() < 1e-6)
        ('degree', True)

    References:
        Hoeffding (1948), "A class of statistics with asymptotically normal distribution", eq. 5.13, for the covariance.
    """
    members = ensemble(
        estimator,
        params,
        policy,
        mdp,
        horizon=horizon,
        num_trajectories=num_trajectories,
        state=state,
        behavior_params=behavior_params,
        behavior_policy=behavior_policy,
        method=method,
        limit=limit,
    )
    world = Held(mdp) if has_memory(policy) else mdp  # enumeration needs its numbers
    gamma = objective_discount(estimator, discount)
    exact = compiled(_exact_gradient, params, policy, world, horizon=horizon, discount=gamma)
    exact = np.asarray(exact, np.float64)
    bias, covariance = _moments(members, exact, num_trajectories)
    return Moments(
        mean=_unravel(exact + bias, params),
        covariance=covariance,
        bias=_unravel(bias, params),
        gradient=_unravel(exact, params),
        method=members.batches.method,
        num_evaluations=members.batches.number,
    )


def _moments(members: Ensemble, exact: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """E[g] - grad J and Cov[g]; all terms are taken as differences from grad J, so that nothing large cancels."""
    batches = members.batches
    degree = batches.size if batches.method == "degree" else number
    bias, second = np.zeros(exact.size), np.zeros((exact.size, exact.size))
    given = [_Given(c, batches.probabilities, exact.size) for c in range(1, degree) if degree < number]
    for indices, probabilities, values in members.evaluate(_gradient, exact.size):
        terms = values - exact
        bias += probabilities @ terms
        second += (probabilities[:, None] * terms).T @ terms
        for projection in given:
            projection.add(indices, terms)

    squares = {projection.c: projection.second() for projection in given} | {degree: second}
    zeta = {c: square - np.outer(bias, bias) for c, square in squares.items()}
    subsets = {c: math.comb(degree, c) * math.comb(number - degree, degree - c) for c in zeta}
    total = np.sum([subsets[c] * zeta[c] for c in zeta], axis=0)
    return bias, total / math.comb(number, degree)


class _Given:
    """The expectation of an estimate given the first `c` trajectories of its batch, for each such choice."""

    def __init__(self, c: int, probabilities: np.ndarray, size: int) -> None:
        self.c, self.probabilities = c, probabilities
        self.shape = (len(probabilities),) * c
        self.means = np.zeros((len(probabilities) ** c, size))

    def add(self, indices: np.ndarray, terms: np.ndarray) -> None:
        rest = np.prod(self.probabilities[indices[:, self.c :]], axis=1)
        first = np.ravel_multi_index(tuple(indices[:, : self.c].T), self.shape)
        np.add.at(self.means, first, rest[:, None] * terms)

    def second(self) -> np.ndarray:
        indices = np.stack(np.unravel_index(np.arange(len(self.means)), self.shape))
        return (np.prod(self.probabilities[indices], axis=0)[:, None] * self.means).T @ self.means


def _exact_gradient(params: Any, policy: Any, mdp: TabularMDP, *, horizon: int, discount: float) -> jax.Array:
    return ravel_pytree(gradient(params, policy, mdp, horizon=horizon, discount=discount))[0]


def _gradient(estimator: Any, params: Any, state: Any, policy: Any, trajectories: Trajectory) -> jax.Array:
    estimate, _ = estimator.estimate(params, state, policy, trajectories)
    _check_grads(estimate.grads, params)
    return ravel_pytree(estimate.grads)[0]


def _check_grads(grads: Any, params: Any) -> None:
    """Raise unless the gradient is shaped like the parameters."""
    expected, received = jax.tree.structure(params), jax.tree.structure(grads)
    if expected != received:
        raise ValueError(
            f"estimator: expected a gradient of the structure of params, {expected}, received {received}; return "
            "+grad for every parameter, zeros for one that is not used."
        )
    for (path, leaf), grad in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(grads), strict=True):
        if jnp.shape(leaf) != jnp.shape(grad):
            raise ValueError(
                f"estimator: expected a gradient of shape {jnp.shape(leaf)} for params{jax.tree_util.keystr(path)}, received "
                f"{jnp.shape(grad)}; was the mean over trajectories forgotten?"
            )


def _unravel(vector: np.ndarray, params: Any) -> Any:
    """Inverse of `ravel_pytree` without a change of dtype."""
    leaves, structure = jax.tree.flatten(params)
    ends = np.cumsum([np.size(leaf) for leaf in leaves])
    parts = np.split(vector, ends[:-1])
    return structure.unflatten([part.reshape(np.shape(leaf)) for part, leaf in zip(parts, leaves, strict=True)])
