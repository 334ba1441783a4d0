"""The compiled part of training: the start, and a scan over updates.

One update is drawn, weighed and climbed by the functions that a loop written by hand calls. Everything else here decides when
an update, or an evaluation after it, takes place.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from logderiv._core.arrays import as_steps
from logderiv._core.check import is_traced
from logderiv._core.keys import KeyBits
from logderiv._core.pytrees import jit
from logderiv._core.sharding import gather, spread
from logderiv.estimators import Estimator
from logderiv.estimators.base import keep_finite
from logderiv.training import normalization
from logderiv.training.batches import Batch
from logderiv.training.evaluation import Evaluation, evaluate
from logderiv.training.optimizers import further_arguments, init_climbing, maximize, searches_a_line
from logderiv.types import Key, Params, Stream, Trajectory, batch_info, one_batch_axis


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
        optimizer: It ascends, as `maximize(optax.adam(1e-2))`; `update` receives the part as `trajectories`, and what
            `further_arguments` lists, as far as it takes further arguments.
        epochs: At least 1.
        minibatches: At least 1, a divisor of `N`, of a stream of `T`.

    Returns:
        `(params, opt_state, norms)` with the norm of each gradient, shape `(epochs * minibatches,)`.

    Raises:
        ValueError: The batch does not divide into `minibatches`.
    """
    optimizer = optax.with_extra_args_support(optimizer)
    options = {"reusable": estimator.structure.reusable, "searches": searches_a_line(optimizer)}
    axis = 1 if isinstance(trajectories, Stream) else 0
    whole = lax.stop_gradient((as_steps(trajectories), weights))
    size = whole[0].valid.shape[axis]
    if size % minibatches:
        name = "num_steps" if axis else "num_trajectories"
        raise ValueError(f"minibatches: expected a divisor of {name} = {size}, received {minibatches}.")

    def step(carry: Any, part: Any) -> tuple[Any, jax.Array]:
        params, opt_state = carry
        steps, weights = whole if part is None else jax.tree.map(lambda x: jnp.take(x, part, axis), whole)

        def objective(params: Params) -> jax.Array:
            return estimator.objective(params, policy, steps, weights)

        value, grads = jax.value_and_grad(objective)(params)
        further = further_arguments(objective, value, grads, trajectories, **options)
        updates, opt_state = optimizer.update(grads, opt_state, params, trajectories=one_batch_axis(steps), **further)
        return (optax.apply_updates(params, updates), opt_state), optax.tree.norm(grads)

    parts = None
    if minibatches > 1:
        orders = jax.vmap(lambda key: jax.random.permutation(key, size))(jax.random.split(key, epochs))
        parts = orders.reshape(epochs * minibatches, size // minibatches)
    (params, opt_state), norms = lax.scan(step, (params, opt_state), parts, length=epochs * minibatches)
    return params, opt_state, norms


class Metrics(NamedTuple):
    """One row per update, last axis `(num_updates,)`, of several seeds `(S, num_updates)`; after an early stop NaN and 0.

    Attributes:
        mean_return: Mean undiscounted return before the update: of the batch, of a stream of the episodes that ended in it
            (NaN where none did).
        num_steps: Environment steps used, padding not counted.
        num_episodes: Trajectories of the batch; of a stream the episodes that ended in it.
        truncated_fraction: Fraction of trajectories that reached the horizon without terminating; see `BatchInfo`.
        grad_norm: Mean over the update's gradients of their Euclidean norm.
        num_nonfinite: How many of the update's gradients were not finite, though the batch was. `optax.apply_if_finite` skips
            them; without it they end in the parameters.
        evaluation: Mean return of the evaluation after this update, NaN where there was none; `None` without `evaluation`.
        num_skipped: 1 where the batch was left out whole: a weight or target, the estimator's state after it, or the statistics of
            observations with it, were not finite. Parameters, optimizer, estimator and statistics are as before it, and there is no
            gradient (`grad_norm` is NaN).
        num_nonfinite_rewards: How many of the batch's rewards were not finite, the usual reason. Where there are none it was a
            value of a state, a ratio, a credit, a fit or an observation.
    """

    mean_return: jax.Array
    num_steps: jax.Array
    num_episodes: jax.Array
    truncated_fraction: jax.Array
    grad_norm: jax.Array
    num_nonfinite: jax.Array
    evaluation: Any = None
    num_skipped: Any = 0
    num_nonfinite_rewards: Any = 0


class TrainState(NamedTuple):
    """All that a run needs to go on: a pytree of arrays. Of several seeds every leaf has the leading axis `(S,)`.

    Attributes:
        params: Parameters.
        opt_state: State of `maximize(optimizer)`.
        estimator_state: State of the estimator (baselines).
        streams: Where the environments stand; `()` where each update draws whole episodes.
        key: The key of the rest of the run.
        num_updates: Updates so far, int32.
        stopped: Whether an evaluation reached `stop_at`.
        statistics: Of the observations so far, of a policy that is `logderiv.policies.Normalized`; else `()`.
    """

    params: Any
    opt_state: Any
    estimator_state: Any
    streams: Any
    key: Any
    num_updates: jax.Array
    stopped: jax.Array
    statistics: Any = ()


class Plan(NamedTuple):
    """What updates are made of, beside the state.

    Attributes:
        policy: What acts and is trained.
        environment: Where.
        environment_params: Of the environment.
        batch: What is drawn.
        estimator: Weighs the batch and is differentiated.
        optimizer: An optax one, which descends.
        epochs: Passes over the batch.
        minibatches: Parts of each pass.
        evaluation: When and how to evaluate.
    """

    policy: Any
    environment: Any
    environment_params: Any
    batch: Batch
    estimator: Estimator
    optimizer: optax.GradientTransformation
    epochs: int
    minibatches: int
    evaluation: Evaluation | None


@jit
def start(params: Params, key: Key, plan: Plan) -> TrainState:
    """The state before the first update.

    Args:
        params: Where to start; of several seeds each leaf with the leading axis `(S,)`.
        key: One key, or one for each seed, `(S,)`. Consumed.
        plan: Of the run.

    Returns:
        The state.

    Raises:
        ValueError: The optimizer ascends.
    """

    def one(params: Params, key: Key) -> TrainState:
        key, streams = plan.batch.start(key, plan.environment, plan.environment_params)
        opt_state = init_climbing(plan.optimizer, params)
        zero, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        statistics = normalization.statistics(plan.policy)
        state = TrainState(params, opt_state, plan.estimator.init(params), streams, key, zero, no, statistics)
        return _placed(jax.tree.map(_strong, state))

    return (jax.vmap(one) if key.ndim else one)(params, key)


@jit
def advance(
    state: TrainState, first: np.int32, stop: np.int32 | None, length: int, plan: Plan
) -> tuple[TrainState, Metrics]:
    """Updates from `first` on: `length` of them, or those before `stop`. A run is one call, or several, each a piece of it.

    Since `first` and `stop` are traced, pieces of any sizes up to `length` are calls of one program, which gives the same bits
    wherever a run is cut. What does not take place, behind `stop` or behind an early stop, leaves the state as it is and a row
    of zeros. Zeros stand for all that was not measured, and `with_gaps` makes them NaN: no program ends with a NaN that is meant,
    so that `jax_debug_nans` finds those that are not.

    Args:
        state: Before update number `first`.
        first: Number of the first update, from 0; traced, as `stop` is, where a plain `int` would be compiled for.
        stop: Number of the first update that does not take place; `None`: all `length` do.
        length: How many rows there are.
        plan: Of the run.

    Returns:
        The state after them, and their rows, last axis `(length,)`.
    """
    evaluation, several = plan.evaluation, state.key.ndim > 0
    early = evaluation is not None and evaluation.stop_at is not None
    step: Any = jax.jit(partial(update, plan=plan), inline=True)  # traced once for both, its row's shapes and the loop
    if several:
        step = jax.vmap(_unless(lambda state, _: state.stopped, step) if early else step, (0, None))
    if early or stop is not None:
        step = _unless(lambda state, i: jnp.all(state.stopped) | (False if stop is None else i >= stop), step)
    state = state._replace(key=KeyBits.of(state.key))
    state, rows = lax.scan(step, state, first + jnp.arange(length, dtype=jnp.int32))
    state = (jax.vmap(_placed) if several else _placed)(state._replace(key=state.key.keys()))
    return state, gather(jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), rows))


