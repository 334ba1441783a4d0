"""Distributions of one action: a choice here, numbers in `normal`.

They are small on purpose: the numbers that decide whether a gradient is right (masked logits, actions out of range,
normalization of `probs`) differ between libraries, so they are fixed here and tested. All are pytrees, all take
`logits` rather than probabilities.

Parameters and actions may be arrays of any kind, numbers or lists. The law that is drawn is the law that is scored, to the
resolution of float32 at least and down to probabilities of 2⁻³²: parameters of half precision are kept, drawn from and scored
in float32.

Derivatives keep their digits in both tails and at every order. The functions that they are of, σ, softmax and log Φ, are made of
plain operations, without a derivative rule of their own, for two reasons. Inside a scan JAX forgets the rule of a `custom_jvp`
function that calls itself, once reverse mode is part of a second derivative, and differentiates its body instead. And a rule
that is right once may lose its digits when it is differentiated again. Here each formula is analytic where it is used, on
whichever side of a `where`, and what is small is never a difference of large numbers.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from logderiv._core.arrays import array_of, summable
from logderiv._core.noise import gumbel, logit, uniform
from logderiv._core.pytrees import pytree


@pytree
class Categorical:
    """p(a) = exp(ℓ_a) / Σ_b exp(ℓ_b) for a = 0, ..., A - 1.

    A logit of `-inf` masks an action: its probability is exactly 0, its log-probability `-inf`, and entropy and
    gradients of the others stay finite. An action outside `0 .. A - 1` has log-probability `-inf` and zero gradient.

    Attributes:
        logits: Shape `(..., A)`, float32 at least.

    Raises:
        ValueError: `logits` have no last axis, or no action in it.
        TypeError: `logits` are no real numbers.
    """

    logits: jax.Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "logits", summable(self.logits, "logits"))
        if self.logits.shape[-1:] in ((), (0,)):
            raise ValueError(
                f"logits: expected shape (..., A) with at least one action, received {self.logits.shape}; "
                "logderiv.Bernoulli takes one logit for a choice between 0 and 1."
            )

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log-probability of an action.

        Args:
            action: Integers, broadcast against the leading axes of `logits`.

        Returns:
            log p(action), `-inf` outside `0 .. A - 1`. The broadcast shape.

        Raises:
            TypeError: `action` is not an integer.
            ValueError: `action` has a shape that does not fit.
        """
        return in_range(partial(_take, log_softmax(self.logits)), action, self.logits.shape[-1], -jnp.inf)

    def prob(self, action: jax.Array) -> jax.Array:
        """Probability of an action.

        Args:
            action: Integers, broadcast against the leading axes of `logits`.

        Returns:
            p(action), 0 outside `0 .. A - 1`. The broadcast shape.

        Raises:
            TypeError: `action` is not an integer.
            ValueError: `action` has a shape that does not fit.
        """
        return in_range(partial(_take, softmax(self.logits)), action, self.logits.shape[-1], 0.0)

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw an action, a function of the differences of the logits: what they share would take digits from the noise.

        Args:
            key: One key. Consumed.

        Returns:
            int32, shape of the leading axes of `logits`.
        """
        noise = gumbel(key, self.logits.shape, self.logits.dtype)
        peak = jnp.max(self.logits, axis=-1, keepdims=True)
        shifted = self.logits - jnp.where(jnp.isfinite(peak), peak, 0)
        return jnp.argmax(shifted + noise, axis=-1).astype(jnp.int32)

    def quantile(self, probability: jax.Array, *, upper: Any = False) -> jax.Array:
        """The first action a with F(a) > u, where F(a) = p(0) + ... + p(a): of a uniform u a draw.

        The sums are rounded: an action's probability to be drawn so is right to about the dtype's resolution, absolute. An action
        of probability 0 is never returned.

        Args:
            probability: u, or 1 - u where `upper`; between 0 and 1, broadcast against the leading axes of `logits`.
            upper: Whether `probability` counts from the top; broadcast against it.

        Returns:
            int32, the broadcast shape.

        Gradients: none; a step function.
        """
        u, upper = levels(probability, upper, self.logits.shape[:-1], self.logits.dtype)
        probs = jnp.broadcast_to(softmax(self.logits), (*u.shape, self.logits.shape[-1]))
        u, upper = u[..., None], upper[..., None]
        below, above = jnp.cumsum(probs, axis=-1), lax.cumsum(probs, axis=probs.ndim - 1, reverse=True)
        above = jnp.concatenate([above[..., 1:], jnp.zeros_like(u, above.dtype)], axis=-1)
        reached = jnp.where(upper, above < u, below > u) | (above == 0)
        return jnp.argmax(reached & (probs > 0), axis=-1).astype(jnp.int32)

    def entropy(self) -> jax.Array:
        """-Σ_a p(a) log p(a), masked actions contributing 0.

        Returns:
            In nats, shape of the leading axes of `logits`.
        """
        probs, log_probs = softmax(self.logits), log_softmax(self.logits)
        return -jnp.sum(probs * jnp.where(probs > 0, log_probs, 0.0), axis=-1)

    def mode(self) -> jax.Array:
        """The likeliest action.

        Returns:
            int32, shape of the leading axes of `logits`.
        """
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)


def masked(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Logits of the allowed actions, `-inf` for the others: `Categorical(masked(logits, observation.action_mask))`.

    A masked action is never drawn, has probability exactly 0, and passes no gradient; entropy and the gradients of the others
    are those of the softmax over the allowed ones. Where nothing is allowed there is no distribution: log-probabilities, entropy
    and their gradients are NaN, and `sample` gives action 0. In the invalid steps after an episode's end that does no harm.

    Args:
        logits: Shape `(..., A)`; NaN and infinities of masked actions do not matter.
        mask: True where an action is allowed; broadcast against `logits`.

    Returns:
        Shape of the two, broadcast; float32 at least.

    Raises:
        TypeError: `mask` is not boolean, or `logits` are no real numbers.
        ValueError: The two shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> Categorical(masked(jnp.zeros(3), jnp.array([True, False, True]))).prob(jnp.arange(3)).tolist()
        [0.5, 0.0, 0.5]
    """
    logits, mask = summable(logits, "logits"), array_of(mask, "mask")
    if mask.dtype != jnp.bool_:
        raise TypeError(f"mask: expected booleans, received {mask.dtype}; use mask.astype(bool).")
    shape = fit(logits.shape, mask=mask)
    logits, mask = jnp.broadcast_to(logits, shape), jnp.broadcast_to(mask, shape)
    nothing = jnp.broadcast_to(~jnp.any(mask, axis=-1 if shape else None, keepdims=True), shape)
    kept = jnp.where(mask | nothing, logits, 0) * jnp.where(
        nothing, jnp.nan, jnp.ones_like(logits)
    )  # so that gradients are NaN too
    return jnp.where(mask | nothing, kept, -jnp.inf)


