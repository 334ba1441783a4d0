"""What an estimator is: three pure functions and a declaration."""

import dataclasses
from typing import Any

import jax

from logderiv._core.sharding import check_auto
from logderiv.estimators.declaration import Bias
from logderiv.types import (
    Estimate,
    Stream,
    Trajectory,
    as_steps,
    batch_info,
    check_params,
    check_trajectory,
    flat_steps,
)


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

    @property
    def accepts_streams(self) -> bool:
        """Whether `weigh` takes a `Stream`, whose episodes may be cut anywhere."""
        return False

    @property
    def reusable(self) -> bool:
        """Whether `objective` may be differentiated at parameters other than those that drew the batch."""
        return False

    def init(self, params: Any) -> Any:
        """The first state, a pytree of arrays."""
        del params
        return ()

    def weigh(self, params: Any, state: Any, policy: Any, trajectories: Any) -> tuple[Any, Any]:
        """`(weights, new state)` from the *old* state; never differentiated. Weights have the leading axes of the steps."""
        raise NotImplementedError

    def objective(self, params: Any, policy: Any, trajectories: Trajectory, weights: Any) -> jax.Array:
        """The scalar whose derivatives in `params` are the estimates; of trajectories, or of the steps of a stream."""
        raise NotImplementedError

    def estimate(self, params: Any, state: Any, policy: Any, trajectories: Trajectory | Stream) -> tuple[Estimate, Any]:
        """Estimate +grad E[R] from a batch; drawn with these `params` unless the estimator weighs off-policy steps.

        Args:
            params: Parameters of the policy, floating point.
            state: From `init`, or from the last call.
            policy: The policy that drew the trajectories.
            trajectories: Leading axes `(N, T)`; a stream `(E, T)`, where the estimator accepts it.

        Returns:
            `(Estimate, state)`; `grads` is a pytree of `params`.

        Raises:
            ValueError: Fewer trajectories than `bias.min_trajectories`, or not a batch of one axis, or one that is sharded over
                mesh axes of type `Explicit`.
            TypeError: A parameter is not floating point; a stream, where the estimator needs whole episodes.
        """
        check_params(params)
        self.check(trajectories)
        weights, state = self.weigh(params, state, policy, trajectories)
        grads = jax.grad(self.objective)(params, policy, as_steps(trajectories), jax.lax.stop_gradient(weights))
        return Estimate(grads, batch_info(trajectories)), state

    def check(self, trajectories: Trajectory | Stream) -> None:
        """Raise unless this is a batch that the estimator takes: see `estimate`."""
        if isinstance(trajectories, Stream) and not self.accepts_streams:
            raise TypeError(
                "trajectories: this estimator needs whole episodes, received a Stream, which cuts them; use "
                "credit=logderiv.gae(...) with a baseline of the state, or logderiv.rollout."
            )
        check_auto(as_steps(trajectories).valid, "trajectories")
        self.bias.check(num_trajectories(flat_steps(trajectories)))


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
