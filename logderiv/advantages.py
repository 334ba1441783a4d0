"""The family of advantages: what decides the weights of the scores. See `logderiv.estimators.advantages`."""

from logderiv.estimators.advantages import Advantage, Credit, Credited, Grouped, Return, Standardized, ToGo, Transformed
from logderiv.estimators.batch import Batch
from logderiv.estimators.bootstrapped import GAE, Bootstrapped, VTrace
from logderiv.estimators.returns import (
    VTraceReturns,
    generalized_advantages,
    lambda_returns,
    reward_to_go,
    td_residuals,
    total_return,
    vtrace,
)
from logderiv.estimators.scaled_rewards import ScaledRewards

__all__ = ["GAE", "Advantage", "Batch", "Bootstrapped", "Credit", "Credited", "Grouped", "Return", "ScaledRewards"]
__all__ += [
    "Standardized",
    "ToGo",
    "Transformed",
    "VTrace",
    "VTraceReturns",
    "generalized_advantages",
    "lambda_returns",
]
__all__ += ["reward_to_go", "td_residuals", "total_return", "vtrace"]
