"""Oracles for finite decision processes: every trajectory with its probability, exact values, exact moments of estimators."""

from logderiv.exact.comparison import ExpectationComparison, compare_expectation
from logderiv.exact.derivatives import Derivatives, surrogate_derivatives
from logderiv.exact.dynamic import gradient, hessian, occupancy, policy_table, state_values, value
from logderiv.exact.enumeration import count_trajectories, enumerate_trajectories
from logderiv.exact.estimator_moments import Moments, estimator_moments
from logderiv.exact.paths import program_derivatives, program_value
from logderiv.exact.scores import ScoreMoments, fisher, weighted_score_moments

__all__ = [
    "Derivatives",
    "ExpectationComparison",
    "Moments",
    "ScoreMoments",
    "compare_expectation",
    "count_trajectories",
    "enumerate_trajectories",
    "estimator_moments",
    "fisher",
    "gradient",
    "hessian",
    "occupancy",
    "policy_table",
    "program_derivatives",
    "program_value",
    "state_values",
    "surrogate_derivatives",
    "value",
    "weighted_score_moments",
]
