"""The probability of a trajectory, its logarithm, and their derivatives."""

from logderiv.likelihood.counting import visit_counts
from logderiv.likelihood.fisher import fisher_matrix, fisher_vector_product, natural_gradient
from logderiv.likelihood.identity import Case, Comparison, compare
from logderiv.likelihood.logits import TokenNumbers
from logderiv.likelihood.probability import grad_prob, log_factors, log_prob, prob, weighted_log_prob
from logderiv.likelihood.sequences import HiddenStates
from logderiv.likelihood.steps import over_steps
from logderiv.likelihood.token_sums import TokenSum, token_sum
from logderiv.likelihood.vocabulary import TokenLogProbs, token_log_probs

__all__ = [
    "Case",
    "Comparison",
    "HiddenStates",
    "TokenLogProbs",
    "compare",
    "fisher_matrix",
    "fisher_vector_product",
    "grad_prob",
]
__all__ += ["log_factors", "log_prob", "natural_gradient", "over_steps", "prob", "token_log_probs", "token_sum"]
__all__ += ["TokenNumbers", "TokenSum", "visit_counts", "weighted_log_prob"]
