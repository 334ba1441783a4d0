"""What an estimator is: three pure functions and a declaration."""

import dataclasses
from typing import Any

import jax

from logderiv.bias import Bias
from logderiv.rollout import batch_info
from logderiv.types import Estimate, Trajectory, check_params, check_trajectory


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Estimator:
    """Base of all estimators: three pure functions and a declaration; `estimate` follows from them.

    Subclass it as a frozen dataclass registered static (`jax.tree_util.register_static`), so that `jax.jit` takes it as
    an argument, and give it `weigh`, `objective` and `bias`; `init` where it has a state. What is differentiated more
    than once per batch (PPO's epochs) weighs once and takes many gradients of `objective`.
    """

    @property
    def bias(self) -> Bias:
        """What is known about E[grads]."""
        raise NotImplementedError

    @property
    def symmetric(self) -> bool:
        """Whether the estimate does not depend on the order of the trajectories."""
        return self.bias.symmetric

    def init(self, params: Any) -> Any:
        """The first state, a pytree of arrays."""
        del params
        return ()

    def weigh(self, params: Any, state: Any, policy: Any, trajectories: Trajectory) -> tuple[Any, Any]:
        """`(weights, new state)` from the *old* state; never differentiated."""
        raise NotImplementedError

    def objective(self, params: Any, policy: Any, trajectories: Trajectory, weights: Any) -> jax.Array:
        """The scalar whose derivatives in `params` are the estimates."""
        raise NotImplementedError

    def estimate(self, params: Any, state: Any, policy: Any, trajectories: Trajectory) -> tuple[Estimate, Any]:
        """Estimate +grad E[R] from a batch; drawn with these `params` unless the estimator weighs off-policy steps.

        Args:
            params: Parameters of the policy, floating point.
            state: From `init`, or from the last call.
            policy: The policy that drew the trajectories.
            trajectories: Leading axes `(N, T)`.

        Returns:
            `(Estimate, state)`; `grads` is a pytree of `params`.

        Raises:
            ValueError: Fewer trajectories than `bias.min_trajectories`, or not a batch of one axis.
            TypeError: A parameter is not floating point.
        """
        check_params(params)
        self.bias.check(num_trajectories(trajectories))
        weights, state = self.weigh(params, state, policy, trajectories)
        grads = jax.grad(self.objective)(params, policy, trajectories, jax.lax.stop_gradient(weights))
        return Estimate(grads, batch_info(trajectories)), state


def num_trajectories(trajectories: Trajectory) -> int:
    """`N` of a batch of shape `(N, T)`.

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
