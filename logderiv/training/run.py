"""Training: trajectories, estimate and optax update in one compiled `lax.scan`."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from logderiv._core.arrays import as_keys, check_whole, hold, is_traced
from logderiv._core.fingerprint import static_text
from logderiv._core.sharding import as_mesh, replicate, using
from logderiv.environments import Gymnasium, as_environment
from logderiv.estimators import Estimator
from logderiv.training.checkpoints import Checkpoints, run_in_chunks
from logderiv.training.evaluation import Evaluation
from logderiv.training.loop import Metrics, Plan, TrainState, missing, run, start
from logderiv.training.reporting import scan as reports
from logderiv.training.reporting.bar import Bar
from logderiv.types import as_policy, check_params


class Training(NamedTuple):
    """Where training stands, and what it measured.

    Attributes:
        state: See `TrainState`.
        metrics: See `Metrics`.
    """

    state: TrainState
    metrics: Metrics

    @property
    def params(self) -> Any:
        """The trained parameters."""
        return self.state.params


def maximize(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer that ascends: optax descends, and `Estimate.grads` points uphill.

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
    num_trajectories: int | None = None,
    horizon: int | None = None,
    group_size: int = 1,
    num_environments: int | None = None,
    num_steps: int | None = None,
    epochs: int = 1,
    minibatches: int = 1,
    environment_params: Any = None,
    evaluation: Evaluation | None = None,
    checkpoints: Checkpoints | None = None,
    mesh: Any = None,
    writers: Sequence[reports.Reporter] = (),
    progress: bool = False,
) -> Training:
    """Repeat: draw trajectories, estimate the gradient, update. One compiled `lax.scan`.

    | batch | |
    |---|---|
    | `num_trajectories`, `horizon` | whole episodes, drawn until the last one has ended: any estimator |
    | `num_environments`, `num_steps` | a stream: environments go on across updates; estimators that bootstrap (`a2c`, `ppo_actor_critic`) |

    Many seeds: `jax.vmap(lambda params, key: train(params, key, ...))(params, keys)`. The call compiles itself; calling it
    again with the same policy, environment, estimator and optimizer objects does not compile again.

    Args:
        params: Where to start.
        key: Consumed.
        policy: A policy, or a function `(params, observation) -> distribution`.
        environment: As in `rollout`.
        estimator: Any estimator of the library, or your own.
        optimizer: An optax transformation that *ascends*: `logderiv.maximize(optax.adam(1e-2))`. Schedules, clipping
            (`optax.clip_by_global_norm`), skipped non-finite updates (`optax.apply_if_finite`) are optax's.
        num_updates: Length of the scan.
        num_trajectories: `N` per update.
        horizon: As in `rollout`; of a stream, an episode is truncated there.
        group_size: Consecutive trajectories that start alike, for group-relative estimators.
        num_environments: `E` of a stream.
        num_steps: `T` of a stream: steps of each environment per update.
        epochs: Passes over each batch; more than one needs an estimator that compares with the policy that drew it (`ppo`).
        minibatches: Parts of each pass; see `logderiv.updates.improve`.
        environment_params: As in `rollout`.
        evaluation: When and how to evaluate, and when to stop.
        checkpoints: Where to save all that the run needs to go on, and how often; `num_updates` must be a multiple of its
            `every`. The same call made again, with the same or more updates, goes on from the newest good checkpoint
            (`params` then only say the shapes), and ends bitwise as a run that was never interrupted.
        mesh: A `jax.sharding.Mesh`, as from `logderiv.make_mesh()`, over whose devices trajectories, or the environments of a
            stream, are spread: the same numbers as on one device up to rounding, baselines and normalizers over the whole batch
            included. Its size must divide their number, and that of evaluation episodes. With several processes
            (`jax.distributed.initialize` first) all make the same call; parameters and metrics can be read in each.
        writers: Who gets each update's metrics while it runs: `CSVWriter`, `TensorBoardWriter`, or your own `reports.Reporter`.
        progress: Show a bar with rate, return and time left; needs tqdm (the extra `progress`).

    Returns:
        A `Training`.

    Raises:
        AssertionError: The arguments differ between processes.
        ValueError: A number below 1, fewer trajectories than the estimator needs, a batch that does not divide into groups,
            minibatches or over the mesh; several gradients of a batch with an estimator that allows one; checkpoints of another
            run or model (see `Checkpoints.restore`), inside `jax.jit` or `jax.vmap`, or of a stream of Gymnasium's; a
            `baseline_shared_value` that nothing trains.
        TypeError: A parameter is not floating point; a stream with an estimator that needs whole episodes.
        ImportError: `progress` without tqdm, `TensorBoardWriter` without tensorboardX, `checkpoints` without orbax-checkpoint.
        RuntimeError: There are checkpoints, all of them damaged.

    Warns:
        UserWarning: Some gradients were not finite; a checkpoint is damaged and the one before is used.
    """
    check_params(params)
    check_whole(num_updates=num_updates)
    reporters = (*writers, Bar()) if progress else tuple(writers)
    reports.check(reporters, [name for name in Metrics._fields if name != "evaluation" or evaluation is not None])
    plan = Plan(
        estimator,
        optimizer,
        num_trajectories,
        horizon,
        group_size,
        num_environments,
        num_steps,
        epochs,
        minibatches,
        evaluation,
        None if mesh is None else as_mesh(mesh),
        num_updates if reporters else 0,
        reporters,
    )
    world: tuple[Any, Any, Any] = (as_policy(policy), hold(as_environment(environment)), environment_params)
    key = as_keys(key)
    if plan.mesh is not None:
        params, key, world = replicate((params, key, world), plan.mesh)
    with using(plan.mesh):
        state = start(params, key, *world, plan)
        if checkpoints is None:
            state, metrics = run(state, 0, *world, plan, num_updates)
        else:
            state, metrics = _run_with_checkpoints(checkpoints, state, key, world, plan, num_updates)
    if reporters:
        jax.effects_barrier()
    if not is_traced(metrics.num_nonfinite) and (bad := int(jnp.sum(metrics.num_nonfinite))):
        warnings.warn(
            f"train: {bad} gradients were not finite; metrics.num_nonfinite says in which updates. optax.apply_if_finite skips them.",
            stacklevel=2,
        )
    return Training(state, metrics)


def _run_with_checkpoints(
    checkpoints: Checkpoints,
    state: TrainState,
    key: jax.Array,
    world: tuple[Any, Any, Any],
    plan: Plan,
    num_updates: int,
) -> tuple[TrainState, Metrics]:
    """The same in chunks; see `run_in_chunks`."""
    if is_traced(*jax.tree.leaves((state, world))):
        raise ValueError("checkpoints: inside jax.jit or jax.vmap; give each seed a call and a directory of its own.")
    if plan.num_environments is not None and isinstance(world[1], Gymnasium):
        raise ValueError(
            "checkpoints: a stream of Gymnasium's environments ends with this process and cannot go on in another; draw whole "
            "episodes (num_trajectories)."
        )
    # What may change between the parts of a run: where it runs, who is told, and how long it is.
    fixed = {name: value for name, value in vars(plan).items() if name not in ("mesh", "total", "reporters")}
    fixed |= {"policy": world[0], "environment": world[1], "environment_params": world[2], "key": key}
    state, metrics = run_in_chunks(
        checkpoints,
        state,
        lambda state, start, length: run(state, start, *world, plan, length),
        num_updates,
        run={name: static_text(value) for name, value in fixed.items()},
        stopped=lambda state: bool(state.stopped),
    )
    reports.close(plan.reporters)
    rest = jax.tree.map(lambda x: missing(jax.ShapeDtypeStruct((num_updates - len(x),), x.dtype)), metrics)
    return state, jax.tree.map(lambda x, y: jnp.asarray(np.concatenate([x, y])), metrics, rest)
