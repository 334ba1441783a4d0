"""Distributions of one action, and the two helpers that let any library's distributions take their place.

They are small on purpose: the numbers that decide whether a gradient is right (masked logits, actions out of range,
normalisation of `probs`) differ between libraries, so they are fixed here and tested. All are pytrees, all take
`logits` rather than probabilities.
"""

import dataclasses
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._arrays import expand, is_traced, register_dataclass, widen

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
        action = _integer(action)
        log_probs = jax.nn.log_softmax(self.logits)
        inside = self.contains(action)
        chosen = _take(log_probs, jnp.where(inside, action, 0))
        return jnp.where(inside, chosen, -jnp.inf)

    def prob(self, action: jax.Array) -> jax.Array:
        """Probability of `action`; 0 outside the range."""
        action = _integer(action)
        inside = self.contains(action)
        return jnp.where(inside, _take(jax.nn.softmax(self.logits), jnp.where(inside, action, 0)), 0.0)

    def contains(self, action: jax.Array) -> jax.Array:
        """Whether `action` is one of the `A` actions."""
        action = _integer(action)
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
        action = _integer(action)
        signed = jnp.where(action == 1, self.logits, -self.logits)
        return jnp.where(self.contains(action), jax.nn.log_sigmoid(signed), -jnp.inf)

    def prob(self, action: jax.Array) -> jax.Array:
        """Probability of `action`; 0 outside {0, 1}."""
        action = _integer(action)
        signed = jnp.where(action == 1, self.logits, -self.logits)
        return jnp.where(self.contains(action), jax.nn.sigmoid(signed), 0.0)

    def contains(self, action: jax.Array) -> jax.Array:
        """Whether `action` is 0 or 1."""
        action = _integer(action)
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

    `sample` is reparameterised (`loc + scale * noise`), so a score needs a held sample: `logderiv.rollout` holds its
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


@dataclasses.dataclass(frozen=True)
class Forced:
    r"""A choice that was made for the policy where `forced`: a token of the prompt, the output of a tool; else `distribution`.

    A forced step stays a real step, with the factor 1 and no score. It is no hole in `valid`, which is a prefix mask.

    Attributes:
        distribution: What the policy would choose from; of this library or another.
        action: The given action, a pytree of the structure and shapes that `distribution` draws; anything where it is not forced.
        forced: Shape `()`, bool.
    """

    distribution: Any
    action: Any
    forced: jax.Array

    def log_prob(self, action: Any) -> jax.Array:
        """0 for the given action and `-inf` for any other where forced; else that of the distribution."""
        own = log_prob(self.distribution, action)
        return jnp.where(self.forced, jnp.where(self._is_given(action), 0.0, -jnp.inf).astype(own.dtype), own)

    def prob(self, action: Any) -> jax.Array:
        """1 or 0 where forced; else that of the distribution."""
        own = prob(self.distribution, action)
        return jnp.where(self.forced, self._is_given(action).astype(own.dtype), own)

    def sample(self, key: jax.Array) -> Any:
        """The given action where forced, else a draw; `key` is consumed."""
        drawn = sample(self.distribution, key)
        return jax.tree.map(lambda g, d: jnp.where(self.forced, jnp.asarray(g, d.dtype), d), self.action, drawn)

    def _is_given(self, action: Any) -> jax.Array:
        same = jax.tree.map(lambda a, b: jnp.all(a == b), self.action, action)
        return jnp.all(jnp.stack(jax.tree.leaves(same)))


register_dataclass(Categorical, ("logits",))
register_dataclass(Bernoulli, ("logits",))
register_dataclass(Normal, ("loc", "scale"))
register_dataclass(Forced, ("distribution", "action", "forced"))


def normal_terms(x: jax.Array, loc: jax.Array, scale: jax.Array) -> jax.Array:
    """Log-density of each coordinate of a diagonal Normal."""
    standard = (x - loc) / scale
    return -0.5 * jnp.square(standard) - jnp.log(scale) - jnp.asarray(_HALF_LOG_2PI, standard.dtype)


def sum_event(terms: jax.Array) -> jax.Array:
    """The sum over the last axis, the event, where there is one."""
    return terms if terms.ndim == 0 else jnp.sum(terms, axis=-1)


def sample(distribution: Any, key: jax.Array) -> Any:
    """Draw one action from a distribution of ours, distrax, TensorFlow Probability or numpyro; `key` is consumed.

    The libraries disagree on `sample`: distrax and TFP take `seed=key`, numpyro takes the key first.
    """
    try:
        takes_seed = "seed" in inspect.signature(distribution.sample).parameters
    except (TypeError, ValueError):
        takes_seed = False
    return distribution.sample(seed=key) if takes_seed else distribution.sample(key)


