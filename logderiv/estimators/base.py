"""What an estimator is: three pure functions, what they ask of a batch, and a declaration."""

import jax

from logderiv._core import check
from logderiv._core.pytrees import jit
from logderiv.estimators.declaration import Declaration, Stateful, Structure
from logderiv.likelihood.steps import check_steps
from logderiv.types import Estimate, Params, Policy, State, Stream, Trajectory, as_steps, batch_info, num_trajectories


class Estimator(Stateful):
    """Base of all estimators: three pure functions and a declaration; `estimate` follows from them.

    One of your own is a frozen dataclass that inherits from this one, with `advantages`, `objective`, `structure` and
    `declaration`, and `init` where it has a state; registered by `jax.tree_util.register_dataclass` it may be an argument of
    `jax.jit`. What is differentiated more than once per batch (PPO's epochs) weighs once and takes many gradients of `objective`.
    """

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
        steps, num = as_steps(trajectories), num_trajectories(trajectories)
        structure = self.structure
        if isinstance(trajectories, Stream) and not structure.streams:
            raise TypeError(
                "trajectories: this estimator needs whole episodes, received a Stream, which cuts them; use an advantage that "
                "bootstraps (logderiv.advantages.GAE), or logderiv.rollout."
            )
        structure.check(num)
        check.params(params)
        check.auto(trajectories=steps.valid)
        check_steps(params, policy, steps)
        return _estimate(self, params, state, policy, trajectories)


@jit
def _estimate(
    estimator: Estimator, params: Params, state: State, policy: Policy, trajectories: Trajectory | Stream
) -> tuple[Estimate, State]:
    weights, state = estimator.advantages(params, state, policy, trajectories)
    weights = jax.lax.stop_gradient(weights)
    grads = jax.grad(estimator.objective)(params, policy, as_steps(trajectories), weights)
    return Estimate(grads, batch_info(trajectories)), state
