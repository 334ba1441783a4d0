"""The probability of a trajectory, its logarithm, and their derivatives."""

from logderiv.likelihood.counting import visit_counts
from logderiv.likelihood.factors import log_factors
from logderiv.likelihood.fisher import fisher_matrix, fisher_vector_product, natural_gradient
from logderiv.likelihood.identity import Case, Comparison, compare
from logderiv.likelihood.probability import grad_prob, log_prob, prob, signed_prob, weighted_log_prob
from logderiv.likelihood.vocabulary import TokenLogProbs, token_log_probs

__all__ = [
    "Case",
    "Comparison",
    "TokenLogProbs",
    "compare",
    "fisher_matrix",
    "fisher_vector_product",
    "grad_prob",
    "log_factors",
    "log_prob",
    "natural_gradient",
    "prob",
    "signed_prob",
    "token_log_probs",
    "visit_counts",
    "weighted_log_prob",
]
