"""The compiled loop of training: what it needs, one update, and the scan over updates."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from logderiv._core.arrays import check_whole, release
from logderiv._core.sharding import check_divides, gather, spread
from logderiv.estimators import Estimator
from logderiv.estimators.joint import ActorCritic, shared_value
from logderiv.sampling.episodes import CHUNK, rollout
from logderiv.sampling.streams import collect, start_streams
from logderiv.training.evaluation import Evaluation, evaluate
from logderiv.training.gradient_steps import check_minibatches, improve
from logderiv.training.reporting import scan as reports
from logderiv.types import Stream, Trajectory, batch_info


class Metrics(NamedTuple):
    """One row per update, leading axis `(num_updates,)`; after an early stop NaN and 0.

    Attributes:
        mean_return: Mean undiscounted return before the update: of the batch, of a stream of the episodes that ended in it
            (NaN where none did).
        num_steps: Environment steps used, padding not counted.
        num_episodes: Trajectories of the batch; of a stream the episodes that ended in it.
        truncated_fraction: Fraction of trajectories that reached the horizon without terminating; see `BatchInfo`.
        grad_norm: Mean over the update's gradients of their Euclidean norm.
        num_nonfinite: How many of the update's gradients were not finite. `optax.apply_if_finite` skips them; without it they
            end in the parameters.
        evaluation: Mean return of the evaluation after this update, NaN where there was none; `None` without `evaluation`.
    """

    mean_return: jax.Array
    num_steps: jax.Array
    num_episodes: jax.Array
    truncated_fraction: jax.Array
    grad_norm: jax.Array
    num_nonfinite: jax.Array
    evaluation: Any = None


class TrainState(NamedTuple):
    """All that a run needs to go on: a pytree of arrays.

    Attributes:
        params: Parameters.
        opt_state: State of the optimizer.
        estimator_state: State of the estimator (baselines).
        streams: Where the environments stand; `()` where each update draws whole episodes.
        key: The key of the rest of the run.
        num_updates: Updates so far, int32.
        stopped: Whether an evaluation reached `stop_at`.
    """

    params: Any
    opt_state: Any
    estimator_state: Any
    streams: Any
    key: jax.Array
    num_updates: jax.Array
    stopped: jax.Array


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static part of a run: what `train` is given, checked."""

    estimator: Estimator
    optimizer: optax.GradientTransformation
    num_trajectories: int | None
    horizon: int | None
    group_size: int
    num_environments: int | None
    num_steps: int | None
    epochs: int
    minibatches: int
    evaluation: Evaluation | None
    mesh: Any
    total: int
    reporters: tuple[reports.Reporter, ...]

    def __post_init__(self) -> None:
        names = ["num_trajectories", "horizon", "group_size", "num_environments", "num_steps", "epochs", "minibatches"]
        check_whole(**{name: getattr(self, name) for name in names if getattr(self, name) is not None})
        if not isinstance(self.estimator, ActorCritic) and shared_value(
            getattr(self.estimator, "weigher", self.estimator)
        ):
            raise ValueError(
                "baseline_shared_value: no estimator but logderiv.actor_critic(...) trains the value; wrap this one in it."
            )
        self._check_batch()
        if self.epochs * self.minibatches > 1 and not self.estimator.reusable:
            raise ValueError(
                f"epochs, minibatches: {type(self.estimator).__name__} is an estimate at the parameters that drew the batch only; "
                "use logderiv.ppo or one of its kin, or one gradient step a batch."
            )

    def _check_batch(self) -> None:
        if (self.num_trajectories is None) == (self.num_environments is None):
            raise ValueError(
                "expected num_trajectories (whole episodes) or num_environments and num_steps (a stream), one of the two."
            )
        if self.num_trajectories is not None:
            if self.num_steps is not None:
                raise ValueError("num_steps: expected with num_environments only; of whole episodes it is the horizon.")
            self.estimator.bias.check(self.num_trajectories)
            check_minibatches(self.num_trajectories, self.minibatches, "num_trajectories")
            self._check_mesh(num_trajectories=self.num_trajectories)
            if self.num_trajectories % self.group_size:
                raise ValueError(
                    f"group_size: expected a divisor of num_trajectories = {self.num_trajectories}, received {self.group_size}."
                )
            return
        if self.num_steps is None:
            raise ValueError("num_steps: expected the steps of each environment per update, received None.")
        if self.group_size != 1:
            raise ValueError(f"group_size: expected 1 on a stream, which has no groups, received {self.group_size}.")
        if not self.estimator.accepts_streams:
            raise TypeError(
                f"num_environments: {type(self.estimator).__name__} needs whole episodes (num_trajectories); a stream cuts them, "
                "which only a credit that bootstraps from values of the state (logderiv.gae) can weigh."
            )
        check_minibatches(self.num_steps, self.minibatches, "num_steps")
        self._check_mesh(num_environments=self.num_environments)

    def _check_mesh(self, **batch: Any) -> None:
        if self.mesh is not None:
            episodes = {} if self.evaluation is None else {"evaluation.num_episodes": self.evaluation.num_episodes}
            for name, number in (batch | episodes).items():
                check_divides(number, self.mesh, name)


@partial(jax.jit, static_argnames="plan")
def start(
    params: Any, key: jax.Array, policy: Any, environment: Any, environment_params: Any, plan: Plan
) -> TrainState:
    """Before the first update."""
    del policy  # only its parameters have a state
    streams = ()
    if plan.num_environments is not None:
        key, key_start = jax.random.split(key)
        environment = release(environment)
        streams = spread(
            start_streams(key_start, environment, plan.num_environments, environment_params=environment_params)
        )
    opt_state, state = plan.optimizer.init(params), plan.estimator.init(params)
    return TrainState(params, opt_state, state, streams, key, jnp.zeros((), jnp.int32), jnp.zeros((), bool))


