"""How tokens are counted: where the answers of a batch stand, and what each token weighs in the objective."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from logderiv._core import check
from logderiv._core.arrays import array_of, integers, summable
from logderiv.estimators.declaration import Declaration, biased

AGGREGATIONS = {  # what dividing by each does to an expectation of sums over an answer's tokens
    "answer": Declaration(),
    "constant": Declaration(),
    "sum": Declaration(),
    "own length": biased("own length: each answer is divided by its own random length"),
    "group": biased("group: divided by the random number of tokens of the prompt's answers"),
    "batch": biased("batch: divided by the random number of tokens in the batch"),
}


class Answers(NamedTuple):
    """Where the answers of a batch stand: one in each row, or several packed into a row.

    Attributes:
        segments: The number of each token's answer, -1 for padding, shape `(R, L)`; `None` where row n is answer n. The tokens of
            an answer follow each other in one row.
        number: N, how many answers there are.
    """

    segments: jax.Array | None
    number: int

    def sums(self, x: jax.Array) -> jax.Array:
        """The sum over each answer's tokens.

        Args:
            x: One number a token, 0 where it does not count. Shape `(N, T)` or `(R, L)`.

        Returns:
            Shape `(N,)`.
        """
        if self.segments is None:
            return jnp.sum(x, axis=-1)
        return jax.ops.segment_sum(x.ravel(), self.segments.ravel(), self.number)

    def spread(self, x: jax.Array) -> jax.Array:
        """The number of each token's answer.

        Args:
            x: Shape `(N,)`.

        Returns:
            Shape `(R, L)`; or `(N, 1)`, which broadcasts to `(N, T)`: what all tokens of an answer share is computed once.
        """
        if self.segments is None:
            return x[:, None]
        return x[jnp.maximum(self.segments, 0)]

    def are_tokens(self, shape: tuple[int, ...]) -> jax.Array:
        """Which places belong to an answer.

        Args:
            shape: That of the tokens.

        Returns:
            Booleans of that shape.
        """
        return jnp.ones(shape, bool) if self.segments is None else self.segments >= 0

    def from_here(self, x: jax.Array) -> jax.Array:
        """The sum from each token to the end of its answer.

        Args:
            x: One number a token, 0 where it does not count.

        Returns:
            Same shape.
        """
        if self.segments is None:
            return jax.lax.cumsum(x, axis=x.ndim - 1, reverse=True)

        def combine(later: Any, earlier: Any) -> tuple[jax.Array, jax.Array]:
            """By selection: 0 times a NaN of another answer would be one."""
            (after, goes_on_later), (own, goes_on) = later, earlier
            return own + jnp.where(goes_on, after, 0), goes_on & goes_on_later

        goes_on = self.segments == jnp.roll(self.segments, -1, axis=-1)
        return jax.lax.associative_scan(combine, (x, goes_on), reverse=True, axis=x.ndim - 1)[0]


def answers_of(segments: Any, number: int, shape: tuple[int, ...]) -> Answers:
    """`Answers` from what a caller gives, checked.

    Args:
        segments: Numbers of the answers, or `None`.
        number: N.
        shape: That of the tokens.

    Returns:
        `Answers`.

    Raises:
        ValueError: There is not one row for each answer, or one segment for each token.
        TypeError: The segments are no integers.
    """
    if segments is not None:
        segments = integers(segments, "segments")
        check.between(-1, number - 1, segments=segments, hint="the number of an answer, or -1 for padding")
        check.shape(shape, hint="one number a token", segments=segments)
    elif len(shape) != 2 or shape[0] != number:
        raise ValueError(
            f"tokens: expected shape (N, T) with one row for each of the N = {number} answers, received {shape}; rows that hold "
            "several answers need segments, the number of each token's answer."
        )
    return Answers(segments, number)


def in_group(x: jax.Array, groups: jax.Array, num_groups: int) -> jax.Array:
    """The sum over the answers of each one's group.

    Args:
        x: Shape `(N,)`.
        groups: Group of each answer, -1 for none. Shape `(N,)`.
        num_groups: How many there are.

    Returns:
        Shape `(N,)`; 0 for answers of no group.
    """
    sums = jax.ops.segment_sum(x, groups, num_groups)
    return jnp.where((groups >= 0) & (groups < num_groups), sums[jnp.clip(groups, 0, num_groups - 1)], 0)


def token_weights(
    mask: Any,
    groups: Any,
    *,
    per: Any = "answer",
    segments: Any = None,
    num_groups: int | None = None,
    dtype: Any = None,
) -> jax.Array:
    """What each token counts in the objective; taken on the whole batch, and split with it.

    With T_n tokens of answer n, N answers and P prompts that have tokens:

    | per | weight | |
    |---|---|---|
    | `"answer"` | 1/N | unbiased |
    | a number c | 1/(N c) | unbiased up to 1/c; Dr. GRPO, where c is the longest length allowed |
    | `"sum"` | 1 | unbiased up to N; Tinker |
    | `"own length"` | 1/(N T_n) | biased however large the batch: GRPO |
    | `"group"` | 1/(P Σ_m T_m) over the answers m to the same prompt | biased by O(1/G) |
    | `"batch"` | 1/Σ_m T_m | biased by O(1/N): DAPO |

    Only tokens of the mask are counted, everywhere: neither the prompt nor what a tool or a user wrote.

    Args:
        mask: True where the policy chose the token; it may have holes. Boolean, shape `(N, T)`, or `(R, L)` with `segments`.
        groups: Group (prompt) of each answer, from 0; -1 for a row that is no answer. Shape `(N,)`.
        per: What is divided by.
        segments: For packed rows, the answer that each token belongs to, -1 for padding. Shape `(R, L)`.
        num_groups: Above every group; `None` for N. Used by `"group"` alone.
        dtype: Of the weights; `None` for the default floating dtype.

    Returns:
        Shape of `mask`, 0 where it is False. Objectives of any parts of the batch, each with its part of these weights, add up
        to that of the whole.

    Raises:
        ValueError: Shapes disagree, or `per` is unknown or not positive.
        TypeError: `mask` is not boolean, or ids are no integers.
    """
    groups, mask = integers(groups, "groups"), boolean(mask, "mask")
    check.shape((groups.size,), groups=groups)
    answers = answers_of(segments, groups.size, mask.shape)
    if isinstance(per, str):
        check.one_of([name for name in AGGREGATIONS if name != "constant"], per=per)
    else:
        check.positive(per=per)
    mask = mask & (answers.spread(groups) >= 0) & answers.are_tokens(mask.shape)
    weights = summable(mask.astype(jnp.zeros(()).dtype if dtype is None else dtype))
    groups_above = groups.size if num_groups is None else check.whole(num_groups=num_groups)
    check.between(-1, groups_above - 1, groups=groups, hint="num_groups, by default their number, is above every group")
    lengths, number = answers.sums(weights), jnp.maximum(jnp.sum(groups >= 0), 1).astype(weights.dtype)
    if per == "sum":
        return weights
    if per == "batch":
        return weights / jnp.maximum(jnp.sum(lengths), 1)
    if per == "own length":
        return weights / (number * answers.spread(jnp.maximum(lengths, 1)))
    if per == "group":
        totals = jax.ops.segment_sum(lengths, groups, groups_above)
        prompts = jnp.maximum(jnp.sum(totals > 0), 1).astype(weights.dtype)
        of_each = jnp.maximum(in_group(lengths, groups, groups_above), 1)
        return weights / (prompts * answers.spread(of_each))
    return weights / number if per == "answer" else weights / (number * jnp.asarray(per, weights.dtype))


def boolean(x: Any, name: str) -> jax.Array:
    """A mask that is boolean: of whole numbers one never knows whether they are ids.

    Args:
        x: The mask.
        name: Its name.

    Returns:
        The mask.

    Raises:
        TypeError: It has another dtype.
    """
    x = array_of(x, name)
    if not jnp.issubdtype(x.dtype, jnp.bool_):
        raise TypeError(f"{name}: expected a boolean mask, received {x.dtype}; use {name} != 0.")
    return x
