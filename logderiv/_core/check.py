"""The checks of arguments that every room shares. Each message says what was expected, what was received, and what helps.

A value that is traced is not checked: only shapes, dtypes and structure are known then. Settings that are mapped over
(`jax.vmap` over a discount) are arrays, all of whose entries must pass.
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core.arrays import is_traced


def whole(*, at_least: int = 1, hint: Any = "", **numbers: Any) -> None:
    """Raise `ValueError`, naming the first of them, unless each is a whole number from `at_least`."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < at_least:
            received = f"{number!r}{hint and '; ' + hint}"
            raise ValueError(f"{name}: expected a whole number >= {at_least}, received {received}.")


def whole_or_none(**numbers: Any) -> None:
    """Raise `ValueError`, naming the first of them, unless each is `None` or a whole number from 1."""
    whole(**{name: number for name, number in numbers.items() if number is not None})


def between(
    low: float, high: float, *, open_left: bool = False, open_right: bool = False, hint: str = "", **numbers: Any
) -> None:
    """Raise `ValueError` unless each number is in `[low, high]`, or, with an end that is open, in `(low, high]` or `[low, high)`."""
    expected = f"a number in {'(' if open_left else '['}{low:g}, {high:g}{')' if open_right else ']'}"
    above, below = np.greater if open_left else np.greater_equal, np.less if open_right else np.less_equal
    _all_hold(expected, lambda x: above(x, low) & below(x, high), numbers, hint)


def positive(*, finite: bool = False, hint: str = "", **numbers: Any) -> None:
    """Raise `ValueError` unless each number is above 0, and below infinity where `finite`."""
    _all_hold("a positive number", lambda x: (x > 0) & (np.isfinite(x) | (not finite)), numbers, hint)


def not_negative(**numbers: Any) -> None:
    """Raise `ValueError` unless each number is at least 0."""
    _all_hold("a number >= 0", lambda x: x >= 0, numbers)


def _all_hold(expected: str, holds: Callable[[Any], Any], numbers: dict[str, Any], hint: str = "") -> None:
    for name, number in numbers.items():
        if is_traced(number):
            continue
        values = np.asarray(number)
        if not np.issubdtype(values.dtype, np.number):
            raise TypeError(f"{name}: expected {expected}, received {number!r}.")
        if not np.all(holds(values)):
            raise ValueError(f"{name}: expected {expected}, received {number}{hint and '; ' + hint}.")


def one_of(options: Collection[Any], **values: Any) -> None:
    """Raise `ValueError` unless each value is one of the options."""
    for name, value in values.items():
        if not any(value is option or value == option for option in options):
            *first, last = map(repr, options)
            raise ValueError(f"{name}: expected {', '.join(first)} or {last}, received {value!r}.")


def shape(expected: tuple[int, ...], *, hint: str = "", **arrays: Any) -> None:
    """Raise `ValueError` unless each array has this shape."""
    for name, array in arrays.items():
        if jnp.shape(array) != expected:
            raise ValueError(f"{name}: expected shape {expected}, received {jnp.shape(array)}{hint and '; ' + hint}.")


def fields(prefix: str, owner: Any, *, hint: str = "", **expected: tuple[int, ...]) -> None:
    """Raise `ValueError` unless each of these attributes of `owner` has its shape; `prefix` stands before its name."""
    for name, wanted in expected.items():
        shape(wanted, hint=hint, **{prefix + name: getattr(owner, name)})


def like(name: str, received: Any, expected: Any, *, hint: str = "") -> None:
    """Raise `ValueError` unless two pytrees agree in structure and in the shapes of their leaves; the first that differs is named."""
    hint = hint and f"; {hint}"
    found, wanted = jax.tree.structure(received), jax.tree.structure(expected)
    if found != wanted:
        raise ValueError(f"{name}: expected a pytree of the structure {wanted}, received {found}{hint}.")
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(received), jax.tree.leaves(expected), strict=True):
        if jnp.shape(a) != jnp.shape(b):
            leaf = f"{name}{jax.tree_util.keystr(path)}"
            raise ValueError(f"{leaf}: expected shape {jnp.shape(b)}, received {jnp.shape(a)}{hint}.")


def rows(name: str, tree: Any, *, at_least: int = 1) -> int:
    """The length of the leading axis that all leaves have in common; `ValueError` unless there is one, of so many rows."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
    lengths = {shape[:1] for shape in shapes}
    if len(lengths) != 1 or min(lengths) < (at_least,):
        expected = f"leaves with one common leading axis of at least {at_least}"
        raise ValueError(f"{name}: expected {expected}, received shapes {shapes}.")
    return lengths.pop()[0]


def params(tree: Any) -> None:
    """Raise `TypeError`, naming the leaf, unless every parameter can be differentiated."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)}: expected a floating-point array to differentiate, received dtype "
                f"{jnp.result_type(leaf)}; use params = jax.tree.map(lambda x: x.astype(jnp.float32), params)."
            )


def auto(**arrays: Any) -> None:
    """Raise `ValueError` if an array is sharded over axes of type `Explicit`, where operations must name their shardings."""
    for name, array in arrays.items():
        sharding: Any = jax.typeof(array).sharding
        if any(axis is not None for axis in sharding.spec):
            raise ValueError(
                f"{name}: expected arrays sharded over mesh axes of type AxisType.Auto, received {jax.typeof(array)} over axes of "
                f"types {sharding.mesh.axis_types}; take logderiv.make_mesh(), or jax.make_mesh(..., axis_types=(AxisType.Auto,))."
            )
