"""One random choice: distributions of ours, and the functions that take those of any library."""

from logderiv.distributions.basic import Bernoulli, Categorical, masked
from logderiv.distributions.counts import Poisson
from logderiv.distributions.finite import OneHotCategorical
from logderiv.distributions.interop import Forced, check_distribution, log_prob, log_probs, num_categories, prob, sample
from logderiv.distributions.joint import Joint
from logderiv.distributions.multivariate import MultivariateNormal, PartlyObserved, covariance_from, log_cholesky_of
from logderiv.distributions.normal import Normal
from logderiv.distributions.quantiles import antithetic_sample
from logderiv.distributions.tanh_normal import TanhNormal

__all__ = ["Bernoulli", "Categorical", "Forced", "Joint", "MultivariateNormal", "Normal", "OneHotCategorical"]
__all__ += ["PartlyObserved", "Poisson", "TanhNormal"]
__all__ += ["antithetic_sample", "check_distribution", "covariance_from", "log_cholesky_of", "log_prob", "log_probs"]
__all__ += ["masked", "num_categories", "prob", "sample"]
