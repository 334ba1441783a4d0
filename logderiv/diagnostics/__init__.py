"""How good an estimate is, and who causes its noise."""

from logderiv.diagnostics.contributions import gradient_moments, per_trajectory_gradients, variance_by_step
from logderiv.diagnostics.mismatch import Differences, Mismatch, sampler_mismatch
from logderiv.diagnostics.statistics import Summary, VarianceRatio, cosine, sem, summary, variance_ratio

__all__ = ["Differences", "Mismatch", "Summary", "VarianceRatio", "cosine", "gradient_moments"]
__all__ += ["per_trajectory_gradients", "sampler_mismatch", "sem", "summary", "variance_by_step", "variance_ratio"]