def update(state: TrainState, index: jax.Array, plan: Plan) -> tuple[TrainState, Metrics]:
    """One update: batch, weights, gradient steps; and the evaluation, if one is due after it.

    Args:
        state: Before it; its key as `KeyBits`.
        index: Its number, from 0.
        plan: Of the run.

    Returns:
        The state after it, and its row.
    """
    policy, environment, environment_params, batch, estimator, optimizer, epochs, minibatches, evaluation = plan
    key, key_batch, key_order = jax.random.split(state.key.keys(), 3)
    acting = normalization.at(policy, state.statistics)
    drawn, streams = batch.draw(state.params, key_batch, acting, environment, environment_params, state.streams)
    inner, shown = normalization.shown(acting, drawn)
    weights, new = estimator.advantages(state.params, state.estimator_state, inner, shown)
    before, after = (state.estimator_state, state.statistics), (new, normalization.measured(acting, drawn))
    weights, (estimator_state, statistics), used = keep_finite(before, weights, after)
    climb = {"estimator": estimator, "optimizer": maximize(optimizer), "epochs": epochs, "minibatches": minibatches}
    *new, norms = improve(state.params, state.opt_state, key_order, inner, shown, weights, **climb)
    params, opt_state = jax.tree.map(partial(jnp.where, used), tuple(new), (state.params, state.opt_state))
    info, num_updates, steps = batch_info(drawn), state.num_updates + 1, as_steps(drawn)
    bad_rewards = jnp.sum(steps.valid & ~jnp.isfinite(steps.rewards))
    row = Metrics(
        jnp.where(info.num_episodes > 0, info.mean_return, 0),
        info.num_steps,
        info.num_episodes,
        info.truncated_fraction,
        grad_norm=jnp.mean(norms),
        num_nonfinite=jnp.sum(used & ~jnp.isfinite(norms)),
        num_skipped=jnp.asarray(~used, jnp.int32),
        num_nonfinite_rewards=bad_rewards,
    )
    kept = params, opt_state, estimator_state, streams
    state = TrainState(*kept, KeyBits.of(key), num_updates, state.stopped, statistics)
    if evaluation is None:
        return state, row
    none = jnp.zeros_like(row.mean_return)

    def evaluated(state: TrainState) -> tuple[TrainState, jax.Array]:
        key, key_episodes = jax.random.split(state.key.keys())
        horizon = batch.horizon if evaluation.horizon is None else evaluation.horizon
        options = {"num_episodes": evaluation.num_episodes, "horizon": horizon, "greedy": evaluation.greedy}
        options["environment_params"] = environment_params
        now = normalization.at(policy, state.statistics)
        returns = evaluate(state.params, key_episodes, now, environment, **options)
        mean_return = jnp.mean(returns).astype(none.dtype)
        stopped = state.stopped if evaluation.stop_at is None else mean_return >= evaluation.stop_at
        return state._replace(key=KeyBits.of(key), stopped=stopped), mean_return

    due = (index + 1) % evaluation.every == 0
    state, mean_return = lax.cond(due, evaluated, lambda state: (state, none), state)
    return state, row._replace(evaluation=mean_return)


