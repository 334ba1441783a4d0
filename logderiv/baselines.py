"""The family of baselines: what is subtracted from the credit. See `logderiv.estimators.baselines`."""

from logderiv.estimators.baselines import Baseline, BatchMean, Constant, LeaveOneOut, MovingAverage, MovingAverageState
from logderiv.estimators.bootstrapped import LearnedValue, SharedValue, StateBaseline, Value
from logderiv.estimators.least_variance import Optimal

__all__ = ["Baseline", "BatchMean", "Constant", "LearnedValue", "LeaveOneOut", "MovingAverage", "MovingAverageState"]
__all__ += ["Optimal", "SharedValue", "StateBaseline", "Value"]
