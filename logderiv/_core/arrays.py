"""Small helpers on arrays, keys and pytrees that every module may use."""

import contextlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


def expand(mask: jax.Array, like: jax.Array) -> jax.Array:
    """`mask` with trailing axes of length one, so that it broadcasts against `like`."""
    return mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim))


def continues(valid: jax.Array) -> jax.Array:
    """Whether a valid step follows, shape `(*batch, T)`."""
    return jnp.roll(valid, -1, axis=-1).at[..., -1].set(False)


def widen(x: jax.Array) -> jax.Array:
    """Integers (booleans too) in 32 bits at least: the sizes that they are compared with may not fit into fewer."""
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.int32)


def floating(x: Any) -> jax.Array:
    """`x` as floating point; integers become the default floating dtype."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.zeros(()).dtype)


def summable(x: Any) -> jax.Array:
    """`x` as floating point of 32 bits at least, in which long sums and powers of a discount come out right."""
    x = floating(x)
    return x.astype(accumulator_dtype(x.dtype))


def scalar_cost(value: Any, name: str = "cost") -> jax.Array:
    """A cost, checked to be one number, as floating point."""
    value = jnp.asarray(value)
    if value.shape != ():
        raise ValueError(f"{name}: expected a scalar for one sample, received shape {value.shape}; sum over the event.")
    return floating(value)


def as_keys(keys: Any, name: str = "key") -> jax.Array:
    """Typed keys from typed or raw (uint32) keys.

    Raises:
        TypeError: Something else.
    """
    if isinstance(keys, jax.Array | np.ndarray):
        if jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
            return keys  # pyright: ignore[reportReturnType]
        if keys.dtype == np.uint32 and keys.ndim > 0:
            with contextlib.suppress(TypeError):  # of a key of another length
                return jax.random.wrap_key_data(keys)
    received = f"{keys.dtype}{list(keys.shape)}" if hasattr(keys, "dtype") else repr(keys)
    raise TypeError(f"{name}: expected jax.random.key(seed), received {received}.")


def as_key(key: Any, name: str = "key") -> jax.Array:
    """One typed key from a typed or raw (uint32) one.

    Raises:
        TypeError: Something else.
        ValueError: Several keys.
    """
    key = as_keys(key, name)
    if key.ndim:
        raise ValueError(f"{name}: expected one key, received keys of shape {key.shape}; use jax.vmap over them.")
    return key


def widest(*dtypes: Any) -> Any:
    """The floating dtype with the most bits."""
    return max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)


def accumulator_dtype(dtype: Any) -> Any:
    """The dtype that sums of `dtype` are taken in: at least float32."""
    return widest(dtype, jnp.float32)


def is_traced(*arrays: Any) -> bool:
    """Whether any of the arrays has no value yet."""
    return any(isinstance(x, Tracer) for x in arrays)
