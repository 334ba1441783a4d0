"""Where the weights of networks start."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Layer = dict[str, jax.Array]


def dense_init(key: jax.Array, inputs: int, outputs: int, scale: float = 1.0) -> Layer:
    """LeCun-normal weight `(inputs, outputs)`, times `scale`, and zero bias."""
    return _layer(jax.random.normal(key, (inputs, outputs)) / math.sqrt(max(inputs, 1)) * scale)


def orthogonal_init(key: jax.Array, inputs: int, outputs: int, scale: float = 1.0) -> Layer:
    """Weight `(inputs, outputs)` whose shorter side is orthonormal, times `scale`, and zero bias."""
    return _layer(_orthogonal(inputs, outputs)(key) * scale)


@functools.cache
def _orthogonal(inputs: int, outputs: int) -> Callable[[jax.Array], jax.Array]:
    """One seed after the other: two batches of factorizations at once may never end on few cores (notebooks/stability.md)."""
    draw = jax.nn.initializers.orthogonal()
    return jax.custom_batching.sequential_vmap(lambda key: draw(key, (inputs, outputs)))


def _layer(weight: jax.Array) -> Layer:
    return {"weight": weight, "bias": jnp.zeros(weight.shape[1], weight.dtype)}


# By name: a layer, the scale of hidden layers, those of the last layer of a policy and of a value.
INITIALIZERS: dict[str, tuple[Any, float, float, float]] = {
    "lecun_normal": (dense_init, 1.0, 0.01, 0.01),
    "orthogonal": (orthogonal_init, math.sqrt(2), 0.01, 1.0),
}


def perceptron_init(
    key: jax.Array, widths: tuple[int, ...], initializer: str, *, of_value: bool = False
) -> list[Layer]:
    """The layers of a perceptron whose widths are those of the observation, of the hidden layers and of the outputs."""
    init, inside, of_policy, of_values = INITIALIZERS[initializer]
    scales = [inside] * (len(widths) - 2) + [of_values if of_value else of_policy]
    return list(map(init, jax.random.split(key, len(scales)), widths[:-1], widths[1:], scales))
