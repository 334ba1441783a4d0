"""Training: the loop over updates, driven from the host in compiled pieces."""

import contextlib
import warnings
from collections.abc import Sequence
from types import FunctionType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from logderiv._core import check
from logderiv._core.arrays import as_keys, check_leading_axes, check_params
from logderiv._core.fingerprint import static_text
from logderiv._core.sharding import as_mesh, check_divides, replicate, using
from logderiv._core.tables import concrete, shapes, table
from logderiv.environments import Gymnasium, as_environment
from logderiv.estimators import Estimator
from logderiv.policies import as_policy
from logderiv.sampling.episodes import draw, warn_of_cut
from logderiv.training import normalization
from logderiv.training.batches import Batch, Steps
from logderiv.training.checkpoints import Checkpoints, on_host
from logderiv.training.evaluation import Evaluation
from logderiv.training.loop import Metrics, Plan, TrainState, advance, start, with_gaps
from logderiv.training.optimizers import check_optimizer
from logderiv.training.reporting import Bar, Reporter, Rows, check_reporters
from logderiv.types import Key, Params

_PIECE = 2**15  # environment steps between two looks of the host: some 0.2 s at the speeds of a CPU


class Training(NamedTuple):
    """Where training stands, and what it measured.

    Attributes:
        state: All that the run needs to go on.
        metrics: One row per update.
    """

    state: TrainState
    metrics: Metrics

    @property
    def params(self) -> Any:
        """The trained parameters."""
        return self.state.params

    def __str__(self) -> str:
        metrics = self.metrics
        if not concrete(metrics[:6]) or metrics.num_steps.size == 0:  # the others may be at their defaults
            return shapes("Training", self)
        steps = np.asarray(metrics.num_steps)
        steps = steps.reshape(-1, steps.shape[-1])  # a row for each seed; an early stop leaves zeros
        rows = []
        for name in ("mean_return", "grad_norm", "evaluation"):
            if getattr(metrics, name) is not None:
                values = np.asarray(getattr(metrics, name), float).reshape(steps.shape)
                real = [row[(taken > 0) & np.isfinite(row)] for row, taken in zip(values, steps, strict=True)]
                first, last = np.array([_ends(row) for row in real]).T
                rows.append((name, np.mean(first), np.mean(last), np.min(last), np.max(last)))
        columns = ("", "first tenth", "last tenth", "lowest seed", "highest seed")
        return (
            f"Training: seeds: {len(steps)}; at most {np.max(np.sum(steps > 0, axis=1))} updates\n"
            f"  {steps.sum()} steps, {np.sum(metrics.num_episodes)} episodes, {np.sum(metrics.num_nonfinite)} gradients not finite, "
            f"{np.sum(metrics.num_skipped)} batches left out\n"
            + table(columns, "<14 >13.5g >13.5g >13.5g >13.5g", rows)
        )