@partial(jax.jit, static_argnames=("plan", "num_updates"))
def run(
    state: TrainState,
    start: int | jax.Array,
    policy: Any,
    environment: Any,
    environment_params: Any,
    plan: Plan,
    num_updates: int,
) -> tuple[TrainState, Metrics]:
    """`num_updates` more, from update `start` on, unless an evaluation stops them."""
    world = (policy, release(environment), environment_params)

    def update(state: TrainState, index: jax.Array) -> tuple[TrainState, Metrics]:
        state, metrics = _update(state, *world, plan)
        if plan.evaluation is None:
            return state, metrics
        due = (index + 1) % plan.evaluation.every == 0
        none = jnp.full_like(metrics.mean_return, jnp.nan)
        state, mean_return = _cond(due, lambda s: _evaluate(s, *world, plan, none.dtype), lambda s: (s, none), state)
        return state, metrics._replace(evaluation=mean_return)

    def unless_stopped(state: TrainState, index: jax.Array) -> tuple[TrainState, Metrics]:
        if plan.evaluation is None or plan.evaluation.stop_at is None:
            return update(state, index)
        nothing = jax.tree.map(missing, jax.eval_shape(update, state, index)[1])
        return _cond(state.stopped, lambda s: (s, nothing), lambda s: update(s, index), state)

    state, metrics = reports.scan(unless_stopped, state, start, num_updates, total=plan.total, reporters=plan.reporters)
    return gather(state._replace(streams=()))._replace(streams=spread(state.streams)), gather(metrics)


def _update(
    state: TrainState, policy: Any, environment: Any, environment_params: Any, plan: Plan
) -> tuple[TrainState, Metrics]:
    """One update: batch, weights, gradient steps."""
    key, key_batch, key_order = jax.random.split(state.key, 3)
    batch, streams = _batch(state, key_batch, policy, environment, environment_params, plan)
    weights, estimator_state = plan.estimator.weigh(state.params, state.estimator_state, policy, batch)
    params, opt_state, norms = improve(
        state.params,
        state.opt_state,
        key_order,
        policy,
        batch,
        weights,
        estimator=plan.estimator,
        optimizer=plan.optimizer,
        epochs=plan.epochs,
        minibatches=plan.minibatches,
    )
    info = batch_info(batch)
    metrics = Metrics(
        info.mean_return,
        info.num_steps,
        info.num_episodes,
        info.truncated_fraction,
        jnp.mean(norms),
        jnp.sum(~jnp.isfinite(norms)),
    )
    return state._replace(
        params=params,
        opt_state=opt_state,
        estimator_state=estimator_state,
        streams=streams,
        key=key,
        num_updates=state.num_updates + 1,
    ), metrics


def _batch(
    state: TrainState, key: jax.Array, policy: Any, environment: Any, environment_params: Any, plan: Plan
) -> tuple[Trajectory | Stream, Any]:
    options = {"horizon": plan.horizon, "environment_params": environment_params}
    if plan.num_environments is not None:
        assert plan.num_steps is not None
        return collect(state.params, key, policy, environment, state.streams, num_steps=plan.num_steps, **options)
    assert plan.num_trajectories is not None
    key, key_start = jax.random.split(key)
    keys = jax.random.split(key, plan.num_trajectories)
    starts = jnp.repeat(jax.random.split(key_start, plan.num_trajectories // plan.group_size), plan.group_size)
    keys, starts = spread((keys, starts))
    return rollout(state.params, keys, policy, environment, start_key=starts, chunk=CHUNK, **options), ()


def _cond(
    which: jax.Array, true: Callable[[TrainState], Any], false: Callable[[TrainState], Any], state: TrainState
) -> tuple[TrainState, Any]:
    """`lax.cond` with the key as numbers: as a key it would trip JAX's reuse checker under vmap."""
    kind = jax.random.key_impl(state.key)

    def as_key(state: TrainState) -> TrainState:
        return state._replace(key=jax.random.wrap_key_data(state.key, impl=kind))

    def as_numbers(state: TrainState) -> TrainState:
        return state._replace(key=jax.random.key_data(state.key))

    def branch(function: Callable[[TrainState], Any]) -> Callable[[TrainState], Any]:
        def of_numbers(state: TrainState) -> Any:
            state, result = function(as_key(state))
            return as_numbers(state), result

        return of_numbers

    state, result = lax.cond(which, branch(true), branch(false), as_numbers(state))
    return as_key(state), result


def _evaluate(
    state: TrainState, policy: Any, environment: Any, environment_params: Any, plan: Plan, dtype: Any
) -> tuple[TrainState, jax.Array]:
    how = plan.evaluation
    assert how is not None
    key, key_episodes = jax.random.split(state.key)
    returns = evaluate(
        state.params,
        key_episodes,
        policy,
        environment,
        num_episodes=how.num_episodes,
        horizon=plan.horizon if how.horizon is None else how.horizon,
        greedy=how.greedy,
        environment_params=environment_params,
    )
    mean_return = jnp.mean(returns).astype(dtype)
    stopped = state.stopped if how.stop_at is None else mean_return >= how.stop_at
    return state._replace(key=key, stopped=stopped), mean_return


def missing(x: Any) -> jax.Array:
    """NaN, or 0 of an integer."""
    return jnp.full(x.shape, jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 0, x.dtype)
