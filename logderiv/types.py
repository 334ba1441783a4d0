"""The values that cross modules: trajectories, policies, environments and estimates.

Notation used everywhere: `N` trajectories, `T` steps, `S` states, `A` actions, `D` parameters. A trajectory is
`tau = (s_0, a_0, r_0, s_1, ..., s_T)`; its fields carry the leading axes `(*batch, T)`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import chex
import jax
import jax.numpy as jnp

from logderiv._core.arrays import expand, summable

Params: TypeAlias = chex.ArrayTree  # a pytree of floating-point arrays, what is differentiated
Key: TypeAlias = chex.PRNGKey  # typed (`jax.random.key`) or raw
Observation: TypeAlias = Any  # a pytree of arrays
State: TypeAlias = Any  # a pytree of arrays that an estimator, an advantage or an environment carries along


class Trajectory(NamedTuple):
    r"""One episode, or a batch of episodes, of at most `T` steps. Leading axes `(*batch, T)`.

    `valid` is a prefix mask: the last real step is valid, everything after it is padding whose content is never
    used. A stream that contains several episodes does not fit; cut it into episodes first.

    Attributes:
        observations: Pytree; the action `t` was chosen on observation `t`. Leaves `(*batch, T, ...)`.
        actions: Pytree of held samples. Leaves `(*batch, T, ...)`.
        rewards: Reward on leaving step `t`. Shape `(*batch, T)`.
        discounts: 0 where the episode terminates, 1 elsewhere, padding included. Shape `(*batch, T)`.
        valid: True on real steps. Shape `(*batch, T)`, bool.
        behavior_log_probs: Log-probability of the action under the policy that drew it. Shape `(*batch, T)`.
        final_observation: Observation after the last valid step, before any reset. Leaves `(*batch, ...)`.
    """

    observations: Any
    actions: Any
    rewards: jax.Array
    discounts: jax.Array
    valid: jax.Array
    behavior_log_probs: jax.Array
    final_observation: Any


class Stream(NamedTuple):
    """`T` consecutive steps of each of `E` environments that restart whenever an episode ends. Leading axes `(E, T)`.

    A grid of one-step trajectories, so that whatever takes trajectories takes `steps`, and what says how they hang
    together. Only a credit that bootstraps from values of the state (`logderiv.gae`) can weigh a stream: what comes
    after its last step is not in it.

    An estimate from a stream is a mean over its `E T` steps, at the states that the environments happen to be in, where
    one from trajectories is a mean over episodes of sums over steps. In the long run it is smaller by the mean length of
    an episode; what `Estimator.bias` declares is said of whole episodes.

    Attributes:
        steps: Trajectories of one step, leading axes `(E, T)` and then the step, `(E, T, 1, ...)`; `final_observation`,
            `(E, T, ...)`, is the one after that step, before any restart.
        ends: Whether the step is the last one of its episode, terminated or truncated. Shape `(E, T)`.
        times: Steps of the episode before this one. Shape `(E, T)`, int32.
        returns: Undiscounted sum of the rewards of the episode up to this step, included. Shape `(E, T)`.
    """

    steps: Trajectory
    ends: jax.Array
    times: jax.Array
    returns: jax.Array


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
    """What `Environment.step` returns; any 5-tuple in this order is accepted."""

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
        """Log-probability (density) of one action, shape `()`."""
        ...


class Environment(Protocol):
    """A world, as two pure functions. `params` is the environment's own pytree, `None` for its default.

    There is no auto-reset inside `step`. A world with known densities also has `log_initial(trajectory)`, shape `()`,
    and `log_factors(trajectory)`, shape `(T,)`, both for one trajectory; a black box has not. An integer attribute
    `horizon` is the default number of steps of a rollout.
    """

    def reset(self, key: jax.Array, params: Any = None) -> tuple[Any, Any]:
        """Draw a start: `(observation, state)`."""
        ...

    def step(self, key: jax.Array, state: Any, action: Any, params: Any = None) -> tuple[Any, Any, Any, Any, Any]:
        """One transition: `(observation, state, reward, terminated, truncated)`."""
        ...


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class FunctionPolicy:
    """A distribution over actions for each observation, as pure functions of `params`.

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
    initial_carry: Callable[[Any], Any] | None = None
    log_factors: Callable[[Any, Trajectory], jax.Array] | None = None


def as_policy(policy: Any) -> Any:
    """A policy from a policy or a plain function `(params, observation) -> Distribution`.

    Raises:
        TypeError: Neither of the two.
    """
    if hasattr(policy, "apply") and hasattr(policy, "initial_carry"):
        return policy
    if callable(policy) and not hasattr(policy, "apply"):
        return FunctionPolicy(policy)
    raise TypeError(
        "expected a policy: a function (params, observation) -> distribution, or logderiv.FunctionPolicy; "
        f"received {type(policy).__name__}. Wrap a network as "
        "logderiv.FunctionPolicy(lambda params, observation: logderiv.Categorical(network.apply(params, observation)))."
    )


