"""Steps uphill: optimizers that ascend, and one gradient step or several epochs of minibatches on one batch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from logderiv.types import Key, Params, Stream, Trajectory, as_steps, one_batch_axis


class _Maximized(NamedTuple):
    """Marks the state of an optimizer that `maximize` has turned round."""


def maximize(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer that ascends, for loops written by hand: optax descends, and `Estimate.grads` points uphill.

    The same as `optax.chain(optax.scale(-1.0), optimizer)`. `train` turns its optimizer round itself and refuses one that
    already is.

    Args:
        optimizer: Any optax optimizer.

    Returns:
        The optimizer; its state is the pair of a mark without content and the state of `optimizer`.

    Example:
        >>> import jax.numpy as jnp
        >>> climbing = maximize(optax.sgd(0.5))
        >>> climbing.update(jnp.array(2.0), climbing.init(jnp.array(0.0)))[0].item()
        1.0
    """
    return optax.chain(optax.scale(-1.0)._replace(init=lambda _: _Maximized()), optimizer)


def init_climbing(optimizer: optax.GradientTransformation, params: Params) -> Any:
    """The first state of `maximize(optimizer)`.

    Args:
        optimizer: Descends, as optax's do.
        params: Parameters.

    Returns:
        The state.

    Raises:
        ValueError: Somewhere in `optimizer` is a `maximize`.
    """

    def turned(x: Any) -> bool:
        return isinstance(x, _Maximized)

    state: Any = maximize(optimizer).init(params)
    if any(map(turned, jax.tree.leaves(state[1], is_leaf=turned))):
        raise ValueError(
            "optimizer: expected one that descends, as optax's do, since train climbs by itself; received one with "
            "logderiv.maximize(...) in it, which would descend: leave maximize out."
        )
    return state


def improve(
    params: Params,
    opt_state: Any,
    key: Key,
    policy: Any,
    trajectories: Trajectory | Stream,
    weights: Any,
    *,
    estimator: Any,
    optimizer: optax.GradientTransformation,
    epochs: int = 1,
    minibatches: int = 1,
) -> tuple[Params, Any, jax.Array]:
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
        weights: From `estimator.advantages`.
        estimator: Its objective is differentiated `epochs * minibatches` times.
        optimizer: It ascends, as `maximize(optax.adam(1e-2))`; `update` receives the part as `trajectories` if it takes
            further arguments.
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
    if size % minibatches:
        name = "num_steps" if axis else "num_trajectories"
        raise ValueError(f"minibatches: expected a divisor of {name} = {size}, received {minibatches}.")

    def step(carry: Any, part: Any) -> tuple[Any, jax.Array]:
        params, opt_state = carry
        steps, weights = whole if part is None else jax.tree.map(lambda x: jnp.take(x, part, axis), whole)
        grads = jax.grad(estimator.objective)(params, policy, steps, weights)
        updates, opt_state = optimizer.update(grads, opt_state, params, trajectories=one_batch_axis(steps))
        return (optax.apply_updates(params, updates), opt_state), optax.tree.norm(grads)

    parts = None
    if minibatches > 1:
        orders = jax.vmap(lambda key: jax.random.permutation(key, size))(jax.random.split(key, epochs))
        parts = orders.reshape(epochs * minibatches, size // minibatches)
    (params, opt_state), norms = lax.scan(step, (params, opt_state), parts, length=epochs * minibatches)
    return params, opt_state, norms
