"""How good an estimate is, and who causes its noise."""

from logderiv.diagnostics.contributions import Moments as Moments
from logderiv.diagnostics.contributions import gradient_moments as gradient_moments
from logderiv.diagnostics.contributions import group_gradients as group_gradients
from logderiv.diagnostics.contributions import per_trajectory_gradients as per_trajectory_gradients
from logderiv.diagnostics.contributions import variance_by_step as variance_by_step
from logderiv.diagnostics.statistics import VarianceRatio as VarianceRatio
from logderiv.diagnostics.statistics import check_same as check_same
from logderiv.diagnostics.statistics import cosine as cosine
from logderiv.diagnostics.statistics import covariance_trace as covariance_trace
from logderiv.diagnostics.statistics import leaf_variance as leaf_variance
from logderiv.diagnostics.statistics import mean as mean
from logderiv.diagnostics.statistics import noise_scale as noise_scale
from logderiv.diagnostics.statistics import num_samples as num_samples
from logderiv.diagnostics.statistics import samples_needed as samples_needed
from logderiv.diagnostics.statistics import sem as sem
from logderiv.diagnostics.statistics import signal_to_noise as signal_to_noise
from logderiv.diagnostics.statistics import variance as variance
from logderiv.diagnostics.statistics import variance_ratio as variance_ratio
from logderiv.importance import effective_sample_size as effective_sample_size