def with_gaps(rows: Metrics, first: int, evaluation: Evaluation | None) -> Metrics:
    """Rows of `advance` with NaN where nothing was measured: by NumPy, unless they are traced.

    Args:
        rows: Last axis `(n,)`.
        first: Number of the first of these updates.
        evaluation: Of the run.

    Returns:
        The rows.
    """
    where = jnp.where if is_traced(*jax.tree.leaves(rows)) else np.where
    took_place = rows.num_steps > 0
    seen = {name: took_place for name in ("truncated_fraction", "grad_norm")}
    seen["mean_return"] = rows.num_episodes > 0
    if evaluation is not None:
        due = (first + np.arange(took_place.shape[-1]) + 1) % evaluation.every == 0
        seen["evaluation"] = took_place & np.broadcast_to(due, took_place.shape)
    values = {name: getattr(rows, name) for name in seen}
    return rows._replace(**{name: where(seen[name], x, x.dtype.type(np.nan)) for name, x in values.items()})


def _unless(over: Callable[..., Any], step: Callable[..., Any]) -> Callable[..., Any]:
    """`step`, or where `over(state, index)` the state as it is and nothing in the row."""

    def guarded(state: TrainState, index: jax.Array) -> tuple[TrainState, Metrics]:
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(step, state, index)[1])
        return lax.cond(over(state, index), lambda s: (s, nothing), lambda s: step(s, index), state)

    return guarded


def _strong(x: Any) -> jax.Array:
    """An array whose dtype is its own: a weak one would be another program's input than what comes back from it."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else lax.convert_element_type(x, x.dtype)


def _placed(state: TrainState) -> TrainState:
    """Environments spread over the mesh in use, all else whole on each device."""
    return gather(state._replace(streams=()))._replace(streams=spread(state.streams))
