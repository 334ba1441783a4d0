"""Advantages of answers: what the score of each one is multiplied by, from the rewards of its group.

The group of an answer are the answers to its prompt, unequal in number where they are. Only scored answers count: in means,
deviations, the answers left over when the own is left out. Everything is detached.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core import check
from logderiv._core.arrays import integers, summable
from logderiv._core.moments import beyond_rounding
from logderiv._core.pytrees import pytree
from logderiv.estimators.baselines import own_sample
from logderiv.estimators.declaration import Declaration, Part, biased, one
from logderiv.estimators.objectives.aggregation import answers_of, boolean, in_group

_OWN = "it contains the own answer"
_STD = "the deviation is random and contains the own answer"
CENTERED = {  # every known pair of baseline and scale, and what it does to the expectation
    (None, None): Declaration(),
    ("others", None): Declaration(),
    ("greedy", None): Declaration(assumes=("the greedy answer depends on prompt and parameters alone",)),
    ("others by length", None): Declaration(),
    ("group", None): biased(f"group mean: {_OWN}", own_sample),
    ("group by length", None): biased(f"group mean by length: {_OWN}, whose length it depends on"),
    ("group", "group"): biased(f"group mean and deviation: {_STD}"),
    ("group", "batch"): biased(f"group mean, deviation of the batch: {_STD}"),
    ("group", "tokens"): biased(f"group mean, whitened over the tokens of the batch: {_STD}"),
    (None, "tokens"): biased(f"whitened over the tokens of the batch: {_STD}"),
}


class Scores(NamedTuple):
    """The rewards of a batch as a kind of advantage sees them.

    Attributes:
        credit: The reward, shape `(N,)`; or what is left of it from each token on, shape of the tokens. 0 where not scored.
        totals: The whole reward of each answer. Shape `(N,)`.
        scored: Which answers have one. Shape `(N,)`.
        groups: Shape `(N,)`.
        num_groups: How many there are.
        answers: Where the tokens stand.
        mask: Which tokens count; `None` where none was given.
        greedy: Rewards of greedy answers. Shape `(N,)`, or `None`.
    """

    credit: jax.Array
    totals: jax.Array
    scored: jax.Array
    groups: jax.Array
    num_groups: int
    answers: Any
    mask: Any
    greedy: Any

    def relative(self, origin: jax.Array) -> "Scores":
        """Rewards less a number of each answer.

        Args:
            origin: Shape `(N,)`.

        Returns:
            The scores.
        """
        origin = jnp.where(self.scored, origin, 0)
        return self._replace(credit=self.credit - self.spread(origin), totals=self.totals - origin)

    def largest(self) -> jax.Array:
        """The largest reward in the group of each scored answer, 0 for the others. Shape `(N,)`."""
        groups = jnp.where(self.scored, self.groups, self.num_groups)
        found = jax.ops.segment_max(self.totals, groups, self.num_groups + 1)
        return jnp.where(self.scored, found[groups], 0)

    def in_group(self, x: jax.Array) -> jax.Array:
        """The sum over the scored answers of each one's group.

        Args:
            x: Shape `(N,)`.

        Returns:
            Shape `(N,)`.
        """
        return in_group(jnp.where(self.scored, x, 0), self.groups, self.num_groups)

    def spread(self, x: jax.Array) -> jax.Array:
        """A number of each answer in the shape of the credit.

        Args:
            x: Shape `(N,)`.

        Returns:
            Shape of `credit`, or one that broadcasts to it.
        """
        return x if self.credit.ndim == 1 else self.answers.spread(x)

    @property
    def lengths(self) -> jax.Array:
        """Tokens of each scored answer. Shape `(N,)`."""
        if self.mask is None:
            raise ValueError("mask: expected that of the tokens, which this kind of advantage counts, received None.")
        lengths = self.answers.sums(self.mask.astype(self.totals.dtype))
        return jnp.where(self.scored, lengths, 0)


@pytree(static=("baseline", "scale", "ddof"))
class Centered(Part):
    """The reward minus a baseline, over a deviation.

    | baseline | scale | name | E[g] / ∇J |
    |---|---|---|---|
    | `None` | `None` | REINFORCE | 1 |
    | `"others"` | `None` | RLOO: the mean of the others | 1 |
    | `"greedy"` | `None` | ReMax: the reward of the greedy answer | 1 |
    | `"others by length"` | `None` | optimal by length, the own answer left out | 1 |
    | `"group"` | `None` | Dr. GRPO | 1 − 1/G |
    | `"group by length"` | `None` | OPO: Σ T R / Σ T, the own answer included | |
    | `"group"` | `"group"` | GRPO | |
    | `"group"` | `"batch"` | Lite PPO: over the deviation of all rewards | |
    | `None` | `"tokens"` | REINFORCE++ | |
    | `"group"` | `"tokens"` | REINFORCE++-baseline | |

    "tokens" subtracts the mean and divides by the deviation over all tokens of the batch, √(variance + ε); the others divide by
    deviation + ε. Of rewards for each token the credit is what comes from the token on, mean and deviation those of whole
    rewards. Equal rewards have advantage 0, exactly, and a deviation within the rounding of the rewards is none. The factors hold for
    sums over tokens and means over answers. Where only some are scored, it is the gradient of the
    return given scored, times a factor that depends on how many are.

    Attributes:
        baseline: What is subtracted.
        scale: What is divided by.
        ddof: Variances are divided by the count minus this.
        epsilon: ε ≥ 0.

    Raises:
        ValueError: An unknown combination; `ddof` or `epsilon` is out of range.

    References:
        Kool, van Hoof & Welling (2019), "Buy 4 REINFORCE samples, get a baseline for free!"; Li et al. (2023), arXiv:2310.10505;
        Hao et al. (2025), arXiv:2505.23585; Liu et al. (2025), arXiv:2503.20783, section 3.2; Shao et al. (2024),
        arXiv:2402.03300, section 4.1; Liu et al. (2025), arXiv:2508.08221; Hu (2025), arXiv:2501.03262.
    """

    baseline: str | None = "others"
    scale: str | None = None
    ddof: int = 0
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        if (self.baseline, self.scale) not in CENTERED:
            known = "; ".join(f"{baseline!r}, {scale!r}" for baseline, scale in CENTERED)
            raise ValueError(
                f"baseline, scale: expected one of the known pairs {known}; received {self.baseline!r}, {self.scale!r}."
            )
        check.not_negative(finite=True, epsilon=self.epsilon)

    @property
    def min_answers(self) -> int:
        """Answers that a group must have."""
        return 1 if self.baseline in (None, "greedy") else 2

    @property
    def declaration(self) -> Declaration:
        """Of sums over tokens, means over answers."""
        return CENTERED[self.baseline, self.scale]

    def __call__(self, scores: Scores) -> jax.Array:
        """The advantages.

        Args:
            scores: The rewards.

        Returns:
            Shape of the credit.
        """
        origin = self._origin(scores)  # equal rewards are then exactly 0, and others keep their digits
        sizes, scores = jnp.where(scores.scored, jnp.abs(scores.totals), 0), scores.relative(origin)
        centered = scores.credit - scores.spread(self._center(scores, origin))
        if self.scale is None:
            return centered
        if self.scale != "tokens":
            deviation = self._deviation(scores, origin, sizes) + jnp.asarray(self.epsilon, sizes.dtype)
            return centered / scores.spread(jnp.where(deviation == 0, 1, deviation))
        counts = scores.lengths
        if centered.ndim == 2:
            counts = jnp.where(scores.mask & scores.spread(scores.scored), 1, 0).astype(centered.dtype)
        total = jnp.sum(counts)
        centered = centered - jnp.sum(jnp.where(counts > 0, counts * centered, 0)) / jnp.maximum(total, 1)
        variance = self._variance(jnp.sum(jnp.where(counts > 0, counts * jnp.square(centered), 0)), total)
        variance = jnp.square(beyond_rounding(jnp.sqrt(variance), jnp.max(sizes, initial=0)))
        variance = variance + jnp.asarray(self.epsilon, variance.dtype)
        return centered / jnp.sqrt(jnp.where(variance == 0, 1, variance))

    def _origin(self, scores: Scores) -> jax.Array:
        if self.baseline is None and self.scale == "tokens":
            return jnp.full_like(scores.totals, jnp.max(scores.totals, where=scores.scored, initial=-jnp.inf))
        return jnp.zeros_like(scores.totals) if self.baseline in (None, "greedy") else scores.largest()

    def _deviation(self, scores: Scores, origin: jax.Array, sizes: jax.Array) -> jax.Array:
        """Of the rewards of each answer's group or of the batch, shape `(N,)`; 0 where it is no more than their rounding."""
        ones = jnp.ones_like(sizes)
        if self.scale == "group":
            total, size = scores.in_group, scores._replace(totals=sizes).largest()
        else:
            scores = scores.relative(jnp.max(origin, where=scores.scored, initial=-jnp.inf) - origin)
            total, size = (lambda x: jnp.full_like(x, jnp.sum(x, where=scores.scored))), jnp.max(sizes) * ones
        count = total(ones)
        mean = total(scores.totals) / jnp.maximum(count, 1)
        squares = total(jnp.square(scores.totals - mean))
        return beyond_rounding(jnp.sqrt(self._variance(squares, count)), size)

    def _center(self, scores: Scores, origin: jax.Array) -> jax.Array:
        if self.baseline is None:
            return jnp.zeros_like(scores.totals)
        if self.baseline == "greedy":
            if scores.greedy is None:
                raise ValueError("greedy: expected the rewards of the greedy answers, received None.")
            return scores.greedy
        counts = scores.lengths if "length" in self.baseline else scores.scored.astype(scores.totals.dtype)
        weighted = counts * scores.totals
        total, count = scores.in_group(weighted), scores.in_group(counts)
        if "others" in self.baseline:
            total, count = total - weighted, count - counts
        return jnp.where(count == 0, -origin, total / jnp.where(count == 0, 1, count))

    def _variance(self, squares: jax.Array, count: jax.Array) -> jax.Array:
        return squares / jnp.maximum(count - self.ddof, 1)


