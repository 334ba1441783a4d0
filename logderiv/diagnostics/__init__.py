"""How good an estimate is, and who causes its noise."""

from logderiv.diagnostics.contributions import gradient_moments, per_trajectory_gradients, variance_by_step
from logderiv.diagnostics.statistics import Summary, VarianceRatio, cosine, sem, summary, variance_ratio

__all__ = ["Summary", "VarianceRatio", "cosine", "gradient_moments", "per_trajectory_gradients", "sem", "summary"]
__all__ += ["variance_by_step", "variance_ratio"]
