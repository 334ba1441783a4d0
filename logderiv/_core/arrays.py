"""Small helpers on arrays, keys and pytrees that every module may use."""

import math
from typing import Any

import jax
import jax.numpy as jnp
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


def integers(x: Any, name: str) -> jax.Array:
    """Integers (booleans too) in 32 bits at least: the sizes that they are compared with may not fit into fewer.

    Raises:
        TypeError: Not whole numbers.
    """
    x = array_of(x, name)
    if not (jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == jnp.bool_):
        raise TypeError(f"{name}: expected integers, received {x.dtype}; use {name}.astype(jnp.int32).")
    return widen(x)


def array_of(x: Any, name: str = "values") -> jax.Array:
    """`x`, an array, a number or a list of numbers, as a real array.

    Raises:
        TypeError: It is none, or complex; named.
    """
    try:
        x = jnp.asarray(x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected an array of numbers, received {type(x).__name__}: {error}") from error
    refuse_complex(x, name)
    return x


def refuse_complex(x: Any, name: str) -> None:
    """Raise `TypeError` if this is complex: a cast would lose the imaginary part."""
    if isinstance(x, complex) or jnp.issubdtype(getattr(x, "dtype", bool), jnp.complexfloating):
        raise TypeError(
            f"{name}: expected real numbers, received {jnp.result_type(x)}; take real and imaginary part as two arrays."
        )


def floating(x: Any, name: str = "values") -> jax.Array:
    """`x` as floating point; integers become the default floating dtype; complex numbers are refused by name, as of `array_of`."""
    x = array_of(x, name)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.zeros(()).dtype)


def summable(x: Any, name: str = "values") -> jax.Array:
    """`floating` of 32 bits at least, in which long sums and powers of a discount come out right."""
    x = floating(x, name)
    return x.astype(accumulator_dtype(x.dtype))


def alike(**arrays: Any) -> list[jax.Array]:
    """Each `summable`, all in the widest dtype among them; a Python number, or an integer, has no say in it where another has."""
    found = [summable(x, name) for name, x in arrays.items()]
    own = [dtype for dtype in map(own_dtype, arrays.values()) if dtype is not None]
    dtype = widest(jnp.float32, *own) if own else jnp.zeros(()).dtype
    return [x.astype(dtype) for x in found]


def own_dtype(x: Any) -> Any:
    """The floating dtype that an array has for itself; `None` of integers and of Python numbers."""
    weak = type(x) in (bool, int, float) or getattr(x, "weak_type", False)
    dtype = jnp.asarray(x).dtype
    return dtype if jnp.issubdtype(dtype, jnp.floating) and not weak else None


def scalar_cost(value: Any, name: str = "cost") -> jax.Array:
    """A cost, checked to be one number, as floating point."""
    value = jnp.asarray(value)
    if value.shape != ():
        raise ValueError(f"{name}: expected a scalar for one sample, received shape {value.shape}; sum over the event.")
    return floating(value)


def as_keys(key: jax.Array) -> jax.Array:
    """Typed keys from typed or raw (uint32) keys.

    Raises:
        TypeError: Something else.
    """
    dtype = jnp.result_type(key)
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return key
    if dtype == jnp.uint32 and key.ndim > 0:
        return jax.random.wrap_key_data(key)
    raise TypeError(f"key: expected jax.random.key(seed), received {dtype}{jnp.shape(key)}.")


def widest(*dtypes: Any) -> Any:
    """The floating dtype with the most bits."""
    return max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)


def accumulator_dtype(dtype: Any) -> Any:
    """The dtype that sums of `dtype` are taken in: at least float32."""
    return widest(dtype, jnp.float32)


def is_traced(*arrays: Any) -> bool:
    """Whether any of the arrays has no value yet."""
    return any(isinstance(x, Tracer) for x in arrays)
