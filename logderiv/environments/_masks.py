"""Which choices of an action are allowed: masks in the observation, by the logits that they belong to."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from logderiv._core import check
from logderiv.environments._spaces import ActionSpace, map_spaces, parts_of

LEAF = "action_mask"


def find_mask(observation: Any, name: str = LEAF) -> Any:
    """The mask of an observation, an entry of a dictionary or a field, 0 and 1 in eight bits as booleans; `None` where it has none.

    Raises:
        ValueError: Other numbers in eight bits, where they are known; traced, all but 0 is True.
    """
    mask = observation.get(name) if isinstance(observation, Mapping) else getattr(observation, name, None)
    return _as_bools(mask, name)


def mask_rows(space: Any, mask: Any, name: str = LEAF) -> list[Any]:
    """The mask of each choice in the order of its logits, a vector each; `None` for a part of real numbers.

    Of one choice among `A` a mask has shape `(A,)`; of several choices it is a tuple of such vectors, or one array whose last axis is
    as long as the largest choice, what is beyond a smaller one not being looked at. A part of real numbers has the mask `None`.

    Raises:
        ValueError: A mask of another structure or shape.
        TypeError: It is not boolean.
    """
    inner = None if isinstance(space, ActionSpace) else parts_of(space)
    if inner is None:
        return _rows_of_part(space, mask, name)
    keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
    given = mask if isinstance(mask, Mapping) else dict(enumerate(mask)) if isinstance(mask, tuple | list) else {}
    if set(given) != set(keys):
        raise ValueError(
            f"{name}: expected a mask for each part, {keys}, received {list(given) or type(mask).__name__}."
        )
    order = sorted(keys) if isinstance(inner, dict) else keys  # as in the leaves of a dictionary
    return [row for key in order for row in mask_rows(inner[key], given[key], f"{name}[{key!r}]")]


def _rows_of_part(space: ActionSpace, mask: Any, name: str) -> list[Any]:
    if space.num_values is None:
        if mask is not None:
            raise ValueError(f"{name}: expected None for {space.name}, which is no choice, received a mask.")
        return [None]
    sizes = (space.num_values,) if isinstance(space.num_values, int) else space.num_values
    if isinstance(mask, tuple | list):
        rows = list(mask)
        expected = [(size,) for size in sizes]
        found: Any = [np.shape(row) for row in rows]
    else:
        expected, found = (*space.shape, max(sizes)), np.shape(mask)
        rows = [row[:size] for row, size in zip(_rows(mask, found), sizes, strict=True)] if found == expected else []
    if found != expected:
        combined = len(sizes) > 1 and found == tuple(sizes)
        hint = (
            "; one over combinations needs a Categorical over all of them, in a policy of your own" if combined else ""
        )
        raise ValueError(f"{name}: expected shape {expected} for {space.name}, received {found}{hint}.")
    for row in rows:
        if row.dtype != bool:
            raise TypeError(f"{name}: expected booleans, received {row.dtype}; use mask.astype(bool).")
    return rows


def _rows(mask: Any, shape: tuple[int, ...]) -> Any:
    return mask.reshape(-1, shape[-1])


def mask_shapes(space: Any) -> Any:
    """The shape of a mask as an array for each part, as `jax.ShapeDtypeStruct`; `None` for a part of real numbers."""
    if not isinstance(space, ActionSpace):
        return map_spaces(mask_shapes, parts_of(space))
    if space.num_values is None:
        return None
    most = space.num_values if isinstance(space.num_values, int) else max(space.num_values)
    return jax.ShapeDtypeStruct((*space.shape, most), np.dtype(bool))


def host_mask(space: Any, mask: Any, where: str, *, over: bool) -> Any:
    """A mask on the host, of booleans or of 0 and 1 in eight bits, in the arrays of `mask_shapes`.

    Args:
        space: An `ActionSpace`, or a dictionary or tuple of them.
        mask: As of `mask_rows`.
        where: For messages.
        over: Whether the episode ended: then nothing need be allowed.

    Raises:
        ValueError: A mask of another structure or shape, of other numbers, or one that allows nothing of a choice.
        TypeError: It is neither boolean nor of eight bits.
    """
    rows = mask_rows(space, _as_bools(mask, where), where)
    if not over and any(row is not None and not row.any() for row in rows):
        raise ValueError(f"{where}: a mask allows nothing of a choice, and the episode goes on.")
    left = iter(rows)

    def one(shape: jax.ShapeDtypeStruct | None) -> Any:
        if shape is None:
            next(left)
            return None
        padded = np.zeros((int(np.prod(shape.shape[:-1])), shape.shape[-1]), bool)
        for line in padded:
            row = next(left)
            line[: len(row)] = row
        return padded.reshape(shape.shape)

    return jax.tree.map(one, mask_shapes(space), is_leaf=lambda x: x is None)


def _as_bools(mask: Any, where: str) -> Any:
    """0 and 1 in eight bits as booleans, part by part; what has another dtype stays, to be refused by it."""

    def one(path: Any, part: Any) -> Any:
        part = part if isinstance(part, jax.Array) else np.asarray(part)
        if part.dtype not in (np.int8, np.uint8):
            return part
        if not check.is_traced(part) and not np.isin(part, (0, 1)).all():
            raise ValueError(f"{where}{jax.tree_util.keystr(path)}: expected 0 and 1, received {part}.")
        return part.astype(bool)

    return jax.tree_util.tree_map_with_path(one, mask)
