"""What an estimator is: three pure functions, what they ask of a batch, and a declaration."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core import check
from logderiv._core.arrays import as_batch, as_steps, check_params, refuse_explicit, refuse_stream
from logderiv._core.blocks import wide_block_size
from logderiv._core.pytrees import jit
from logderiv.distributions import log_prob
from logderiv.estimators.declaration import Declaration, Part, Structure
from logderiv.estimators.surrogates import of_each_step, step_weights
from logderiv.likelihood.steps import check_steps, over_steps, own_steps
from logderiv.types import Estimate, Params, Policy, State, Stream, TimeStep, Trajectories, Trajectory, batch_info


class Estimator(Part):
    """Base of all estimators: three pure functions and a declaration; `estimate` follows from them.

    One of your own is a frozen dataclass that inherits from this one, with `advantages`, `objective`, `structure` and
    `declaration`, and `init` where it has a state; registered by `jax.tree_util.register_dataclass` it may be an argument of
    `jax.jit`. What is differentiated more than once per batch (PPO's epochs) weighs once and takes many gradients of `objective`.
    Where the objective is a sum over steps, `term` may be defined instead of it.

    Attributes:
        normalizer: What the sum over steps is divided by, as of `logderiv.estimators.reduce_steps`; steps that a `logderiv.distributions.Forced`
            prescribes, such as a prompt's, are not counted.
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
            `(weights, state)`; the weights, a pytree of floating-point arrays, have the leading axes of the steps. Where one of
            them, or the state after it, is not finite, the batch is left out: `estimate` and `train` keep the old state, and the
            estimators of the library return it themselves, with weights that are all NaN.
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
        normalizer, weights = self.normalizer, of_each_step(trajectories, weights)
        counted = trajectories.valid if normalizer == "per_trajectory" else own_steps(params, policy, trajectories)
        scale = step_weights(counted, normalizer, jax.tree.leaves(weights)[0].dtype)
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
            `(Estimate, state)`; `grads` is a pytree of `params`. A batch with a weight or target that is not finite gives NaN and
            the old state, so that an optimizer that skips it (`optax.apply_if_finite`) leaves nothing of it behind.

        Raises:
            ValueError: Fewer trajectories than `structure.min_trajectories`, or not a batch of one axis, or one that is sharded
                over mesh axes of type `Explicit`; outside `jax.jit`, an action out of range.
            TypeError: A parameter is not floating point; a stream, where the estimator needs whole episodes; not a policy, or it
                does not return a distribution.

        Gradients: the weights are detached. It compiles itself: a second call with arrays of the same shapes and an estimator
            that differs in its numbers only compiles nothing.
        """
        check_params(params)
        trajectories, steps = as_batch(trajectories)
        refuse_explicit(trajectories=steps.valid)
        structure = self.structure
        if isinstance(trajectories, Stream) and not structure.streams:
            refuse_stream()
        structure.check(math.prod(steps.valid.shape[:-1]))
        check_steps(params, policy, steps)
        return _estimate(self, params, state, policy, trajectories)


@jit
def _estimate(
    estimator: Estimator, params: Params, state: State, policy: Policy, trajectories: Trajectories
) -> tuple[Estimate, State]:
    found = estimator.advantages(params, state, policy, trajectories)
    weights, state, _ = keep_finite(state, *found)
    weights = jax.lax.stop_gradient(weights)
    grads = jax.grad(estimator.objective)(params, policy, as_steps(trajectories), weights)
    return Estimate(grads, batch_info(trajectories)), state


def keep_finite(state: State, weights: Any, new: State) -> tuple[Any, State, jax.Array]:
    """Use a batch whole or not at all: not where a weight or target, or the state after it, is not finite.

    Args:
        state: Before the batch.
        weights: Of the batch, as `Estimator.advantages` returns them.
        new: The state after it.

    Returns:
        The weights, all of them NaN if one is not finite; the state after it, or as it was before it; and whether the batch is used.
    """

    def finite(x: Any) -> Any:
        return jnp.isfinite(x) if jnp.issubdtype(jnp.result_type(x), jnp.inexact) else jnp.ones((), bool)

    used = jnp.ones((), bool)
    for x in jax.tree.leaves(weights):
        used &= jnp.all(finite(x))
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
        used &= ~jnp.any(finite(before) & ~finite(after))
    # 0, or 0 / 0, which is NaN. Written down, a NaN would stop jax_debug_nans at every batch, whether it is used or not.
    zero = jnp.zeros(())
    nothing = zero / used.astype(zero.dtype)
    weights = jax.tree.map(lambda x: x + nothing.astype(x.dtype), weights)
    return weights, jax.tree.map(lambda x, y: jnp.where(used, x, y), new, state), used


def check_state(estimator: Any, params: Params, state: State) -> None:
    """Raise `ValueError` unless the state is like the first one, where the estimator has one."""
    first = jax.eval_shape(estimator.init, params)
    if jax.tree.leaves(first):
        check.like("state", state, first, hint="that of estimator.init(params), or of the last call")


def _scaled_term(
    estimator: Estimator, params: Params, step: TimeStep, distribution: Any, scale: jax.Array, weights: Any
) -> jax.Array:
    log = log_prob(distribution, step.action)
    scale, weights = jax.tree.map(lambda x: x.astype(log.dtype), (scale, weights))
    return scale * estimator.term(params, step, distribution, log, weights)