def _ends(row: np.ndarray) -> tuple[float, float]:
    """Means of the first and the last tenth; NaN where there is nothing."""
    tenth = max(1, len(row) // 10)
    return (float(np.mean(row[:tenth])), float(np.mean(row[-tenth:]))) if len(row) else (np.nan, np.nan)


def train(
    params: Params,
    key: Key,
    policy: Any,
    environment: Any,
    batch: Batch,
    *,
    estimator: Estimator,
    optimizer: optax.GradientTransformation,
    num_updates: int,
    epochs: int = 1,
    minibatches: int = 1,
    environment_params: Any = None,
    evaluation: Evaluation | None = None,
    checkpoints: Checkpoints | None = None,
    mesh: Any = None,
    reporters: Sequence[Reporter] = (),
    progress: bool = False,
) -> Training:
    """Repeat: draw a batch, estimate the gradient, climb.

    | batch | |
    |---|---|
    | `Episodes(16, horizon=100)` | whole episodes, drawn until the last one has ended: any estimator |
    | `Groups(8, 4)` | the same, groups of 4 that start alike: group-relative estimators |
    | `Steps(64, 32)` | a stream of 64 environments that go on across updates: estimators that bootstrap (`A2C`, `PPOActorCritic`) |

    A run is one compiled program. With reporters or checkpoints it is called several times, each call a piece of the run whose
    end follows from the arguments alone, and the host reports and saves in between. Calling `train` again with equal settings
    and the same policy, environment and optimizer objects does not compile again.

    A batch with a weight or target that is not finite, such as one with a reward of NaN, is left out whole: parameters, optimizer
    and estimator stay as they were, bit for bit, and `metrics.num_skipped` counts it.

    Many seeds: keys `(S,)`, and `params` each of whose leaves has the leading axis `(S,)`, as `jax.vmap(policy.init)` makes
    them. They are trained together; state and metrics then have the leading axis `(S,)`.

    Inside `jax.jit` and `jax.vmap`, over a discount or a learning rate say, a run is one `lax.scan`, evaluation and early stop
    included; reporters, progress and checkpoints are refused there.

    Args:
        params: Where to start.
        key: One key, or `(S,)` of them. Consumed.
        policy: A policy, or a function `(params, observation) -> distribution`. `logderiv.policies.Normalized(policy)` keeps
            statistics of the observations in the state.
        environment: `reset` and `step` as in `logderiv.types.Environment`, or an environment of a public suite.
        batch: What one update is estimated from: `Episodes`, `Groups` or `Steps`.
        estimator: Any estimator of the library, or your own.
        optimizer: An optax one as it is, such as `optax.adam(1e-2)`: `train` climbs by itself. Schedules, clipping
            (`optax.clip_by_global_norm`), skipped non-finite updates (`optax.apply_if_finite`) are optax's. One that wants a value
            (`optax.contrib.reduce_on_plateau`, `optax.polyak_sgd`) gets minus the mean return of the batch; one that searches along a line
            (`optax.lbfgs`) goes with an estimator whose objective stands for the return nearby (`PPO`).
        num_updates: How many updates.
        epochs: Passes over each batch; more than one needs an estimator that compares with the policy that drew it (`PPO`).
        minibatches: Parts of each pass: of whole episodes, or of a stream's steps in time.
        environment_params: Passed to the environment; `None` for its own.
        evaluation: When and how to evaluate, and when to stop.
        checkpoints: Where to save all that the run needs to go on, and how often. The same call made again, with the same or
            more updates, goes on from the newest good checkpoint (`params` then only say the shapes), and ends bitwise as a run
            that was never interrupted. A call with other settings or other code is refused; `Checkpoints` says what is compared.
        mesh: A `jax.sharding.Mesh`, as from `logderiv.make_mesh()`, over whose devices trajectories, or the environments of a
            stream, are spread: the same numbers as on one device up to rounding, baselines and normalizers over the whole batch
            included. Its size must divide their number, and that of evaluation episodes. With several processes
            (`jax.distributed.initialize` first) all make the same call; parameters and metrics can be read in each.
        reporters: Who is told of each update while it runs: `logderiv.reporting.CSVWriter`, `TensorBoardWriter`, or your own
            `Reporter`.
        progress: Show a bar with rate, return and time left; needs tqdm (the extra `progress`).

    Returns:
        The last state, from which `params` is read, and the metrics of each update.

    Raises:
        AssertionError: The arguments differ between processes.
        ValueError: A number below 1, fewer trajectories than the estimator needs, a batch that does not divide into minibatches
            or over the mesh; several gradients of a batch with an estimator that allows one; an optimizer that ascends;
            parameters without the leading axis of several keys; checkpoints of another run or model, or of a stream of
            Gymnasium's; reporters, progress or checkpoints inside `jax.jit` or `jax.vmap`; an advantage that needs values of the state
            where there is no value function; two reporters of one file; a file or a directory to which another run writes, or which
            is something else or cannot be written.
        TypeError: A parameter is not floating point; a batch, an estimator, an optimizer, an evaluation, checkpoints or a reporter that
            is something else, or was not called; a stream with an estimator that needs whole episodes.
        ImportError: `progress` without tqdm, `TensorBoardWriter` without tensorboardX, `checkpoints` without orbax-checkpoint.
        RuntimeError: There are checkpoints, all of them damaged.

    Warns:
        UserWarning: Batches were left out, or gradients were not finite; a checkpoint is damaged and the one before is used; the
            horizon cuts paths of a process that ends by itself, see `logderiv.rollout`.

    Gradients: none; what `train` returns is not meant to be differentiated.
    """
    key, policy, environment = as_keys(key), as_policy(policy), as_environment(environment)
    policy = normalization.starting(policy, environment, environment_params)
    if mesh is not None:
        mesh = as_mesh(mesh)
        given = (params, key, policy, environment, environment_params)
        params, key, policy, environment, environment_params = replicate(given, mesh)
    epochs, minibatches, num_updates = check.whole(epochs=epochs, minibatches=minibatches, num_updates=num_updates)
    plan = Plan(policy, environment, environment_params, batch, estimator, optimizer, epochs, minibatches, evaluation)
    _check_kinds(plan, checkpoints)
    plan = plan._replace(batch=batch.of(estimator))
    _check(params, key, plan, mesh)
    _check_host(params, key, plan, reporters=reporters, progress=progress, checkpoints=checkpoints)
    reporters = check_reporters(reporters, [Bar()] if progress else [])
    with using(mesh):
        state = start(params, key, plan)
        if reporters or checkpoints is not None:
            state, metrics = _in_pieces(state, key, plan, num_updates, reporters, checkpoints)
        else:
            state, metrics = advance(state, np.int32(0), None, num_updates, plan)
            metrics = _measured(metrics, plan)
            _warn_of_cut(plan, state, metrics)
    _warn_of_what_was_not_finite(metrics)
    return Training(state, metrics)


def _warn_of_what_was_not_finite(metrics: Metrics) -> None:
    """Batches that were left out, and gradients of those that were not."""
    if check.is_traced(metrics.num_skipped, metrics.num_nonfinite):
        return
    if bad := int(jnp.sum(metrics.num_skipped)):
        with_rewards = int(jnp.sum((metrics.num_skipped > 0) & (metrics.num_nonfinite_rewards > 0)))
        warnings.warn(
            f"train: {bad} batches were left out whole, since a weight, a target or a statistic was not finite, {with_rewards} of them with rewards "
            "that are not finite; metrics.num_skipped says in which updates.",
            stacklevel=3,
        )
    if bad := int(jnp.sum(metrics.num_nonfinite)):
        warnings.warn(
            f"train: {bad} gradients were not finite; metrics.num_nonfinite says in which updates. optax.apply_if_finite skips them.",
            stacklevel=3,
        )


def _in_pieces(
    state: TrainState, key: Key, plan: Plan, num_updates: int, reporters: Sequence[Reporter], checkpoints: Any
) -> tuple[TrainState, Metrics]:
    """A run whose rows are reported, and whose state is saved, after each piece.

    With checkpoints neither the reporters nor `num_updates` have a say in what is compiled, since they may change when the run
    goes on: then too all pieces are calls of one program.
    """
    length = every = max(1, _PIECE // plan.batch.size(plan.environment))
    if checkpoints is not None:
        length, every = min(length, checkpoints.every), checkpoints.every
    shapes = jax.eval_shape(lambda state: advance(state, np.int32(0), np.int32(0), length, plan)[1], state)

    def empty(num: int) -> Metrics:
        return jax.tree.map(lambda x: np.zeros((*x.shape[:-1], num), x.dtype), shapes)

    step, rows, run, warned = 0, [empty(0)], {}, False
    with contextlib.ExitStack() as stack:
        if checkpoints is not None:
            stack.enter_context(checkpoints.held())
            # All that must be the same when the run goes on, which mesh, reporters and `num_updates` need not be.
            run = {name: static_text(value) for name, value in (plan._asdict() | {"key": key}).items()}
            found = checkpoints.restore(lambda step: (state, empty(step)), run)
            step, (state, *rows) = found or (0, (state, *rows))
            if step > num_updates:
                raise ValueError(f"{checkpoints.directory} is at update {step} already, num_updates is {num_updates}.")
        # A reporter may refuse when it is opened: all are, before the first one begins to write.
        opened = [reporter.open(_columns(rows[0]), num_updates) for reporter in reporters]
        writers = [stack.enter_context(block) for block in opened if jax.process_index() == 0]
        while step < num_updates and not np.all(on_host(state.stopped)):
            stop = min(step - step % length + length, step - step % every + every, num_updates)
            state, new = advance(state, np.int32(step), np.int32(stop), length, plan)
            first, step = step, int(np.max(on_host(state.num_updates)))
            new = jax.tree.map(lambda x, num=step - first: on_host(x)[..., :num], new)
            rows.append(with_gaps(new, first, plan.evaluation))
            warned = warned or _warn_of_cut(plan, state, new)
            for write in writers:
                write(np.arange(first, step), _columns(rows[-1]))
            if checkpoints is not None and (step % every == 0 or step == num_updates or step < stop):
                rows = [_joined(rows)]
                checkpoints.save(step, (state, rows[0]), run)
    return state, _measured(_joined([*rows, empty(num_updates - step)]), plan)


def _measured(rows: Metrics, plan: Plan) -> Metrics:
    """Rows of `advance` as users get them."""
    if not check.is_traced(*jax.tree.leaves(rows)):
        rows = jax.tree.map(on_host, rows)
    with jax.debug_nans(False):  # NaN stands for what was not measured
        return jax.tree.map(jnp.asarray, with_gaps(rows, 0, plan.evaluation))


def _warn_of_cut(plan: Plan, state: TrainState, rows: Metrics) -> bool:
    """Warn if paths that end by themselves were cut, and it is known. A stream bootstraps where it is cut."""
    took_place = rows.num_steps > 0
    if check.is_traced(took_place, rows.truncated_fraction) or isinstance(plan.batch, Steps) or not np.any(took_place):
        return False
    fraction = np.mean(np.asarray(rows.truncated_fraction)[np.asarray(took_place)])
    if fraction == 0 or not hasattr(plan.environment, "ends_by_itself"):
        return False
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[state.key.ndim :], x.dtype), (state.params, state.key))
    options = {"horizon": 1, "environment_params": plan.environment_params}
    cut = jax.eval_shape(lambda params, key: draw(params, key, plan.policy, plan.environment, **options)[1], *shapes)
    warn_of_cut("train", None if cut is None else fraction, stacklevel=4)
    return True


