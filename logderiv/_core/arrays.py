"""Small helpers on arrays, keys and pytrees that every module may use."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer


def expand(mask: jax.Array, like: jax.Array) -> jax.Array:
    """`mask` with trailing axes of length one, so that it broadcasts against `like`."""
    return mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim))


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


def register_dataclass(
    cls: Any, data: tuple[str, ...], meta: tuple[str, ...] = (), *, visit: Callable[[Any], None] | None = None
) -> Any:
    """Register a dataclass as a pytree whose reconstruction skips `__post_init__`.

    Transformations rebuild pytrees around tracers, axis numbers and placeholders, which must not meet the checks that
    a user's own constructor call does. `visit` is called with each object that is taken apart.
    """

    def flatten(obj: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        if visit is not None:
            visit(obj)
        return tuple(getattr(obj, name) for name in data), tuple(getattr(obj, name) for name in meta)

    def flatten_with_keys(obj: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        children, aux = flatten(obj)
        return tuple((jax.tree_util.GetAttrKey(k), c) for k, c in zip(data, children, strict=True)), aux

    def unflatten(aux: tuple[Any, ...], children: Iterable[Any]) -> Any:
        obj = object.__new__(cls)
        for name, value in zip(data + meta, (*children, *aux), strict=True):
            object.__setattr__(obj, name, value)
        return obj

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def check_whole(**numbers: Any) -> None:
    """Raise `ValueError`, naming the first of them, unless each is a whole number from 1."""
    for name, number in numbers.items():
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"{name}: expected a whole number >= 1, received {number!r}.")


def tree_size(tree: Any) -> int:
    """How many numbers a pytree holds."""
    return sum(jnp.size(x) for x in jax.tree.leaves(tree))


def widest(*dtypes: Any) -> Any:
    """The floating dtype with the most bits."""
    return max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)


def accumulator_dtype(dtype: Any) -> Any:
    """The dtype that sums of `dtype` are taken in: at least float32."""
    return widest(dtype, jnp.float32)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Held:
    """An object that is no pytree, as a static argument of `jax.jit`; compared as the object compares."""

    value: Any


def hold(obj: Any) -> Any:
    """`obj` if it is a pytree of arrays, else `Held(obj)`, so that `jax.jit` takes it as an argument."""
    return Held(obj) if any(leaf is obj for leaf in jax.tree.leaves(obj)) else obj


def release(obj: Any) -> Any:
    """The inverse of `hold`."""
    return obj.value if isinstance(obj, Held) else obj


def is_traced(*arrays: Any) -> bool:
    """Whether any of the arrays has no value yet."""
    return any(isinstance(x, Tracer) for x in arrays)
