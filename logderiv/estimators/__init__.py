"""Estimators of ∇E[R]: advantage x ratio x term.

The advantage decides what each score is multiplied by, importance ratios make up for another policy's choices, and the term (a
surrogate) says how the weighted scores are differentiated again.
"""

from logderiv.estimators.base import Estimator
from logderiv.estimators.declaration import Declaration, Part, Structure, biased
from logderiv.estimators.importance import Importance
from logderiv.estimators.least_variance import OptimalPerParameter
from logderiv.estimators.policy_gradient import PPO, ActorCritic, ScoreFunction, Weighting
from logderiv.estimators.recipes import A2C, GRPO, RLOO, DrGRPO, PPOActorCritic
from logderiv.estimators.samples import SampleGradient, gradient_from_samples
from logderiv.estimators.surrogates import DiCE, LoadedDiCE, Score, Surrogate, box, clipped, reduce_steps, step_weights

__all__ = ["A2C", "GRPO", "PPO", "RLOO", "ActorCritic", "Declaration", "DiCE", "DrGRPO", "Estimator", "Importance"]
__all__ += ["LoadedDiCE", "OptimalPerParameter", "PPOActorCritic", "Part", "SampleGradient", "Score", "ScoreFunction"]
__all__ += ["Structure", "Surrogate", "Weighting", "biased", "box", "clipped", "gradient_from_samples", "reduce_steps"]
__all__ += ["step_weights"]
