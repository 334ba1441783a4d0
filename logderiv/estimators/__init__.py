"""Estimators of grad E[R], composed from importance, credit, baseline and surrogate."""

from logderiv.estimators.actor_critic import ActorCritic as ActorCritic
from logderiv.estimators.actor_critic import a2c as a2c
from logderiv.estimators.actor_critic import actor_critic as actor_critic
from logderiv.estimators.actor_critic import ppo_actor_critic as ppo_actor_critic
from logderiv.estimators.base import Estimator as Estimator
from logderiv.estimators.base import num_trajectories as num_trajectories
from logderiv.estimators.clipped import Clipped as Clipped
from logderiv.estimators.clipped import dr_grpo as dr_grpo
from logderiv.estimators.clipped import grpo as grpo
from logderiv.estimators.clipped import ppo as ppo
from logderiv.estimators.clipped import ppo_without_gamma_t as ppo_without_gamma_t
from logderiv.estimators.clipped import rloo as rloo
from logderiv.estimators.optimal import OptimalPerParameter as OptimalPerParameter
from logderiv.estimators.optimal import optimal_per_parameter as optimal_per_parameter
from logderiv.estimators.optimal import (
    optimal_per_parameter_biased_in_sample as optimal_per_parameter_biased_in_sample,
)
from logderiv.estimators.score import Credit as Credit
from logderiv.estimators.score import ScoreFunction as ScoreFunction
from logderiv.estimators.score import Surrogate as Surrogate
from logderiv.estimators.score import score_function as score_function
from logderiv.estimators.score import score_function_without_gamma_t as score_function_without_gamma_t
from logderiv.estimators.vtrace import VTrace as VTrace
from logderiv.estimators.vtrace import VTraceGradient as VTraceGradient
from logderiv.estimators.vtrace import vtrace as vtrace
from logderiv.estimators.vtrace import vtrace_gradient as vtrace_gradient
