"""Actor and critic trained together: an estimator, the error of its own value, and an entropy bonus, in one objective."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core.blocks import sum_rows, wide_rows
from logderiv.estimators.base import Estimator
from logderiv.estimators.baselines import baseline_biased_standardized, baseline_shared_value
from logderiv.estimators.baselines.values import SharedValue, evaluate
from logderiv.estimators.clipped import Clipped
from logderiv.estimators.credit import gae
from logderiv.estimators.declaration import Bias, biased
from logderiv.estimators.score_function import ScoreFunction
from logderiv.estimators.surrogates import step_weights
from logderiv.likelihood.factors import fill_invalid, log_factors, step_factor, with_memory
from logderiv.types import Stream, Trajectory, as_policy

Value = Callable[[Any, Any], jax.Array]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ActorCritic(Estimator):
    """See `actor_critic`. Weights are the pair of advantages and targets of the value.

    Attributes:
        actor: What weighs the scores.
        value_weight: $c_v$.
        entropy_weight: $c_H$.
    """

    actor: ScoreFunction | Clipped
    value_weight: float = 0.5
    entropy_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("value_weight", "entropy_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected a number >= 0, received {getattr(self, name)}.")
        if not hasattr(self.actor, "step_terms"):
            raise TypeError(
                f"actor: expected score_function, ppo or one of their kin, received {type(self.actor).__name__}."
            )
        self.actor.check_steps()

    @property
    def weigher(self) -> ScoreFunction:
        """Where credit and baseline are."""
        return self.actor.weigher if isinstance(self.actor, Clipped) else self.actor

    @property
    def value(self) -> Value | None:
        """The shared value function, if the baseline is one."""
        return shared_value(self.weigher)

    @property
    def bias(self) -> Bias:
        """That of the actor for the parameters that the value does not use; an entropy bonus changes the objective."""
        bias = self.actor.bias
        if self.value is not None and self.value_weight > 0:
            bias &= Bias(
                order=1,
                assumes=("the parameters of the value are not looked at: theirs is the gradient of its error",),
            )
        return bias & biased("an entropy bonus is part of the objective") if self.entropy_weight > 0 else bias

    @property
    def accepts_streams(self) -> bool:
        """As the actor."""
        return self.actor.accepts_streams

    @property
    def reusable(self) -> bool:
        """As the actor."""
        return self.actor.reusable

    @property
    def discount(self) -> float:
        r"""$\gamma$ of the objective."""
        return self.actor.discount

    def init(self, params: Any) -> Any:
        """The actor's first state; nothing where the value is shared."""
        return () if self.value is not None else self.actor.init(params)

    def weigh(self, params: Any, state: Any, policy: Any, trajectories: Trajectory | Stream) -> tuple[Any, Any]:
        """Advantages and targets of the value, of the shape of the steps' `valid`."""
        inner = state if self.value is None else self.actor.init(jax.lax.stop_gradient(params))
        weights, targets, new = self.weigher.weights_and_targets(params, inner, policy, trajectories)
        return (weights, targets), new if self.value is None else state

    def objective(self, params: Any, policy: Any, trajectories: Trajectory, weights: Any) -> jax.Array:
        """The joint objective, to be ascended. A memoryless policy's is taken in one pass over the steps."""
        policy = as_policy(policy)
        advantages, targets = weights
        scale = step_weights(trajectories.valid, self._normalizer, advantages.dtype)
        numbers = (trajectories.behavior_log_probs, advantages, targets, scale)
        numbers = tuple(jnp.where(trajectories.valid, x, 0) for x in numbers)
        if policy.initial_carry is None and policy.log_factors is None:
            return self._in_one_pass(params, policy, trajectories, numbers)
        logs, entropies = self._of_sequences(params, policy, trajectories)
        values = jnp.zeros_like(logs)
        if self.value is not None:
            values = evaluate(self.value, params, trajectories)[0].astype(logs.dtype)
        return jnp.sum(jnp.where(trajectories.valid, self._terms(logs, entropies, values, *numbers), 0))

    @property
    def _normalizer(self) -> Any:
        return self.actor.normalizer if isinstance(self.actor, Clipped) else "per_trajectory"

    def _terms(
        self,
        logs: jax.Array,
        entropies: jax.Array,
        values: jax.Array,
        behavior: jax.Array,
        advantages: jax.Array,
        targets: jax.Array,
        scale: jax.Array,
    ) -> jax.Array:
        """What a step adds; of any shape."""
        behavior, advantages, targets, scale = (x.astype(logs.dtype) for x in (behavior, advantages, targets, scale))
        terms = self.actor.step_terms(logs, behavior, advantages)
        if self.value is not None:
            terms -= 0.5 * self.value_weight * jnp.square(values - targets)
        return scale * (terms + self.entropy_weight * entropies)

    def _in_one_pass(self, params: Any, policy: Any, trajectories: Trajectory, numbers: Any) -> jax.Array:
        filled, ndim = fill_invalid(trajectories), trajectories.valid.ndim
        factor = step_factor(trajectories, logs=True)

        def row(params: Any, row: Any) -> jax.Array:
            observation, action, numbers = row
            distribution = policy.apply(params, observation)
            log = factor(distribution, action)
            value = jnp.zeros_like(log) if self.value is None else self.value(params, observation)
            return self._terms(log, self._entropy(distribution, log), value.astype(log.dtype), *numbers)

        def flat(x: jax.Array) -> jax.Array:
            return x.reshape((x.shape[0], math.prod(x.shape[1:ndim]), *x.shape[ndim:]))

        rows = jax.tree.map(flat, (filled.observations, filled.actions, numbers))
        return sum_rows(row, params, rows, flat(trajectories.valid), rows=wide_rows())

    def _of_sequences(self, params: Any, policy: Any, trajectories: Trajectory) -> tuple[jax.Array, jax.Array]:
        """Log-factors and entropies of a policy with memory, or of a whole-sequence one, which has no entropies."""
        if policy.log_factors is not None:
            if self.entropy_weight > 0:
                raise TypeError("entropy_weight: a policy with log_factors of its own does not give its entropy.")
            logs = log_factors(params, policy, trajectories)
            return logs, jnp.zeros_like(logs)
        factor = step_factor(trajectories, logs=True)

        def both(distribution: Any, action: Any) -> tuple[jax.Array, jax.Array]:
            log = factor(distribution, action)
            return log, self._entropy(distribution, log)

        found = with_memory(params, policy, trajectories, both)
        return jax.tree.map(lambda x: jnp.where(trajectories.valid, x.reshape(trajectories.valid.shape), 0), found)

    def _entropy(self, distribution: Any, like: jax.Array) -> jax.Array:
        if self.entropy_weight == 0:
            return jnp.zeros_like(like)
        if not hasattr(distribution, "entropy"):
            raise TypeError(f"entropy_weight: {type(distribution).__name__} has no entropy().")
        return distribution.entropy().astype(like.dtype)


