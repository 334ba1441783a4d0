"""The one way in which every step of every trajectory is visited.

`over_steps` takes a *term*, a function of one step, and gives its values or their sums. It alone knows what kinds of policy there
are, and takes the cheapest of these routes:

| policy | every step | sums |
|---|---|---|
| tabular | in blocks of rows | log-factors, weighted or not, by counting how often each entry of the table was chosen |
| memoryless | in blocks of rows | value and gradient in one pass over the rows |
| with memory | in checkpointed segments of time | segment by segment |
| of whole sequences | once per trajectory | of the steps; by hidden states, value and gradient in one pass over the tokens |

Invalid steps never matter: their inputs are replaced by those of a valid step before policy and term see them, their results by
zero. Use the batch axes rather than `jax.vmap`, which hides the batch from the choice of the blocks and costs 1.3
to 4 times the time on a CPU.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.core import Tracer

from logderiv._core import check
from logderiv._core.arrays import (
    as_trajectory,
    check_leading_axes,
    expand,
    refuse_complex,
    summable,
    unbroken,
)
from logderiv._core.blocks import (
    fill_steps,
    map_rows,
    map_trajectories,
    neutral,
    rows_in_block,
    scan_steps,
    sum_rows,
)
from logderiv._core.pytrees import jit
from logderiv.distributions import interop
from logderiv.likelihood.counting import from_visits
from logderiv.likelihood.sequences import HiddenStates, of_sequences, per_trajectory
from logderiv.policies.stepwise import StepPolicy, as_policy, shapes_of_one
from logderiv.types import Params, TimeStep, Trajectory

Term = Callable[..., jax.Array]


def own_steps(params: Params, policy: Any, trajectories: Trajectory) -> jax.Array:
    """Which valid steps the policy chose itself: not those that a `logderiv.distributions.Forced` prescribes, such as a prompt's.

    They alone are counted in lengths, means and normalizers.

    Args:
        params: Parameters of the policy.
        policy: The policy; one of whole sequences chose every step.
        trajectories: Leading axes `(*batch, T)`.

    Returns:
        Boolean, shape of `trajectories.valid`; that itself where nothing is prescribed.
    """
    policy, valid = as_policy(policy), trajectories.valid
    if policy.takes_sequences or not policy.forces(params, shapes_of_one(trajectories.observations, jnp.ndim(valid))):
        return valid
    return over_steps(_own, lax.stop_gradient(params), policy, trajectories) > 0


def _own(params: Params, step: TimeStep, distribution: Any) -> jax.Array:
    """The term 1 of a step that the policy chose."""
    del params, step
    return jnp.where(distribution.forced, 0.0, 1.0)


def log_factor(params: Params, step: TimeStep, distribution: Any) -> jax.Array:
    """The term log π(a|s). Sums of it are counted where the policy is a table."""
    del params
    return interop.log_prob(distribution, step.action)


def weighted_log_factor(params: Params, step: TimeStep, distribution: Any, weight: jax.Array) -> jax.Array:
    """The term w log π(a|s), 0 where `w` is, even if the step is impossible; the weight is detached. Sums are counted, too."""
    log = log_factor(params, step, distribution)
    weight = lax.stop_gradient(weight).astype(log.dtype)
    return jnp.where(weight == 0, jnp.zeros_like(log), weight * log)


def factor(params: Params, step: TimeStep, distribution: Any) -> jax.Array:
    """The term π(a|s)."""
    del params
    return interop.prob(distribution, step.action)


def over_steps(
    term: Term,
    params: Params,
    policy: Any,
    trajectories: Trajectory,
    *extras: Any,
    reduce: str | None = None,
    block_size: int | None = None,
) -> jax.Array:
    """A function of every step, or its sums.

        reduce=None    y_nt = term(params, step_nt, π(·|s_nt), *extras_nt),  0 on invalid steps
        reduce="time"  Σ_t y_nt
        reduce="all"   Σ_n Σ_t y_nt

    Args:
        term: `(params, step, distribution, *extras) -> scalar` of one step, a `logderiv.types.TimeStep`. A policy of whole sequences
            hands it a distribution that knows the log-probability of the step's action and nothing else.
        params: Parameters of the policy.
        policy: A policy, or a function `(params, observation) -> distribution`.
        trajectories: Leading axes `(*batch, T)`.
        *extras: What else the term takes: arrays, or pytrees of them, with leading axes `(*batch, T)`.
        reduce: What is summed: `None`, `"time"` or `"all"`; a sum over all steps takes value and gradient of all of them in one pass.
        block_size: Rows in a block; `None` for the backend's default. Speed and memory only.

    Returns:
        Shape `(*batch, T)`, `(*batch,)` or `()`; sums in float32 at least.

    Raises:
        ValueError: Shapes disagree, the term or the policy's log-probability is not a scalar, `reduce` or `block_size` is
            none of those above, or, outside `jax.jit`, an action of a valid step is out of range. Inside `jax.jit` such an
            action has log-probability `-inf`.
        TypeError: Not a policy, it does not return a distribution, or a categorical action is a float.

    Gradients: flow through `params`, observations, actions and extras, at any order; nothing is detached.

    Example:
        >>> import jax, jax.numpy as jnp, logderiv as ld
        >>> taus = ld.rollout(jnp.zeros(2), jax.random.split(jax.random.key(0), 3), ld.shared_softmax, ld.environments.short_corridor(), horizon=8)
        >>> entropy = lambda params, step, distribution: distribution.entropy()
        >>> [round(float(x), 4) for x in over_steps(entropy, jnp.zeros(2), ld.shared_softmax, taus)[:, 0]]
        [0.6931, 0.6931, 0.6931]
    """
    if reduce not in (None, "time", "all"):
        check.one_of((None, "time", "all"), reduce=reduce)
    if block_size is not None:
        block_size = check.whole(block_size=block_size)
    policy, trajectories = check_steps(params, policy, trajectories, *extras)
    return _over_steps(term, params, policy, trajectories, extras, reduce, block_size)


def check_steps(params: Params, policy: Any, trajectories: Trajectory, *extras: Any) -> tuple[StepPolicy, Trajectory]:
    """Policy and trajectories, if the one can take the other: shapes are checked, and the range of actions where they have values."""
    trajectories = as_trajectory(trajectories, "actions")
    check_leading_axes(trajectories.valid.shape, extras=extras)
    refuse_complex(params=params)
    policy, valid = as_policy(policy), trajectories.valid
    actions, structure = jax.tree_util.tree_flatten_with_path(trajectories.actions)
    if policy.sees_time:
        unbroken(valid, jnp.float32)
    known = not any(isinstance(x, Tracer) for x in (*(x for _, x in actions), valid))
    if known and not all(jnp.issubdtype(jnp.result_type(x), jnp.floating) for _, x in actions):
        of_one_step = shapes_of_one((trajectories.observations, trajectories.actions), jnp.ndim(valid))
        model = policy.policy.log_factors if policy.takes_sequences else None
        size = jax.eval_shape(model.unembedding, params).shape[0] if isinstance(model, HiddenStates) else None
        sizes = policy.ranges(params, *of_one_step) if model is None else [size] * structure.num_leaves
        for size, (path, x) in zip(sizes, actions, strict=True):
            interop.check_range(size, x, valid, "trajectory.actions" + jax.tree_util.keystr(path))
    return policy, trajectories


def fill_invalid(trajectory: Trajectory) -> Trajectory:
    """The trajectory with the observations and actions of invalid steps replaced by those of its first valid step.

    By `neutral` numbers where no step is valid.
    """
    observations, actions = fill_steps((trajectory.observations, trajectory.actions), trajectory.valid)
    some = jnp.any(trajectory.valid, axis=-1)
    final = jax.tree.map(lambda x: jnp.where(expand(some, x), x, neutral(x, some)), trajectory.final_observation)
    return trajectory._replace(observations=observations, actions=actions, final_observation=final)


@jit
def _over_steps(
    term: Term, params: Params, policy: StepPolicy, trajectory: Trajectory, extras: Any, reduce: Any, block_size: Any
) -> jax.Array:
    counted = _count(term, params, policy, trajectory, extras, reduce)
    if counted is not None:
        return counted
    visit, valid = partial(_visit, term, policy), trajectory.valid
    *batch, length = valid.shape
    num, first = math.prod(batch), batch[0] if batch else 1  # the first axis is the one that may be sharded
    steps = TimeStep(trajectory.observations, trajectory.actions, trajectory.behavior_log_probs)

    def of_shape(*axes: int) -> Any:
        return jax.tree.map(lambda x: jnp.reshape(x, (*axes, *jnp.shape(x)[valid.ndim :])), ((steps, extras), valid))

    def alone(params: Params, row: Any) -> jax.Array:
        return visit(params, (), row)[1]

    total, summed = partial(sum_rows, alone, block_size=block_size), reduce is not None
    if policy.takes_sequences:
        rows = fill_steps((steps, extras), valid)
        model = policy.policy.log_factors
        values, summed = of_sequences(partial(_visit, term), params, model, fill_invalid(trajectory), rows, reduce)
    elif policy.has_memory:
        rows, mask = of_shape(num, length)
        values = scan_steps(visit, params, policy.start(params), fill_steps(rows, mask), mask, total=summed)
    elif reduce == "all":
        values = total(params, *of_shape(first, valid.size // max(first, 1)))
    elif reduce == "time" and _fits_one_pass(alone, params, of_shape(num, length)[0], block_size):
        values = map_trajectories(total, params, *of_shape(num, 1, length))
    else:
        rows = fill_steps(*of_shape(num, length))
        values, summed = map_rows(alone, params, rows, block_size=block_size), False
    if not summed:
        values = values.reshape(valid.shape)
        values = jnp.where(valid, values, jnp.zeros_like(values))
    if policy.sees_time:
        whole = unbroken(valid, values.dtype)
        values = values.reshape((*batch, 1 if summed else length)) * whole if values.ndim else values * jnp.prod(whole)
    if reduce is None:
        return values
    if not summed:
        values = jnp.sum(values, axis=-1)
    return jnp.sum(values) if reduce == "all" else values.reshape(batch)


def _count(
    term: Term, params: Params, policy: StepPolicy, trajectory: Trajectory, extras: Any, reduce: str | None
) -> jax.Array | None:
    """Sums of log-factors of a tabular policy, where counting pays: no more logits than there are steps to count."""
    valid, actions = trajectory.valid, trajectory.actions
    table = None if reduce is None else getattr(policy.policy, "table", None)
    if table is None or term not in (log_factor, weighted_log_factor) or not isinstance(actions, jax.Array):
        return None
    if actions.shape != valid.shape or not jnp.issubdtype(actions.dtype, jnp.integer):
        return None
    found = table(params, trajectory.observations, actions)
    num_steps = valid.size if reduce == "all" else valid.shape[-1]
    if found is None or found[0].ndim != 2 or found[0].size > num_steps:  # taken step by step the second is an error
        return None
    logits, states = found
    weights = valid if term is log_factor else jnp.where(valid, extras[0], jnp.zeros_like(extras[0]))
    counted = per_trajectory(partial(from_visits, logits), valid.ndim - 1 if reduce == "time" else 0)
    return counted(states, actions, weights)


def _fits_one_pass(function: Any, params: Params, rows: tuple[TimeStep, Any], block_size: int | None) -> bool:
    """Whether a pass over a trajectory at a time, which holds a gradient for each of them, is the cheaper one.

    Not where trajectories do not fill a block, nor where a gradient is larger than the trajectory it belongs to.
    """
    num, length = jax.tree.leaves(rows)[0].shape[:2]
    if num == 1 or length <= rows_in_block(function, params, rows, block_size):
        return num == 1
    return num * optax.tree.size(params) <= optax.tree.size(rows[0][:2])  # observations and actions


def _visit(term: Term, policy: StepPolicy, params: Params, carry: Any, row: Any) -> tuple[Any, jax.Array]:
    """The carry after a step, and its term."""
    step, extras = row
    distribution, carry = policy.step(params, carry, step.observation)
    value = term(params, step, distribution, *extras)
    if jnp.shape(value) != ():
        raise ValueError(f"term: expected a scalar for one step, received shape {jnp.shape(value)}.")
    return carry, summable(value, "term")
