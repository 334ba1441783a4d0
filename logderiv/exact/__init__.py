"""Oracles for finite environments: every trajectory with its probability, exact values, exact moments of estimators."""

from logderiv.exact.comparison import ExpectationComparison, compare_expectation
from logderiv.exact.dynamic import gradient, hessian, occupancy, policy_table, state_values, value
from logderiv.exact.enumeration import count_trajectories, enumerate_trajectories
from logderiv.exact.estimators import Moments, moments
from logderiv.exact.groups import GroupMoments, group_moments
from logderiv.exact.paths import program_derivatives, program_value
from logderiv.exact.regularized import Divergences, divergences
from logderiv.exact.scores import ScoreMoments, fisher, weighted_score_moments

__all__ = [
    "Divergences",
    "ExpectationComparison",
    "GroupMoments",
    "Moments",
    "ScoreMoments",
    "compare_expectation",
    "count_trajectories",
    "divergences",
]
__all__ += [
    "enumerate_trajectories",
    "fisher",
    "gradient",
    "group_moments",
    "hessian",
    "moments",
    "occupancy",
    "policy_table",
]
__all__ += ["program_derivatives", "program_value", "state_values", "value", "weighted_score_moments"]
