"""Any library's distributions: ours, distrax, TensorFlow Probability and numpyro disagree on details that are settled here.

What cannot be settled here is how another library draws: in the dtype of its parameters, in half precision from another law than
the one that it scores, which biases every score. Its parameters are best cast to float32 before they are handed to it.
"""

import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from logderiv._core import check
from logderiv._core.arrays import integers, summable
from logderiv._core.pytrees import pytree
from logderiv.distributions.basic import Bernoulli, Categorical, in_range
from logderiv.distributions.counts import Poisson


def sample(distribution: Any, key: jax.Array) -> Any:
    """Draw one action.

    The libraries disagree on `sample`: distrax and TFP take `seed=key`, numpyro takes the key first.

    Args:
        distribution: Of this library, distrax, TensorFlow Probability or numpyro.
        key: Consumed.

    Returns:
        One action.
    """
    try:
        takes_seed = "seed" in inspect.signature(distribution.sample).parameters
    except (TypeError, ValueError):
        takes_seed = False
    return distribution.sample(seed=key) if takes_seed else distribution.sample(key)


def log_prob(distribution: Any, action: Any) -> jax.Array:
    """Scalar log-probability of one action, checked.

    Args:
        distribution: Of this library, distrax, TensorFlow Probability or numpyro.
        action: What one draw of it is; an array, or a pytree where the distribution is of one.

    Returns:
        Shape `()`; `-inf` for an integer out of the range of a categorical distribution, a Bernoulli or counts.

    Raises:
        TypeError: `distribution` has no `log_prob`, or a categorical action is a float.
        ValueError: The log-probability is not a scalar.
    """
    check_distribution(distribution)
    return _guarded("log_prob", distribution, action, -jnp.inf)


def log_probs(distribution: Any, action: Any) -> jax.Array:
    """Log-probability of an action.

    An integer action outside the range of a categorical distribution, a Bernoulli or counts has log-probability `-inf`; TFP would
    return 0 there and numpyro the log-probability of another action, or a number that is none.

    Args:
        distribution: Of this library, distrax, TensorFlow Probability or numpyro.
        action: What one draw of it is; an array, or a pytree where the distribution is of one.

    Returns:
        Of the shape that the distribution gives it.

    Raises:
        TypeError: `distribution` has no `log_prob`, or a categorical action is a float.
    """
    check_distribution(distribution)
    return _guarded("log_prob", distribution, action, -jnp.inf, scalar=False)


def check_distribution(distribution: Any) -> None:
    """Check that this is a distribution.

    Args:
        distribution: An object with `log_prob`.

    Raises:
        TypeError: It has none.
    """
    if not hasattr(distribution, "log_prob"):
        raise TypeError(
            f"policy: expected it to return a distribution with a log_prob method, received {type(distribution).__name__}; "
            "wrap the network's output, for example logderiv.Categorical(logits)."
        )


def prob(distribution: Any, action: Any) -> jax.Array:
    """Scalar probability of one action: `distribution.prob(action)` where it exists, else `exp(log_prob)`.

    Args:
        distribution: Of this library, distrax, TensorFlow Probability or numpyro.
        action: What one draw of it is; an array, or a pytree where the distribution is of one.

    Returns:
        Shape `()`; 0 for an integer out of the range of a categorical distribution, a Bernoulli or counts.

    Raises:
        TypeError: `distribution` has neither, or a categorical action is a float.
        ValueError: The probability is not a scalar.
    """
    return _probability(distribution, action, scalar=True)


def probs(distribution: Any, action: Any) -> jax.Array:
    """Probability of an action, of the shape that the distribution gives it; as `log_probs`."""
    return _probability(distribution, action, scalar=False)


def _probability(distribution: Any, action: Any, *, scalar: bool) -> jax.Array:
    if not hasattr(distribution, "prob"):
        return jnp.exp((log_prob if scalar else log_probs)(distribution, action))
    return _guarded("prob", distribution, action, 0.0, scalar=scalar)


