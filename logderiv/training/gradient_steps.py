"""One update of the parameters from one batch: weigh once, then one gradient step or several epochs of minibatches."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from logderiv.types import Stream, Trajectory, as_steps, one_batch_axis


def improve(
    params: Any,
    opt_state: Any,
    key: jax.Array,
    policy: Any,
    trajectories: Trajectory | Stream,
    weights: Any,
    *,
    estimator: Any,
    optimizer: optax.GradientTransformation,
    epochs: int = 1,
    minibatches: int = 1,
) -> tuple[Any, Any, jax.Array]:
    """`epochs` passes over the batch in `minibatches` parts each: a gradient of `estimator.objective` and an optax update for each part.

    The parts are drawn without replacement, anew in each epoch. Of episodes they are whole trajectories. Of a stream they are
    steps in time, the same of all environments: independent where the environments are, balanced over them, and no step leaves
    the device that holds its environment. Whole trajectories that are spread over devices do: each part is put together anew
    from all of them.

    Args:
        params: Parameters of the policy.
        opt_state: State of the optimizer.
        key: Consumed.
        policy: The policy that drew the batch.
        trajectories: Leading axes `(N, T)`, or a stream.
        weights: From `estimator.weigh`.
        estimator: Its objective is differentiated `epochs * minibatches` times.
        optimizer: It ascends; `update` receives the part as `trajectories` if it takes further arguments.
        epochs: At least 1.
        minibatches: At least 1, a divisor of `N`, of a stream of `T`.

    Returns:
        `(params, opt_state, norms)` with the norm of each gradient, shape `(epochs * minibatches,)`.

    Raises:
        ValueError: The batch does not divide into `minibatches`.
    """
    optimizer = optax.with_extra_args_support(optimizer)
    axis = 1 if isinstance(trajectories, Stream) else 0
    whole = lax.stop_gradient((as_steps(trajectories), weights))
    size = whole[0].valid.shape[axis]
    check_minibatches(size, minibatches, "num_steps" if axis else "num_trajectories")

    def step(carry: Any, part: Any) -> tuple[Any, jax.Array]:
        params, opt_state = carry
        steps, weights = whole if part is None else jax.tree.map(lambda x: jnp.take(x, part, axis), whole)
        grads = jax.grad(estimator.objective)(params, policy, steps, weights)
        updates, opt_state = optimizer.update(grads, opt_state, params, trajectories=one_batch_axis(steps))
        return (optax.apply_updates(params, updates), opt_state), optax.tree.norm(grads)

    if minibatches == 1:
        (params, opt_state), norms = lax.scan(step, (params, opt_state), None, length=epochs)
    else:
        orders = jax.vmap(lambda key: jax.random.permutation(key, size))(jax.random.split(key, epochs))
        parts = orders.reshape(epochs * minibatches, size // minibatches)
        (params, opt_state), norms = lax.scan(step, (params, opt_state), parts)
    return params, opt_state, norms


def check_minibatches(size: int, minibatches: int, name: str) -> None:
    """Raise `ValueError` unless `size` steps or trajectories divide into `minibatches`."""
    if size % minibatches:
        raise ValueError(f"minibatches: expected a divisor of {name} = {size}, received {minibatches}.")
