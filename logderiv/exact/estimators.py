"""Exact expectation, bias and covariance of any estimator, and of its higher derivatives, by a sum over all batches."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from logderiv._core import check
from logderiv._core.arrays import check_params, refuse_complex, wide
from logderiv._core.pytrees import jit
from logderiv._core.tables import concrete, named_entries, shapes, table
from logderiv.exact.batches import Choice, Ensemble, ensemble
from logderiv.exact.dynamic import evaluate, problem
from logderiv.exact.enumeration import LIMIT, Listing, behavior_log_probs, list_trajectories
from logderiv.policies import as_policy
from logderiv.types import Params, State, Trajectory

_PRINTED = 12  # entries of a gradient


class Moments(NamedTuple):
    """What an estimator is worth: its exact moments. NumPy arrays of dtype float64.

    Of order 1 `mean`, `exact` and `bias` are pytrees of `params`; of order k > 1 arrays of shape `(D,) * k`, whose axes follow
    the raveled parameters (`jax.flatten_util.ravel_pytree`).

    Attributes:
        mean: E[g]; at order k E[∇^k L] of the objective L, its weights detached.
        exact: ∇J; at order k ∇^k J.
        bias: Their difference, `mean - exact`.
        covariance: Cov[g] of the raveled gradient, shape `(D, D)`; `None` above order 1.
        method: `"degree"`, `"multisets"` or `"tuples"`.
        num_evaluations: How many batches the estimator was evaluated on.
    """

    mean: Any
    exact: Any
    bias: Any
    covariance: Any
    method: Choice
    num_evaluations: int

    def __str__(self) -> str:
        if not concrete(self[:3]):
            return shapes("Moments", self)
        mean, exact, bias = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in self[:3])
        size, off = np.linalg.norm(exact), np.linalg.norm(bias)
        parts = [f"|grad J| = {size:.6g}", f"|bias| = {off:.2e}"] + ([f"{off / size:.2%} of it"] if size > 0 else [])
        spread = np.full(mean.size, np.nan)
        if self.covariance is not None:
            spread = np.sqrt(np.maximum(np.diagonal(self.covariance), 0))
            parts.append(f"sqrt(tr Cov) = {np.linalg.norm(spread):.6g}")
        rows = list(zip(named_entries(self.mean), exact, mean, bias, spread, strict=True))
        more = f"\n  and {len(rows) - _PRINTED} more" if len(rows) > _PRINTED else ""
        head = f"E[g], a sum over all batches ({self.num_evaluations} evaluations, {self.method})\n  "
        head += ", ".join(parts) + "\n"
        columns = ("entry", "grad J", "E[g]", "bias", "std of g")
        return head + table(columns, "<24 >14.8f >14.8f >12.1e >12.4g", rows[:_PRINTED]) + more


def moments(
    params: Params,
    policy: Any,
    environment: Any,
    estimator: Any,
    *,
    horizon: int,
    num_trajectories: int,
    order: int = 1,
    state: State = None,
    behavior_params: Params | None = None,
    behavior_policy: Any = None,
    discount: Any = None,
    method: Choice | None = None,
    limit: int = LIMIT,
    traced: bool = True,
) -> Moments:
    """E[g], its bias and Cov[g] of any estimator for N trajectories: a sum over all batches that can be drawn.

    With a declared degree d (`structure.degree`) g_N is the mean over d-subsets of h = g_d, so that E does not depend on N and

        Cov[g_N] = 1/C(N, d) sum_{c=1..d} C(d, c) C(N - d, d - c) ζ_c,   ζ_c = Cov(E[h | τ_1, ..., τ_c]),

    from K^d batches of d out of K trajectories. Otherwise C(K + N - 1, N) multisets, where the estimator is symmetric (its
    `structure`; some batches are tried in another order), else K^N tuples.

    At an `order` k > 1 the k-th derivative of the estimator's objective is averaged, the weights detached: DiCE is exact at
    every order, the plain score surrogate lacks terms from order 2 on. The cost of one evaluation grows like D^(k-1).

    Compiles and loops by itself: arguments are concrete. Memory is that of one block of batches and `(D, D)`, and
    `(K, D)` for degree 2.

    Args:
        params: Parameters of the policy; use float64.
        policy: The policy, on the environment's observations.
        environment: What `enumerate_trajectories` takes, small enough to list its trajectories.
        estimator: An `Estimator`, any object with `estimate(params, state, policy, trajectories) -> (Estimate, state)`, or a
            function `(params, policy, trajectories) -> grads`. With `advantages` and `objective` for an order above 1.
        horizon: `T`.
        num_trajectories: `N`.
        order: `k` from 1, of the derivative.
        state: The estimator's state; `None` for `estimator.init(params)`.
        behavior_params: The trajectories are drawn with these, and `behavior_log_probs` filled from them; `None` for `params`.
        behavior_policy: The trajectories are drawn by this; `None` for `policy`.
        discount: Of the objective that the bias refers to; `None` for the estimator's own attribute `discount`, 1 where it
            has none.
        method: Forces one of the three. A declared degree holds for the objective, hence at every order.
        limit: Refuse more evaluations of the estimator.
        traced: False for an estimator that JAX cannot trace, such as a loop in numpy: it is called for one batch after the other.

    Returns:
        `Moments`.

    Raises:
        ValueError: Too many trajectories or batches; fewer than the estimator needs; the gradient does not have the structure
            and shapes of `params`; the estimator depends on the order of the trajectories and does not say so; `order` below 1,
            or above 1 where nothing is traced.
        TypeError: Not an estimator, or one without higher derivatives at `order` > 1, or one that cannot be traced; a parameter is
            not floating point; an environment that cannot be enumerated.

    Example:
        >>> import jax.numpy as jnp, logderiv as ld
        >>> estimator = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut(per="trajectory")))
        >>> found = moments(jnp.zeros(2), ld.shared_softmax, ld.environments.short_corridor(), estimator, horizon=5, num_trajectories=3)
        >>> found.method, bool(abs(found.bias).max() < 1e-6)
        ('degree', True)

    References:
        Hoeffding (1948), "A class of statistics with asymptotically normal distribution", eq. 5.13, for the covariance.
        Foerster et al. (2018), arXiv:1802.05098, section 3, for what the plain surrogate lacks.
    """
    order, num_trajectories, limit = check.whole(order=order, num_trajectories=num_trajectories, limit=limit)
    check_params(params)
    expected = "estimate(params, state, policy, trajectories) -> (Estimate, state), or a function (params, policy, trajectories) -> grads"
    check.made("estimator", estimator, hasattr(estimator, "estimate") or callable(estimator), expected)
    if order > 1 and not traced:
        raise ValueError(
            f"traced: expected True where an objective is differentiated, received False with order = {order}."
        )
    if order > 1 and not (hasattr(estimator, "advantages") and hasattr(estimator, "objective")):
        raise TypeError(
            f"estimator: expected one with advantages and objective, received {type(estimator).__name__}; a function that returns "
            "gradients has no higher derivatives to compare."
        )
    refuse_complex(behavior_params=behavior_params)
    policy, params, behavior_params = as_policy(policy), wide(params), wide(behavior_params)
    gamma = getattr(estimator, "discount", 1.0) if discount is None else discount
    given, horizon = problem(policy, environment, horizon, gamma), int(horizon)
    listing = given if isinstance(given, Listing) else list_trajectories(environment, horizon)
    drawn_by = policy if behavior_policy is None else behavior_policy
    every, probabilities = drawn(params if behavior_params is None else behavior_params, drawn_by, listing)
    context = (estimator, params, state, policy)
    options: Any = {"num": num_trajectories, "method": method, "limit": limit, "traced": traced}
    members = ensemble(context, every, probabilities, **options)
    exact = np.asarray(_exact(params, policy, given, horizon, gamma, order), np.float64)
    bias, covariance = bias_and_covariance(members, _of_batch, exact, num_trajectories, order)
    mean, exact, bias = (unravel(params, x) if order == 1 else x for x in (exact + bias, exact, bias))
    return Moments(mean, exact, bias, covariance, members.method, members.number)


def drawn(params: Params, policy: Any, listing: Listing) -> tuple[Trajectory, np.ndarray]:
    """Every trajectory, drawn by this policy, and its probability, multiplied out in float64; raises unless they sum to one."""
    every, weights, _ = listing
    logs = behavior_log_probs(params, policy, every)
    probabilities = np.asarray(weights, np.float64) * np.prod(np.exp(np.asarray(logs, np.float64)), axis=-1)
    total = float(np.sum(probabilities))
    eps = max(float(jnp.finfo(x.dtype).eps) for x in (logs, weights))
    if not abs(total - 1) <= eps**0.5:
        raise ValueError(
            f"policy: the probabilities of all trajectories sum to {total:.6g}, expected 1; does it choose between the "
            "actions of the environment?"
        )
    return every._replace(behavior_log_probs=logs), probabilities


def bias_and_covariance(
    members: Ensemble, of_batch: Callable[..., jax.Array], exact: np.ndarray, number: int, order: int, *options: Any
) -> tuple[np.ndarray, np.ndarray | None]:
    """E[g] - ∇J and Cov[g], at order 1; all terms are taken as differences from ∇J, so that nothing large cancels."""
    size = exact.size
    degree = members.size if members.method == "degree" else number
    bias, second = np.zeros(size), np.zeros((size, size) if order == 1 else ())
    chances = members.probabilities
    given = {c: np.zeros((len(chances),) * c + (size,)) for c in range(1, degree) if order == 1 and degree < number}
    for indices, probabilities, values in members.evaluate(of_batch, size, order, *options):
        terms = values - exact.ravel()
        bias += probabilities @ terms
        if order == 1:
            second += (probabilities[:, None] * terms).T @ terms
        for c, means in given.items():  # E[terms | the first c trajectories]
            rest = np.prod(chances[indices[:, c:]], axis=1)
            np.add.at(means, tuple(indices[:, :c].T), rest[:, None] * terms)
    if order != 1:
        return bias.reshape(exact.shape), None
    squares = {degree: second}
    for c, means in given.items():
        of_first = functools.reduce(np.multiply.outer, [chances] * c)[..., None]
        squares[c] = np.tensordot(of_first * means, means, axes=(range(c), range(c)))
    subsets = {c: math.comb(degree, c) * math.comb(number - degree, degree - c) for c in squares}
    total = np.sum([subsets[c] * (squares[c] - np.outer(bias, bias)) for c in squares], axis=0)
    return bias, total / math.comb(number, degree)


@jit
def _exact(params: Params, policy: Any, problem: Any, horizon: int, discount: Any, order: int) -> jax.Array:
    return derivative(lambda params: evaluate(params, policy, problem, horizon, discount), params, order)


def _of_batch(estimator: Any, params: Params, state: State, policy: Any, batch: Trajectory, order: int) -> jax.Array:
    if order > 1:
        return derivative(objective(estimator, params, state, policy, batch), params, order).ravel()
    if hasattr(estimator, "estimate"):
        grads = estimator.estimate(params, state, policy, batch)[0].grads
    else:
        grads = estimator(params, policy, batch)
    hint = "return +grad for every parameter, zeros for one that is not used; was the mean over trajectories forgotten?"
    check.like("the estimator's gradient", grads, params, hint=hint)
    return ravel_pytree(grads)[0]


def derivative(
    function: Callable[[Params], jax.Array], params: Params, order: int, modes: Sequence[Any] = (jax.grad, jax.jacfwd)
) -> jax.Array:
    """The derivative of that order in the raveled parameters, shape `(D,) * order`, by these modes; the last one is repeated."""
    flat, unravel = ravel_pytree(params)

    def of_order(order: int) -> Callable[[jax.Array], jax.Array]:
        if order == 0:
            return lambda flat: function(unravel(flat))
        return modes[min(order, len(modes)) - 1](of_order(order - 1))

    return of_order(order)(flat)


def unravel(params: Params, vector: np.ndarray) -> Params:
    """Inverse of `ravel_pytree` without a change of dtype."""
    leaves, structure = jax.tree.flatten(params)
    parts = np.split(vector, np.cumsum([np.size(leaf) for leaf in leaves])[:-1])
    return structure.unflatten([part.reshape(np.shape(leaf)) for part, leaf in zip(parts, leaves, strict=True)])


def objective(estimator: Any, params: Params, state: State, policy: Any, trajectories: Trajectory) -> Any:
    """The estimator's objective on one batch; its weights are computed at `params` and detached."""
    weights = lax.stop_gradient(estimator.advantages(params, state, policy, trajectories)[0])
    return lambda params: estimator.objective(params, policy, trajectories, weights)
