"""The values that cross modules: trajectories, policies, environments and estimates.

Notation used everywhere: `N` trajectories, `T` steps, `S` states, `A` actions, `D` parameters. A trajectory is
`tau = (s_0, a_0, r_0, s_1, ..., s_T)`; its fields carry the leading axes `(*batch, T)`.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core.arrays import as_stream, as_trajectory, expand, given, one_axis, unbroken
from logderiv._core.pytrees import pytree
from logderiv._core.tables import concrete, named_leaves, shapes, table
from logderiv._core.trajectories import Stream, Trajectories, Trajectory

__all__ = ["BatchInfo", "Distribution", "Environment", "Estimate", "FunctionPolicy", "Policy", "SignedLog", "Step"]
__all__ += ["Stream", "TimeStep", "Trajectory", "batch_info", "next_observations", "num_trajectories"]

Params: TypeAlias = Any  # a pytree of floating-point arrays, what is differentiated
Key: TypeAlias = chex.PRNGKey  # typed (`jax.random.key`) or raw
Observation: TypeAlias = Any  # a pytree of arrays
Per: TypeAlias = Literal["step", "trajectory"]
State: TypeAlias = Any  # a pytree of arrays that an estimator, an advantage or an environment carries along


class TimeStep(NamedTuple):
    """One step of one trajectory, as a term of `logderiv.likelihood.over_steps` sees it.

    Attributes:
        observation: What the action was chosen on.
        action: The held sample.
        behavior_log_prob: Its log-probability under the policy that drew it.
    """

    observation: Any
    action: Any
    behavior_log_prob: jax.Array


class Step(NamedTuple):
    """What `Environment.step` returns; any 5-tuple in this order is accepted.

    Attributes:
        observation: After the transition.
        state: The environment's own, for the next step.
        reward: On leaving the step before. Shape `()`.
        terminated: Whether the episode is over, shape `()`, bool.
        truncated: Whether it is cut here instead, likewise.
    """

    observation: Any
    state: Any
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array


@runtime_checkable
class Distribution(Protocol):
    """What a policy returns for one step: anything with a scalar `log_prob`.

    Objects of distrax, TensorFlow Probability and numpyro qualify as they are. `prob` is optional: where it exists
    `logderiv.prob` multiplies it, elsewhere `exp(log_prob)`.
    """

    def log_prob(self, value: Any, /) -> Any:
        """Log-probability, or log-density, of one action.

        Args:
            value: The action.

        Returns:
            Shape `()`.
        """


class Environment(Protocol):
    """Two pure functions. `params` is the environment's own pytree, `None` for its default.

    There is no auto-reset inside `step`. One with known densities also has `log_initial(trajectory)`, shape `()`,
    and `log_factors(trajectory)`, shape `(T,)`, both for one trajectory; a black box has not. Where
    `trajectory.valid` is False a transition may be impossible: let its probability be 1 *before* the logarithm is taken, as log 0
    has derivatives that no mask removes. An integer attribute `horizon` is the default number of steps of a rollout, one
    `num_players` says that a reward has a place for each player.
    """

    def reset(self, key: jax.Array, params: Any = None) -> tuple[Any, Any]:
        """Draw a start.

        Args:
            key: Consumed.
            params: The environment's own, `None` for its default.

        Returns:
            `(observation, state)`.
        """
        ...

    def step(self, key: jax.Array, state: Any, action: Any, params: Any = None) -> tuple[Any, Any, Any, Any, Any]:
        """One transition.

        Args:
            key: Consumed.
            state: From `reset` or the step before.
            action: One action.
            params: The environment's own, `None` for its default.

        Returns:
            `(observation, state, reward, terminated, truncated)`, the last three one number each: of any dtype that is
            not complex, and of any shape with one entry.
        """
        ...


class Policy(Protocol):
    """A distribution over actions for each observation, as pure functions of `params`.

    Subclass it, and define `apply`; or pass a plain function `(params, observation) -> Distribution`.

    Attributes:
        apply: `(params, observation) -> Distribution`; with memory `(params, carry, observation) -> (Distribution, carry)`.
        initial_carry: `(params) -> carry`; its presence says that the policy has memory.
        log_factors: `(params, trajectory) -> (T,)` for one trajectory: a whole-sequence model, such as a transformer,
            that would be wasteful step by step. Inputs of invalid steps are already safe, outputs there are ignored.
        table: `(params, observations, actions) -> (logits, states)`, or `None` where it does not apply: a likelihood may then
            count how often each of the logits `(S, A)` was chosen, instead of taking steps one by one.
    """

    apply: Callable[..., Any]
    initial_carry: Any = None
    log_factors: Any = None
    table: Any = None


@pytree(static=("apply", "initial_carry", "log_factors"))
class FunctionPolicy(Policy):
    """A policy made of pure functions of `params`.

    A plain function `apply` is accepted wherever a policy is expected and means `FunctionPolicy(apply)`; wrap it once yourself
    where it is to pass through `jax.jit` as an argument. Policies compare by their fields, so one rebuilt around the
    same functions does not retrace. Built-in policies have the same attributes as methods.

    Attributes:
        apply: `(params, observation) -> Distribution`; with memory `(params, carry, observation) -> (Distribution, carry)`.
        initial_carry: `(params) -> carry`; its presence says that the policy has memory.
        log_factors: `(params, trajectory) -> (T,)` for one trajectory: a whole-sequence model, such as a transformer,
            that would be wasteful step by step. Inputs of invalid steps are already safe, outputs there are ignored.
    """

    apply: Callable[..., Any]
    initial_carry: Callable[[Params], Any] | None = None
    log_factors: Callable[[Params, Trajectory], jax.Array] | None = None


class Estimate(NamedTuple):
    """A gradient estimate.

    Attributes:
        grads: Estimates +grad E[R]; pytree of `params`. Optimizers descend: see `logderiv.maximize`.
        info: What only running can tell, safe to drop.
    """

    grads: Any
    info: "BatchInfo"

    def __str__(self) -> str:
        if not concrete(self) or not isinstance(self.info, BatchInfo) or np.ndim(self.info.mean_return):
            return shapes("Estimate", self)
        leaves = [(name, np.asarray(x, float)) for name, x in named_leaves(self.grads)]
        rows = [(name, str(x.shape), np.linalg.norm(x), np.abs(x).max(initial=0)) for name, x in leaves]
        info = self.info
        return (
            f"Estimate of grad E[R]: norm {np.linalg.norm([row[2] for row in rows]):.6g}\n"
            f"  from {int(info.num_episodes)} episodes, {int(info.num_steps)} steps, mean return {float(info.mean_return):.6g}\n"
            f"  cut at the last step {float(info.truncated_fraction):.1%}; {int(info.num_empty)} episodes without a step\n"
            + table(("leaf", "shape", "norm", "largest"), "<32 <16 >12.4g >12.4g", rows)
        )


class BatchInfo(NamedTuple):
    """What a batch of trajectories looked like; scalars.

    Attributes:
        mean_return: Mean over trajectories of the sum of rewards, undiscounted. Of a stream: mean over the episodes that
            ended in it, each from its start; NaN where none ended.
        num_steps: Number of valid steps.
        num_episodes: Number of trajectories; of a stream, of the episodes that ended in it.
        truncated_fraction: Fraction of trajectories that fill all `T` steps without terminating: cut by the horizon, or by the
            environment's own limit exactly there. Where it is not 0 the estimated objective is the return *up to the
            horizon*. Of a stream: fraction of the environments whose episode goes on after it.
        num_empty: Number of trajectories without a valid step. They count in every mean; drop them before estimating.
    """

    mean_return: jax.Array
    num_steps: jax.Array
    num_episodes: jax.Array
    truncated_fraction: jax.Array
    num_empty: jax.Array


class SignedLog(NamedTuple):
    """A real number as `sign * exp(logabs)`, the convention of `numpy.linalg.slogdet`; zero is `(0, -inf)`.

    Attributes:
        sign: -1, 0 or 1.
        logabs: Logarithm of the magnitude.
    """

    sign: jax.Array
    logabs: jax.Array


def num_trajectories(trajectories: Trajectories) -> int:
    """N of a batch of shape `(N, T)`; of a stream the number of its steps, each of which is a trajectory.

    Args:
        trajectories: The batch.

    Returns:
        N.

    Raises:
        ValueError: Not exactly one batch axis; shapes of the trajectories disagree.
        TypeError: Neither trajectories nor a stream; a field has a dtype that means nothing.
    """
    if isinstance(trajectories, Stream):
        return as_stream(trajectories).ends.size
    return one_axis(as_trajectory(trajectories))


def one_batch_axis(trajectory: Trajectory) -> Trajectory:
    """The trajectories with their batch axes as one, `(N, T)`."""
    batch = trajectory.valid.ndim - 1
    return jax.tree.map(lambda x: x.reshape((-1, *x.shape[batch:])), trajectory)


def next_observations(trajectory: Trajectory) -> Any:
    """Observation after each step: row `t + 1`, and `final_observation` after the last valid step and in the padding.

    Args:
        trajectory: Any leading batch axes.

    Returns:
        Pytree of `trajectory.observations`.

    Raises:
        ValueError: Shapes of the trajectory disagree, or, outside `jax.jit`, `valid` has a hole.
        TypeError: Not a trajectory; a field is missing, or has a dtype that means nothing.

    Example:
        >>> import jax.numpy as jnp
        >>> one, row = jnp.ones(3), jnp.array([4, 5, 99])
        >>> valid = jnp.array([True, True, False])
        >>> tau = Trajectory(row, row, one, one, valid, one, final_observation=jnp.array(6))
        >>> next_observations(tau).tolist()
        [5, 6, 6]
    """
    trajectory = as_trajectory(trajectory, "observations", prefix=True)
    valid, axis = trajectory.valid, trajectory.valid.ndim - 1
    given("final_observation", trajectory.final_observation, like=trajectory.observations, axis=axis)
    times = jax.lax.broadcasted_iota(jnp.int32, valid.shape, axis)
    goes_on = times < jnp.max(jnp.where(valid, times, -1), axis=-1, keepdims=True)

    def shift(x: jax.Array, final: jax.Array) -> jax.Array:
        return jnp.where(expand(goes_on, x), jnp.roll(x, -1, axis), jnp.expand_dims(final, axis))

    return jax.tree.map(shift, trajectory.observations, trajectory.final_observation)


def batch_info(trajectories: Trajectories) -> BatchInfo:
    """What a batch looked like.

    Args:
        trajectories: Any leading axes, all of which are averaged over; or a stream.

    Returns:
        A `BatchInfo`.

    Raises:
        ValueError: Shapes of the trajectories disagree, or, outside `jax.jit`, `valid` has a hole; inside, the means are then NaN.
        TypeError: Neither trajectories nor a stream; a field is missing, or has a dtype that means nothing.
    """
    if isinstance(trajectories, Stream):
        stream = as_stream(trajectories)
        ends, going_on = stream.ends, ~stream.ends[:, -1]
        ended, total = jnp.sum(ends), jnp.sum(jnp.where(ends, stream.returns, 0))
        with jax.debug_nans(False):  # NaN is meant where none ended
            mean_return = total / ended.astype(total.dtype)
        truncated_fraction = jnp.mean(going_on, dtype=total.dtype)
        return BatchInfo(mean_return, jnp.asarray(ends.size), ended, truncated_fraction, jnp.zeros_like(ended))
    trajectories = as_trajectory(trajectories, "rewards", "discounts", prefix=True)
    valid, discounts, rewards = trajectories.valid, trajectories.discounts, trajectories.rewards
    lengths, whole = jnp.sum(valid, axis=-1), unbroken(valid, rewards.dtype)[..., 0]
    cut = (lengths == valid.shape[-1]) & (discounts[..., -1] != 0)
    returns = whole * jnp.sum(jnp.where(valid, rewards, 0), axis=-1)
    # Not as a product, which would be compiled to 0 where `cut` is False, whatever `whole` is.
    cut = jnp.where(jnp.isnan(whole), whole, cut.astype(whole.dtype))
    truncated_fraction, num_empty = jnp.mean(cut), jnp.sum(lengths == 0)
    num_steps, num_episodes = jnp.sum(lengths), jnp.asarray(lengths.size)
    return BatchInfo(jnp.mean(returns), num_steps, num_episodes, truncated_fraction, num_empty)
