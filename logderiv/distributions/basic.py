"""Distributions of one action.

They are small on purpose: the numbers that decide whether a gradient is right (masked logits, actions out of range,
normalization of `probs`) differ between libraries, so they are fixed here and tested. All are pytrees, all take
`logits` rather than probabilities.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core.arrays import HALF_LOG_2PI
from logderiv._core.pytrees import pytree


@pytree
class Categorical:
    """p(a) = exp(ℓ_a) / Σ_b exp(ℓ_b) for a = 0, ..., A - 1.

    A logit of `-inf` masks an action: its probability is exactly 0, its log-probability `-inf`, and entropy and
    gradients of the others stay finite. An action outside `0 .. A - 1` has log-probability `-inf` and zero gradient.

    Attributes:
        logits: Shape `(..., A)`.
    """

    logits: jax.Array

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log-probability of an action.

        Args:
            action: Integers, broadcast against the leading axes of `logits`.

        Returns:
            log p(action), `-inf` outside `0 .. A - 1`. The broadcast shape.

        Raises:
            TypeError: `action` is not an integer.
        """
        log_probs = jax.nn.log_softmax(self.logits)
        return in_range(partial(_take, log_probs), action, self.logits.shape[-1], -jnp.inf)

    def prob(self, action: jax.Array) -> jax.Array:
        """Probability of an action.

        Args:
            action: Integers, broadcast against the leading axes of `logits`.

        Returns:
            p(action), 0 outside `0 .. A - 1`. The broadcast shape.

        Raises:
            TypeError: `action` is not an integer.
        """
        return in_range(partial(_take, jax.nn.softmax(self.logits)), action, self.logits.shape[-1], 0.0)

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw an action.

        Args:
            key: One key. Consumed.

        Returns:
            int32, shape of the leading axes of `logits`.
        """
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def entropy(self) -> jax.Array:
        """-Σ_a p(a) log p(a), masked actions contributing 0.

        Returns:
            In nats, shape of the leading axes of `logits`.
        """
        probs, log_probs = jax.nn.softmax(self.logits), jax.nn.log_softmax(self.logits)
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
    are those of the softmax over the allowed ones. Where nothing is allowed there is no distribution: log-probabilities and
    entropy are NaN, and `sample` gives action 0. In the invalid steps after an episode's end that does no harm.

    Args:
        logits: Shape `(..., A)`; NaN and infinities of masked actions do not matter.
        mask: True where an action is allowed; broadcast against `logits`.

    Returns:
        Shape of the two, broadcast.

    Raises:
        TypeError: `mask` is not boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> Categorical(masked(jnp.zeros(3), jnp.array([True, False, True]))).prob(jnp.arange(3)).tolist()
        [0.5, 0.0, 0.5]
    """
    if jnp.result_type(mask) != jnp.bool_:
        raise TypeError(f"mask: expected booleans, received {jnp.result_type(mask)}; use mask.astype(bool).")
    return jnp.where(mask, logits, -jnp.inf)


@pytree
class Bernoulli:
    """p(1) = σ(ℓ), p(0) = σ(-ℓ); exact in both tails.

    Attributes:
        logits: Any shape; one value per trial, the log-probability of each is returned.
    """

    logits: jax.Array

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log-probability of each trial.

        Args:
            action: 0 or 1, integer or bool, broadcast against `logits`.

        Returns:
            log p(action), `-inf` for other integers. The broadcast shape.

        Raises:
            TypeError: `action` is not an integer.
        """
        return in_range(lambda a: jax.nn.log_sigmoid(self._signed(a)), action, 2, -jnp.inf)

    def prob(self, action: jax.Array) -> jax.Array:
        """Probability of each trial.

        Args:
            action: 0 or 1, integer or bool, broadcast against `logits`.

        Returns:
            p(action), 0 for other integers. The broadcast shape.

        Raises:
            TypeError: `action` is not an integer.
        """
        return in_range(lambda a: jax.nn.sigmoid(self._signed(a)), action, 2, 0.0)

    def _signed(self, action: jax.Array) -> jax.Array:
        return jnp.where(action == 1, self.logits, -self.logits)

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw each trial.

        Args:
            key: One key. Consumed.

        Returns:
            0 or 1, int32, shape of `logits`.
        """
        return jax.random.bernoulli(key, jax.nn.sigmoid(self.logits)).astype(jnp.int32)

    def entropy(self) -> jax.Array:
        """ℓ σ(-ℓ) - log σ(ℓ); 0 at infinite logits.

        Returns:
            In nats, shape of `logits`.
        """
        tail = jnp.where(jnp.isinf(self.logits), 0.0, self.logits)
        entropy = tail * jax.nn.sigmoid(-tail) - jax.nn.log_sigmoid(tail)
        return jnp.where(jnp.isinf(self.logits), 0.0, entropy)

    def mode(self) -> jax.Array:
        """The likelier of 0 and 1.

        Returns:
            int32, shape of `logits`.
        """
        return (self.logits > 0).astype(jnp.int32)


