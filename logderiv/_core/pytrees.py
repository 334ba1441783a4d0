"""Objects made of settings as pytrees, and `jax.jit` for functions that take them.

Two rules hold in the whole library. A *setting* that is a real number is a leaf, so that `jax.jit`, `jax.vmap` and `jax.grad`
see it as an array; whole numbers that fix a shape or the length of a loop, booleans, names, `None` and functions are static
and decide what is compiled. And rebuilding an object from its leaves checks nothing, since transformations rebuild it around
tracers, axis numbers and placeholders that the checks of a constructor must not meet.
"""

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, dataclass_transform

import jax
import numpy as np
from jax.core import Tracer

from logderiv._core import check

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
TRACED: Any = (jax.Array, np.ndarray, np.generic, float, complex)
_PLAIN = (bool, int, str, bytes, type(None), type, np.dtype)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)


@dataclass_transform(frozen_default=True)
def pytree(cls: Any = None, /, *, static: tuple[str, ...] = (), eq: bool = True, visit: Any = None) -> Callable[[T], T]:
    """A frozen dataclass as a pytree. Fields named in `static` are compared by `jax.jit`, all others are traced.

    A static field that is annotated as an `int` is checked, before the class's own `__post_init__`, to be a whole number from 1, or
    from 0 where 0 is its default; an integer scalar of numpy or JAX becomes an `int`.

    Args:
        cls: The class, where the decorator is used without arguments.
        static: Names of fields; their values are hashable.
        eq: As of `dataclasses.dataclass`.
        visit: Called with each object that is taken apart.

    Returns:
        The class.

    Raises:
        TypeError: `static` names something that is no field.
    """
    if cls is None:
        return functools.partial(pytree, static=static, eq=eq, visit=visit)  # pyright: ignore[reportReturnType]
    own = getattr(cls, "__post_init__", _nothing)

    @functools.wraps(own)
    def __post_init__(self: Any) -> None:
        for name, options in numbers.items():
            object.__setattr__(self, name, check.whole(**options, **{name: getattr(self, name)}))
        own(self)

    if static:
        cls.__post_init__ = __post_init__
    cls = dataclasses.dataclass(frozen=True, eq=eq)(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    names = list(fields)
    if strangers := set(static) - set(names):
        raise TypeError(f"static: expected fields of {cls.__name__}, received {sorted(strangers)}.")
    wholes = [x for x in fields.values() if x.name in static and x.type in (int, int | None)]
    numbers: Any = {x.name: {"or_none": x.type is not int, "at_least": 0 if x.default == 0 else 1} for x in wholes}
    traced = {name: jax.tree_util.GetAttrKey(name) for name in names if name not in static}
    if eq and traced:
        cls.__eq__ = _equal
    fixed = [name for name in names if name in static]

    def flatten(obj: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        if visit is not None:
            visit(obj)
        return tuple((key, getattr(obj, name)) for name, key in traced.items()), tuple(getattr(obj, n) for n in fixed)

    def unflatten(aux: tuple[Any, ...], children: Iterable[Any]) -> Any:
        obj = object.__new__(cls)
        for name, value in zip([*traced, *fixed], (*children, *aux), strict=True):
            object.__setattr__(obj, name, value)
        return obj

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


def _equal(self: Any, other: object) -> bool:
    """Whether all fields are equal, arrays in shape and in each number."""
    if type(self) is not type(other):
        return NotImplemented
    (ours, tree), (theirs, other_tree) = jax.tree.flatten(self), jax.tree.flatten(other)
    return tree == other_tree and all(map(_same, ours, theirs))


def _same(a: Any, b: Any) -> bool:
    if a is b or not (hasattr(a, "dtype") or hasattr(b, "dtype")):
        return a is b or a == b
    if jax.numpy.issubdtype(getattr(a, "dtype", bool), jax.dtypes.prng_key):
        return a.dtype == getattr(b, "dtype", None) and _same(*map(jax.random.key_data, (a, b)))
    return np.array_equal(a, b)


def _nothing(obj: Any) -> None:
    """The `__post_init__` of classes that have none."""


def jit(function: F) -> F:
    """`jax.jit` for a function of this library, whatever kinds of objects it is given.

    Of all leaves of its arguments, arrays and real numbers are traced; whole numbers, booleans, texts and `None` are compared by
    value, functions by identity, and any other object by identity and by the attributes that it has at the call (numbers and
    texts by value, the rest by identity), so that one that was changed in between compiles anew. A second call with arrays of
    the same shapes, equal settings and the same function objects compiles nothing.
    """

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def call(tree: Any, static: tuple[Any, ...], traced: list[Any]) -> Any:
        arrays = iter(traced)
        args, kwargs = jax.tree.unflatten(tree, [next(arrays) if x is None else x.value for x in static])
        return function(*args, **kwargs)

    @functools.wraps(function)
    def compiled(*args: Any, **kwargs: Any) -> Any:
        leaves, tree = jax.tree.flatten((args, kwargs))
        static = tuple(None if isinstance(leaf, TRACED) else _Compared(leaf) for leaf in leaves)
        try:
            return call(tree, static, [leaf for leaf in leaves if isinstance(leaf, TRACED)])
        except ValueError as error:
            if "incompatible devices" not in str(error):
                raise
            given = inspect.signature(function).bind(*args, **kwargs).arguments
            places = ", ".join(f"{name} on {found}" for name, tree in given.items() if (found := _devices(tree)))
            raise ValueError(f"expected arrays on the same devices, received {places}; use jax.device_put.") from error

    return compiled  # pyright: ignore[reportReturnType]


def _devices(tree: Any) -> str:
    """The devices that the arrays of a tree are on."""
    arrays = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array) and not isinstance(x, Tracer)]
    return " and ".join(sorted({str(device) for x in arrays for device in x.devices()}))


class _Compared:
    """A leaf that is not traced, as `jit` compares it."""

    def __init__(self, value: Any) -> None:
        self.value = value
        if isinstance(value, _PLAIN):
            self.key: Any = (type(value), value)
        elif isinstance(value, _FUNCTIONS) or not hasattr(value, "__dict__"):
            self.key = value
        else:
            # Attributes are kept alive with the key, so that their identities are not given to others.
            self.attributes = tuple(vars(value).items())
            self.key = (id(value), tuple((name, _by_value(x)) for name, x in self.attributes))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Compared) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def _by_value(x: Any) -> Any:
    return (type(x), x) if isinstance(x, (*_PLAIN, float, complex)) else id(x)
