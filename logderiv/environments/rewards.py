"""Rewards that are random: a finite law of the reward of a step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core import check
from logderiv._core.arrays import chances_of, integers, summable
from logderiv._core.pytrees import pytree
from logderiv.distributions.basic import Categorical


@pytree
class RewardLaw:
    """A finite law q(r|s,a) or q(r|s,a,s') of the reward of a step, on K values.

    Given the step, the reward is independent of all others. Pass it as the `reward` of a `TabularMDP`; both arrays are pytree leaves.

    Attributes:
        values: What may be paid, shape `(K,)`, or that of `probabilities` where the values differ between steps.
        probabilities: Of the values, shape `(S, A, K)`; `(S, A, S, K)` for a reward that is paid on arrival.

    Raises:
        ValueError: Shapes disagree; probabilities are negative, or do not sum to one over the last axis.
        TypeError: An array is not of real numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> coin = RewardLaw(jnp.array([0.0, 1.0]), jnp.full((1, 2, 2), 0.5))
        >>> coin.moment(1).tolist()
        [[0.5, 0.5]]
    """

    values: Any
    probabilities: Any

    def __post_init__(self) -> None:
        given = self.probabilities
        values, probabilities = (summable(getattr(self, x), f"RewardLaw.{x}") for x in ("values", "probabilities"))
        if probabilities.ndim not in (3, 4):
            raise ValueError(
                f"RewardLaw.probabilities: expected shape (S, A, K) or (S, A, S, K), received {probabilities.shape}."
            )
        if values.shape not in (probabilities.shape[-1:], probabilities.shape):
            raise ValueError(
                f"RewardLaw.values: expected shape {probabilities.shape[-1:]} or {probabilities.shape}, that of probabilities, "
                f"received {values.shape}."
            )
        if not check.is_traced(probabilities):
            probabilities = sums_to_one("RewardLaw.probabilities", probabilities, given)
        dtype = jnp.promote_types(values.dtype, probabilities.dtype)
        object.__setattr__(self, "values", values.astype(dtype))
        object.__setattr__(self, "probabilities", probabilities.astype(dtype))

    def moment(self, power: int) -> jax.Array:
        """E[r^n] of each step.

        Args:
            power: n.

        Returns:
            Shape `(S, A)` or `(S, A, S)`.

        Gradients: flow to values and probabilities.
        """
        values = jnp.broadcast_to(self.values, self.probabilities.shape) ** power
        return jnp.sum(self.probabilities * possible(self.probabilities, values), axis=-1)

    def sample(self, key: jax.Array, state: jax.Array, action: jax.Array, new: jax.Array) -> jax.Array:
        """The reward of one step from `state` to `new`.

        Args:
            key: Consumed.
            state: Shape `()`.
            action: Shape `()`.
            new: The state that is entered, shape `()`.

        Returns:
            Shape `()`.
        """
        values, probabilities = self._of(state, action, new)
        return values[Categorical(jnp.log(probabilities)).sample(key)]

    def log_prob(self, reward: jax.Array, state: jax.Array, action: jax.Array, new: jax.Array) -> jax.Array:
        """Logarithm of `prob`.

        Args:
            reward: As of `prob`.
            state: Shape `(T,)`.
            action: Shape `(T,)`.
            new: The states that are entered, shape `(T,)`.

        Returns:
            Shape `(T,)`; `-inf` of what is never paid.

        Gradients: flow to the probabilities.
        """
        return jnp.log(self.prob(reward, state, action, new))

    def prob(self, reward: jax.Array, state: jax.Array, action: jax.Array, new: jax.Array) -> jax.Array:
        """Probability that this reward is paid.

        Args:
            reward: Shape `(T,)`; compared in the narrower dtype of rewards and values.
            state: Shape `(T,)`.
            action: Shape `(T,)`.
            new: The states that are entered, shape `(T,)`.

        Returns:
            Shape `(T,)`; 0 of what is never paid.

        Raises:
            TypeError: States or actions are no whole numbers.

        Gradients: flow to the probabilities.
        """
        values, probabilities = self._of(state, action, new)
        reward = reward if jnp.issubdtype(reward.dtype, jnp.floating) else summable(reward, "reward")
        dtype = min(values.dtype, reward.dtype, key=lambda x: x.itemsize)
        same = jnp.broadcast_to(values.astype(dtype), probabilities.shape) == reward.astype(dtype)[:, None]
        return jnp.sum(jnp.where(same, probabilities, 0), axis=-1)

    def _of(self, state: jax.Array, action: jax.Array, new: jax.Array) -> tuple[jax.Array, jax.Array]:
        step = {"state": state, "action": action, "new": new}
        index = tuple(integers(x, name) for name, x in step.items())[: self.probabilities.ndim - 1]
        values = self.values if self.values.ndim == 1 else self.values[index]
        return values, chances_of(self.probabilities, *index)


def sums_to_one(name: str, table: jax.Array, given: Any, live: np.ndarray | None = None) -> jax.Array:
    """A table whose rows (or those named) sum to 1, to the resolution in which it was given; exactly so, if that was half precision."""
    numbers = np.asarray(table)
    rows = numbers if live is None else numbers[live]
    dtype = jnp.dtype(getattr(given, "dtype", numbers.dtype))
    half = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4
    worst = np.max(np.abs(rows.sum(-1) - 1), initial=0.0)
    allowed = 100 * jnp.finfo(numbers.dtype).eps + (jnp.finfo(dtype).eps if half else 0)
    if np.any(rows < 0):
        raise ValueError(f"{name}: expected probabilities that sum to 1 and are at least 0, received {rows.min():.3g}.")
    if not worst <= allowed:
        raise ValueError(f"{name}: expected probabilities that sum to 1, off by {worst:.3g}.")
    sums = numbers.sum(-1, keepdims=True)
    return jnp.asarray(numbers / np.where(sums > 0, sums, 1)) if half else table


def possible(probabilities: jax.Array, values: jax.Array) -> jax.Array:
    """The values, with 0 for one that is not finite and never comes: 0 times it would be NaN."""
    return jnp.where((probabilities == 0) & ~jnp.isfinite(values), 0, values)