def log_prob(distribution: Any, action: Any) -> jax.Array:
    """Scalar log-probability of one action under any library's distribution, checked.

    Raises:
        TypeError: As `log_probs`.
        ValueError: The log-probability is not a scalar.
    """
    return _scalar(log_probs(distribution, action), "log_prob")


def log_probs(distribution: Any, action: Any) -> jax.Array:
    """Log-probability under any library's distribution, of the shape that the distribution gives it.

    An integer action outside the range of a categorical distribution has log-probability `-inf`; TFP would return 0
    there and numpyro the log-probability of another action.

    Raises:
        TypeError: `distribution` has no `log_prob`, or a categorical action is a float.
    """
    check_distribution(distribution)
    return _guard(distribution, action, distribution.log_prob, -jnp.inf)


def check_distribution(distribution: Any) -> None:
    """Raise `TypeError` unless this is a distribution: an object with `log_prob`."""
    if not hasattr(distribution, "log_prob"):
        raise TypeError(
            f"policy: expected it to return a distribution with a log_prob method, received {type(distribution).__name__}; "
            "wrap the network's output, for example logderiv.Categorical(logits)."
        )


def prob(distribution: Any, action: Any) -> jax.Array:
    """Scalar probability of one action: `distribution.prob(action)` where it exists, else `exp(log_prob)`."""
    own = getattr(distribution, "prob", None)
    if own is None:
        return jnp.exp(log_prob(distribution, action))
    return _scalar(_guard(distribution, action, own, 0.0), "prob")


def num_categories(distribution: Any, action: Any) -> int | None:
    """The `A` of a categorical distribution over integers of any library, `None` for every other distribution.

    Recognised by `logits` or `probs` with one axis more than the action.
    """
    leaves = jax.tree.leaves(action)
    if len(leaves) != 1:
        return None
    for name in ("logits", "probs"):
        values = getattr(distribution, name, None)
        if values is not None and not callable(values) and jnp.ndim(values) == jnp.ndim(leaves[0]) + 1:
            return jnp.shape(values)[-1]
    return None


def check_range(distribution: Any, action: Any, actions: Any, valid: jax.Array) -> None:
    """Raise if a valid one of `actions` is out of the range of a categorical distribution; silent under tracing.

    Args:
        distribution: The distribution of one step.
        action: One action, for its shape.
        actions: All actions, leading axes of `valid`.
        valid: Which of them are real.

    Raises:
        ValueError: An action is out of range.
    """
    categories = num_categories(distribution, action)
    leaves = [*jax.tree.leaves(actions), valid]
    if categories is None or is_traced(*leaves):
        return
    values = np.asarray(leaves[0])
    outside = np.asarray(expand(valid, leaves[0])) & ((values < 0) | (values >= categories))
    if outside.any():
        raise ValueError(
            f"actions: expected integers in 0 .. {categories - 1}, received {values[outside][0]} at index "
            f"{tuple(int(i) for i in np.argwhere(outside)[0])}."
        )


def _guard(distribution: Any, action: Any, function: Any, outside: float) -> jax.Array:
    """`function(action)`, with `outside` where a categorical action is out of range."""
    categories = None if isinstance(distribution, Categorical) else num_categories(distribution, action)
    if categories is None:
        return function(action)
    action = _integer(action)
    inside = (action >= 0) & (action < categories)
    return jnp.where(inside, function(jnp.where(inside, action, 0)), outside)


def _scalar(value: Any, name: str) -> jax.Array:
    if jnp.shape(value) != ():
        raise ValueError(
            f"policy: expected {name} of one action to be a scalar, received shape {jnp.shape(value)}. Either the policy was "
            "given, or returned, a whole batch (it is called with one observation), or an event axis is not summed "
            "(use logderiv.Normal, or the library's Independent)."
        )
    return jnp.asarray(value)


def _integer(action: Any) -> jax.Array:
    action = jnp.asarray(action)
    if not (jnp.issubdtype(action.dtype, jnp.integer) or action.dtype == jnp.bool_):
        raise TypeError(f"action: expected integers, received dtype {action.dtype}; use action.astype(jnp.int32).")
    return widen(action)


def _take(table: jax.Array, index: jax.Array) -> jax.Array:
    shape = jnp.broadcast_shapes(table.shape[:-1], index.shape)
    table = jnp.broadcast_to(table, (*shape, table.shape[-1]))
    index = jnp.broadcast_to(index, shape)[..., None]
    return jnp.take_along_axis(table, index, axis=-1)[..., 0]
