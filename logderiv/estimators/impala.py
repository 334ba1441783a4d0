r"""V-trace: off-policy values and advantages from ratios clipped step by step."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from logderiv._core.arrays import summable
from logderiv.estimators.base import Estimator
from logderiv.estimators.baselines import Baseline, CreditBatch
from logderiv.estimators.credit import backward_sums, discount_factors, td_residuals
from logderiv.estimators.declaration import Bias, biased
from logderiv.estimators.importance import log_ratios
from logderiv.estimators.score_function import check_discount, check_state_values, state_values
from logderiv.likelihood.probability import weighted_log_prob
from logderiv.types import Trajectory


class VTrace(NamedTuple):
    """What `vtrace` returns, each `(T,)`.

    Attributes:
        targets: What the value function should predict.
        advantages: Weights of the scores, the clipped ratio included.
        q_values: Estimated value of the action taken.
    """

    targets: jax.Array
    advantages: jax.Array
    q_values: jax.Array


def vtrace(
    rewards: jax.Array,
    discounts: jax.Array,
    values: jax.Array,
    next_values: jax.Array,
    ratios: jax.Array,
    *,
    lambda_: float = 1.0,
    clip_rho: float = 1.0,
    clip_c: float = 1.0,
    clip_pg: float = 1.0,
) -> VTrace:
    r"""V-trace targets and policy-gradient advantages of one trajectory.

    $v_t = V_t + \bar\rho_t \delta_t + \gamma_t c_t (v_{t+1} - V_{t+1})$ with $\bar\rho_t = \min(\bar\rho, \rho_t)$ and $c_t = \lambda \min(\bar c, \rho_t)$;
    $A_t = \min(\bar\rho_{pg}, \rho_t)\, (r_t + \gamma_t (V_{t+1} + \lambda (v_{t+1} - V_{t+1})) - V_t)$.

    With all ratios 1 and `lambda_ = 1` the targets are the bootstrapped discounted returns. Invalid steps: rewards and both
    values 0, which `ScoreFunction` and `vtrace_gradient` see to.

    Args:
        rewards: Shape `(T,)`.
        discounts: $\gamma$ times 0 at termination, 1 elsewhere. Shape `(T,)`.
        values: $V(s_t)$, shape `(T,)`.
        next_values: $V(s_{t+1})$, of the final observation after the last step. Shape `(T,)`.
        ratios: $\pi/b$ of each step alone. Shape `(T,)`.
        lambda_: In [0, 1].
        clip_rho: $\bar\rho$, which decides what the values converge to.
        clip_c: $\bar c$, which decides how fast.
        clip_pg: $\bar\rho_{pg}$ of the advantages.

    Returns:
        A `VTrace`; nothing is detached.

    Raises:
        ValueError: The shapes differ, or are not one-dimensional.

    References:
        Espeholt et al. (2018), arXiv:1802.01561, eq. 1, remark 1 and section 4.2; `rlax.vtrace_td_error_and_advantage`, where
        `clip_c` is 1.
    """
    if ratios.shape != rewards.shape:
        raise ValueError(f"ratios: expected the shape of rewards, {rewards.shape}, received {ratios.shape}.")
    residuals = jnp.minimum(ratios, clip_rho) * td_residuals(rewards, discounts, values, next_values)
    errors = backward_sums(residuals, discounts * jnp.minimum(ratios, clip_c) * lambda_)
    next_errors = jnp.append(errors[1:], jnp.zeros((), errors.dtype))
    q_values = rewards + discounts * (next_values + lambda_ * next_errors)
    return VTrace(values + errors, jnp.minimum(ratios, clip_pg) * (q_values - values), q_values)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class VTraceGradient(Estimator):
    """See `vtrace_gradient`."""

    baseline: Baseline
    discount: float = 1.0
    lambda_: float = 1.0
    clip_rho: float = 1.0
    clip_c: float = 1.0
    clip_pg: float = 1.0

    def __post_init__(self) -> None:
        check_discount(self.discount)
        check_state_values(self.baseline)
        if not 0.0 <= self.lambda_ <= 1.0:
            raise ValueError(f"lambda_: expected a number in [0, 1], received {self.lambda_}.")

    @property
    def bias(self) -> Bias:
        """Biased for three reasons."""
        reason = "V-trace: states as the behavior policy visits them, clipped ratios, bootstrapped values"
        return self.baseline.bias & biased(reason)

    def init(self, params: Any) -> Any:
        """The baseline's first state."""
        return self.baseline.init(params)

    def weigh(self, params: Any, state: Any, policy: Any, trajectories: Trajectory) -> tuple[jax.Array, Any]:
        r"""$\gamma^t A_t$; 0 on invalid steps, shape `(N, T)`."""
        valid = trajectories.valid
        rewards = jnp.where(valid, summable(trajectories.rewards), 0)
        discounts = self.discount * jnp.where(valid, trajectories.discounts, 1).astype(rewards.dtype)
        pair = state_values(self.baseline, state, trajectories)
        values, next_values = (v.astype(rewards.dtype) for v in pair)
        held = jax.lax.stop_gradient(params)
        ratios = jnp.exp(log_ratios(held, policy, trajectories)).astype(rewards.dtype)
        options = {"lambda_": self.lambda_, "clip_rho": self.clip_rho, "clip_c": self.clip_c, "clip_pg": self.clip_pg}
        traces = jax.vmap(lambda *x: vtrace(*x, **options))(rewards, discounts, values, next_values, ratios)
        powers = discount_factors(self.discount, valid.shape[-1], rewards.dtype)[None]
        weights = jnp.where(valid, powers * traces.advantages, 0)
        batch = CreditBatch(weights, jnp.ones_like(weights), powers, jnp.where(valid, traces.targets, 0), held, policy)
        return weights, self.baseline.update(state, trajectories, batch)

    def objective(self, params: Any, policy: Any, trajectories: Trajectory, weights: jax.Array) -> jax.Array:
        """The score surrogate."""
        return weighted_log_prob(params, policy, trajectories, weights) / weights.shape[0]


def vtrace_gradient(
    *,
    baseline: Baseline,
    discount: float = 1.0,
    lambda_: float = 1.0,
    clip_rho: float = 1.0,
    clip_c: float = 1.0,
    clip_pg: float = 1.0,
) -> VTraceGradient:
    r"""The policy gradient of IMPALA, with $\gamma^t$ kept: $\tfrac1N \sum_n \sum_t \gamma^t A_{n,t} \nabla\log\pi_\theta$ with V-trace advantages.

    Biased off policy, whatever the clips: the states are weighted as the behavior policy visits them. Its variance stays
    bounded where the products of `importance_per_decision` do not. The baseline is fitted to the V-trace targets.

    Args:
        baseline: `baseline_value` or `baseline_learned_value`.
        discount: $\gamma$ in [0, 1].
        lambda_: As in `vtrace`, like all others.
        clip_rho: Likewise.
        clip_c: Likewise.
        clip_pg: Likewise.

    Raises:
        ValueError: `discount` or `lambda_` outside [0, 1]; a baseline without values of the state.

    References:
        Espeholt et al. (2018), arXiv:1802.01561, section 4.2.
    """
    return VTraceGradient(baseline, discount, lambda_, clip_rho, clip_c, clip_pg)
