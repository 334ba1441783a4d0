"""The objective: one scalar, which ascends, from log-probabilities, advantages and weights of tokens."""

from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core import check
from logderiv._core.arrays import alike
from logderiv.estimators.objectives.aggregation import answers_of
from logderiv.estimators.objectives.ratios import Ratio
from logderiv.estimators.objectives.regularizers import KL, Entropy

_TOKENS = "one number a token, as log_probs"


def objective(
    log_probs: Any,
    advantages: Any,
    weights: Any,
    *,
    old: Any = None,
    sampler: Any = None,
    reference: Any = None,
    step_kl: Any = None,
    step_entropy: Any = None,
    segments: Any = None,
    ratio: Ratio = Ratio(),  # noqa: B008
    correction: Ratio | None = None,
    kl: KL | None = None,
    entropy: Entropy | None = None,
) -> jax.Array:
    """The objective of a batch of answers, or of a part of it: the second stage. It ascends; a loss is its negative.

        Σ_t w_t [ A_t ρ_t c_t − β kl_t + η h_t ]

    over the tokens with a weight w other than 0, with the bounded `ratio` ρ and the `correction` c of the sampler, which is held.
    It adds up over any split of the batch between answers, with advantages and weights taken on the whole. Whatever stands at
    tokens of weight 0 has no influence. Of a single answer, with a leading axis of 1, it is a term of
    `logderiv.token_sum(by="sequence")`, which takes value and gradient from hidden states in one pass.

    Args:
        log_probs: Log-probabilities of the drawn tokens under the policy that is trained. Shape `(N, T)`, or `(R, L)` with
            `segments`.
        advantages: From `logderiv.objectives.advantages`. Shape `(N,)`, or that of `log_probs`.
        weights: From `token_weights`. Shape of `log_probs`.
        old: The log-probabilities at the start of the update; `None` for those of now, detached.
        sampler: Those of what drew the answers; `None` for no correction.
        reference: Those of the reference of a divergence.
        step_kl: Full-vocabulary divergence of each step from the reference, differentiable. Shape of `log_probs`.
        step_entropy: Full-vocabulary entropy of each step, differentiable. Shape of `log_probs`.
        segments: For packed rows, the answer that each token belongs to, -1 for padding. Shape `(R, L)`.
        ratio: What multiplies the advantages; its numerator is the policy.
        correction: What multiplies them beside it; its numerator is "old".
        kl: Regularizer to subtract.
        entropy: Regularizer to add.

    Returns:
        A scalar, computed in the widest dtype among the arrays, float32 at least.

    Raises:
        ValueError: Shapes disagree; something that the settings need is missing; numerator of `ratio` or `correction`.
        TypeError: Complex numbers, or a part is none, or was not called.

    Gradients: of order one, through `log_probs`, `step_kl` and `step_entropy`; all else is detached.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from logderiv import objectives
        >>> mask, groups, logs = jnp.ones((2, 3), bool), jnp.zeros(2, int), jnp.full((2, 3), -1.0)
        >>> weights = objectives.token_weights(mask, groups)
        >>> jax.grad(objective)(logs, jnp.array([1.0, -1.0]), weights).tolist()
        [[0.5, 0.5, 0.5], [-0.5, -0.5, -0.5]]
    """
    _check_parts(ratio, correction, kl, entropy)
    if ratio.denominator == "sampler" and sampler is None:
        raise ValueError(
            "sampler: expected log-probabilities of what drew the answers, the denominator of ratio, received None."
        )
    logs = {"log_probs": log_probs, "old": old, "sampler": sampler, "reference": reference}
    rest = {"step_kl": step_kl, "step_entropy": step_entropy, "advantages": advantages, "weights": weights}
    given = {name: x for name, x in (logs | rest).items() if x is not None}
    found = dict(zip(given, alike(**given), strict=True))
    detached = {
        n: x if n in ("log_probs", "step_kl", "step_entropy") else jax.lax.stop_gradient(x) for n, x in found.items()
    }
    policy, advantages, weights = (detached.pop(name) for name in ("log_probs", "advantages", "weights"))
    mask, shape, dtype = weights != 0, policy.shape, policy.dtype
    check.shape(shape, hint=_TOKENS, weights=weights, **detached)
    policy, of_tokens = jnp.where(mask, policy, 0), {name: jnp.where(mask, x, 0) for name, x in detached.items()}
    logs = {"old": jax.lax.stop_gradient(policy), **of_tokens, "policy": policy}
    number = advantages.size if advantages.ndim == 1 else shape[0] if segments is None else mask.size
    answers = answers_of(segments, number, shape)
    if advantages.ndim == 1:
        advantages = answers.spread(advantages)
    else:
        check.shape(shape, hint=f"(N,), or {_TOKENS}", advantages=advantages)
        advantages = jnp.where(mask, advantages, 0)

    factors = ratio.factors(logs, advantages, mask, answers)
    if correction is not None and sampler is not None:
        factors = factors * correction.factors(logs, advantages, mask, answers)
    terms = jnp.where(advantages == 0, 0, advantages * factors)
    if kl is not None:
        terms = terms - jnp.asarray(kl.beta, dtype) * kl.terms(logs, logs.get("step_kl"), mask, answers)
    if entropy is not None:
        terms = terms + jnp.asarray(entropy.weight, dtype) * entropy.terms(policy, logs.get("step_entropy"), answers)
    return jnp.sum(jnp.where(mask, weights * terms, 0))


def check_kinds(**parts: Any) -> None:
    """Raise `TypeError`, naming the part, unless each is of its kind; all but the ratio may be `None`."""
    kinds = {"ratio": (Ratio, "Ratio()"), "correction": (Ratio, "Ratio()"), "entropy": (Entropy, "Entropy(weight)")}
    for name, part in parts.items():
        kind, expected = kinds.get(name, (KL, "KL(beta)"))
        missing = part is None and name != "ratio"
        check.made(name, part, missing or isinstance(part, kind), f"logderiv.objectives.{expected}")


def _check_parts(ratio: Any, correction: Any, kl: Any, entropy: Any) -> None:
    check_kinds(ratio=ratio, correction=correction, kl=kl, entropy=entropy)
    check.one_of(("policy",), **{"numerator of ratio": ratio.numerator})
    if correction is not None:
        check.one_of(("old",), **{"numerator of correction": correction.numerator})
