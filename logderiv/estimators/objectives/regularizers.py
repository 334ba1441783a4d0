"""Regularizers: divergences from a reference and entropies, each with the objective that it is the gradient of.

With L_t = log π/π_ref of a token, L = Σ_t L_t, T tokens and S = ∇log P of an answer, on policy, per "answer":

| kind | place | level | gradient of a sample | expectation |
|---|---|---|---|---|
| k1 = L | reward | either | Σ_t s_t Σ_{u ≥ t} L_u, or L S | ∇ reverse KL |
| k1 | loss | either | S | 0; per "own length" ∇E[1/T], whatever the reference |
| k2 = L²/2 | loss | sequence | L S | ∇ reverse KL |
| k2 | loss | token | Σ_t s_t L_t | its part within the token alone |
| k3 = e^(−L) − 1 + L | loss | sequence | (1 − e^(−L)) S | ∇ forward KL |
| k3 | loss | token | Σ_t s_t (1 − e^(−L_t)) | forward KL of tokens, at states of the policy |
| k3 | reward | sequence | (e^(−L) − 1 + L) S | ∇ reverse KL − ∇ forward KL |
| "rao-blackwell" | | | Σ_t ∇kl(s_t) + s_t Σ_{u > t} kl(s_u) | ∇ reverse KL, at less noise than any of the above |
| "step" | | | Σ_t ∇kl(s_t) | its part within the token alone |
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core import check
from logderiv._core.pytrees import pytree
from logderiv.estimators.declaration import Declaration, Part, biased, concrete
from logderiv.estimators.objectives.ratios import Ratio


def k3(x: jax.Array) -> jax.Array:
    """e^(−x) − 1 + x; near 0, where the difference has no digits, by its series x²/2 (1 − x/3 (1 − x/4 (1 − ...)))."""
    near = jnp.abs(x) < 0.5
    small = jnp.where(near, x, 0)
    series = jnp.ones_like(x)
    for k in range(16, 2, -1):
        series = 1 - small / k * series
    x = jnp.where(near, 0.5, x)
    return jnp.where(near, jnp.square(small) / 2 * series, jnp.expm1(-x) + x)


KINDS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "k1": lambda x: x,
    "k2": lambda x: jnp.square(x) / 2,
    "k3": k3,
}
_FULL = ("rao-blackwell", "step")
REVERSE, FORWARD, ENTROPY, INVERSE = "reverse KL", "forward KL", "sequence entropy", "mean inverse length"
_EXACT = {  # kind, place, level: the objectives whose gradients it is, with their factors
    ("k1", "reward", "token"): {REVERSE: 1},
    ("k1", "reward", "sequence"): {REVERSE: 1},
    ("k1", "loss", "token"): {},
    ("k1", "loss", "sequence"): {},
    ("k2", "loss", "sequence"): {REVERSE: 1},
    ("k3", "loss", "sequence"): {FORWARD: 1},
    ("k3", "reward", "sequence"): {REVERSE: 1, FORWARD: -1},
}


@pytree(static=("kind", "place", "level", "against", "ratio"))
class KL(Part):
    """β times an estimate of a divergence from the reference, to be subtracted from the objective.

    It is not corrected for a sampler that is not the policy. In the reward it is the score that is multiplied, by the divergence
    from the token on: the expectation of a penalty on rewards. To let a baseline see that penalty, subtract `penalties` from the
    rewards instead and leave the regularizer out.

    Attributes:
        beta: β ≥ 0.
        kind: "k1", "k2", "k3" of the log-probabilities of the drawn tokens; "rao-blackwell" or "step" of `step_kl`.
        place: "loss" differentiates it, "reward" holds it and differentiates the choices.
        level: "token", or "sequence": of the whole answer, counted once.
        against: "reference", or "sampler".
        ratio: What multiplies it, differentiated: "old" is the ratio of the policy to the old one, of the same level ("r k3"; exact
            off policy for k1 in the reward by sequence), "self" that of the policy to itself, held; `None` for nothing.

    Raises:
        ValueError: An unknown name; β is negative; a place, level or ratio with a kind of whole steps.

    References:
        Schulman (2020), "Approximating KL divergence"; Tang & Munos (2025), arXiv:2506.09477; Amini et al. (2025),
        arXiv:2504.10637, for Rao-Blackwell; DeepSeek-AI (2025), "DeepSeek-V3.2", for r k3.
    """

    beta: float
    kind: str = "rao-blackwell"
    place: str = "loss"
    level: str = "token"
    against: str = "reference"
    ratio: str | None = None

    def __post_init__(self) -> None:
        check.one_of((None, "old", "self"), ratio=self.ratio)
        check.one_of((*KINDS, *_FULL), kind=self.kind)
        check.one_of(("loss", "reward"), place=self.place)
        check.one_of(("token", "sequence"), level=self.level)
        check.one_of(("reference", "sampler"), against=self.against)
        check.not_negative(finite=True, beta=self.beta)
        if self.kind in _FULL and (self.place, self.level, self.against, self.ratio) != (
            "loss",
            "token",
            "reference",
            None,
        ):
            raise ValueError(
                f"place, level, against, ratio: expected the defaults with kind={self.kind!r}, which is made of step_kl alone, "
                f"received {self.place!r}, {self.level!r}, {self.against!r}, {self.ratio}."
            )

    def terms(self, logs: Mapping[str, jax.Array], step_kl: Any, mask: jax.Array, answers: Any) -> jax.Array:
        """One number a token, whose weighted sum is the regularizer over β.

        Args:
            logs: Log-probabilities under "policy", "old", "sampler" and "reference", 0 outside the mask.
            step_kl: Full-vocabulary divergence of each step, or `None`.
            mask: Which tokens count.
            answers: Where they stand.

        Returns:
            Shape of the tokens.

        Raises:
            ValueError: What it is an estimate from is missing.
        """
        if self.kind in _FULL:
            return _of_steps(step_kl, "step_kl", self.kind, logs["policy"], answers)
        if self.against not in logs:
            raise ValueError(
                f"{self.against}: expected its log-probabilities of the drawn tokens, which {self} needs, received None."
            )
        difference = logs["policy"] - jax.lax.stop_gradient(logs[self.against])
        if self.place == "reward":
            difference = jax.lax.stop_gradient(difference)
        estimate = KINDS[self.kind]
        if self.level == "sequence":
            lengths = jnp.maximum(answers.sums(mask.astype(difference.dtype)), 1)
            found = answers.spread(estimate(answers.sums(difference)) / lengths)
        else:
            found = estimate(difference)
            found = answers.from_here(found) if self.place == "reward" else found
        if self.ratio is not None or self.place == "reward":
            own = logs["policy"]
            of = logs if self.ratio == "old" else {"policy": own, "old": jax.lax.stop_gradient(own)}
            found = found * Ratio(level=self.level).factors(of, jnp.ones((1, 1), own.dtype), mask, answers)
        return found

    def penalties(self, log_probs: jax.Array, reference: jax.Array, mask: jax.Array) -> jax.Array:
        """What is subtracted from the rewards of the tokens, so that advantages see it.

        Args:
            log_probs: Of the drawn tokens, under the policy that drew them. Shape `(N, T)` or `(R, L)`.
            reference: The same under the reference.
            mask: Which tokens the policy chose.

        Returns:
            β k of each token, 0 outside the mask; detached.

        Raises:
            ValueError: The regularizer is not one of tokens in the reward; the shapes differ.
        """
        if (self.kind in _FULL, self.place, self.level) != (False, "reward", "token"):
            raise ValueError(
                f"penalties: expected k1, k2 or k3 with place='reward' and level='token', received {self}."
            )
        check.shape(log_probs.shape, reference=reference, mask=mask)
        found = KINDS[self.kind](jnp.where(mask, log_probs - reference, 0))
        return jax.lax.stop_gradient(jnp.asarray(self.beta, found.dtype) * found)

    def declared(self, per: str) -> Declaration:
        """The objectives whose gradients it adds, with their factors; β is concrete.

        Args:
            per: As of `token_weights`, "constant" for a number.

        Returns:
            A `Declaration`; order 0 where it is the gradient of none of those named here.
        """
        beta = float(concrete("beta", self.beta))
        if beta == 0:
            return Declaration({}, order=1)
        if per == "own length" and (self.kind, self.place) == ("k1", "loss") and self.ratio is None:
            return _sum_of({INVERSE: -beta})
        exact = {REVERSE: 1} if self.kind == "rao-blackwell" else _EXACT.get((self.kind, self.place, self.level))
        local = self.ratio is not None and self.place == "loss"
        if exact is None or local or per not in ("answer", "constant", "sum"):
            return biased(
                f"{self.kind} in the {self.place} by {self.level}, per {per}: the gradient of no divergence of sequences"
            )
        if self.against != "reference":
            return biased("a divergence from the sampler, which moves with the policy")
        return _sum_of({name: -beta * factor for name, factor in exact.items()})


@pytree(static=("kind",))
class Entropy(Part):
    """A weight times the entropy, to be added to the objective, from the full-vocabulary entropies of the steps.

    "rao-blackwell" adds to each step's entropy the log-probability times the entropies after it: the gradient of the entropy of
    sequences, which "step", as it is shipped everywhere, has little to do with.

    Attributes:
        weight: At least 0.
        kind: "rao-blackwell" or "step".

    Raises:
        ValueError: An unknown kind; the weight is negative.
    """

    weight: float
    kind: str = "rao-blackwell"

    def __post_init__(self) -> None:
        check.one_of(_FULL, kind=self.kind)
        check.not_negative(finite=True, weight=self.weight)

    def terms(self, log_probs: jax.Array, step_entropy: Any, answers: Any) -> jax.Array:
        """One number a token, whose weighted sum is the entropy.

        Args:
            log_probs: Of the drawn tokens, 0 outside the mask.
            step_entropy: Of each step, or `None`.
            answers: Where the tokens stand.

        Returns:
            Shape of the tokens.

        Raises:
            ValueError: `step_entropy` is missing.
        """
        return _of_steps(step_entropy, "step_entropy", self.kind, log_probs, answers)

    def declared(self, per: str) -> Declaration:
        """The objective whose gradient it adds.

        Args:
            per: As of `token_weights`, "constant" for a number.

        Returns:
            A `Declaration`.
        """
        weight = float(concrete("weight", self.weight))
        if weight == 0:
            return Declaration({}, order=1)
        if self.kind == "step" or per not in ("answer", "constant", "sum"):
            return biased(f"entropy of kind {self.kind!r} per {per}: not the gradient of the entropy of sequences")
        return _sum_of({ENTROPY: weight})


def _of_steps(found: Any, name: str, kind: str, log_probs: jax.Array, answers: Any) -> jax.Array:
    if found is None:
        raise ValueError(f"{name}: expected one number for each step, over the full vocabulary, received None.")
    if kind == "step":
        return found
    later = jax.lax.stop_gradient(answers.from_here(found) - found)
    return found + later * (log_probs - jax.lax.stop_gradient(log_probs))


def _sum_of(factors: dict[str, float]) -> Declaration:
    return Declaration({name: _constant(factor) for name, factor in factors.items()}, order=1)


def _constant(factor: float) -> Callable[[int], float]:
    return lambda _: factor
