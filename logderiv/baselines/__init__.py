r"""Baselines: what is subtracted from the credit, $w_t = \text{credit}_t - b_t$, to lower the variance.

A baseline leaves the gradient unbiased if $b_t$ of trajectory `n` does not depend on the choices of trajectory `n`
from step `t` on. An average that contains the sample itself does depend on them; the ones in wide use that do are here
under the prefix `baseline_biased_`.
"""

from logderiv.baselines.averages import baseline_constant as baseline_constant
from logderiv.baselines.averages import baseline_leave_one_out as baseline_leave_one_out
from logderiv.baselines.averages import baseline_moving_average as baseline_moving_average
from logderiv.baselines.averages import baseline_per_group as baseline_per_group
from logderiv.baselines.base import Baseline as Baseline
from logderiv.baselines.base import CreditBatch as CreditBatch
from logderiv.baselines.base import NoBaseline as NoBaseline
from logderiv.baselines.base import Stateless as Stateless
from logderiv.baselines.base import baseline_none as baseline_none
from logderiv.baselines.biased import baseline_biased_batch_mean as baseline_biased_batch_mean
from logderiv.baselines.biased import baseline_biased_group_normalised as baseline_biased_group_normalised
from logderiv.baselines.biased import baseline_biased_optimal_in_sample as baseline_biased_optimal_in_sample
from logderiv.baselines.biased import baseline_biased_standardised as baseline_biased_standardised
from logderiv.baselines.optimal import baseline_optimal as baseline_optimal
from logderiv.baselines.values import baseline_learned_value as baseline_learned_value
from logderiv.baselines.values import baseline_shared_value as baseline_shared_value
from logderiv.baselines.values import baseline_value as baseline_value