@pytree
class Bernoulli:
    """p(1) = σ(ℓ), p(0) = σ(-ℓ); exact in both tails.

    Attributes:
        logits: Any shape; one value per trial, the log-probability of each is returned. float32 at least.

    Raises:
        TypeError: `logits` are no real numbers.
    """

    logits: jax.Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "logits", summable(self.logits, "logits"))

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log-probability of each trial.

        Args:
            action: 0 or 1, integer or bool, broadcast against `logits`.

        Returns:
            log p(action), `-inf` for other integers. The broadcast shape.

        Raises:
            TypeError: `action` is not an integer.
            ValueError: `action` has a shape that does not fit.
        """
        return in_range(lambda a: log_sigmoid(self._signed(a)), action, 2, -jnp.inf)

    def prob(self, action: jax.Array) -> jax.Array:
        """Probability of each trial.

        Args:
            action: 0 or 1, integer or bool, broadcast against `logits`.

        Returns:
            p(action), 0 for other integers. The broadcast shape.

        Raises:
            TypeError: `action` is not an integer.
            ValueError: `action` has a shape that does not fit.
        """
        return in_range(lambda a: sigmoid(self._signed(a)), action, 2, 0.0)

    def _signed(self, action: jax.Array) -> jax.Array:
        shape = fit(self.logits.shape, action=action)
        logits = jnp.broadcast_to(self.logits, shape)
        return jnp.where(jnp.broadcast_to(action == 1, shape), logits, -logits)

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw each trial.

        Args:
            key: One key. Consumed.

        Returns:
            0 or 1, int32, shape of `logits`.
        """
        x, upper = uniform(key, self.logits.shape, self.logits.dtype)
        return self.quantile(x, upper=~upper)

    def quantile(self, probability: jax.Array, *, upper: Any = False) -> jax.Array:
        """0 for u up to p(0), and 1 above: of a uniform u a draw.

        Args:
            probability: u, or 1 - u where `upper`; between 0 and 1, broadcast against `logits`.
            upper: Whether `probability` counts from the top; broadcast against it.

        Returns:
            0 or 1, int32, the broadcast shape.

        Gradients: none; a step function.
        """
        u, upper = levels(probability, upper, self.logits.shape, self.logits.dtype)
        return (logit(u, upper) > -jnp.broadcast_to(self.logits, u.shape)).astype(jnp.int32)

    def entropy(self) -> jax.Array:
        """|ℓ| σ(-|ℓ|) - log σ(|ℓ|); 0 at infinite logits.

        Returns:
            In nats, shape of `logits`.
        """
        certain = jnp.isinf(self.logits)
        size = jnp.where(certain, 0, jnp.where(self.logits < 0, -self.logits, self.logits))
        odds = jnp.exp(-size)
        return jnp.where(certain, 0, size * (odds / (1 + odds)) + jnp.log1p(odds))

    def mode(self) -> jax.Array:
        """The likelier of 0 and 1.

        Returns:
            int32, shape of `logits`.
        """
        return (self.logits > 0).astype(jnp.int32)