def shared_value(weigher: Any) -> Value | None:
    """The function of the weigher's baseline if that is a `baseline_shared_value`, however wrapped."""
    baseline: Any = getattr(weigher, "baseline", None)
    while hasattr(baseline, "baseline"):
        baseline = baseline.baseline
    return baseline.function if isinstance(baseline, SharedValue) else None


def actor_critic(
    actor: ScoreFunction | Clipped, *, value_weight: float = 0.5, entropy_weight: float = 0.0
) -> ActorCritic:
    r"""One objective for actor and critic, so that one optimizer trains both.

    $\sum_n \sum_t \left[ L_{n,t}(\theta) - \tfrac{c_v}{2} (v_\theta(s_{n,t}) - G_{n,t})^2 + c_H\, \mathrm{H}[\pi_\theta(\cdot|s_{n,t})] \right]$ over the normalizer of
    the actor, with its surrogate $L$: $w \log\pi$ of `score_function`, the clipped one of `ppo`. $G$ is the credit from step `t` on. With a
    baseline that is not `baseline_shared_value` there is no value term.

    The value's parameters and the policy's are one pytree. Where the two do not overlap the actor's gradient is untouched: as
    unbiased as the actor declares. The entropy's gradient is taken at the states of the batch and ignores how the policy changes them.

    Args:
        actor: `score_function`, `score_function_without_gamma_t`, `ppo`, `ppo_without_gamma_t` or `grpo`.
        value_weight: $c_v \ge 0$.
        entropy_weight: $c_H \ge 0$.

    Raises:
        ValueError: A weight is negative; the surrogate is not a sum over steps (DiCE).
        TypeError: Another kind of actor.

    References:
        Mnih et al. (2016), arXiv:1602.01783, section 4, for the entropy; Schulman et al. (2017), arXiv:1707.06347, eq. 9.
    """
    return ActorCritic(actor, value_weight, entropy_weight)


def a2c(
    value: Value,
    *,
    discount: float = 0.99,
    lambda_: float = 1.0,
    value_weight: float = 0.5,
    entropy_weight: float = 0.01,
) -> ActorCritic:
    r"""Advantage actor-critic as nearly everyone runs it: $\lambda$-returns minus the value, $\gamma^t$ left out, value loss and entropy bonus.

    Args:
        value: `(params, observation) -> scalar`, with all of the policy's `params`.
        discount: $\gamma$ in [0, 1].
        lambda_: Of `gae`, in [0, 1].
        value_weight: As in `actor_critic`.
        entropy_weight: Likewise.

    References:
        Mnih et al. (2016), arXiv:1602.01783, section 4.
    """
    actor = ScoreFunction(gae(lambda_), baseline_shared_value(value), discount, gamma_t=False)
    return ActorCritic(actor, value_weight, entropy_weight)


def ppo_actor_critic(
    value: Value,
    *,
    discount: float = 0.99,
    lambda_: float = 0.95,
    clip: float = 0.2,
    value_weight: float = 0.5,
    entropy_weight: float = 0.01,
    standardize: bool = True,
) -> ActorCritic:
    r"""Proximal policy optimization as nearly everyone runs it: GAE, standardized, $\gamma^t$ left out, clipped, value loss, entropy bonus.

    Give `logderiv.train` the epochs and minibatches. Biased in ways that `bias` lists; `ppo` is the clipped surrogate alone.

    Args:
        value: `(params, observation) -> scalar`, with all of the policy's `params`.
        discount: $\gamma$ in [0, 1].
        lambda_: Of `gae`, in [0, 1].
        clip: $\epsilon > 0$.
        value_weight: As in `actor_critic`.
        entropy_weight: Likewise.
        standardize: Advantages with mean 0 and deviation 1 over the batch.

    References:
        Schulman et al. (2017), arXiv:1707.06347, eqs. 7, 9 and 11.
    """
    baseline = baseline_shared_value(value)
    if standardize:
        baseline = baseline_biased_standardized(baseline)
    actor = Clipped(ScoreFunction(gae(lambda_), baseline, discount, gamma_t=False), clip)
    return ActorCritic(actor, value_weight, entropy_weight)