@pytree
class Normal:
    """Normal with diagonal covariance.

        log p(x) = -Σ_i [ ((x_i - μ_i) / σ_i)² / 2 + log σ_i + log(2π) / 2 ]

    The last axis of `loc`, if it has one, is the event and is summed over.

    `sample` is reparameterized (`loc + scale * noise`), so a score needs a detached sample: `logderiv.rollout` detaches its
    parameters, elsewhere use `jax.lax.stop_gradient`.

    Attributes:
        loc: Mean, shape `()` or `(..., D)`.
        scale: Standard deviation, positive, broadcast against `loc`.
    """

    loc: jax.Array
    scale: jax.Array

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log-density of an action, the event axis summed.

        Args:
            action: Shape of `loc`, or broadcast against it.

        Returns:
            The broadcast shape without its last axis, if it has one.
        """
        return sum_event(normal_terms(action, self.loc, self.scale))

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw `loc + scale * noise`.

        Args:
            key: One key. Consumed.

        Returns:
            Shape of `loc` and `scale`, broadcast.
        """
        shape = jnp.broadcast_shapes(jnp.shape(self.loc), jnp.shape(self.scale))
        return self.loc + self.scale * jax.random.normal(key, shape, jnp.result_type(self.loc, self.scale))

    def entropy(self) -> jax.Array:
        """Σ_i log σ_i + log(2πe) / 2.

        Returns:
            In nats, shape of `loc` without its last axis, if it has one.
        """
        scale = jnp.broadcast_to(self.scale, jnp.broadcast_shapes(jnp.shape(self.loc), jnp.shape(self.scale)))
        return sum_event(jnp.log(scale) + jnp.asarray(HALF_LOG_2PI + 0.5, scale.dtype))

    def mode(self) -> jax.Array:
        """The likeliest action, the mean.

        Returns:
            `loc`.
        """
        return self.loc


def normal_terms(x: jax.Array, loc: jax.Array, scale: jax.Array) -> jax.Array:
    """Log-density of each coordinate of a diagonal Normal."""
    standard = (x - loc) / scale
    return -0.5 * jnp.square(standard) - jnp.log(scale) - jnp.asarray(HALF_LOG_2PI, standard.dtype)


def sum_event(terms: jax.Array) -> jax.Array:
    """The sum over the last axis, the event, where there is one."""
    return terms if terms.ndim == 0 else jnp.sum(terms, axis=-1)


def in_range(function: Callable[[jax.Array], jax.Array], action: Any, size: int, outside: float) -> jax.Array:
    """`function(action)` of integers, with `outside`, and no gradient, where they are not in `0 .. size - 1`.

    Raises:
        TypeError: `action` is not an integer.
    """
    action = jnp.asarray(action)
    if not (jnp.issubdtype(action.dtype, jnp.integer) or action.dtype == jnp.bool_):
        raise TypeError(f"action: expected integers, received dtype {action.dtype}; use action.astype(jnp.int32).")
    action = action if action.dtype.itemsize >= 4 else action.astype(jnp.int32)  # `size` may not fit into fewer bits
    inside = (action >= 0) & (action < size)
    return jnp.where(inside, function(jnp.where(inside, action, 0)), outside)


def _take(table: jax.Array, index: jax.Array) -> jax.Array:
    shape = jnp.broadcast_shapes(table.shape[:-1], index.shape)
    table = jnp.broadcast_to(table, (*shape, table.shape[-1]))
    index = jnp.broadcast_to(index, shape)[..., None]
    return jnp.take_along_axis(table, index, axis=-1)[..., 0]
