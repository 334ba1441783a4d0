"""The checks of arguments that every room shares. Each message says what was expected, what was received, and what helps.

A value that is traced is not checked: only shapes, dtypes and structure are known then. Settings that are mapped over
(`jax.vmap` over a discount) are arrays, all of whose entries must pass.
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def is_traced(*arrays: Any) -> bool:
    """Whether any of the arrays has no value yet."""
    return any(isinstance(x, Tracer) for x in arrays)


def whole(*, at_least: int = 1, at_most: int | None = None, hint: Any = "", **numbers: Any) -> Any:
    """The whole numbers as `int`: the one that was given, or a list of them.

    An `int` is one, and an integer scalar of numpy or JAX; a boolean is none, nor is a number that is traced.

    Raises:
        ValueError: One is something else, or out of range; the first of them is named.
    """
    bounds = f">= {at_least}" if at_most is None else f"from {at_least} to {at_most}"
    expected, found = f"expected a whole number {bounds}", []
    for name, number in numbers.items():
        if is_traced(number):
            raise ValueError(f"{name}: {expected}, received one that is traced; it decides what is compiled.")
        value = number if isinstance(number, int) else np.asarray(number)
        kind = np.integer if type(value) is int else getattr(value, "dtype", bool)
        if np.shape(value) or not np.issubdtype(kind, np.integer) or not at_least <= value <= (at_most or np.inf):
            raise ValueError(f"{name}: {expected}, received {number!r}{hint and '; ' + hint}.")
        found.append(int(value))
    return found[0] if len(found) == 1 else found


def whole_or_none(*, at_least: int = 1, **numbers: Any) -> Any:
    """As `whole`, of numbers that may be `None`."""
    found = [None if number is None else whole(at_least=at_least, **{name: number}) for name, number in numbers.items()]
    return found[0] if len(found) == 1 else found


def between(
    low: float, high: float, /, *, open_left: bool = False, open_right: bool = False, hint: str = "", **numbers: Any
) -> None:
    """Raise `ValueError` unless each number is in `[low, high]`, or, with an end that is open, in `(low, high]` or `[low, high)`."""
    expected = f"a number in {'(' if open_left else '['}{low:g}, {high:g}{')' if open_right else ']'}"
    above, below = np.greater if open_left else np.greater_equal, np.less if open_right else np.less_equal
    _all_hold(expected, lambda x: above(x, low) & below(x, high), numbers, hint)


def positive(*, finite: bool = False, hint: str = "", **numbers: Any) -> None:
    """Raise `ValueError` unless each number is above 0, and finite where that is asked for."""
    _all_hold("a positive number", lambda x: x > 0, numbers, hint)
    _all_hold("a finite number", lambda x: np.isfinite(x) | (not finite), numbers, hint)


def not_negative(*, finite: bool = False, **numbers: Any) -> None:
    """Raise `ValueError` unless each number is at least 0, and finite where that is asked for."""
    _all_hold("a number >= 0", lambda x: x >= 0, numbers)
    _all_hold("a finite number", lambda x: np.isfinite(x) | (not finite), numbers)


def finite(**numbers: Any) -> None:
    """Raise `ValueError` unless each number is finite."""
    _all_hold("a finite number", np.isfinite, numbers)


def _all_hold(expected: str, holds: Callable[[Any], Any], numbers: dict[str, Any], hint: str = "") -> None:
    for name, number in numbers.items():
        values = number if is_traced(number) else np.asarray(number)
        if not any(jnp.issubdtype(values.dtype, kind) for kind in (np.integer, np.floating, np.bool_)):
            raise TypeError(f"{name}: expected {expected}, received {number!r}.")
        if values.dtype == bool or not (is_traced(number) or np.all(holds(values))):
            raise ValueError(f"{name}: expected {expected}, received {number}{hint and '; ' + hint}.")


def fraction(**numbers: Any) -> None:
    """Raise `ValueError` unless each is one number in [0, 1]."""
    between(0, 1, **numbers)
    shape((), **numbers)


def one_of(options: Collection[Any], **values: Any) -> None:
    """Raise `ValueError` unless each value is one of the options."""
    for name, value in values.items():
        if not any(value is option or value == option for option in options):
            *first, last = map(repr, options)
            expected = f"{', '.join(first)} or {last}" if first else last
            raise ValueError(f"{name}: expected {expected}, received {value!r}.")


def made(name: str, part: Any, fits: bool, expected: str) -> None:
    """Raise `TypeError` unless a part is an object that fits; a class is named as one that was not called."""
    if isinstance(part, type) or not fits:
        received = f"the class {part.__name__}; call it" if isinstance(part, type) else type(part).__name__
        raise TypeError(f"{name}: expected {expected}, received {received}.")


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