@pytree
class Forced:
    """A choice that was made for the policy where `forced`: a token of the prompt, the output of a tool; else `distribution`.

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
        """0 for the given action and `-inf` for any other where forced; else that of the distribution.

        Args:
            action: A pytree of the structure and shapes that `distribution` draws.

        Returns:
            Shape `()`.
        """
        own = log_prob(self.distribution, action)
        return jnp.where(self.forced, jnp.where(self._is_given(action), 0.0, -jnp.inf).astype(own.dtype), own)

    def prob(self, action: Any) -> jax.Array:
        """1 for the given action and 0 for any other where forced; else that of the distribution.

        Args:
            action: A pytree of the structure and shapes that `distribution` draws.

        Returns:
            Shape `()`.
        """
        own = prob(self.distribution, action)
        return jnp.where(self.forced, self._is_given(action).astype(own.dtype), own)

    def sample(self, key: jax.Array) -> Any:
        """The given action where forced, else a draw.

        Args:
            key: One key. Consumed.

        Returns:
            A pytree of the structure, shapes and dtypes that `distribution` draws.

        Raises:
            ValueError: The given action has another structure, or a leaf another shape.
            TypeError: It is no integer where draws are.
        """
        drawn = sample(self.distribution, key)
        check.like("Forced.action", self.action, drawn, hint="as a draw")

        def one(given: Any, drawn: jax.Array) -> jax.Array:
            cast = integers if jnp.issubdtype(drawn.dtype, jnp.integer) else summable
            return jnp.where(self.forced, cast(given, "Forced.action").astype(drawn.dtype), drawn)

        return jax.tree.map(one, self.action, drawn)

    def _is_given(self, action: Any) -> jax.Array:
        check.like("action", action, self.action, hint="as the action that is prescribed")
        same = jax.tree.map(lambda a, b: jnp.all(a == b), self.action, action)
        return jnp.all(jnp.stack(jax.tree.leaves(same)))


def num_categories(distribution: Any, action: Any) -> int | None:
    """The number of categories of a categorical distribution over integers.

    Recognized by `logits` or `probs` with one axis more than the action.

    Args:
        distribution: Of this library, distrax, TensorFlow Probability or numpyro.
        action: What one draw of it is; an array, or a pytree where the distribution is of one.

    Returns:
        `A`; `None` for every other distribution.
    """
    leaves = jax.tree.leaves(action)
    if len(leaves) != 1:
        return None
    for name in ("logits", "probs"):
        values = getattr(distribution, name, None)
        if values is not None and not callable(values) and jnp.ndim(values) == jnp.ndim(leaves[0]) + 1:
            return jnp.shape(values)[-1]
    return None


def ranges(distribution: Any, action: Any) -> list[float | None]:
    """How many values `0, 1, ...` each leaf of a draw may have: A of a categorical, 2 of a Bernoulli, infinitely many of counts.

    Of a `Joint` those of its parts, and of a `Forced` those of what the policy would choose from.

    Args:
        distribution: Of this library, distrax, TensorFlow Probability or numpyro.
        action: What one draw of it is; an array, or a pytree where the distribution is of one.

    Returns:
        A number for each leaf of `action`; `None` for one of another distribution.

    Raises:
        ValueError: `action` has not the structure and the shapes that a `Joint` draws.
    """
    if isinstance(distribution, Forced):
        return ranges(distribution.distribution, action)
    if hasattr(distribution, "_pairs"):  # a Joint, which builds on this module
        return [size for part, a in distribution._pairs(action) for size in ranges(part, a)]
    leaves = jax.tree.leaves(action)
    return [range_of(distribution, leaves[0])] if len(leaves) == 1 else [None] * len(leaves)


def range_of(distribution: Any, action: Any) -> float | None:
    """That of one array; in floating point only a categorical distribution's is known."""
    if jnp.issubdtype(jnp.result_type(action), jnp.floating):
        return num_categories(distribution, action)
    kind = type(distribution).__name__
    if isinstance(distribution, Bernoulli) or "Bernoulli" in kind:
        return 2
    return math.inf if isinstance(distribution, Poisson) or "Poisson" in kind else num_categories(distribution, action)


def check_range(size: float | None, actions: Any, valid: Any, name: str = "actions") -> None:
    """Raise if a valid action is none of the integers `0 .. size - 1`; silent where they have no values.

    Args:
        size: How many there are, as of `ranges`; nothing is checked where it is `None`, nor of floating point.
        actions: One array, leading axes of `valid`.
        valid: Which of them are real.
        name: What the message calls them.

    Raises:
        ValueError: An action is out of range.
    """
    if size is None or isinstance(actions, Tracer) or isinstance(valid, Tracer):
        return
    if jnp.issubdtype(jnp.result_type(actions), jnp.floating):
        return
    values, valid = np.asarray(actions), np.asarray(valid)
    outside = valid[(..., *(None,) * (values.ndim - valid.ndim))] & ((values < 0) | (values >= size))
    if outside.any():
        expected = "integers >= 0" if size == math.inf else f"integers in 0 .. {size - 1}"
        at = tuple(int(i) for i in np.argwhere(outside)[0])
        raise ValueError(f"{name}: expected {expected}, received {values[outside][0]} at index {at}.")


def _guarded(name: str, distribution: Any, action: Any, outside: float, *, scalar: bool = True) -> jax.Array:
    """The method of this name of an action, with `outside` where the action is out of range, also by another library."""
    function = getattr(distribution, name)
    leaves, checks = jax.tree.leaves(action), isinstance(distribution, Categorical | Bernoulli | Poisson)
    size = None if checks or len(leaves) != 1 else range_of(distribution, leaves[0])
    value = function(action) if size is None else in_range(function, action, size, outside)
    if scalar and jnp.shape(value) != ():
        raise ValueError(
            f"policy: expected {name} of one action to be a scalar, received shape {jnp.shape(value)}. Either the policy was "
            "given, or returned, a whole batch (it is called with one observation), or an event axis is not summed "
            "(use logderiv.Normal, or the library's Independent)."
        )
    return jnp.asarray(value)