def in_range(function: Callable[[jax.Array], jax.Array], action: Any, size: float, outside: float) -> jax.Array:
    """`function(action)` of integers, with `outside`, and no gradient, where they are not in `0 .. size - 1`; `size` may be infinite.

    Raises:
        TypeError: `action` is not an integer.
    """
    action = array_of(action, "action")
    if jnp.issubdtype(action.dtype, jnp.floating):
        raise TypeError(f"action: expected integers, received dtype {action.dtype}; use action.astype(jnp.int32).")
    action = action if action.dtype.itemsize >= 4 else action.astype(jnp.int32)  # `size` may not fit into fewer bits
    inside = action >= 0 if size == math.inf else (action >= 0) & (action < size)
    return jnp.where(inside, function(jnp.where(inside, action, 0)), outside)


def _take(table: jax.Array, index: jax.Array) -> jax.Array:
    shape = fit(table.shape[:-1], action=index)
    table = jnp.broadcast_to(table, (*shape, table.shape[-1]))
    index = jnp.broadcast_to(index, shape)[..., None]
    return jnp.take_along_axis(table, index, axis=-1)[..., 0]


def fit(expected: tuple[int, ...], **arrays: Any) -> tuple[int, ...]:
    """The shape that all have together.

    Raises:
        ValueError: An array, named, does not broadcast against the expected shape.
    """
    for name, array in arrays.items():
        try:
            expected = np.broadcast_shapes(expected, array.shape)
        except ValueError:
            message = f"{name}: expected a shape that broadcasts against {expected}, received {array.shape}."
            raise ValueError(message) from None
    return expected


def levels(probability: Any, upper: Any, shape: tuple[int, ...], dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Arguments of a quantile function in this dtype, broadcast together with the shape of a draw.

    Raises:
        TypeError: They are no real numbers.
        ValueError: One does not broadcast against the shape.
    """
    u, upper = summable(probability, "probability").astype(dtype), array_of(upper, "upper")
    shape = fit(shape, probability=u, upper=upper)
    return jnp.broadcast_to(u, shape), jnp.broadcast_to(upper, shape)


def log_sigmoid(x: jax.Array) -> jax.Array:
    """The logarithm of σ(x)."""
    below = x < 0
    return jnp.where(below, x, 0) - jnp.log1p(jnp.exp(jnp.where(below, x, -x)))


def sigmoid(x: jax.Array) -> jax.Array:
    """σ(x) = 1 / (1 + exp(-x))."""
    below = x < 0
    odds = jnp.exp(jnp.where(below, x, -x))
    return jnp.where(below, odds, 1) / (1 + odds)


def log_softmax(x: jax.Array) -> jax.Array:
    """The logarithm of `softmax`; NaN where all logits are `-inf`."""
    if x.shape[-1] == 2:  # the difference of two logits decides alone; a fifth of the time
        return log_sigmoid(x - x[..., ::-1])
    shifted, rest = _relative_to_the_largest(x)
    return shifted - jnp.log1p(rest)


def softmax(x: jax.Array) -> jax.Array:
    """exp(x_a) / Σ_b exp(x_b), along the last axis."""
    if x.shape[-1] == 2:
        return sigmoid(x - x[..., ::-1])
    shifted, rest = _relative_to_the_largest(x)
    return jnp.exp(shifted) / (1 + rest)


def _relative_to_the_largest(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits minus the largest one, x - c, and Σ exp(x - c) - 1.

    Usually c is detached, since its derivatives cancel. But where the largest logit stands so far above the others that they are
    less likely together than it is alone, c is differentiated, and the sum is taken over the others only, without the 1 that is
    subtracted again: so it keeps its digits, however small it is. The largest logit is recognized by a margin, not by equality
    with the maximum, for which a compiler may compute x a second time with another rounding.
    """
    detached = lax.stop_gradient(x)
    fixed = jnp.max(detached, axis=-1, keepdims=True)
    distance = math.log(max(x.shape[-1] - 1, 2))
    near = jnp.sum(detached >= fixed - distance, axis=-1, keepdims=True)
    dominates = (near == 1) & (fixed > -jnp.inf)
    top = detached >= fixed - distance / 2
    alone = dominates & top
    peak = jnp.sum(jnp.where(top, x, 0), axis=-1, keepdims=True)
    shifted = jnp.where(alone, 0, x - jnp.where(dominates, peak, fixed))
    others = jnp.sum(jnp.where(alone, 0, jnp.exp(shifted)), axis=-1, keepdims=True)
    return shifted, jnp.where(dominates, others, others - 1)
