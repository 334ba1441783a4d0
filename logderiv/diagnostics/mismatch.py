"""How far what drew the answers is from what is trained: log-probabilities of the same tokens by two programs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from logderiv._core import check
from logderiv._core.arrays import alike
from logderiv._core.tables import table
from logderiv.estimators.importance import effective_sample_size
from logderiv.estimators.objectives.aggregation import answers_of, boolean
from logderiv.estimators.objectives.regularizers import k3


class Differences(NamedTuple):
    """Of log-ratios d = log π − log μ of n tokens, or whole answers, that μ drew; scalars.

    Attributes:
        number: n.
        mean: Mean of |d|.
        largest: Largest |d|.
        k1: Mean of −d; its expectation is KL(μ‖π) where μ draws from all that it says, and it may be negative.
        k3: Mean of eᵈ − 1 − d, which is never negative; its expectation is the same where E eᵈ = 1.
        chi_squared: Mean of (eᵈ − 1)²; its expectation is χ²(π‖μ) where E eᵈ = 1: how much noise the ratios add.
        effective: (Σ eᵈ)² / (n Σ e²ᵈ), the effective sample size as a part of n.
        mass: Mean of eᵈ; its expectation is the probability that π gives to what μ may draw: 1, or what a truncated sampler keeps.
    """

    number: jax.Array
    mean: jax.Array
    largest: jax.Array
    k1: jax.Array
    k3: jax.Array
    chi_squared: jax.Array
    effective: jax.Array
    mass: jax.Array


class Mismatch(NamedTuple):
    """What `sampler_mismatch` found; prints as a table.

    Attributes:
        tokens: Of each token alone.
        sequences: Of whole answers, whose log-ratios are sums over tokens.
    """

    tokens: Differences
    sequences: Differences

    def __str__(self) -> str:
        if check.is_traced(self.tokens.number):
            return "Mismatch under a trace"
        names = {
            "number": "number",
            "mean": "mean |difference|",
            "largest": "largest |difference|",
            "k1": "KL by k1",
            "k3": "KL by k3",
            "chi_squared": "chi-squared",
            "effective": "effective sample size",
            "mass": "mass kept",
        }
        rows = [(text, *(float(getattr(x, name)) for x in self)) for name, text in names.items()]
        head = "log-probabilities of the trainer beside those of the sampler\n"
        return head + table(("", "tokens", "sequences"), "<24 >12.5g >12.5g", rows)


def sampler_mismatch(trainer: Any, sampler: Any, mask: Any = None, *, segments: Any = None) -> Mismatch:
    """Log-probabilities of drawn tokens by what is trained, beside those by what drew them: by token and by answer.

        d_t = log π(y_t) − log μ(y_t),   of an answer d = Σ_t d_t

    An inference engine and a trainer that share their parameters differ by rounding, by a temperature, by top-k or top-p; the
    ratio of whole answers is what an unbiased gradient must be multiplied by, and grows exponentially with their length.

    Args:
        trainer: log π of each drawn token, with the parameters at the time of drawing. Shape `(N, T)`, or `(R, L)` with `segments`.
        sampler: log μ of the same tokens, as reported by what drew them.
        mask: Tokens that the sampler chose, boolean; `None` for all. Whatever stands elsewhere has no influence.
        segments: For packed rows, the answer that each token belongs to, -1 for padding. Shape `(R, L)`.

    Returns:
        `Mismatch`, in the widest dtype of the two, float32 at least. Answers without a token are not counted; without any
        everything is 0.

    Raises:
        ValueError: Shapes disagree.
        TypeError: The mask is not boolean, segments are no integers, complex numbers.

    Gradients: flow through both; nothing is detached.

    Example:
        >>> import jax.numpy as jnp
        >>> found = sampler_mismatch(jnp.log(jnp.array([[0.5, 0.25]])), jnp.log(jnp.array([[0.5, 0.5]])))
        >>> float(found.tokens.mass), float(found.sequences.mass)
        (0.75, 0.5)

    References:
        Schulman (2020), "Approximating KL divergence", for k1 and k3 (from memory); Kong (1992) for the effective sample size (from
        memory).
    """
    logs, _, counted, answers = log_ratios(trainer, sampler, mask, segments)
    of_answers = answers.sums(logs), answers.sums(counted.astype(logs.dtype)) > 0
    return Mismatch(_differences(logs, counted), _differences(*of_answers))


def log_ratios(trainer: Any, sampler: Any, mask: Any, segments: Any) -> tuple[jax.Array, jax.Array, jax.Array, Any]:
    """Of each token log π − log μ, and log μ, 0 where not counted; which tokens are; where answers stand. As of `sampler_mismatch`."""
    trainer, sampler = alike(trainer=trainer, sampler=sampler)
    shape = trainer.shape
    check.shape(shape, hint="one number a token, as trainer", sampler=sampler)
    answers = answers_of(segments, shape[0] if segments is None and shape else trainer.size, shape)
    counted = answers.are_tokens(shape)
    if mask is not None:
        mask = boolean(mask, "mask")
        check.shape(shape, hint="one a token, as trainer", mask=mask)
        counted = counted & mask
    trainer, sampler = (jnp.where(counted, x, 0) for x in (trainer, sampler))
    return trainer - sampler, sampler, counted, answers


def _differences(logs: jax.Array, counted: jax.Array) -> Differences:
    number = jnp.sum(counted, dtype=logs.dtype)
    some = jnp.maximum(number, 1)

    def mean(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(counted, x, 0)) / some

    weights = jnp.append(jnp.where(counted, logs, -jnp.inf), -jnp.inf)  # one that is 0, so that there is one
    effective = effective_sample_size(weights) / some
    return Differences(
        number=number,
        mean=mean(jnp.abs(logs)),
        largest=jnp.max(jnp.where(counted, jnp.abs(logs), 0), initial=0.0),
        k1=mean(-logs),
        k3=mean(k3(-logs)),
        chi_squared=mean(jnp.square(jnp.expm1(logs))),
        effective=jnp.where(jnp.max(weights) == -jnp.inf, 0, effective),
        mass=mean(jnp.exp(logs)),
    )