class Estimate(NamedTuple):
    """A gradient estimate.

    Attributes:
        grads: Estimates +grad E[R]; pytree of `params`. Optimizers descend: see `logderiv.maximize`.
        info: What only running can tell, safe to drop.
    """

    grads: Any
    info: "BatchInfo"


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
        empty: Number of trajectories without a valid step. They count in every mean; drop them before estimating.
    """

    mean_return: jax.Array
    num_steps: jax.Array
    num_episodes: jax.Array
    truncated_fraction: jax.Array
    empty: jax.Array


class SignedLog(NamedTuple):
    """A real number as `sign * exp(logabs)`, the convention of `numpy.linalg.slogdet`; zero is `(0, -inf)`."""

    sign: jax.Array
    logabs: jax.Array


def check_trajectory(trajectory: Trajectory) -> tuple[tuple[int, ...], int]:
    """Check the static shapes of a trajectory; return `(batch_shape, T)`.

    Raises:
        ValueError: `T` is zero, or a field does not have the leading axes of `valid`.
        TypeError: `valid` is not boolean.
    """
    valid = jnp.asarray(trajectory.valid)
    if valid.dtype != jnp.bool_:
        raise TypeError(
            f"trajectory.valid: expected a boolean mask, received dtype {valid.dtype}; use valid.astype(bool)."
        )
    if valid.ndim == 0:
        raise ValueError(
            "trajectory.valid: expected shape (*batch, T), received (); one step is a trajectory with T = 1."
        )
    lead = valid.shape
    if lead[-1] == 0:
        raise ValueError("an empty trajectory: expected T >= 1 steps, received T = 0; drop it before calling.")

    def check(name: str, tree: Any, expected: tuple[int, ...], axes: str) -> None:
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if jnp.shape(leaf)[: len(expected)] != expected:
                raise ValueError(
                    f"trajectory.{name}{jax.tree_util.keystr(path)}: expected leading axes {axes} = {expected} as in "
                    f"trajectory.valid, received shape {jnp.shape(leaf)}; did one field keep another number of steps?"
                )

    for name in ("observations", "actions", "rewards", "discounts", "behavior_log_probs"):
        check(name, getattr(trajectory, name), lead, "(*batch, T)")
    check("final_observation", trajectory.final_observation, lead[:-1], "(*batch,)")
    return lead[:-1], lead[-1]


def as_steps(trajectories: Trajectory | Stream) -> Trajectory:
    """The trajectories themselves; the steps of a stream, `(E, T, 1)`."""
    return trajectories.steps if isinstance(trajectories, Stream) else trajectories


def flat_steps(trajectories: Trajectory | Stream) -> Trajectory:
    """The trajectories themselves; the steps of a stream as a batch of one axis, `(E T, 1)`."""
    return one_batch_axis(trajectories.steps) if isinstance(trajectories, Stream) else trajectories


def one_batch_axis(trajectory: Trajectory) -> Trajectory:
    """The trajectories with their batch axes as one, `(N, T)`."""
    batch = trajectory.valid.ndim - 1
    return jax.tree.map(lambda x: x.reshape((-1, *x.shape[batch:])), trajectory)


def check_params(params: Any) -> None:
    """Raise `TypeError`, naming the leaf, unless every parameter can be differentiated."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)}: expected a floating-point array to differentiate, received dtype "
                f"{jnp.result_type(leaf)}; use params = jax.tree.map(lambda x: x.astype(jnp.float32), params)."
            )


def next_observations(trajectory: Trajectory) -> Any:
    """Observation after each step: row `t + 1`, and `final_observation` after the last valid step and in the padding.

    Args:
        trajectory: Any leading batch axes.

    Returns:
        Pytree of `trajectory.observations`.

    Example:
        >>> import jax.numpy as jnp
        >>> one, row = jnp.ones(3), jnp.array([4, 5, 99])
        >>> valid = jnp.array([True, True, False])
        >>> tau = Trajectory(row, row, one, one, valid, one, final_observation=jnp.array(6))
        >>> next_observations(tau).tolist()
        [5, 6, 6]
    """
    batch, _ = check_trajectory(trajectory)
    axis = len(batch)
    continues = jnp.roll(trajectory.valid, -1, axis).at[..., -1].set(False)

    def shift(x: jax.Array, final: jax.Array) -> jax.Array:
        return jnp.where(expand(continues, x), jnp.roll(x, -1, axis), jnp.expand_dims(final, axis))

    return jax.tree.map(shift, trajectory.observations, trajectory.final_observation)


def batch_info(trajectories: Trajectory | Stream) -> BatchInfo:
    """What a batch looked like; see `BatchInfo`. Any leading axes, all of which are averaged over."""
    if isinstance(trajectories, Stream):
        return _stream_info(trajectories)
    _, horizon = check_trajectory(trajectories)
    valid = trajectories.valid
    rewards = jnp.where(valid, summable(trajectories.rewards), 0)
    lengths = jnp.sum(valid, axis=-1)
    cut = (lengths == horizon) & (trajectories.discounts[..., -1] != 0)
    returns = jnp.sum(rewards, axis=-1)
    return BatchInfo(
        mean_return=jnp.mean(returns),
        num_steps=jnp.sum(lengths),
        num_episodes=jnp.asarray(lengths.size),
        truncated_fraction=jnp.mean(cut.astype(returns.dtype)),
        empty=jnp.sum(lengths == 0),
    )


def _stream_info(stream: Stream) -> BatchInfo:
    ended = jnp.sum(stream.ends)
    total = jnp.sum(jnp.where(stream.ends, stream.returns, 0))
    return BatchInfo(
        mean_return=total / ended.astype(total.dtype),
        num_steps=jnp.asarray(stream.ends.size),
        num_episodes=ended,
        truncated_fraction=jnp.mean(~stream.ends[:, -1], dtype=total.dtype),
        empty=jnp.zeros_like(ended),
    )
