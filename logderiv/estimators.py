"""Estimators of grad E[R], composed from credit, baseline and surrogate."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from logderiv.baselines import Baseline, CreditBatch, NoBaseline
from logderiv.bias import Bias
from logderiv.credit import discount_factors, reward_to_go
from logderiv.likelihood import log_factors
from logderiv.rollout import batch_info
from logderiv.surrogates import score_surrogate
from logderiv.types import Estimate, Trajectory, check_params, check_trajectory

Credit = Callable[[jax.Array, jax.Array], jax.Array]
Surrogate = Callable[[jax.Array, jax.Array], jax.Array]
_NO_BASELINE = NoBaseline()


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

    def estimate(
        self, params: Any, state: Any, policy: Any, trajectories: Trajectory
    ) -> tuple[Estimate, Any]:
        """Estimate +grad E[R] from a batch drawn with these `params`.

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


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ScoreFunction(Estimator):
    """See `score_function`."""

    credit: Credit = reward_to_go
    baseline: Baseline = _NO_BASELINE
    discount: float = 1.0
    surrogate: Surrogate = score_surrogate

    def __post_init__(self) -> None:
        if not 0.0 <= self.discount <= 1.0:
            raise ValueError(f"discount: expected a number in [0, 1], received {self.discount}.")

    @property
    def bias(self) -> Bias:
        """The baseline's, at order one for `score_surrogate`."""
        order_one = Bias(order=1) if self.surrogate is score_surrogate else Bias()
        return self.baseline.bias & order_one

    def init(self, params: Any) -> Any:
        """The baseline's first state."""
        return self.baseline.init(params)

    def weigh(self, params: Any, state: Any, policy: Any, trajectories: Trajectory) -> tuple[jax.Array, Any]:
        r"""$w_t = \mathrm{credit}(\gamma^t r_t)_t - b_t$, 0 on invalid steps; shape `(N, T)`."""
        del params, policy
        valid = trajectories.valid
        factors = discount_factors(self.discount, valid.shape[-1], trajectories.rewards.dtype)
        rewards = jnp.where(valid, trajectories.rewards, 0) * factors[None]
        discounts = jnp.where(valid, trajectories.discounts, 1)
        credit = jnp.where(valid, jax.vmap(self.credit)(rewards, discounts), 0)
        batch = CreditBatch(credit, ratios=jnp.ones_like(credit), discounts=factors)
        weights = jnp.where(valid, credit - self.baseline.values(state, trajectories, batch), 0)
        return weights, self.baseline.update(state, trajectories, batch)

    def objective(self, params: Any, policy: Any, trajectories: Trajectory, weights: jax.Array) -> jax.Array:
        """The surrogate of the log-factors and weights."""
        return self.surrogate(log_factors(params, policy, trajectories), weights)


def score_function(
    *,
    credit: Credit = reward_to_go,
    baseline: Baseline | None = None,
    discount: float = 1.0,
    surrogate: Surrogate = score_surrogate,
) -> ScoreFunction:
    r"""The score-function (REINFORCE, likelihood-ratio) estimator of the gradient of a discounted return.

    $\nabla \mathbb{E} \sum_t \gamma^t r_t \approx \tfrac1N \sum_n \sum_t (C_{n,t} - b_{n,t})\, \nabla\log\pi_\theta(a_{n,t}|s_{n,t})$

    with $C_t = \gamma^t G_t$ for `reward_to_go` and $C_t = G_0$ for `total_return`. $\gamma^t$ stays in the weights: this is the
    gradient of the discounted objective itself. Rewards are constants: a reward that depends on the parameters has a
    further term $\mathbb{E}[\nabla r]$ that is not covered.

    Args:
        credit: `(rewards (T,), discounts (T,)) -> (T,)`.
        baseline: From the `baseline_*` family; `None` for none.
        discount: $\gamma$ in [0, 1].
        surrogate: `score_surrogate` (order one) or `dice_surrogate` (every order).

    Returns:
        An `Estimator`, hashable and equal to one built from the same parts.

    Raises:
        ValueError: `discount` outside [0, 1].

    References:
        Williams (1992), Machine Learning 8; Sutton et al. (1999), "Policy gradient methods", theorem 1.
    """
    return ScoreFunction(credit, _NO_BASELINE if baseline is None else baseline, discount, surrogate)


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
