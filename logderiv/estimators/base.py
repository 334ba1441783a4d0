"""What an estimator is: three pure functions, what they ask of a batch, and a declaration. Then what those that weigh share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core import check
from logderiv._core.arrays import summable
from logderiv._core.blocks import wide_block_size
from logderiv._core.pytrees import jit
from logderiv._core.sharding import check_auto
from logderiv.distributions import log_prob
from logderiv.estimators.advantages import Advantage
from logderiv.estimators.batch import Batch
from logderiv.estimators.declaration import RETURN, Declaration, Structure, biased, concrete, declaration_of, one
from logderiv.estimators.importance import Importance, log_ratios
from logderiv.estimators.returns import discount_factors
from logderiv.estimators.surrogates import Normalizer, step_weights
from logderiv.likelihood.steps import check_steps, over_steps
from logderiv.policies import as_policy
from logderiv.types import (
    Estimate,
    Params,
    Policy,
    State,
    Stream,
    TimeStep,
    Trajectory,
    as_steps,
    batch_info,
    check_trajectory,
    flat_steps,
)

_ON_POLICY = "the batch was drawn with these parameters"


class Estimator:
    """Base of all estimators: three pure functions and a declaration; `estimate` follows from them.

    One of your own is a frozen dataclass that inherits from this one, with `advantages`, `objective`, `structure` and
    `declaration`, and `init` where it has a state; registered by `jax.tree_util.register_dataclass` it may be an argument of
    `jax.jit`. What is differentiated more than once per batch (PPO's epochs) weighs once and takes many gradients of `objective`.
    """

    @property
    def composition(self) -> "Estimator":
        """The estimator itself; of one under a published name, what it is composed of."""
        return self

    @property
    def structure(self) -> Structure:
        """What follows from static fields alone; all that compiled code asks for."""
        raise NotImplementedError

    @property
    def declaration(self) -> Declaration:
        """What is known about E[grads], from concrete settings.

        Raises:
            ValueError: A setting that decides it is traced.
        """
        raise NotImplementedError

    def init(self, params: Params) -> State:
        """The first state.

        Args:
            params: Parameters of the policy.

        Returns:
            A pytree of arrays.
        """
        del params
        return ()

    def advantages(
        self, params: Params, state: State, policy: Policy, trajectories: Trajectory | Stream
    ) -> tuple[State, State]:
        """Weights, from the *old* state, and the new one. Never differentiated.

        Args:
            params: Parameters of the policy.
            state: From `init`, or from the last call.
            policy: The policy that drew the trajectories.
            trajectories: Leading axes `(N, T)`; a stream `(E, T)`.

        Returns:
            `(weights, state)`; the weights, a pytree of arrays, have the leading axes of the steps.
        """
        raise NotImplementedError

    def objective(self, params: Params, policy: Policy, trajectories: Trajectory, weights: State) -> jax.Array:
        """The scalar whose derivatives in `params` are the estimates.

        Args:
            params: Parameters of the policy.
            policy: The policy.
            trajectories: Trajectories, or the steps of a stream.
            weights: From `advantages`.

        Returns:
            A scalar.
        """
        raise NotImplementedError

    def estimate(
        self, params: Params, state: State, policy: Policy, trajectories: Trajectory | Stream
    ) -> tuple[Estimate, State]:
        """Estimate +∇E[R] from a batch; drawn with these `params` unless the estimator weighs off-policy steps.

        Args:
            params: Parameters of the policy, floating point.
            state: From `init`, or from the last call.
            policy: The policy that drew the trajectories.
            trajectories: Leading axes `(N, T)`; a stream `(E, T)`, where the estimator accepts it.

        Returns:
            `(Estimate, state)`; `grads` is a pytree of `params`.

        Raises:
            ValueError: Fewer trajectories than `structure.min_trajectories`, or not a batch of one axis, or one that is sharded
                over mesh axes of type `Explicit`; outside `jax.jit`, an action out of range.
            TypeError: A parameter is not floating point; a stream, where the estimator needs whole episodes; not a policy, or it
                does not return a distribution.

        Gradients: the weights are detached. It compiles itself: a second call with arrays of the same shapes and an estimator
            that differs in its numbers only compiles nothing.
        """
        check.params(params)
        self.check(trajectories)
        check_steps(params, as_policy(policy), as_steps(trajectories))
        return _estimate(self, params, state, policy, trajectories)

    def check(self, trajectories: Trajectory | Stream) -> None:
        """Raise unless this is a batch that the estimator takes.

        Args:
            trajectories: As of `estimate`.

        Raises:
            ValueError: As `estimate`.
            TypeError: As `estimate`.
        """
        if isinstance(trajectories, Stream) and not self.structure.streams:
            raise TypeError(
                "trajectories: this estimator needs whole episodes, received a Stream, which cuts them; use an advantage that "
                "bootstraps (logderiv.advantages.GAE), or logderiv.rollout."
            )
        check_auto(as_steps(trajectories).valid, "trajectories")
        self.structure.check(num_trajectories(flat_steps(trajectories)))


@jit
def _estimate(
    estimator: Estimator, params: Params, state: State, policy: Policy, trajectories: Trajectory | Stream
) -> tuple[Estimate, State]:
    weights, state = estimator.advantages(params, state, policy, trajectories)
    weights = jax.lax.stop_gradient(weights)
    grads = jax.grad(estimator.objective)(params, policy, as_steps(trajectories), weights)
    return Estimate(grads, batch_info(trajectories)), state


def num_trajectories(trajectories: Trajectory) -> int:
    """N of a batch of shape `(N, T)`.

    Args:
        trajectories: The batch.

    Returns:
        N.

    Raises:
        ValueError: Not exactly one batch axis.
    """
    batch, _ = check_trajectory(trajectories)
    if len(batch) != 1:
        raise ValueError(
            f"trajectories: expected a batch of shape (N, T), received (*batch, T) with batch axes {batch}; "
            "an estimate averages over one axis of independent trajectories."
        )
    return batch[0]


class Weighting(Estimator):
    """Base of estimators whose weights come from an advantage.

    Attributes:
        advantage: What decides the weights.
        discount: γ in [0, 1].
        gamma_t: Whether γ^t stays in the weights.
        importance: Weights of off-policy steps; `None` where the trajectories are drawn with the same parameters.
        normalizer: What the sum over steps is divided by, as of `logderiv.estimators.reduce_steps`.

    Raises:
        ValueError: `discount` is outside [0, 1]; the advantage weighs off-policy steps itself and `importance` is given.
        TypeError: `advantage` is none.
    """

    advantage: Advantage
    discount: float
    gamma_t: bool
    importance: Importance | None = None

    normalizer: Normalizer = "per_trajectory"

    def term(self, log_prob: jax.Array, behavior_log_prob: jax.Array, weight: jax.Array) -> jax.Array:
        """What one step adds to the objective, before the sum is divided by the normalizer.

        Args:
            log_prob: log π(a|s). Shape `()`.
            behavior_log_prob: That of the policy that drew the action. Shape `()`.
            weight: From `advantages`, detached. Shape `()`.

        Returns:
            A scalar.

        Raises:
            ValueError: The objective is no sum over steps.
        """
        raise NotImplementedError

    @property
    def structure(self) -> Structure:
        """That of the advantage, on policy; ratios need whole episodes."""
        own = self.advantage.structure
        if self.importance is None:
            return own
        return own._replace(streams=False) & self.importance.structure

    @property
    def declaration(self) -> Declaration:
        """What advantage, importance, discount and γ^t do to the expectation together."""
        importance, declared = self.importance, declaration_of(self.advantage)
        if not self.gamma_t and not self.advantage.past_rewards and (concrete("discount", self.discount) < 1).any():
            declared &= biased("gamma^t left out: the gradient of no objective")
        if importance is None:
            return declared if self.advantage.own_ratios else declared & Declaration(assumes=(_ON_POLICY,))
        if declared.objectives.get(RETURN) is not one:  # a factor below 1 is only known on policy
            declared = Declaration({}, declared.order, declared.assumes, declared.reasons)
        if importance.per == "step" and self.advantage.past_rewards:
            declared &= biased(
                f"Importance(per='step') with {type(self.advantage).__name__}, whose weights contain rewards from before their "
                "step: such a reward carries the ratios up to its own step, and not that of the choice whose score it multiplies; "
                "take per='trajectory', or advantages.ToGo"
            )
        return declared & importance.declaration

    def init(self, params: Params) -> State:
        return self.advantage.init(params)

    def weigh(
        self,
        params: Params,
        state: State,
        policy: Policy,
        trajectories: Trajectory | Stream,
        values: tuple[jax.Array, jax.Array] | None = None,
    ) -> tuple[jax.Array, jax.Array, State]:
        """Weights and targets of a batch: the ratio multiplies the rewards before credit is given.

        Args:
            params: Parameters of the policy.
            state: From `init`, or from the last call.
            policy: The policy.
            trajectories: Leading axes `(N, T)`; a stream `(E, T)`.
            values: v(s_t) and v(s_{t+1}) of an actor-critic's own value function, shape of the flat steps.

        Returns:
            `(weights, targets, state)`: what multiplies each score, what a value of each state should predict, both of the shape
            of the steps' `valid` and 0 on invalid ones, and the state after this batch.

        Raises:
            ValueError: The advantage needs values of the state and there is no value function.
        """
        batch = self.batch(params, policy, trajectories)._replace(values=values)
        weights, targets, state = self.advantage(params, state, batch)
        shape = as_steps(trajectories).valid.shape
        return weights.reshape(shape), targets.reshape(shape), state

    def batch(self, params: Params, policy: Policy, trajectories: Trajectory | Stream) -> Batch:
        """What the advantage is given.

        Args:
            params: Parameters of the policy.
            policy: The policy.
            trajectories: Leading axes `(N, T)`; a stream `(E, T)`.

        Returns:
            A `Batch`.
        """
        steps, times, ends = flat_steps(trajectories), jnp.arange(as_steps(trajectories).valid.shape[-1])[None], None
        if isinstance(trajectories, Stream):
            times, ends = trajectories.times.reshape(-1, 1), trajectories.ends
        rewards = jnp.where(steps.valid, summable(steps.rewards), 0)
        dtype = rewards.dtype
        step_ratios = ratios = jnp.ones_like(rewards)
        if self.importance is not None or self.advantage.own_ratios:
            logs = jax.lax.stop_gradient(log_ratios(params, policy, steps))
            step_ratios = jnp.exp(logs).astype(dtype)
            ratios = ratios if self.importance is None else self.importance.ratios(logs).astype(dtype)
        discount, unit = jnp.asarray(self.discount, dtype), jnp.ones((), dtype)
        return Batch(
            steps=steps,
            rewards=rewards,
            discounts=jnp.where(steps.valid, steps.discounts, 1).astype(dtype),
            discount=discount,
            inside=unit if self.gamma_t else discount,
            powers=discount_factors(discount if self.gamma_t else unit, times, dtype),
            step_ratios=step_ratios,
            ratios=ratios,
            params=jax.lax.stop_gradient(params),
            policy=policy,
            ends=ends,
        )

    def advantages(
        self, params: Params, state: State, policy: Policy, trajectories: Trajectory | Stream
    ) -> tuple[jax.Array, State]:
        weights, _, state = self.weigh(params, state, policy, trajectories)
        return weights, state

    def __post_init__(self) -> None:
        check.between(0, 1, discount=self.discount)
        if not callable(self.advantage) or not hasattr(self.advantage, "init"):
            raise TypeError(
                f"advantage: expected one of logderiv.advantages, such as ToGo(), received {type(self.advantage).__name__}."
            )
        if self.advantage.own_ratios and self.importance is not None:
            raise ValueError(
                f"importance: expected None, since {type(self.advantage).__name__} weighs off-policy steps itself, received "
                f"{self.importance}."
            )


def sum_of_steps(
    term: Callable[..., jax.Array],
    normalizer: Normalizer,
    params: Params,
    policy: Policy,
    trajectories: Trajectory,
    *numbers: jax.Array,
) -> jax.Array:
    """An objective that is a sum over steps, taken in one pass over them.

    Args:
        term: `(params, step, distribution, log_prob, *numbers) -> scalar` of one step; a function, or a `jax.tree_util.Partial` of
            one.
        normalizer: What the sum is divided by.
        params: Parameters of the policy.
        policy: The policy.
        trajectories: Leading axes `(*batch, T)`.
        *numbers: What else the term takes, of the shape of `valid`; cast to the dtype of the log-factors.

    Returns:
        A scalar.

    Raises:
        ValueError: An unknown normalizer; as `logderiv.likelihood.over_steps` raises.
        TypeError: As `logderiv.likelihood.over_steps` raises.

    Gradients: flow through `params` and `numbers`.
    """
    scale = step_weights(trajectories.valid, normalizer, numbers[0].dtype)
    scaled = jax.tree_util.Partial(_scaled, term)
    return over_steps(scaled, params, policy, trajectories, scale, *numbers, reduce="all", block_size=wide_block_size())


def _scaled(
    term: Callable[..., jax.Array], params: Params, step: TimeStep, distribution: Any, *numbers: jax.Array
) -> jax.Array:
    log = log_prob(distribution, step.action)
    behavior, scale, *rest = (x.astype(log.dtype) for x in (step.behavior_log_prob, *numbers))
    return scale * term(params, step._replace(behavior_log_prob=behavior), distribution, log, *rest)
