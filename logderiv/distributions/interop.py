"""Any library's distributions: ours, distrax, TensorFlow Probability and numpyro disagree on details that are settled here."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core.arrays import expand, is_traced
from logderiv.distributions.basic import Categorical, integer_action


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

    Recognized by `logits` or `probs` with one axis more than the action.
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
    action = integer_action(action)
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
