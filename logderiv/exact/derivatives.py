"""Expected derivatives of an estimator's objective, at any order, beside those of the exact value."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from logderiv._core.arrays import check_whole
from logderiv._core.compiled import Held, compiled
from logderiv.environments.tabular import TabularMDP
from logderiv.exact.batches import Choice, ensemble, objective_discount
from logderiv.exact.dynamic import has_memory, value
from logderiv.exact.enumeration import LIMIT
from logderiv.types import Trajectory


class Derivatives(NamedTuple):
    r"""Expected derivatives of an estimator's objective beside those of the exact value; float64, shape `(D,) * order`.

    Axes follow the raveled parameters, `jax.flatten_util.ravel_pytree`.

    Attributes:
        mean: $\mathbb{E}[\nabla^k L]$, the weights held fixed.
        exact: $\nabla^k J$.
        bias: Their difference.
        method: As in `Moments`.
        num_evaluations: As in `Moments`.
    """

    mean: np.ndarray
    exact: np.ndarray
    bias: np.ndarray
    method: Choice
    num_evaluations: int


def surrogate_derivatives(
    estimator: Any,
    params: Any,
    policy: Any,
    mdp: TabularMDP,
    *,
    horizon: int,
    num_trajectories: int,
    order: int,
    state: Any = None,
    behavior_params: Any = None,
    behavior_policy: Any = None,
    discount: float | None = None,
    method: Choice | None = None,
    limit: int = LIMIT,
) -> Derivatives:
    r"""$\mathbb{E}[\nabla^k L]$ of an estimator's objective `L`, beside $\nabla^k J$ of the exact value.

    The weights come from `weigh` on each batch and are held, as in `estimate`. DiCE is exact at every order; the plain
    score surrogate lacks terms from order 2 on.

    Args:
        estimator: With `weigh` and `objective`.
        params: Parameters of the policy; use float64.
        policy: As in `estimator_moments`, like all that follow.
        mdp: The decision process.
        horizon: `T`.
        num_trajectories: `N`.
        order: `k` from 1; the cost of one evaluation grows like $D^{k-1}$.
        state: The estimator's state.
        behavior_params: Of the drawing policy.
        behavior_policy: The drawing policy.
        discount: Of the exact value.
        method: As in `estimator_moments`; a declared degree holds for the objective, hence at every order.
        limit: Refuse more evaluations.

    Returns:
        `Derivatives`.

    Raises:
        ValueError, TypeError: As `estimator_moments`; `order` below 1; an estimator without `weigh` and `objective`.

    References:
        Foerster et al. (2018), arXiv:1802.05098, section 3, for what the plain surrogate lacks.
    """
    check_whole(order=order)
    if not (hasattr(estimator, "weigh") and hasattr(estimator, "objective")):
        raise TypeError(
            f"estimator: expected one with weigh and objective, received {type(estimator).__name__}; a function that returns "
            "gradients has no higher derivatives to compare."
        )
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
    gamma = objective_discount(estimator, discount)
    world = Held(mdp) if has_memory(policy) else mdp  # enumeration needs its numbers
    exact = compiled(_exact_derivative, params, policy, world, order=order, horizon=horizon, discount=gamma)
    exact = np.asarray(exact, np.float64)
    bias = np.zeros(exact.size)
    for _, probabilities, values in members.evaluate(_objective_derivative(order), exact.size):
        bias += probabilities @ (values - exact.ravel())
    bias = bias.reshape(exact.shape)
    return Derivatives(exact + bias, exact, bias, members.batches.method, members.batches.number)


def _exact_derivative(params: Any, policy: Any, mdp: TabularMDP, *, order: int, **options: Any) -> jax.Array:
    flat, unravel = ravel_pytree(params)
    return _derivative(lambda flat: value(unravel(flat), policy, mdp, **options), order)(flat)


@functools.cache  # one function object for each order, so that it is compiled once
def _objective_derivative(order: int) -> Callable[..., jax.Array]:
    def derivative(estimator: Any, params: Any, state: Any, policy: Any, trajectories: Trajectory) -> jax.Array:
        weights = lax.stop_gradient(estimator.weigh(params, state, policy, trajectories)[0])
        flat, unravel = ravel_pytree(params)

        def objective(flat: jax.Array) -> jax.Array:
            return estimator.objective(unravel(flat), policy, trajectories, weights)

        return _derivative(objective, order)(flat).ravel()

    return derivative


def _derivative(function: Callable[[jax.Array], jax.Array], order: int) -> Callable[[jax.Array], jax.Array]:
    """The derivative of that order of a function of a vector, shape `(D,) * order`."""
    derivative = jax.grad(function)
    for _ in range(order - 1):
        derivative = jax.jacfwd(derivative)
    return derivative