def _joined(rows: Sequence[Metrics]) -> Metrics:
    return jax.tree.map(lambda *x: np.concatenate(x, axis=-1), *rows)


def _columns(rows: Metrics) -> Rows:
    """Rows as reporters take them, by name and of shape `(updates, seeds)`."""
    return {name: np.atleast_2d(x).T for name, x in rows._asdict().items() if x is not None}


def _check_kinds(plan: Plan, checkpoints: Any) -> None:
    """Each part is what its name says, and not its class."""
    for name, part, needs, expected in (
        ("batch", plan.batch, ("draw", "start"), "logderiv.Episodes, Groups or Steps"),
        ("estimator", plan.estimator, ("advantages", "objective"), "an estimator, such as logderiv.ScoreFunction()"),
        ("optimizer", plan.optimizer, ("init", "update"), "a transformation of optax, such as optax.adam(1e-2)"),
        ("evaluation", plan.evaluation, ("every", "stop_at"), "logderiv.Evaluation(every=10)"),
        ("checkpoints", checkpoints, ("save", "restore", "held"), "logderiv.Checkpoints(directory, every=100)"),
    ):
        if part is not None or name in ("batch", "estimator", "optimizer"):
            check.made(name, part, all(hasattr(part, need) for need in needs), expected, (type, FunctionType))


