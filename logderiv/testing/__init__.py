"""Checks for your own estimators, log-densities and padded code. Each returns a report, or raises it as `AssertionError`."""

from logderiv.testing.order import OrderReport as OrderReport
from logderiv.testing.order import check_order as check_order
from logderiv.testing.padding import PaddingReport as PaddingReport
from logderiv.testing.padding import check_padding as check_padding
from logderiv.testing.score import ScoreReport as ScoreReport
from logderiv.testing.score import check_score as check_score
from logderiv.testing.score import score_report as score_report
from logderiv.testing.unbiased import UnbiasedReport as UnbiasedReport
from logderiv.testing.unbiased import assert_unbiased as assert_unbiased
from logderiv.testing.unbiased import familywise as familywise
from logderiv.testing.unbiased import unbiased_report as unbiased_report
