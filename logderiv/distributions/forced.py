"""A choice that was made for the policy."""

from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core.pytrees import pytree
from logderiv.distributions.interop import log_prob, prob, sample


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
        """
        drawn = sample(self.distribution, key)
        return jax.tree.map(lambda g, d: jnp.where(self.forced, jnp.asarray(g, d.dtype), d), self.action, drawn)

    def _is_given(self, action: Any) -> jax.Array:
        same = jax.tree.map(lambda a, b: jnp.all(a == b), self.action, action)
        return jnp.all(jnp.stack(jax.tree.leaves(same)))
