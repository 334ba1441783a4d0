"""Estimators of one advantage: the score-function estimator, proximal policy optimization, and either with a critic beside it."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core import check
from logderiv._core.arrays import given, summable
from logderiv._core.pytrees import pytree
from logderiv.estimators.advantages import Advantage, ToGo, check_advantage
from logderiv.estimators.base import Estimator, check_state, keep_finite
from logderiv.estimators.batch import ValueFunction, prepare
from logderiv.estimators.declaration import RETURN, Declaration, Structure, biased, concrete, declaration_of, one
from logderiv.estimators.importance import Importance
from logderiv.estimators.surrogates import NORMALIZERS, Normalizer, Score, Surrogate, clipped, of_each_step
from logderiv.likelihood.probability import log_factors, weighted_log_prob
from logderiv.types import Params, Policy, State, TimeStep, Trajectories, Trajectory

_ON_POLICY = "the batch was drawn with these parameters"


class Weighting(Estimator):
    """Base of estimators whose weights come from an advantage.

    Attributes:
        advantage: What decides the weights.
        discount: γ in [0, 1].
        gamma_t: Whether γ^t stays in the weights.
        importance: Weights of off-policy steps; `None` where the trajectories are drawn with the same parameters.

    Raises:
        ValueError: `discount` is outside [0, 1]; the advantage weighs off-policy steps itself and `importance` is given.
        TypeError: A part is none, or was not called.
    """

    advantage: Advantage
    discount: float
    gamma_t: bool
    importance: Importance | None = None

    def __post_init__(self) -> None:
        check.between(0, 1, discount=self.discount)
        check_advantage(self.advantage)
        fits = self.importance is None or hasattr(self.importance, "ratios")
        check.made("importance", self.importance, fits, "logderiv.importance.Importance()")
        if self.advantage.own_ratios and self.importance is not None:
            raise ValueError(
                f"importance: expected None, since {type(self.advantage).__name__} weighs off-policy steps itself, received "
                f"{self.importance}."
            )

    @property
    def structure(self) -> Structure:
        """That of the advantage, on policy; ratios need whole episodes."""
        own = self.advantage.structure
        return own if self.importance is None else own._replace(streams=False) & self.importance.structure

    @property
    def declaration(self) -> Declaration:
        """What advantage, importance, discount and γ^t do to the expectation together."""
        importance, declared = self.importance, declaration_of(self.advantage)
        if not self.gamma_t and not self.advantage.from_start and (concrete("discount", self.discount) < 1).any():
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

    def advantages(self, params: Params, state: State, policy: Policy, trajectories: Trajectories) -> tuple[Any, State]:
        weights, _, state = self.weigh(params, state, policy, trajectories)
        return weights, state

    def weigh(
        self, params: Params, state: State, policy: Policy, trajectories: Trajectories, value: Any = None
    ) -> tuple[jax.Array, jax.Array, State]:
        """Weights and targets of a batch: the ratio multiplies the rewards before credit is given.

        Args:
            params: Parameters of the policy.
            state: From `init`, or from the last call.
            policy: The policy.
            trajectories: Leading axes `(N, T)`; a stream `(E, T)`.
            value: An actor-critic's own value function.

        Returns:
            `(weights, targets, state)`: what multiplies each score, what a value of each state should predict, both of the shape
            of the steps' `valid` and 0 on invalid ones, and the state after this batch; NaN and the old state where a weight, or
            the state after the batch, is not finite.

        Raises:
            ValueError: The advantage needs values of the state and there is no value function.
        """
        batch = prepare(self, params, policy, trajectories, value)
        try:
            weights, targets, new = self.advantage(params, state, batch)
            weights, state, _ = keep_finite(state, weights, new)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            check_state(self, params, state)  # the likeliest cause, which is named first
            raise
        shape = batch.steps.valid.shape
        return weights.reshape(shape), targets.reshape(shape), state


@pytree(static=("gamma_t",))
class ScoreFunction(Weighting):
    """The score-function (REINFORCE, likelihood-ratio) estimator of the gradient of a discounted return.

        ∇ E Σ_t γ^t r_t ≈ 1/N Σ_n Σ_t w_{n,t} ∇log π(a_{n,t}|s_{n,t})

    with the weights w of the advantage: γ^t G_t − b_t of `advantages.ToGo`, G_0 − b_t of `advantages.Return`. γ^t stays in the
    weights: this is the gradient of the discounted objective itself. Rewards are constants: a reward that depends on the
    parameters has a further term E[∇r] that is not covered.

    | advantage | importance | name |
    |---|---|---|
    | `Return()` | | REINFORCE |
    | `ToGo()` | | GPOMDP, policy gradient |
    | `Return(LeaveOneOut(per="trajectory"))` | | RLOO |
    | `GAE(0.0, LearnedValue(...))` | | one-step actor-critic |
    | `GAE(lambda_, LearnedValue(...))` | | GAE |
    | `ToGo()` | `Importance()` | off-policy gradient, per decision |
    | `VTrace(LearnedValue(...))` | | policy gradient of IMPALA |

    Off policy the ratio multiplies the rewards before credit is given, and the baseline.

    With `gamma_t=False` the weights are G_t in the place of γ^t G_t, as in nearly all published code. Late steps keep their weight,
    which can help; but for γ < 1 it is the gradient of neither the discounted objective nor any other, and is declared as biased. With
    `advantages.Return` there is no γ^t to leave out and nothing changes.

    Attributes:
        advantage: What decides the weights, from `logderiv.advantages`.
        discount: γ in [0, 1].
        surrogate: `Score()` (order one), `DiCE()` (every order) or `LoadedDiCE(lambda_)`, from `logderiv.estimators`; or a
            function `(log_factors, weights) -> scalar`, which declares itself by an attribute `declaration`.
        importance: Weights of off-policy steps; `None` where the trajectories are drawn with the same parameters.
        gamma_t: Whether γ^t stays in the weights.

    Raises:
        ValueError: `discount` is outside [0, 1]; the advantage weighs off-policy steps itself and `importance` is given.
        TypeError: A part is none, or was not called.

    References:
        Williams (1992), Machine Learning 8; Sutton et al. (1999), "Policy gradient methods", theorem 1; for `gamma_t=False` Thomas
        (2014), "Bias in natural actor-critic algorithms", and Nota & Thomas (2020), arXiv:1906.07073.
    """

    advantage: Advantage = ToGo()
    discount: float = 1.0
    surrogate: Surrogate | Callable[[jax.Array, jax.Array], jax.Array] = Score()
    importance: Importance | None = None
    gamma_t: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = "one of logderiv.estimators, such as Score(), or a function (log_factors, weights) -> scalar"
        check.made("surrogate", self.surrogate, callable(self.surrogate), expected)

    @property
    def declaration(self) -> Declaration:
        """That of the weights, up to the order of the surrogate."""
        return super().declaration & declaration_of(self.surrogate)

    def objective(self, params: Params, policy: Policy, trajectories: Trajectory, weights: jax.Array) -> jax.Array:
        weights = of_each_step(trajectories, weights)
        if isinstance(self.surrogate, Score):
            return weighted_log_prob(params, policy, trajectories, weights) / math.prod(weights.shape[:-1])
        return self.surrogate(log_factors(params, policy, trajectories), weights)

    def term(self, params: Params, step: TimeStep, distribution: Any, log_prob: jax.Array, weights: Any) -> jax.Array:
        del params, step, distribution
        return jnp.where(weights == 0, jnp.zeros_like(log_prob), weights * log_prob)


@pytree(static=("normalizer", "gamma_t"))
class PPO(Weighting):
    """Proximal policy optimization: weigh once, then several gradients of the clipped surrogate.

        L = 1/N Σ_n Σ_t min(ρ w, clip(ρ, 1 − ε, 1 + ε) w),  ρ = π/π_drawn per step, from `behavior_log_probs`

        weights, state = estimator.advantages(params, state, policy, taus)
        for _ in range(epochs):
            grads = jax.grad(estimator.objective)(params, policy, taus, weights)

    The first gradient is the score-function estimate with the same advantage, and as unbiased; later ones are not. The common
    recipe, with a value loss and an entropy bonus, is `PPOActorCritic`.

    Attributes:
        advantage: What decides the weights, from `logderiv.advantages`.
        discount: γ in [0, 1].
        clip: ε > 0; `None` does not clip.
        normalizer: What the sum over steps is divided by; see `logderiv.estimators.reduce_steps`.
        gamma_t: Whether γ^t stays in the weights; nearly all published code leaves it out, which is biased for γ < 1.

    Raises:
        ValueError: `discount` is outside [0, 1]; `clip` is not positive; an unknown normalizer.
        TypeError: A part is none, or was not called.

    References:
        Schulman et al. (2017), arXiv:1707.06347, eq. 7.
    """

    advantage: Advantage = ToGo()
    discount: float = 1.0
    clip: float | None = 0.2
    normalizer: Normalizer = "per_trajectory"
    gamma_t: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check.one_of(NORMALIZERS, normalizer=self.normalizer)
        check.positive(or_none=True, clip=self.clip)

    @property
    def structure(self) -> Structure:
        """It compares with the policy that drew the batch, so several gradients may be taken of it."""
        return super().structure._replace(reusable=True) & NORMALIZERS[self.normalizer][0]

    @property
    def declaration(self) -> Declaration:
        """Of the first gradient, at the parameters that drew the batch."""
        first = "it is the first gradient of the batch; later ones, at other parameters, are biased"
        return super().declaration & Declaration(order=1, assumes=(first,)) & NORMALIZERS[self.normalizer][1]

    def term(self, params: Params, step: TimeStep, distribution: Any, log_prob: jax.Array, weights: Any) -> jax.Array:
        del params, distribution
        given("behavior_log_probs", step.behavior_log_prob)
        return clipped(log_prob - step.behavior_log_prob.astype(log_prob.dtype), weights, self.clip)


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

    actor: ScoreFunction | PPO
    value: ValueFunction | None = None
    value_weight: float = 0.5
    entropy_weight: float | None = None

    def __post_init__(self) -> None:
        fits = isinstance(self.actor, ScoreFunction | PPO)
        check.made("actor", self.actor, fits, "ScoreFunction(), PPO() or one of their kin")
        if not isinstance(getattr(self.actor, "surrogate", Score()), Score):
            raise ValueError("surrogate: expected Score(), which is a sum of one term a step.")
        check.not_negative(finite=True, value_weight=self.value_weight)
        check.not_negative(finite=True, or_none=True, entropy_weight=self.entropy_weight)

    @property
    def discount(self) -> float:
        """γ of the objective."""
        return self.actor.discount

    @property
    def normalizer(self) -> Normalizer:
        """That of the actor."""
        return self.actor.normalizer

    @property
    def structure(self) -> Structure:
        """That of the actor."""
        return self.actor.structure

    @property
    def declaration(self) -> Declaration:
        """That of the actor for the parameters that the value does not use; an entropy bonus changes the objective."""
        declared = self.actor.declaration
        if self.value is not None:
            apart = "the parameters of the value are not looked at: theirs is the gradient of its error"
            declared &= Declaration(assumes=(apart,))
        if self.entropy_weight is not None and concrete("entropy_weight", self.entropy_weight).any():
            declared &= biased("an entropy bonus is part of the objective")
        return declared

    def init(self, params: Params) -> State:
        return self.actor.init(params)

    def advantages(self, params: Params, state: State, policy: Policy, trajectories: Trajectories) -> tuple[Any, State]:
        weights, targets, state = self.actor.weigh(params, state, policy, trajectories, self.value)
        return (weights, targets), state

    def term(self, params: Params, step: TimeStep, distribution: Any, log_prob: jax.Array, weights: Any) -> jax.Array:
        dtype, (advantage, target) = log_prob.dtype, weights
        total = self.actor.term(params, step, distribution, log_prob, advantage)
        if self.value is not None:
            value = summable(self.value(params, step.observation), "value").astype(dtype)
            total -= 0.5 * jnp.asarray(self.value_weight, dtype) * jnp.square(value - target)
        if self.entropy_weight is not None:
            if not hasattr(distribution, "entropy"):
                raise TypeError(f"entropy_weight: {type(distribution).__name__} has no entropy().")
            total += jnp.asarray(self.entropy_weight, dtype) * distribution.entropy().astype(dtype)
        return total
