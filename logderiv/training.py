"""Training: rollouts, gradient and optax update in one compiled `lax.scan`."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from logderiv import progress as progress_bar
from logderiv._arrays import as_keys, hold, release
from logderiv.environments.adapters import as_environment
from logderiv.estimators import Estimator
from logderiv.rollout import rollout
from logderiv.types import as_policy, check_params


class Metrics(NamedTuple):
    """One row per update, leading axis `(num_updates,)`.

    Attributes:
        mean_return: Mean undiscounted return of the batch, before the update.
        num_steps: Environment steps used, padding not counted.
        unfinished: Fraction of trajectories that reached the horizon without terminating.
        grad_norm: Global Euclidean norm of the estimate.
    """

    mean_return: jax.Array
    num_steps: jax.Array
    unfinished: jax.Array
    grad_norm: jax.Array


class Training(NamedTuple):
    """Where training stands, and what it measured.

    Attributes:
        params: Trained parameters.
        opt_state: State of the optimiser.
        estimator_state: State of the estimator (baselines).
        metrics: See `Metrics`.
    """

    params: Any
    opt_state: Any
    estimator_state: Any
    metrics: Metrics


def maximize(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimiser that ascends: optax descends, and `Estimate.grads` points uphill.

    The same as `optax.chain(optax.scale(-1.0), optimizer)`.
    """
    return optax.chain(optax.scale(-1.0), optimizer)


def train(
    params: Any,
    key: jax.Array,
    policy: Any,
    environment: Any,
    *,
    estimator: Estimator,
    optimizer: optax.GradientTransformation,
    num_updates: int,
    num_trajectories: int,
    horizon: int | None = None,
    environment_params: Any = None,
    progress: bool = False,
) -> Training:
    """Repeat: draw trajectories, estimate the gradient, update. One compiled `lax.scan`.

    Many seeds: `jax.vmap(lambda params, key: train(params, key, ...))(params, keys)`. The call compiles itself; calling it
    again with the same policy, environment, estimator and optimiser objects does not compile again.

    Args:
        params: Where to start.
        key: Consumed.
        policy: A `Policy` or a function `(params, observation) -> distribution`.
        environment: As in `rollout`.
        estimator: Any estimator of the library, or your own.
        optimizer: An optax transformation that *ascends*: `logderiv.maximize(optax.adam(1e-2))`.
        num_updates: Length of the scan.
        num_trajectories: `N` per update.
        horizon: As in `rollout`.
        environment_params: As in `rollout`.
        progress: Show a bar with rate, return and time left; needs tqdm (the extra `progress`).

    Returns:
        A `Training`.

    Raises:
        ValueError: `num_updates` below 1, or fewer trajectories than the estimator needs.
        TypeError: A parameter is not floating point.
        ImportError: `progress` without tqdm.
    """
    check_params(params)
    if num_updates < 1:
        raise ValueError(f"num_updates: expected a whole number >= 1, received {num_updates}.")
    estimator.bias.check(num_trajectories)
    if progress:
        progress_bar.require()
    static = (estimator, optimizer, num_updates, num_trajectories, horizon, progress)
    result = _train(
        params, as_keys(key), as_policy(policy), hold(as_environment(environment)), environment_params, static
    )
    if progress:
        jax.effects_barrier()
    return result


@partial(jax.jit, static_argnames="static")
def _train(
    params: Any, key: jax.Array, policy: Any, environment: Any, environment_params: Any, static: tuple
) -> Training:
    estimator, optimizer, num_updates, num_trajectories, horizon, progress = static
    environment = release(environment)

    def update(carry: Any, index: jax.Array) -> tuple[Any, Metrics]:
        params, opt_state, state, key = carry
        key, key_rollout = jax.random.split(key)
        keys = jax.random.split(key_rollout, num_trajectories)
        taus = rollout(params, keys, policy, environment, horizon=horizon, environment_params=environment_params)
        estimate, state = estimator.estimate(params, state, policy, taus)
        updates, opt_state = optimizer.update(estimate.grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        info = estimate.info
        metrics = Metrics(info.mean_return, info.num_steps, info.unfinished, optax.tree.norm(estimate.grads))
        if progress:
            progress_bar.report(index, num_updates, info.mean_return)
        return (params, opt_state, state, key), metrics

    start = (params, optimizer.init(params), estimator.init(params), key)
    (params, opt_state, state, _), metrics = lax.scan(update, start, jnp.arange(num_updates))
    return Training(params, opt_state, state, metrics)
