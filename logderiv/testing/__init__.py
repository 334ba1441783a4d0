"""Checks for your own estimators, log-densities and padded code. Each returns a report, or raises it as `AssertionError`."""

from logderiv.testing.objective import ExpectedGradient, ObjectiveReport, check_objective
from logderiv.testing.order import OrderReport, check_order
from logderiv.testing.padding import PaddingReport, check_padding
from logderiv.testing.score import ScoreReport, check_score
from logderiv.testing.unbiased import UnbiasedReport, assert_unbiased, familywise

__all__ = ["ExpectedGradient", "ObjectiveReport", "OrderReport", "PaddingReport", "ScoreReport", "UnbiasedReport"]
__all__ += ["assert_unbiased", "check_objective", "check_order", "check_padding", "check_score", "familywise"]
