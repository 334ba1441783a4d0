"""A network with memory."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core.arrays import as_key
from logderiv._core.products import precision_of
from logderiv._core.pytrees import pytree
from logderiv.distributions.basic import Categorical
from logderiv.distributions.tanh_normal import Head
from logderiv.policies.initializers import dense_init
from logderiv.policies.stepwise import dense, flatten_observation
from logderiv.types import Observation, Params, Policy


@pytree(static=("outputs", "hidden", "head", "precision"))
class GRU(Policy):
    """A gated recurrent unit on flattened observations, and a linear layer from its state.

        r, z = σ(W_rz x + U_rz h + b_rz)
        n    = tanh(W_n x + b_n + r ∘ (U_n h))
        h'   = (1 - z) ∘ n + z ∘ h

    Attributes:
        outputs: Width of the last layer.
        hidden: Width of the carry.
        head: From outputs to a distribution.
        precision: Of the products, as of `logderiv.MLP`.

    Raises:
        ValueError: A width is no whole number from 1; `precision` is unknown.

    References:
        Cho et al. (2014), arXiv:1406.1078, eqs. 5-8, with the reset gate after the product as in cuDNN.
    """

    outputs: int
    hidden: int = 32
    head: Head = Categorical
    _: dataclasses.KW_ONLY
    precision: Any = None

    def __post_init__(self) -> None:
        precision_of(self.precision)

    def init(self, key: jax.Array, observation: Any) -> dict[str, dict[str, jax.Array]]:
        """Parameters: LeCun-normal weights, zero biases, a last layer 100 times smaller.

        Args:
            key: Consumed.
            observation: One observation, for its shape.

        Returns:
            Dictionaries `"input"`, `"state"` and `"output"`.
        """
        keys, size = jax.random.split(as_key(key), 3), flatten_observation(observation).size
        return {
            "input": dense_init(keys[0], size, 3 * self.hidden),
            "state": {"weight": dense_init(keys[1], self.hidden, 3 * self.hidden)["weight"]},
            "output": dense_init(keys[2], self.hidden, self.outputs, 0.01),
        }

    def initial_carry(self, params: Params) -> jax.Array:
        """A zero state.

        Args:
            params: From `init`.

        Returns:
            Shape `(hidden,)`.
        """
        return jnp.zeros(self.hidden, params["input"]["weight"].dtype)

    def apply(self, params: Params, carry: jax.Array, observation: Observation) -> tuple[Any, jax.Array]:
        """One step.

        Args:
            params: From `init`.
            carry: State before this observation, shape `(hidden,)`.
            observation: One observation.

        Returns:
            The distribution, and the state after the observation.
        """
        x = flatten_observation(observation).astype(carry.dtype)
        xr, xz, xn = jnp.split(dense(params["input"], x, self.precision), 3)
        h = jnp.matmul(carry, params["state"]["weight"], precision=precision_of(self.precision))
        hr, hz, hn = jnp.split(h, 3)
        reset, update = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
        new = jnp.tanh(xn + reset * hn)
        carry = new + update * (carry - new)
        return self.head(dense(params["output"], carry, self.precision)), carry
