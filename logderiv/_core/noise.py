"""The random numbers that draws are made of, fine enough for the tails: of a probability down to 2⁻³², not only 2⁻²³.

`jax.random.uniform` keeps 23 of the 32 bits that a float32 is drawn from, and near 1 no floating-point number could hold them
all. So a uniform number is drawn here as the distance to the nearer end of (0, 1), which keeps them at both, and 1 - U is as exact
as U. All else is a function of it, the one that `jax.random` takes: for one key the draws are the same but for these bits.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri


def gumbel(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    """-log(-log U): the index of the largest of `logits + gumbel` is a draw of their softmax."""
    x, upper = uniform(key, shape, dtype)
    return -jnp.log(jnp.where(upper, -jnp.log1p(-x), -jnp.log(x)))


def exponential(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    """-log(1 - U), with mean 1."""
    x, upper = uniform(key, shape, dtype)
    return jnp.where(upper, -jnp.log(x), -jnp.log1p(-x))


def normal(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    """Φ⁻¹(U), standard normal."""
    return normal_quantile(*uniform(key, shape, dtype))


def normal_quantile(x: jax.Array, upper: Any) -> jax.Array:
    """Φ⁻¹(U) of U = x, or of U = 1 - x where `upper`."""
    below = ndtri(x)
    return jnp.where(upper, -below, below)


def logit(x: jax.Array, upper: Any) -> jax.Array:
    """The logit log U - log(1 - U) of U = x, or of U = 1 - x where `upper`: below ℓ with probability σ(ℓ)."""
    below = jnp.log(x) - jnp.log1p(-x)
    return jnp.where(upper, -below, below)


def uniform(key: jax.Array, shape: Sequence[int], dtype: Any) -> tuple[jax.Array, jax.Array]:
    """A uniform number's distance to the nearer end of (0, 1), and whether that is 1."""
    size = jnp.finfo(dtype).bits
    bits = jax.random.bits(key, shape, f"uint{size}")
    upper = (bits >> (size - 1)) == 1
    return (jnp.where(upper, ~bits, bits).astype(dtype) + 0.5) * 2.0**-size, upper
