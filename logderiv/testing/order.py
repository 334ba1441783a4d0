"""Up to which order are an estimator's derivatives right? Exactly, over every batch of the trajectories of a small environment.

The k-th derivative of an unbiased objective averages to the k-th derivative of the true one. A plain surrogate is right
at order one only, DiCE at every order. Derivatives are compared along directions (the parameter axes and eight random
ones), which determine a symmetric tensor unless a mistake is chosen to hide from them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from logderiv._core import check
from logderiv._core.arrays import check_params, refuse_complex
from logderiv._core.pytrees import jit
from logderiv._core.tables import table
from logderiv.estimators import Estimator
from logderiv.exact.batches import ensemble, structure
from logderiv.exact.estimators import objective
from logderiv.testing.score import random_directions
from logderiv.types import Params, State, Trajectory

LIMIT = 2**16


class OrderReport(NamedTuple):
    """What `check_order` found; print it. One row per order 1, 2, ...

    Attributes:
        agree: Whether the order is right.
        error: Largest deviation over the directions.
        scale: Largest exact derivative over the directions.
        allowed: Largest deviation that counts as right: `tolerance` times the larger of the exact derivative and the estimator's
            typical size.
        tolerance: Deviation allowed, relative to that size.
        num_batches: Batches enumerated.
    """

    agree: tuple[bool, ...]
    error: tuple[float, ...]
    scale: tuple[float, ...]
    allowed: tuple[float, ...]
    tolerance: float
    num_batches: int

    @property
    def order(self) -> int:
        """Orders 1 to this one are all right."""
        return next((i for i, ok in enumerate(self.agree) if not ok), len(self.agree))

    def __str__(self) -> str:
        right = ["right" if ok else "WRONG" for ok in self.agree]
        rows = zip(range(1, len(right) + 1), self.error, self.allowed, self.scale, right, strict=True)
        head = f"right up to order {self.order} of {len(right)} looked at ({self.num_batches} batches enumerated)\n"
        return head + table(("order", "error", "allowed", "exact", ""), ">5 >12.2e >12.2e >12.2e >7", rows)


def check_order(
    params: Params,
    policy: Any,
    estimator: Estimator,
    exact: Callable[[Any], jax.Array],
    trajectories: Trajectory,
    probabilities: jax.Array,
    *,
    order: int | None,
    num_trajectories: int | None = None,
    state: State = None,
    max_order: int = 3,
    tolerance: float | None = None,
) -> OrderReport:
    """Assert that derivatives 1 to `order` of `estimator.objective` average to those of an exact objective.

    Example, with every trajectory of a small environment:

        taus = ld.exact.enumerate_trajectories(mdp, horizon=3)
        probabilities = ld.prob(params, policy, taus, environment=mdp)
        exact = lambda p: ld.exact.value(p, policy, mdp, horizon=3, discount=0.9)
        ld.testing.check_order(params, policy, estimator, exact, taus, probabilities, order=1)

    Args:
        params: Where to check; floating point, float64 if at all possible. Not a symmetric point.
        policy: The policy.
        estimator: Yours or ours; its weights are computed at `params` and detached.
        exact: `params -> ()`, the true objective.
        trajectories: Every trajectory, leading axes `(K, T)`, with `behavior_log_probs` filled if the estimator uses them.
        probabilities: Of each, shape `(K,)`; they sum to one.
        order: What the estimator claims, from 1; `None` claims nothing, and the report says what is found.
        num_trajectories: `N`; `None` for the estimator's minimum. All batches are run: `C(K + N - 1, N)` where the order of
            the trajectories does not matter, else `K^N`.
        state: Of the estimator; `None` for its first.
        max_order: Orders looked at; each doubles the cost. At least `order`.
        tolerance: In (0, 1), since from 2 on nothing would be wrong; `None` for `10 sqrt(eps)`.

    Returns:
        An `OrderReport`; its `order` may be higher than the one claimed.

    Raises:
        AssertionError: An order up to `order` is wrong; the message is the report.
        ValueError: `probabilities` has another shape, holds a negative one or does not sum to one; more than 65 536 batches;
            fewer trajectories than the estimator needs; no parameters; a number is out of range.
        TypeError: A parameter is not floating point; an objective or a probability is complex.
    """
    order, num_trajectories = check.whole(or_none=True, order=order, num_trajectories=num_trajectories)
    max_order = check.whole(max_order=max_order)
    check.between(0, 1, open_left=True, open_right=True, or_none=True, tolerance=tolerance)
    fits = hasattr(estimator, "advantages") and hasattr(estimator, "objective")
    check.made("estimator", estimator, fits, "one of logderiv.estimators, or of your own with advantages and objective")
    check_params(params)
    refuse_complex(probabilities=probabilities)
    known, weights = structure(estimator), np.asarray(probabilities, np.float64)
    count = trajectories.valid.shape[0]
    if weights.shape != (count,) or not abs(weights.sum() - 1) < 1e-3 or not (weights >= 0).all():
        raise ValueError(
            f"probabilities: expected shape (K,) = ({count},), none negative and a sum of one, received shape {weights.shape}, "
            f"smallest {weights.min(initial=0):.6g} and sum {weights.sum():.6g}; pass "
            "logderiv.prob(params, policy, trajectories, environment=mdp)."
        )
    size = known.min_trajectories if num_trajectories is None else num_trajectories
    context, method = (estimator, params, state, policy), "multisets" if known.symmetric else "tuples"
    members = ensemble(context, trajectories, weights, num=size, method=method, limit=LIMIT)

    orders, directions = max(max_order, order or 1), random_directions(optax.tree.size(params))
    truth = np.asarray(_along(params, exact, directions, orders), np.float64)
    found, typical = np.zeros((2, *truth.shape))
    for _, chances, values in members.evaluate(_of_batch, truth.size, directions, orders):
        found += (chances @ values).reshape(truth.shape)
        typical += (chances @ np.abs(values)).reshape(truth.shape)
    if tolerance is None:
        tolerance = 10 * float(np.sqrt(jnp.finfo(ravel_pytree(params)[0].dtype).eps))
    error, scale, typical = (np.abs(x).max(axis=1) for x in (found - truth, truth, typical))
    allowed = tolerance * np.maximum(scale, typical)
    agree = (error <= allowed) & (allowed > 0)  # a zero estimate of a zero derivative shows nothing
    agree, error, scale, allowed = (tuple(x.tolist()) for x in (agree, error, scale, allowed))
    report = OrderReport(agree, error, scale, allowed, tolerance, members.number)
    if order is not None and report.order < order:
        raise AssertionError(f"check_order: claimed order {order}; {report}")
    return report


@jit
def _along(params: Params, function: Callable[[Params], jax.Array], directions: Any, orders: int) -> jax.Array:
    """Derivatives 1 to `orders` of a function along every direction, shape `(orders, V)`."""
    theta, unravel = ravel_pytree(params)
    objective = jax.eval_shape(function, params)
    refuse_complex(objective=objective)
    check.shape((), objective=objective)

    def along(direction: jax.Array) -> jax.Array:
        line, values = lambda e: function(unravel(theta + e * direction)), []
        for _ in range(orders):
            line = jax.jacfwd(line)
            values.append(line(jnp.zeros((), theta.dtype)))
        return jnp.stack(values)

    return jax.vmap(along, out_axes=1)(jnp.asarray(directions, theta.dtype))


def _of_batch(
    estimator: Any, params: Params, state: State, policy: Any, batch: Trajectory, directions: Any, orders: int
) -> jax.Array:
    return _along(params, objective(estimator, params, state, policy, batch), directions, orders).ravel()
