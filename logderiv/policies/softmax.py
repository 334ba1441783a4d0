"""Policies whose parameters are the logits themselves."""

from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core.arrays import row_of, summable
from logderiv._core.pytrees import pytree
from logderiv.distributions.basic import Categorical
from logderiv.types import Policy


@pytree
class TabularSoftmax(Policy):
    """π(a|s) = softmax(θ_s)_a with `params` the logits, shape `(S, A)`; observations are states."""

    def apply(self, params: jax.Array, observation: jax.Array) -> Categorical:
        """The distribution in one state, or in each of several.

        Args:
            params: Logits θ, shape `(S, A)`.
            observation: The state, an integer of any width; or several, of any shape.

        Returns:
            A `Categorical` over `A` actions, with the shape of the states; its logits are NaN in a state outside `0 .. S - 1`.

        Raises:
            ValueError: `params` has another number of axes.
            TypeError: The state is no whole number.
        """
        params = summable(params, "params")
        if params.ndim != 2:
            raise ValueError(f"params: expected logits of shape (S, A), received {params.shape}.")
        return Categorical(row_of(params, observation))

    def table(self, params: jax.Array, observations: Any, actions: jax.Array) -> tuple[jax.Array, jax.Array] | None:
        """The logits, and the state of each step.

        Args:
            params: Logits θ, shape `(S, A)`.
            observations: The states.
            actions: The actions, one integer a step.

        Returns:
            `(logits, states)`; `None` where states are no whole numbers, one a step.
        """
        whole = isinstance(observations, jax.Array) and jnp.issubdtype(observations.dtype, jnp.integer)
        return (summable(params, "params"), observations) if whole and observations.shape == actions.shape else None


@pytree
class SharedSoftmax(Policy):
    """π(a|s) = softmax(θ)_a in every state, with `params` the logits, shape `(A,)`.

    The policy of the short corridor, of a bandit, and of independent draws.
    """

    def apply(self, params: jax.Array, observation: Any) -> Categorical:
        """The one distribution.

        Args:
            params: Logits θ, shape `(A,)`.
            observation: Not used.

        Returns:
            A `Categorical` over `A` actions.
        """
        del observation  # the point of this policy
        return Categorical(params)

    def table(self, params: jax.Array, observations: Any, actions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The logits as a table of one row, and that row for all steps.

        Args:
            params: Logits θ, shape `(A,)`.
            observations: Not used.
            actions: The actions, one integer a step.

        Returns:
            `(logits, states)`, shape `(1, A)` and zeros of the shape of `actions`.
        """
        del observations
        return summable(params, "params")[None], jnp.zeros_like(actions)


tabular_softmax = TabularSoftmax()
shared_softmax = SharedSoftmax()