def _check(params: Params, key: Key, plan: Plan, mesh: Any) -> None:
    """What does not go together, whatever the world."""
    check_params(params)
    plan.batch.check(plan.estimator, mesh)
    if plan.epochs * plan.minibatches > 1 and not plan.estimator.structure.reusable:
        raise ValueError(
            f"epochs, minibatches: {type(plan.estimator).__name__} is an estimate at the parameters that drew the batch only; "
            "use logderiv.PPO or one of its kin, or one gradient step a batch."
        )
    check_optimizer(plan.optimizer, reusable=plan.estimator.structure.reusable, streams=isinstance(plan.batch, Steps))
    if plan.evaluation is not None:
        check_divides(plan.evaluation.num_episodes, mesh, "evaluation.num_episodes")
    if key.ndim > 1:
        raise ValueError(f"key: expected one key, or keys of shape (S,) for S seeds, received shape {key.shape}.")
    hint = "one entry for each key: jax.vmap(policy.init) makes them so, jax.numpy.broadcast_to starts all seeds alike"
    check_leading_axes(key.shape, hint=hint, params=params)


def _check_host(params: Params, key: Key, plan: Plan, **asked: Any) -> None:
    """Where the host has something to do between pieces, it must be there, and what it saves must be able to go on."""
    names = [name for name, value in asked.items() if value]
    # Under jax.jit any array is traced, under jax.vmap those that are mapped over.
    if names and check.is_traced(jnp.zeros(()), *jax.tree.leaves((params, key, plan))):
        raise ValueError(
            f"{', '.join(names)}: inside jax.jit or jax.vmap the host cannot look on; leave it out there, and train several seeds by "
            "one call with several keys."
        )
    if "checkpoints" in names and isinstance(plan.batch, Steps) and isinstance(plan.environment, Gymnasium):
        raise ValueError(
            "checkpoints: a stream of Gymnasium's environments ends with this process and cannot go on in another; draw whole "
            "episodes (logderiv.Episodes)."
        )
