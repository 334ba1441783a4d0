"""One random choice: distributions of ours, and the functions that take those of any library."""

from logderiv.distributions.basic import Bernoulli, Categorical, Normal, masked, normal_terms, sum_event
from logderiv.distributions.forced import Forced
from logderiv.distributions.interop import (
    check_distribution,
    check_range,
    log_prob,
    log_probs,
    num_categories,
    prob,
    sample,
)
from logderiv.distributions.multivariate_normal import (
    MultivariateNormal,
    PartlyObserved,
    covariance_from,
    log_cholesky_of,
    mask_covariance,
)
from logderiv.distributions.tanh_normal import Bound, TanhNormal

__all__ = [
    "Bernoulli",
    "Bound",
    "Categorical",
    "Forced",
    "MultivariateNormal",
    "Normal",
    "PartlyObserved",
    "TanhNormal",
    "check_distribution",
    "check_range",
    "covariance_from",
    "log_cholesky_of",
    "log_prob",
    "log_probs",
    "mask_covariance",
    "masked",
    "normal_terms",
    "num_categories",
    "prob",
    "sample",
    "sum_event",
]
