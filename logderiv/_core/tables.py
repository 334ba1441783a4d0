"""One printer for the tables of reports."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from logderiv._core.check import is_traced


def table(names: Sequence[str], formats: str, rows: Iterable[Sequence[Any]]) -> str:
    """Lines of text: the names of the columns, then one line for each row.

    Args:
        names: Of the columns; set to the same width as what stands below them.
        formats: One format specification for each column, alignment and width first, such as `"<20 >13.6g"`.
        rows: One value for each column.

    Returns:
        The lines, each indented by two blanks.
    """
    specs = formats.split()
    head = [format(name, spec.partition(".")[0]) for name, spec in zip(names, specs, strict=True)]
    body = [[format(value, spec) for value, spec in zip(row, specs, strict=True)] for row in rows]
    return "\n".join("  " + "".join(cells).rstrip() for cells in [head, *body])


def named_leaves(tree: Any, name: str = "params") -> list[tuple[str, Any]]:
    """The leaves of a pytree, each with its path as a name; that of a tree which is a leaf is the `name` given."""
    return [(keystr(path) or name, leaf) for path, leaf in tree_leaves_with_path(tree)]


def named_entries(tree: Any) -> list[str]:
    """Names of all entries of all leaves, in the order of `ravel_pytree`."""
    leaves = named_leaves(tree)
    return [f"{name}{list(index) or ''}" for name, leaf in leaves for index in np.ndindex(np.shape(leaf))]


def shapes(title: str, tree: Any) -> str:
    """What is known of a pytree without its numbers: a title, and dtype and shape of each leaf."""
    rows = [
        (name.lstrip("."), str(getattr(x, "dtype", type(x).__name__)), str(getattr(x, "shape", "")))
        for name, x in named_leaves(tree)
    ]
    return f"{title}\n{table(('leaf', 'dtype', 'shape'), '<32 <12 <0', rows)}"


def concrete(tree: Any) -> bool:
    """Whether there is a leaf, and all of them are arrays whose numbers can be read here: not traced, not on another host."""
    leaves = jax.tree.leaves(tree)
    arrays = all(isinstance(x, (np.ndarray, np.generic, jax.Array)) and not is_traced(x) for x in leaves)
    return bool(leaves) and arrays and all(getattr(x, "is_fully_addressable", True) for x in leaves)
