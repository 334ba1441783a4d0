r"""Up to which order are an estimator's derivatives right? Exactly, over every trajectory of a small world.

The k-th derivative of an unbiased objective averages to the k-th derivative of the true one. A plain surrogate is right
at order one only, DiCE at every order. Derivatives are compared along directions (the parameter axes and eight random
ones), which determine a symmetric tensor unless a mistake is chosen to hide from them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from logderiv.estimators import Estimator, num_trajectories
from logderiv.testing.score import random_directions
from logderiv.types import Trajectory, check_params

LIMIT = 2**16


class OrderReport(NamedTuple):
    """What `check_order` found; print it. One row per order 1, 2, ...

    Attributes:
        agree: Whether the order is right.
        error: Largest deviation over the directions.
        scale: Largest exact derivative over the directions.
        tolerance: Deviation allowed, relative to the larger of the exact derivative and the estimator's typical size.
        num_batches: Batches enumerated.
    """

    agree: tuple[bool, ...]
    error: tuple[float, ...]
    scale: tuple[float, ...]
    tolerance: float
    num_batches: int

    @property
    def order(self) -> int:
        """Orders 1 to this one are all right."""
        return next((i for i, ok in enumerate(self.agree) if not ok), len(self.agree))

    def __str__(self) -> str:
        head = (
            f"right up to order {self.order} of {len(self.agree)} looked at ({self.num_batches} batches enumerated)\n"
        )
        head += f"  {'order':>5}{'error':>12}{'exact':>12}\n"
        return head + "\n".join(
            f"  {i:>5}{e:>12.2e}{s:>12.2e}  {'right' if ok else 'WRONG'}"
            for i, (ok, e, s) in enumerate(zip(self.agree, self.error, self.scale, strict=True), start=1)
        )


def check_order(
    estimator: Estimator,
    exact: Callable[[Any], jax.Array],
    params: Any,
    policy: Any,
    trajectories: Trajectory,
    probabilities: jax.Array,
    *,
    order: int,
    num_trajectories_per_batch: int | None = None,
    state: Any = None,
    max_order: int = 3,
    tolerance: float | None = None,
    batch_size: int = 256,
) -> OrderReport:
    r"""Assert that derivatives 1 to `order` of `estimator.objective` average to those of an exact objective.

    Example, with every trajectory of a small decision process:

        taus = ld.exact.enumerate_trajectories(mdp, horizon=3)
        probabilities = ld.prob(params, policy, taus, environment=mdp)
        exact = lambda p: ld.exact.value(p, policy, mdp, horizon=3, discount=0.9)
        ld.testing.check_order(estimator, exact, params, policy, taus, probabilities, order=1)

    Args:
        estimator: Yours or ours; its weights are computed at `params` and held.
        exact: `params -> ()`, the true objective.
        params: Where to check; floating point, float64 if at all possible. Not a symmetric point.
        policy: The policy.
        trajectories: Every trajectory, leading axes `(K, T)`, with `behavior_log_probs` filled if the estimator uses them.
        probabilities: Of each, shape `(K,)`; they sum to one.
        order: What the estimator claims.
        num_trajectories_per_batch: `N`; `None` for the estimator's minimum. All `K^N` batches are run.
        state: Of the estimator; `None` for its first.
        max_order: Orders looked at; each doubles the cost. At least `order`.
        tolerance: `None` for `10 sqrt(eps)`.
        batch_size: Batches side by side.

    Returns:
        An `OrderReport`; its `order` may be higher than the one claimed.

    Raises:
        AssertionError: An order up to `order` is wrong; the message is the report.
        ValueError: `probabilities` has another shape or does not sum to one, or more than 65 536 batches.
        TypeError: A parameter is not floating point.
    """
    check_params(params)
    size = estimator.bias.min_trajectories if num_trajectories_per_batch is None else num_trajectories_per_batch
    estimator.bias.check(size)
    members, weights = _batches(trajectories, probabilities, size)
    theta, unravel = ravel_pytree(params)
    directions = jnp.asarray(random_directions(theta.size), theta.dtype)
    state = estimator.init(params) if state is None else state
    orders = max(max_order, order)

    def batch_derivatives(index: jax.Array) -> jax.Array:
        batch = jax.tree.map(lambda x: x[index], trajectories)
        held, _ = lax.stop_gradient(estimator.weigh(params, state, policy, batch))
        return along(lambda p: estimator.objective(p, policy, batch, held))

    def along(function: Callable[[Any], jax.Array]) -> jax.Array:
        """Derivatives 1 to `orders` along every direction, shape `(orders, V)`."""
        return jax.vmap(
            lambda v: _line_derivatives(lambda e: function(unravel(theta + e * v)), orders, theta), out_axes=1
        )(directions)

    @jax.jit
    def run(members: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        each = lax.map(batch_derivatives, members, batch_size=batch_size)
        weights = weights.astype(each.dtype)
        typical = jnp.tensordot(weights, jnp.abs(each), axes=1)
        return jnp.tensordot(weights, each, axes=1), typical, along(exact).astype(each.dtype)

    found, typical, truth = (np.asarray(x, np.float64) for x in run(members, weights))
    if tolerance is None:
        tolerance = 10 * float(np.sqrt(jnp.finfo(theta.dtype).eps))
    error, scale = np.abs(found - truth).max(axis=1), np.abs(truth).max(axis=1)
    allowed = tolerance * np.maximum(scale, typical.max(axis=1))
    nothing = (typical.max(axis=1) == 0) & (scale == 0)  # a zero estimate of a zero derivative shows nothing
    agree = tuple(bool(e <= a) and not bool(n) for e, a, n in zip(error, allowed, nothing, strict=True))
    report = OrderReport(agree, tuple(error.tolist()), tuple(scale.tolist()), tolerance, len(members))
    if report.order < order:
        raise AssertionError(f"check_order: claimed order {order}; {report}")
    return report


def _line_derivatives(function: Callable[[jax.Array], jax.Array], orders: int, theta: jax.Array) -> jax.Array:
    """Derivatives 1 to `orders` of a function of one number, at 0."""

    def derivative(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
        return lambda e: jax.jvp(function, (e,), (jnp.ones_like(e),))[1]

    values = []
    for _ in range(orders):
        function = derivative(function)
        values.append(function(jnp.zeros((), theta.dtype)))
    return jnp.stack(values)


def _batches(trajectories: Trajectory, probabilities: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Every batch of `size` trajectories, as indices `(K^N, N)`, with its probability."""
    count = num_trajectories(trajectories)
    weights = np.asarray(probabilities, np.float64)
    if weights.shape != (count,) or not abs(weights.sum() - 1) < 1e-3:
        raise ValueError(
            f"probabilities: expected shape (K,) = ({count},) and a sum of one, received shape {weights.shape} and sum "
            f"{weights.sum():.6g}; pass logderiv.prob(params, policy, trajectories, environment=mdp)."
        )
    if count**size > LIMIT:
        raise ValueError(
            f"trajectories: expected at most {LIMIT} batches, received {count}^{size} = {count**size:.3g}; shorten the horizon."
        )
    members = np.indices((count,) * size).reshape(size, -1).T
    return jnp.asarray(members), jnp.asarray(np.prod(weights[members], axis=1))
