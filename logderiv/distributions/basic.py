"""Distributions of one action.

They are small on purpose: the numbers that decide whether a gradient is right (masked logits, actions out of range,
normalization of `probs`) differ between libraries, so they are fixed here and tested. All are pytrees, all take
`logits` rather than probabilities.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core.arrays import register_dataclass, widen

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


@dataclasses.dataclass(frozen=True)
class Categorical:
    r"""$p(a) = \exp(\ell_a) / \sum_b \exp(\ell_b)$ for $a = 0, \ldots, A - 1$.

    A logit of `-inf` masks an action: its probability is exactly 0, its log-probability `-inf`, and entropy and
    gradients of the others stay finite. An action outside `0 .. A - 1` has log-probability `-inf` and zero gradient.

    Attributes:
        logits: Shape `(..., A)`.
    """

    logits: jax.Array

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log-probability of `action`, shape of `action`.

        Raises:
            TypeError: `action` is not an integer.
        """
        action = integer_action(action)
        log_probs = jax.nn.log_softmax(self.logits)
        inside = self.contains(action)
        chosen = _take(log_probs, jnp.where(inside, action, 0))
        return jnp.where(inside, chosen, -jnp.inf)

    def prob(self, action: jax.Array) -> jax.Array:
        """Probability of `action`; 0 outside the range."""
        action = integer_action(action)
        inside = self.contains(action)
        return jnp.where(inside, _take(jax.nn.softmax(self.logits), jnp.where(inside, action, 0)), 0.0)

    def contains(self, action: jax.Array) -> jax.Array:
        """Whether `action` is one of the `A` actions."""
        action = integer_action(action)
        return (action >= 0) & (action < self.logits.shape[-1])

    def sample(self, key: jax.Array) -> jax.Array:
        """An action, int32; `key` is consumed."""
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def entropy(self) -> jax.Array:
        r"""$-\sum_a p(a) \log p(a)$ in nats, masked actions contributing 0."""
        probs, log_probs = jax.nn.softmax(self.logits), jax.nn.log_softmax(self.logits)
        return -jnp.sum(probs * jnp.where(probs > 0, log_probs, 0.0), axis=-1)

    def mode(self) -> jax.Array:
        """The likeliest action."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)


def masked(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Logits of the allowed actions, `-inf` for the others: `Categorical(masked(logits, observation.action_mask))`.

    A masked action is never drawn, has probability exactly 0, and passes no gradient; entropy and the gradients of the others
    are those of the softmax over the allowed ones. Where nothing is allowed there is no distribution: log-probabilities and
    entropy are NaN, and `sample` gives action 0. In the invalid steps after an episode's end that does no harm.

    Args:
        logits: Shape `(..., A)`; NaN and infinities of masked actions do not matter.
        mask: True where an action is allowed; broadcast against `logits`.

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


@dataclasses.dataclass(frozen=True)
class Bernoulli:
    r"""$p(1) = \sigma(\ell)$, $p(0) = \sigma(-\ell)$; exact in both tails.

    Attributes:
        logits: Any shape; one value per trial, the log-probability of each is returned.
    """

    logits: jax.Array

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log-probability of `action` in {0, 1} (integer or bool); `-inf` elsewhere.

        Raises:
            TypeError: `action` is floating point.
        """
        action = integer_action(action)
        signed = jnp.where(action == 1, self.logits, -self.logits)
        return jnp.where(self.contains(action), jax.nn.log_sigmoid(signed), -jnp.inf)

    def prob(self, action: jax.Array) -> jax.Array:
        """Probability of `action`; 0 outside {0, 1}."""
        action = integer_action(action)
        signed = jnp.where(action == 1, self.logits, -self.logits)
        return jnp.where(self.contains(action), jax.nn.sigmoid(signed), 0.0)

    def contains(self, action: jax.Array) -> jax.Array:
        """Whether `action` is 0 or 1."""
        action = integer_action(action)
        return (action == 0) | (action == 1)

    def sample(self, key: jax.Array) -> jax.Array:
        """0 or 1, int32; `key` is consumed."""
        return jax.random.bernoulli(key, jax.nn.sigmoid(self.logits)).astype(jnp.int32)

    def entropy(self) -> jax.Array:
        r"""$\ell\,\sigma(-\ell) - \log\sigma(\ell)$ in nats; 0 at infinite logits."""
        tail = jnp.where(jnp.isinf(self.logits), 0.0, self.logits)
        entropy = tail * jax.nn.sigmoid(-tail) - jax.nn.log_sigmoid(tail)
        return jnp.where(jnp.isinf(self.logits), 0.0, entropy)

    def mode(self) -> jax.Array:
        """The likelier of 0 and 1."""
        return (self.logits > 0).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Normal:
    r"""Normal with diagonal covariance: $\log p(x) = -\sum_i \tfrac12 ((x_i - \mu_i)/\sigma_i)^2 + \log\sigma_i + \tfrac12\log 2\pi$.

    The last axis of `loc`, if it has one, is the event and is summed over.

    `sample` is reparameterized (`loc + scale * noise`), so a score needs a held sample: `logderiv.rollout` holds its
    parameters, elsewhere use `jax.lax.stop_gradient`.

    Attributes:
        loc: Mean, shape `()` or `(..., D)`.
        scale: Standard deviation, positive, broadcast against `loc`.
    """

    loc: jax.Array
    scale: jax.Array

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log-density of `action`, the event axis summed."""
        return sum_event(normal_terms(action, self.loc, self.scale))

    def sample(self, key: jax.Array) -> jax.Array:
        """`loc + scale * noise`; `key` is consumed."""
        shape = jnp.broadcast_shapes(jnp.shape(self.loc), jnp.shape(self.scale))
        return self.loc + self.scale * jax.random.normal(key, shape, jnp.result_type(self.loc, self.scale))

    def entropy(self) -> jax.Array:
        r"""$\sum_i \log\sigma_i + \tfrac12\log 2\pi e$ in nats."""
        scale = jnp.broadcast_to(self.scale, jnp.broadcast_shapes(jnp.shape(self.loc), jnp.shape(self.scale)))
        return sum_event(jnp.log(scale) + jnp.asarray(_HALF_LOG_2PI + 0.5, scale.dtype))

    def mode(self) -> jax.Array:
        """The mean."""
        return self.loc


register_dataclass(Categorical, ("logits",))
register_dataclass(Bernoulli, ("logits",))
register_dataclass(Normal, ("loc", "scale"))


def normal_terms(x: jax.Array, loc: jax.Array, scale: jax.Array) -> jax.Array:
    """Log-density of each coordinate of a diagonal Normal."""
    standard = (x - loc) / scale
    return -0.5 * jnp.square(standard) - jnp.log(scale) - jnp.asarray(_HALF_LOG_2PI, standard.dtype)


def sum_event(terms: jax.Array) -> jax.Array:
    """The sum over the last axis, the event, where there is one."""
    return terms if terms.ndim == 0 else jnp.sum(terms, axis=-1)


def integer_action(action: Any) -> jax.Array:
    """`action` as integers of 32 bits at least; `TypeError` for anything else."""
    action = jnp.asarray(action)
    if not (jnp.issubdtype(action.dtype, jnp.integer) or action.dtype == jnp.bool_):
        raise TypeError(f"action: expected integers, received dtype {action.dtype}; use action.astype(jnp.int32).")
    return widen(action)


def _take(table: jax.Array, index: jax.Array) -> jax.Array:
    shape = jnp.broadcast_shapes(table.shape[:-1], index.shape)
    table = jnp.broadcast_to(table, (*shape, table.shape[-1]))
    index = jnp.broadcast_to(index, shape)[..., None]
    return jnp.take_along_axis(table, index, axis=-1)[..., 0]
