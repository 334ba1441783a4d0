"""Off-policy weights; see `logderiv.estimators.importance`."""

from logderiv.estimators.importance import Importance, effective_sample_size, log_ratios, with_behavior

__all__ = ["Importance", "effective_sample_size", "log_ratios", "with_behavior"]
