r"""Baselines: what is subtracted from the credit, $w_t = \text{credit}_t - b_t$, to lower the variance.

A baseline leaves the gradient unbiased if $b_t$ of trajectory `n` does not depend on the choices of trajectory `n`
from step `t` on. An average that contains the sample itself does depend on them; the ones in wide use that do are here
under the prefix `baseline_biased_`.
"""

from logderiv.estimators.baselines.averages import (
    baseline_constant,
    baseline_leave_one_out,
    baseline_moving_average,
    baseline_per_group,
)
from logderiv.estimators.baselines.base import Baseline, CreditBatch, NoBaseline, Stateless, baseline_none
from logderiv.estimators.baselines.biased import (
    baseline_biased_batch_mean,
    baseline_biased_group_normalized,
    baseline_biased_optimal_in_sample,
    baseline_biased_standardized,
)
from logderiv.estimators.baselines.optimal import baseline_optimal
from logderiv.estimators.baselines.values import baseline_learned_value, baseline_shared_value, baseline_value

__all__ = [
    "Baseline",
    "CreditBatch",
    "NoBaseline",
    "Stateless",
    "baseline_biased_batch_mean",
    "baseline_biased_group_normalized",
    "baseline_biased_optimal_in_sample",
    "baseline_biased_standardized",
    "baseline_constant",
    "baseline_learned_value",
    "baseline_leave_one_out",
    "baseline_moving_average",
    "baseline_none",
    "baseline_optimal",
    "baseline_per_group",
    "baseline_shared_value",
    "baseline_value",
]
