"""Oracles for finite decision processes: every trajectory with its probability, exact values, exact moments of estimators."""

from logderiv.exact.derivatives import Derivatives as Derivatives
from logderiv.exact.derivatives import surrogate_derivatives as surrogate_derivatives
from logderiv.exact.dynamic import gradient as gradient
from logderiv.exact.dynamic import hessian as hessian
from logderiv.exact.dynamic import occupancy as occupancy
from logderiv.exact.dynamic import policy_table as policy_table
from logderiv.exact.dynamic import state_values as state_values
from logderiv.exact.dynamic import value as value
from logderiv.exact.enumeration import count_trajectories as count_trajectories
from logderiv.exact.enumeration import enumerate_trajectories as enumerate_trajectories
from logderiv.exact.expectation import ExpectationComparison as ExpectationComparison
from logderiv.exact.expectation import compare_expectation as compare_expectation
from logderiv.exact.moments import Moments as Moments
from logderiv.exact.moments import estimator_moments as estimator_moments
from logderiv.exact.programs import program_derivatives as program_derivatives
from logderiv.exact.programs import program_value as program_value
from logderiv.exact.scores import ScoreMoments as ScoreMoments
from logderiv.exact.scores import fisher as fisher
from logderiv.exact.scores import weighted_score_moments as weighted_score_moments
