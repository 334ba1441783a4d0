"""How good an estimate is, and who causes its noise."""

from logderiv.diagnostics.contributions import (
    Moments,
    gradient_moments,
    group_gradients,
    per_trajectory_gradients,
    variance_by_step,
)
from logderiv.diagnostics.statistics import (
    VarianceRatio,
    check_same,
    cosine,
    covariance_trace,
    leaf_variance,
    mean,
    noise_scale,
    num_samples,
    samples_needed,
    sem,
    signal_to_noise,
    variance,
    variance_ratio,
)
from logderiv.estimators.importance import effective_sample_size

__all__ = [
    "Moments",
    "VarianceRatio",
    "check_same",
    "cosine",
    "covariance_trace",
    "effective_sample_size",
    "gradient_moments",
    "group_gradients",
    "leaf_variance",
    "mean",
    "noise_scale",
    "num_samples",
    "per_trajectory_gradients",
    "samples_needed",
    "sem",
    "signal_to_noise",
    "variance",
    "variance_by_step",
    "variance_ratio",
]
