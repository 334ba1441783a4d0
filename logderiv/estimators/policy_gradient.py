"""The two estimators of one advantage: the score-function estimator, and proximal policy optimization."""

import math
from collections.abc import Callable
from typing import Any

import jax

from logderiv._core import check
from logderiv._core.pytrees import pytree
from logderiv.estimators.advantages import Advantage, ToGo
from logderiv.estimators.base import Weighting, sum_of_steps
from logderiv.estimators.declaration import Declaration, Structure, declaration_of
from logderiv.estimators.importance import Importance
from logderiv.estimators.surrogates import Normalizer, Score, Surrogate, clipped, normalizer_declaration
from logderiv.likelihood.probability import log_factors, weighted_log_prob
from logderiv.types import Params, Policy, TimeStep, Trajectory


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
        TypeError: `advantage` is none.

    References:
        Williams (1992), Machine Learning 8; Sutton et al. (1999), "Policy gradient methods", theorem 1; for `gamma_t=False` Thomas
        (2014), "Bias in natural actor-critic algorithms", and Nota & Thomas (2020), arXiv:1906.07073.
    """

    advantage: Advantage = ToGo()
    discount: float = 1.0
    surrogate: Surrogate | Callable[[jax.Array, jax.Array], jax.Array] = Score()
    importance: Importance | None = None
    gamma_t: bool = True

    @property
    def declaration(self) -> Declaration:
        """That of the weights, up to the order of the surrogate."""
        return super().declaration & declaration_of(self.surrogate)

    def objective(self, params: Params, policy: Policy, trajectories: Trajectory, weights: jax.Array) -> jax.Array:
        if isinstance(self.surrogate, Score):
            return weighted_log_prob(params, policy, trajectories, weights) / math.prod(weights.shape[:-1])
        return self.surrogate(log_factors(params, policy, trajectories), weights)

    def term(self, log_prob: jax.Array, behavior_log_prob: jax.Array, weight: jax.Array) -> jax.Array:
        del behavior_log_prob  # drawn with the same parameters
        if not isinstance(self.surrogate, Score):
            raise ValueError("surrogate: expected Score(), which is a sum of one term a step.")
        return weight * log_prob


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
        TypeError: `advantage` is none.

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
        normalizer_declaration(self.normalizer)
        if self.clip is not None:
            check.positive(clip=self.clip)

    @property
    def structure(self) -> Structure:
        """It compares with the policy that drew the batch, so several gradients may be taken of it."""
        return super().structure._replace(reusable=True) & normalizer_declaration(self.normalizer)[0]

    @property
    def declaration(self) -> Declaration:
        """Of the first gradient, at the parameters that drew the batch."""
        first = "it is the first gradient of the batch; later ones, at other parameters, are biased"
        return super().declaration & Declaration(order=1, assumes=(first,)) & normalizer_declaration(self.normalizer)[1]

    def objective(self, params: Params, policy: Policy, trajectories: Trajectory, weights: jax.Array) -> jax.Array:
        term = jax.tree_util.Partial(_clipped_term, self)
        return sum_of_steps(term, self.normalizer, params, policy, trajectories, weights)

    def term(self, log_prob: jax.Array, behavior_log_prob: jax.Array, weight: jax.Array) -> jax.Array:
        return clipped(log_prob - behavior_log_prob, weight, self.clip)


def _clipped_term(
    estimator: PPO, params: Params, step: TimeStep, distribution: Any, log_prob: jax.Array, weight: jax.Array
) -> jax.Array:
    del params, distribution
    return estimator.term(log_prob, step.behavior_log_prob, weight)