@pytree(static=("k", "baseline"))
class MaxAtK(Part):
    """The gradient of the expected best reward of k answers, max@k; of 0/1 rewards pass@k.

        A_n = G/C(G, k) Σ_{I ∋ n} (max of R over I − b_I)   over the sets I of k of the G answers

    so that the mean over answers of A_n ∇log P(y_n) has the expectation ∇E[max of k]. b_I is 0, or the best that is expected of
    k, or of k − 1, of the *others*, which leaves the expectation as it is. With k = G and "k - 1 others" only the best answer has
    an advantage: its reward minus the second best. Memory is of the order of N².

    Attributes:
        k: From 1 to the size of the smallest group.
        baseline: `None`, "k others" (needs k < G) or "k - 1 others" (needs k ≥ 2).

    Raises:
        ValueError: An unknown baseline, or one that is empty.

    References:
        Walder & Karkhanis (2025), arXiv:2505.15201; Tang et al. (2025), arXiv:2503.19595, for k = G.
    """

    k: int
    baseline: str | None = None

    def __post_init__(self) -> None:
        check.one_of((None, "k others", "k - 1 others"), baseline=self.baseline)
        if self.baseline == "k - 1 others":
            check.whole(at_least=2, hint="of one answer no others are left", k=self.k)

    @property
    def min_answers(self) -> int:
        """Answers that a group must have."""
        return self.k + (self.baseline == "k others")

    @property
    def declaration(self) -> Declaration:
        """Of sums over tokens, means over answers."""
        return Declaration({"max@k": one})

    def __call__(self, scores: Scores) -> jax.Array:
        """The advantages.

        Args:
            scores: The rewards.

        Returns:
            Shape `(N,)`.
        """
        rewards, index = scores.totals, jnp.arange(scores.totals.size)
        both = scores.scored[:, None] & scores.scored[None] & (scores.groups[:, None] == scores.groups[None])
        tied = (rewards[:, None] == rewards[None]) & (index[:, None] > index[None])
        above = both & ((rewards[:, None] > rewards[None]) | tied)  # [i, j]: j comes before i
        others = both & (index[:, None] != index[None])
        rank, number = (jnp.sum(x, axis=1, dtype=rewards.dtype) for x in (above, others))
        rank = rank[None] - above.T.astype(rank.dtype)  # [i, j]: how many of the others of i come before j
        number = jnp.broadcast_to(number[:, None], rank.shape)

        def best_is(size: int) -> jax.Array:
            """[i, j]: the chance that j is the best of `size` of the others of i, in the order above."""
            chance = size / jnp.maximum(number - size + 1, 1)
            for a in range(size - 1):
                chance = chance * jnp.maximum(rank - a, 0) / jnp.maximum(number - a, 1)
            return jnp.where(others & (number >= size), chance, 0)

        def mean(chance: jax.Array, values: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(others, chance * values, 0), axis=1)

        theirs = jnp.broadcast_to(rewards[None], both.shape)
        best = rewards
        if self.k > 1:
            best = mean(best_is(self.k - 1), jnp.maximum(rewards[:, None], theirs))
        if self.baseline is not None:
            best = best - mean(best_is(self.k if self.baseline == "k others" else self.k - 1), theirs)
        return best * self.k


