"""Ratios of probabilities, and what bounds them: what an advantage is multiplied by away from the policy that drew the answers.

A bound is a function of a ratio ρ that says three things: its value, its derivative by log ρ where the ratio is differentiated, and
what takes the place of that derivative where it is detached.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core import check
from logderiv._core.pytrees import pytree
from logderiv._core.tangents import with_slope
from logderiv.estimators.declaration import Declaration, Part, biased
from logderiv.estimators.objectives.aggregation import AGGREGATIONS

LEVELS = ("token", "cumulative", "sequence", "geometric")
_PAIRS = (("policy", "old"), ("policy", "sampler"), ("old", "sampler"))
Bounded = tuple[jax.Array, jax.Array, jax.Array]


class At(NamedTuple):
    """Where a bound is evaluated; all detached. What all tokens of an answer share may have shape `(N, 1)` for `(N, T)`.

    Attributes:
        ratios: ρ.
        advantages: Of each token.
        log_probs: Log-probabilities of the numerator.
    """

    ratios: jax.Array
    advantages: jax.Array
    log_probs: jax.Array


class Bound(Part):
    """Base of what bounds a ratio. On policy, where ρ = 1 is inside, nothing changes.

    Attributes:
        levels: The levels of a `Ratio` that it is known for.
    """

    levels: tuple[str, ...] = LEVELS
    declaration = Declaration()

    def tokens(self, log_ratios: jax.Array, advantages: jax.Array) -> jax.Array:
        """The log-ratios of tokens, before they are pooled.

        Args:
            log_ratios: Of each token.
            advantages: Of each token.

        Returns:
            Same shape.
        """
        del advantages
        return log_ratios

    def __call__(self, at: At) -> Bounded:
        """The bounded ratio and its derivatives.

        Args:
            at: Where.

        Returns:
            Value, derivative by log ρ, and what multiplies ∇log π where the ratio is detached; of shapes that broadcast.
        """
        return at.ratios, at.ratios, at.ratios


@pytree
class Clip(Bound):
    """min(ρ A, clip(ρ, 1 − low, 1 + high) A), and for negative A at least `dual` A: flat outside.

    Attributes:
        low: From 0 to 1.
        high: At least 0; above `low` it is "clip-higher".
        dual: Above 1 + high; `None` for none. The same as clamping ρ at "delta" before anything else.

    Raises:
        ValueError: A number is out of its range.

    References:
        Schulman et al. (2017), arXiv:1707.06347, eq. 7; Yu et al. (2025), arXiv:2503.14476, section 3.1, for two sides; Ye et
        al. (2020), arXiv:1912.09729, for the dual clip.
    """

    low: float = 0.2
    high: float = 0.2
    dual: float | None = None

    levels = ("token", "sequence", "geometric")

    def __post_init__(self) -> None:
        check.between(0, 1, low=self.low)
        check.not_negative(high=self.high)
        check.positive(finite=True, or_none=True, dual=self.dual)

    def __call__(self, at: At) -> Bounded:
        dual = jnp.inf if self.dual is None else self.dual
        low, high, dual = (jnp.asarray(x, at.ratios.dtype) for x in (self.low, self.high, dual))
        low, high = 1 - low, 1 + high
        up = at.advantages >= 0
        value = jnp.where(up, jnp.minimum(at.ratios, high), jnp.clip(at.ratios, low, dual))
        alive = jnp.where(up, at.ratios <= high, (at.ratios >= low) & (at.ratios <= dual))
        slope = jnp.where(alive, at.ratios, 0)
        return value, slope, slope


@pytree
class Truncate(Bound):
    """min(max(ρ, low), high): flat outside; where the ratio is detached the score keeps that weight there.

    `Ratio(bound=Truncate(high=5.0), detached=True)` is CISPO.

    Attributes:
        low: At least 0.
        high: Above `low`.

    Raises:
        ValueError: A number is out of its range.

    References:
        Ionides (2008), "Truncated importance sampling"; MiniMax (2025), arXiv:2506.13585, for CISPO.
    """

    low: float = 0.0
    high: float = 2.0

    def __post_init__(self) -> None:
        _check_ends(self.low, self.high)

    def __call__(self, at: At) -> Bounded:
        clipped, kept = _between(at.ratios, self.low, self.high)
        return clipped, kept, clipped


@pytree
class Mask(Bound):
    """ρ between `low` and `high`, and 0 outside: what is too far off is left out.

    Attributes:
        low: At least 0.
        high: Above `low`.

    Raises:
        ValueError: A number is out of its range.

    References:
        Ling Team (2025), arXiv:2510.18855 (IcePop).
    """

    low: float = 0.0
    high: float = 2.0

    def __post_init__(self) -> None:
        _check_ends(self.low, self.high)

    def __call__(self, at: At) -> Bounded:
        _, kept = _between(at.ratios, self.low, self.high)
        return kept, kept, kept


@pytree
class Soft(Bound):
    """σ(τ (ρ − 1)) 4/τ: a gate instead of a clip, of slope 1 at ρ = 1.

    Attributes:
        positive: τ > 0 for positive advantages.
        negative: τ > 0 for the others.

    Raises:
        ValueError: A number is not positive.

    References:
        Gao et al. (2025), arXiv:2511.20347 (SAPO).
    """

    positive: float = 1.0
    negative: float = 1.05

    levels = ("token",)

    def __post_init__(self) -> None:
        check.positive(finite=True, positive=self.positive, negative=self.negative)

    def __call__(self, at: At) -> Bounded:
        rates = (jnp.asarray(x, at.ratios.dtype) for x in (self.positive, self.negative))
        rate = jnp.where(at.advantages > 0, *rates)
        gate = jax.nn.sigmoid(rate * (at.ratios - 1))
        slope = 4 * gate * (1 - gate) * at.ratios
        return 4 * gate / rate, slope, slope


@pytree
class ClipTokens(Bound):
    """exp of the mean of log-ratios that are clipped token by token before the mean: GMPO.

    log r ≤ high for positive advantages, log r ≥ −low for negative ones.

    Attributes:
        low: At least 0, of the log-ratio.
        high: At least 0, of the log-ratio.

    Raises:
        ValueError: A number is negative.

    References:
        Zhao et al. (2025), arXiv:2507.20673 (GMPO).
    """

    low: float = 0.4
    high: float = 0.4

    levels = ("geometric",)

    def __post_init__(self) -> None:
        check.not_negative(low=self.low, high=self.high)

    def tokens(self, log_ratios: jax.Array, advantages: jax.Array) -> jax.Array:
        low, high = jnp.asarray(-self.low, log_ratios.dtype), jnp.asarray(self.high, log_ratios.dtype)
        return jnp.where(advantages >= 0, jnp.minimum(log_ratios, high), jnp.maximum(log_ratios, low))


@pytree
class TotalVariation(Bound):
    """ρ where the token's probability has moved by at most so much the way that its advantage asks for, else 0.

    Attributes:
        low: By how much it may have fallen, for advantages that are not positive; at least 0.
        high: By how much it may have grown, for positive ones; at least 0.

    Raises:
        ValueError: A number is negative.

    References:
        Qi et al. (2026), arXiv:2602.04879 (DPPO), binary total variation.
    """

    low: float = 0.2
    high: float = 0.2

    levels = ("token",)

    def __post_init__(self) -> None:
        check.not_negative(low=self.low, high=self.high)

    def __call__(self, at: At) -> Bounded:
        moved = jnp.exp(at.log_probs) * (1 - 1 / jnp.maximum(at.ratios, jnp.finfo(at.ratios.dtype).tiny))
        low, high = jnp.asarray(-self.low, at.ratios.dtype), jnp.asarray(self.high, at.ratios.dtype)
        kept = jnp.where(jnp.where(at.advantages > 0, moved <= high, moved >= low), at.ratios, 0)
        return kept, kept, kept


@pytree(static=("numerator", "denominator", "level", "detached"))
class Ratio(Part):
    """A ratio of two of the three log-probabilities that there are of a token, pooled, bounded, detached or not.

    | level | log ρ of token t of an answer |
    |---|---|
    | `"token"` | l_t − l'_t: ignores the prefix |
    | `"cumulative"` | Σ_{u ≤ t} (l_u − l'_u); detach it, or early tokens count once for each later one |
    | `"sequence"` | Σ_u (l_u − l'_u), the same for every token; take weights per "own length", so that it counts once |
    | `"geometric"` | 1/T Σ_u (l_u − l'_u): what TRL and verl call "sequence" |

    A ratio that is detached multiplies the token's own score instead: value ρ, gradient ρ ∇log π_t.

    Attributes:
        numerator: "policy", what is trained; or "old".
        denominator: "old", the policy at the start of the update; or "sampler", what drew the answers.
        level: One of the four.
        bound: `Clip`, `Truncate`, `Mask`, `Soft`, `ClipTokens` or `TotalVariation`; `None` for none.
        detached: Whether the ratio is held.

    Raises:
        ValueError: An unknown pair or level; a bound at a level that it is not known for.
        TypeError: `bound` is none, or was not called.
    """

    numerator: str = "policy"
    denominator: str = "old"
    level: str = "token"
    bound: Bound | None = None
    detached: bool = False

    def __post_init__(self) -> None:
        if (self.numerator, self.denominator) not in _PAIRS:
            known = ", ".join("/".join(pair) for pair in _PAIRS)
            raise ValueError(
                f"numerator/denominator: expected one of {known}, received {self.numerator}/{self.denominator}."
            )
        check.one_of(LEVELS, level=self.level)
        expected = "Clip(), Truncate(), Mask() or another bound of logderiv.objectives"
        check.made("bound", self.bound, self.bound is None or isinstance(self.bound, Bound), expected)
        if self.bound is not None:
            check.one_of(self.bound.levels, **{f"level of a ratio with {type(self.bound).__name__}": self.level})

    def factors(self, logs: Mapping[str, jax.Array], advantages: jax.Array, mask: jax.Array, answers: Any) -> jax.Array:
        """What the advantage of each token is multiplied by.

        Args:
            logs: Log-probabilities under "policy", "old" and "sampler", 0 outside the mask. Shape of the tokens.
            advantages: Of each token.
            mask: Which tokens count.
            answers: Where they stand.

        Returns:
            Shape of the tokens, or one that broadcasts to it; its derivative of order one.
        """
        own, bound = logs[self.numerator], Bound() if self.bound is None else self.bound
        pooled = self._pool(bound.tokens(own - logs[self.denominator], advantages), mask, answers)
        # Where the advantage is 0 the ratio counts for nothing, and must not be infinite.
        ratio = jnp.where(advantages == 0, 1, jnp.exp(jax.lax.stop_gradient(pooled)))
        value, slope, held = bound(At(ratio, advantages, jax.lax.stop_gradient(own)))
        if self.numerator == "old":  # it does not move
            return value
        moving, rate = (own, held) if self.detached else (pooled, slope)
        return with_slope(value, rate, moving)

    def _pool(self, logs: jax.Array, mask: jax.Array, answers: Any) -> jax.Array:
        if self.level == "token":
            return logs
        total = answers.sums(jnp.where(mask, logs, 0))
        if self.level == "geometric":
            total = total / jnp.maximum(answers.sums(mask.astype(logs.dtype)), 1)
        pooled = answers.spread(total)
        if self.level == "cumulative":
            return pooled - answers.from_here(jnp.where(mask, logs, 0)) + jnp.where(mask, logs, 0)
        return pooled

    def declared(self, per: str) -> Declaration:
        """What it does to the first gradient together with the weights, where all three log-probabilities are the same.

        Args:
            per: What the weights are divided by, as of `token_weights`; "constant" for a number.

        Returns:
            A `Declaration`; without effect where the weights are those that the level needs.
        """
        first, weights = Declaration(order=1, assumes=("first gradient, drawn by this policy",)), AGGREGATIONS[per]
        if self.detached or self.level in ("token", "geometric"):
            return first & weights
        if self.level == "cumulative":
            return first & weights & biased("cumulative ratio, not detached: it holds the scores of all earlier tokens")
        if per == "own length":  # each answer's ratio counts once
            return first
        return first & weights & biased("sequence ratio: it counts once for each token, so long answers count more")


def _between(ratios: jax.Array, low: Any, high: Any) -> tuple[jax.Array, jax.Array]:
    """Ratios clipped to [low, high], and those inside with 0 for the others."""
    low, high = jnp.asarray(low, ratios.dtype), jnp.asarray(high, ratios.dtype)
    return jnp.clip(ratios, low, high), jnp.where((ratios >= low) & (ratios <= high), ratios, 0)


def _check_ends(low: Any, high: Any) -> None:
    check.not_negative(low=low)
    check.positive(high=high)
    if not check.is_traced(low, high) and not np.all(np.less(low, high)):
        raise ValueError(f"low, high: expected low < high, received {low} and {high}.")
