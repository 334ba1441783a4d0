"""Oracles for finite decision processes: every trajectory with its probability, exact values and gradients."""

from logderiv.exact.dynamic import gradient as gradient
from logderiv.exact.dynamic import policy_table as policy_table
from logderiv.exact.dynamic import value as value
from logderiv.exact.enumeration import count_trajectories as count_trajectories
from logderiv.exact.enumeration import enumerate_trajectories as enumerate_trajectories
from logderiv.exact.expectation import ExpectationComparison as ExpectationComparison
from logderiv.exact.expectation import compare_expectation as compare_expectation