def advantages(
    rewards: Any,
    groups: Any,
    *,
    num_groups: int,
    kind: Centered | MaxAtK = Centered(),  # noqa: B008
    scored: Any = None,
    mask: Any = None,
    segments: Any = None,
    greedy: Any = None,
) -> jax.Array:
    """What the score of each answer, or of each token, is multiplied by: the first stage, on the whole batch.

    Args:
        rewards: One of each answer, shape `(N,)`; or one of each token, shape `(N, T)`, or `(R, L)` with `segments`.
        groups: Group (prompt) of each answer, from 0; -1 for a row that is no answer. Shape `(N,)`.
        num_groups: Above every group.
        kind: `Centered` or `MaxAtK`.
        scored: Boolean, which answers have a reward, shape `(N,)`; `None` for all. The others weigh nothing, and are in no mean:
            whatever stands in their place, such as NaN. A reward of NaN that is called scored stays NaN, in its whole group.
        mask: Tokens that the policy chose, for kinds that count tokens, and rewards of tokens; boolean.
        segments: For packed rows, the answer that each token belongs to, -1 for padding. Shape `(R, L)`.
        greedy: Rewards of the greedy answers to the same prompts, for the baseline "greedy". Shape `(N,)`.

    Returns:
        Shape of `rewards`; `(N,)` from `MaxAtK`. In float32 at least. 0 where not scored, and in groups with too few that are.

    Raises:
        ValueError: Shapes disagree; outside `jax.jit`, a group with too few answers for this kind; something that the kind needs
            is missing.
        TypeError: A mask is not boolean, ids are no integers; `kind` is none, or was not called.

    Gradients: the result is detached.

    Example:
        >>> import jax.numpy as jnp
        >>> advantages(jnp.array([1.0, 0.0, 0.5]), jnp.zeros(3, int), num_groups=1).tolist()
        [0.75, -0.75, 0.0]
    """
    check_kind(kind, "kind")
    rewards, groups = summable(rewards, "rewards"), integers(groups, "groups")
    num_groups = check.whole(num_groups=num_groups)
    check.shape((groups.size,), groups=groups)
    check.between(-1, num_groups - 1, groups=groups, hint="num_groups is above every group")
    _check_groups(groups, kind)
    number = groups.size
    scored = jnp.ones(number, bool) if scored is None else boolean(scored, "scored")
    scored = scored & (groups >= 0)
    check.shape((number,), scored=scored)
    tokens = rewards if rewards.ndim == 2 else mask
    answers = answers_of(segments, number, (number, 1) if tokens is None else jnp.shape(tokens))
    if mask is not None:
        mask = boolean(mask, "mask")
        mask = mask & answers.are_tokens(mask.shape)
    if rewards.ndim == 2:
        counted = answers.are_tokens(rewards.shape) if mask is None else mask
        rewards = jnp.where(counted & answers.spread(scored), rewards, 0)
        credit, totals = answers.from_here(rewards), answers.sums(rewards)
    else:
        check.shape((number,), rewards=rewards)
        credit = totals = jnp.where(scored, rewards, 0)
    if greedy is not None:
        greedy = summable(greedy, "greedy").astype(totals.dtype)
        check.shape((number,), greedy=greedy)
    scores = Scores(credit, totals, scored, groups, num_groups, answers, mask, greedy)
    found = kind(scores)
    enough = scored & (scores.in_group(jnp.ones_like(totals)) >= kind.min_answers)
    counts = enough if found.ndim == 1 else answers.spread(enough)
    return jax.lax.stop_gradient(jnp.where(counts, found, 0))


def check_kind(kind: Any, name: str) -> None:
    """Raise `TypeError`, naming the argument, unless it is a kind of advantage."""
    check.made(name, kind, isinstance(kind, Centered | MaxAtK), "Centered() or MaxAtK(k), of logderiv.objectives")


def _check_groups(groups: jax.Array, kind: Any) -> None:
    if check.is_traced(groups):
        return
    ids, counts = np.unique(np.asarray(groups)[np.asarray(groups) >= 0], return_counts=True)
    if (counts < kind.min_answers).any():
        group, count = ids[counts < kind.min_answers][0], counts[counts < kind.min_answers][0]
        raise ValueError(
            f"groups: expected at least {kind.min_answers} answers in each group for {kind}, received {count} in group {group}; "
            "draw more answers to each prompt, or leave this one out."
        )
