"""Estimators of grad E[R], composed from importance, credit, baseline and surrogate."""

from logderiv.estimators.base import Estimator, num_trajectories
from logderiv.estimators.clipped import Clipped, dr_grpo, grpo, ppo, ppo_without_gamma_t, rloo
from logderiv.estimators.impala import VTrace, VTraceGradient, vtrace, vtrace_gradient
from logderiv.estimators.joint import ActorCritic, a2c, actor_critic, ppo_actor_critic
from logderiv.estimators.optimal import (
    OptimalPerParameter,
    optimal_per_parameter,
    optimal_per_parameter_biased_in_sample,
)
from logderiv.estimators.score_function import (
    Credit,
    ScoreFunction,
    Surrogate,
    score_function,
    score_function_without_gamma_t,
)

__all__ = [
    "ActorCritic",
    "Clipped",
    "Credit",
    "Estimator",
    "OptimalPerParameter",
    "ScoreFunction",
    "Surrogate",
    "VTrace",
    "VTraceGradient",
    "a2c",
    "actor_critic",
    "dr_grpo",
    "grpo",
    "num_trajectories",
    "optimal_per_parameter",
    "optimal_per_parameter_biased_in_sample",
    "ppo",
    "ppo_actor_critic",
    "ppo_without_gamma_t",
    "rloo",
    "score_function",
    "score_function_without_gamma_t",
    "vtrace",
    "vtrace_gradient",
]
