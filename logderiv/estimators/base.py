"""What an estimator is: three pure functions, what they ask of a batch, and a declaration."""

import math
from typing import Any

import jax

from logderiv._core import check
from logderiv._core.blocks import wide_block_size
from logderiv._core.pytrees import jit
from logderiv.distributions import log_prob
from logderiv.estimators.declaration import Declaration, Part, Structure
from logderiv.estimators.surrogates import of_each_step, step_weights
from logderiv.likelihood.steps import check_steps, over_steps
from logderiv.types import (
    Estimate,
    Params,
    Policy,
    State,
    Stream,
    TimeStep,
    Trajectories,
    Trajectory,
    as_batch,
    as_steps,
    batch_info,
    refuse_stream,
)


class Estimator(Part):
    """Base of all estimators: three pure functions and a declaration; `estimate` follows from them.

    One of your own is a frozen dataclass that inherits from this one, with `advantages`, `objective`, `structure` and
    `declaration`, and `init` where it has a state; registered by `jax.tree_util.register_dataclass` it may be an argument of
    `jax.jit`. What is differentiated more than once per batch (PPO's epochs) weighs once and takes many gradients of `objective`.
    Where the objective is a sum over steps, `term` may be defined instead of it.

    Attributes:
        normalizer: What the sum over steps is divided by, as of `logderiv.estimators.reduce_steps`.
    """

    normalizer: Any = "per_trajectory"

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

    def advantages(self, params: Params, state: State, policy: Policy, trajectories: Trajectories) -> tuple[Any, State]:
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

    def term(self, params: Params, step: TimeStep, distribution: Any, log_prob: jax.Array, weights: Any) -> jax.Array:
        """What one step adds to the objective, of an estimator whose objective is a sum over steps.

        Args:
            params: Parameters of the policy.
            step: The step.
            distribution: That of the policy at this step.
            log_prob: log π(a|s). Shape `()`.
            weights: Those of this step, in the dtype of `log_prob`. Leaves `()`.

        Returns:
            A scalar.
        """
        raise NotImplementedError

    def objective(self, params: Params, policy: Policy, trajectories: Trajectory, weights: Any) -> jax.Array:
        """The scalar whose derivatives in `params` are the estimates: by default the sum of `term` over the `normalizer`.

        Args:
            params: Parameters of the policy.
            policy: The policy.
            trajectories: Trajectories, or the steps of a stream.
            weights: From `advantages`.

        Returns:
            A scalar.

        Raises:
            ValueError: A weight has another shape than `trajectories.valid`.
            TypeError: Not trajectories; a weight is complex.
        """
        normalizer, weights = self.normalizer, of_each_step(trajectories, weights=weights)
        scale = step_weights(trajectories.valid, normalizer, jax.tree.leaves(weights)[0].dtype)
        term, block_size = jax.tree_util.Partial(_scaled_term, self), wide_block_size()
        return over_steps(term, params, policy, trajectories, scale, weights, reduce="all", block_size=block_size)

    def estimate(
        self, params: Params, state: State, policy: Policy, trajectories: Trajectories
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
        trajectories, steps = as_batch(trajectories)
        structure = self.structure
        if isinstance(trajectories, Stream) and not structure.streams:
            refuse_stream()
        structure.check(math.prod(steps.valid.shape[:-1]))
        check.params(params)
        check.auto(trajectories=steps.valid)
        check_steps(params, policy, steps)
        return _estimate(self, params, state, policy, trajectories)


@jit
def _estimate(
    estimator: Estimator, params: Params, state: State, policy: Policy, trajectories: Trajectories
) -> tuple[Estimate, State]:
    weights, state = estimator.advantages(params, state, policy, trajectories)
    weights = jax.lax.stop_gradient(weights)
    grads = jax.grad(estimator.objective)(params, policy, as_steps(trajectories), weights)
    return Estimate(grads, batch_info(trajectories)), state


def _scaled_term(
    estimator: Estimator, params: Params, step: TimeStep, distribution: Any, scale: jax.Array, weights: Any
) -> jax.Array:
    log = log_prob(distribution, step.action)
    scale, weights = jax.tree.map(lambda x: x.astype(log.dtype), (scale, weights))
    return scale * estimator.term(params, step, distribution, log, weights)
