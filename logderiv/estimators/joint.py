"""Actor and critic trained together: an estimator, the error of its own value, and an entropy bonus, in one objective."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core import check
from logderiv._core.pytrees import pytree
from logderiv.estimators.base import Estimator, sum_of_steps
from logderiv.estimators.declaration import Declaration, Structure, biased, concrete
from logderiv.estimators.policy_gradient import PPO, ScoreFunction
from logderiv.estimators.values import evaluate_value
from logderiv.types import Params, Policy, State, Stream, TimeStep, Trajectory, flat_steps

ValueFunction = Callable[[Any, Any], jax.Array]


@pytree(static=("value",))
class ActorCritic(Estimator):
    """One objective for actor and critic, so that one optimizer trains both.

        Σ_n Σ_t [ L_{n,t}(θ) − c_v/2 (v_θ(s_{n,t}) − G_{n,t})² + c_H H[π_θ(·|s_{n,t})] ]  over the normalizer of the actor

    with the actor's term L: w log π of `ScoreFunction`, the clipped one of `PPO`. G is what a value should predict, the credit
    from step t on. The advantage of the actor may take its values from the critic: `GAE(lambda_)` does so by default.

    The value's parameters and the policy's are one pytree. Where the two do not overlap the actor's gradient is untouched: as
    unbiased as the actor declares. The entropy's gradient is taken at the states of the batch and ignores how the policy changes
    them. Weights are the pair of advantages and targets of the value.

    Attributes:
        actor: `ScoreFunction`, `PPO` or one of their kin; its surrogate is a sum over steps.
        value: `(params, observation) -> scalar`, with all of the policy's `params`; `None` for no critic.
        value_weight: c_v ≥ 0.
        entropy_weight: c_H ≥ 0; `None` for no bonus.

    Raises:
        ValueError: A weight is negative; the surrogate is not a sum over steps (DiCE).
        TypeError: Another kind of actor; later, a distribution without an entropy where a bonus is asked for.

    References:
        Mnih et al. (2016), arXiv:1602.01783, section 4, for the entropy; Schulman et al. (2017), arXiv:1707.06347, eq. 9.
    """

    actor: Estimator
    value: ValueFunction | None = None
    value_weight: float = 0.5
    entropy_weight: float | None = None

    def __post_init__(self) -> None:
        check.not_negative(value_weight=self.value_weight)
        if self.entropy_weight is not None:
            check.not_negative(entropy_weight=self.entropy_weight)
        jax.eval_shape(self._actor.term, *jnp.zeros(3))

    @property
    def _actor(self) -> ScoreFunction | PPO:
        actor = getattr(self.actor, "composition", None)
        if not isinstance(actor, ScoreFunction | PPO):
            raise TypeError(
                f"actor: expected ScoreFunction, PPO or one of their kin, received {type(self.actor).__name__}."
            )
        return actor

    @property
    def discount(self) -> float:
        """γ of the objective."""
        return self._actor.discount

    @property
    def structure(self) -> Structure:
        """That of the actor."""
        return self._actor.structure

    @property
    def declaration(self) -> Declaration:
        """That of the actor for the parameters that the value does not use; an entropy bonus changes the objective."""
        declared = self._actor.declaration
        if self.value is not None:
            apart = "the parameters of the value are not looked at: theirs is the gradient of its error"
            declared &= Declaration(order=1, assumes=(apart,))
        if self.entropy_weight is not None and concrete("entropy_weight", self.entropy_weight).any():
            declared &= biased("an entropy bonus is part of the objective")
        return declared

    def init(self, params: Params) -> State:
        return self._actor.init(params)

    def advantages(
        self, params: Params, state: State, policy: Policy, trajectories: Trajectory | Stream
    ) -> tuple[tuple[jax.Array, jax.Array], State]:
        values = None if self.value is None else evaluate_value(self.value, params, flat_steps(trajectories))
        weights, targets, state = self._actor.weigh(params, state, policy, trajectories, values)
        return (weights, targets), state

    def objective(self, params: Params, policy: Policy, trajectories: Trajectory, weights: Any) -> jax.Array:
        term = jax.tree_util.Partial(_joint_term, self)
        return sum_of_steps(term, self._actor.normalizer, params, policy, trajectories, *weights)


def _joint_term(
    estimator: ActorCritic,
    params: Params,
    step: TimeStep,
    distribution: Any,
    log_prob: jax.Array,
    advantage: jax.Array,
    target: jax.Array,
) -> jax.Array:
    """What a step adds to the joint objective."""
    dtype = log_prob.dtype
    total = estimator._actor.term(log_prob, step.behavior_log_prob, advantage)
    if estimator.value is not None:
        error = jnp.square(estimator.value(params, step.observation).astype(dtype) - target)
        total -= 0.5 * jnp.asarray(estimator.value_weight, dtype) * error
    if estimator.entropy_weight is not None:
        total += jnp.asarray(estimator.entropy_weight, dtype) * _entropy(distribution).astype(dtype)
    return total


def _entropy(distribution: Any) -> jax.Array:
    if not hasattr(distribution, "entropy"):
        raise TypeError(f"entropy_weight: {type(distribution).__name__} has no entropy().")
    return distribution.entropy()
