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


def unbroken(valid: jax.Array, dtype: Any, name: str = "trajectory.valid") -> jax.Array:
    """1 for a mask that is a prefix, NaN for one with a hole: what a number that depends on time is multiplied by. Shape `(*batch, 1)`.

    Raises:
        ValueError: The mask has values, and an entry that is False before one that is True: NaN is for traced ones.
    """
    if isinstance(valid, Tracer):
        holes = jnp.any(valid[..., 1:] & ~valid[..., :-1], axis=-1, keepdims=True)
        return jnp.where(holes, jnp.nan, 1.0).astype(dtype)
    values = np.asarray(valid)
    holes = values[..., 1:] & ~values[..., :-1]
    if holes.any():
        where = tuple(np.argwhere(holes)[0].tolist())
        raise ValueError(
            f"{name}: expected a prefix mask, received a hole: the step at index {where} is invalid and the next one valid, "
            "which would pass for the end of the episode. Keep the step valid (logderiv.Forced, where its action was not the "
            "policy's own), or split the trajectory there."
        )
    return np.ones((*values.shape[:-1], 1), dtype)  # pyright: ignore[reportReturnType]


def widen(x: jax.Array) -> jax.Array:
    """Integers (booleans too) in 32 bits at least: the sizes that they are compared with may not fit into fewer."""
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.int32)


def named_leaf_by_leaf(function: Any, **trees: Any) -> Any:
    """`function` of every leaf of one pytree and of its name, such as `params['w']`: `named_leaf_by_leaf(f, params=params)`."""
    (name, tree), *_ = trees.items()
    return jax.tree_util.tree_map_with_path(lambda path, x: function(x, name + jax.tree_util.keystr(path)), tree)


def refuse_complex(**trees: Any) -> None:
    """Raise `TypeError`, naming the leaf, if one of a pytree is complex, as a cast would lose the imaginary part, or a text."""

    def check(x: Any, name: str) -> None:
        if isinstance(x, str | bytes):
            raise TypeError(f"{name}: expected an array, received {type(x).__name__}.")
        if isinstance(x, complex) or jnp.issubdtype(getattr(x, "dtype", bool), jnp.complexfloating):
            raise TypeError(
                f"{name}: expected real numbers, received {jnp.result_type(x)}; take real and imaginary part as two arrays."
            )

    for name, tree in trees.items():
        named_leaf_by_leaf(check, **{name: tree})


def array_of(x: Any, name: str = "values") -> jax.Array:
    """`x`, an array, a number or a list of numbers, as a real array.

    Raises:
        TypeError: It is none, or complex; named.
    """
    try:
        x = jnp.asarray(x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected an array of numbers, received {type(x).__name__}: {error}") from error
    refuse_complex(**{name: x})
    return x


def floating(x: Any, name: str = "values") -> jax.Array:
    """`x` as floating point; integers become the default floating dtype; complex numbers are refused by name, as of `array_of`."""
    x = array_of(x, name)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.zeros(()).dtype)


def summable(x: Any, name: str = "values") -> jax.Array:
    """`floating` of 32 bits at least, in which long sums and powers of a discount come out right."""
    x = floating(x, name)
    return x.astype(accumulator_dtype(x.dtype))


def as_mask(x: Any, name: str) -> jax.Array:
    """Booleans, or whole numbers that are 0 where False.

    Raises:
        TypeError: Another dtype.
    """
    x = array_of(x, name)
    if jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name}: expected a boolean mask, received {x.dtype}; use {name}.astype(bool).")
    return x.astype(bool)


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
    """A cost, checked to be one number, `summable`."""
    value = summable(value, name)
    if value.shape != ():
        raise ValueError(f"{name}: expected a scalar for one sample, received shape {value.shape}; sum over the event.")
    return value


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
                return jax.random.wrap_key_data(jnp.asarray(keys))
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


def integers(x: Any, name: str) -> jax.Array:
    """Integers (booleans too), `widen`ed.

    Raises:
        TypeError: Not whole numbers.
    """
    x = array_of(x, name)
    if jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name}: expected integers, received {x.dtype}; use {name}.astype(jnp.int32).")
    return widen(x)


def numbers(tree: Any, name: str = "params") -> Any:
    """Every leaf `summable`; a list of numbers is one, and a leaf that is none is named."""

    def leaf(path: Any, x: Any) -> jax.Array:
        return summable(x, name + jax.tree_util.keystr(path))

    return jax.tree_util.tree_map_with_path(leaf, tree, is_leaf=lambda x: isinstance(x, list))


def wide(tree: Any) -> Any:
    """Floating leaves `summable`, all others as they are."""

    def leaf(x: Any) -> Any:
        real = isinstance(x, float) or jnp.issubdtype(getattr(x, "dtype", bool), jnp.floating)
        return summable(x) if real else x

    return jax.tree.map(leaf, tree)
