"""What the adapters of public suites share: action spaces, and room for a suite's own code."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core import check
from logderiv._core.pytrees import pytree
from logderiv.distributions.interop import num_categories
from logderiv.distributions.joint import Joint


@pytree(static=("shape", "integer", "num_values", "name", "low", "high"))
class ActionSpace:
    """What a suite takes as one action, read from its own space object; a dictionary or tuple of them where it has parts.

    Lists and arrays of numbers become tuples, and a `shape` that is one number a tuple of it.

    Attributes:
        shape: Shape of one action.
        integer: Whether it is made of whole numbers.
        num_values: How many values `0 .. num_values - 1` there are, where it is one whole number; for each, where it is several choices.
        name: For messages.
        low: Lower bound of real numbers, or one for each in the order of the last axis; `None` where it is not known.
        high: Upper bound.

    Raises:
        ValueError: `shape` or `num_values` is not made of whole numbers, `num_values` has not one number for each choice, a bound is
            neither one number nor one for each of the last axis or of all, or is NaN, or `low` is above `high`.
        TypeError: A bound is not made of real numbers.
    """

    shape: tuple[int, ...]
    integer: bool
    num_values: int | tuple[int, ...] | None
    name: str
    low: float | tuple[float, ...] | None = None
    high: float | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        shape = tuple(check.whole(at_least=0, shape=size) for size in np.ravel(np.asarray(self.shape, object)))
        low, high = (_plain_bound(name, getattr(self, name), shape) for name in ("low", "high"))
        _refuse_crossed(low, high, shape)
        found = {"shape": shape, "num_values": _plain_sizes(self.num_values, shape), "low": low, "high": high}
        for name, value in found.items():
            object.__setattr__(self, name, value)


def _plain_sizes(num_values: Any, shape: tuple[int, ...]) -> int | tuple[int, ...] | None:
    """One whole number for one choice, a tuple with one for each of several."""
    if num_values is None:
        return None
    if np.ndim(num_values) == 0 and shape == ():
        return check.whole(num_values=num_values)
    sizes = [check.whole(num_values=size) for size in np.ravel(np.asarray(num_values, object))]
    if np.ndim(num_values) == 0 or shape == () or len(sizes) != math.prod(shape):
        raise ValueError(
            f"num_values: expected {'one number' if shape == () else f'{math.prod(shape)} numbers'} for choices of shape {shape}, "
            f"received {num_values}."
        )
    return tuple(sizes)


def _plain_bound(name: str, bound: Any, shape: tuple[int, ...]) -> float | tuple[float, ...] | None:
    """One number, or a tuple with one for each of the last axis or of all."""
    if bound is None:
        return None
    check.between(-math.inf, math.inf, **{name: bound})
    numbers = np.asarray(bound, float)
    if numbers.ndim and (shape == () or numbers.size not in (*shape[-1:], math.prod(shape))):
        each = f", or one for each of an action of shape {shape}" if shape else " for an action of shape ()"
        raise ValueError(f"{name}: expected one number{each}, received {numbers.size}{'' if shape else ' in a list'}.")
    return tuple(numbers.ravel().tolist()) if numbers.ndim else float(numbers)


def _refuse_crossed(low: Any, high: Any, shape: tuple[int, ...]) -> None:
    """Raise `ValueError` where a lower bound is above its upper one."""
    if low is None or high is None:
        return
    low, high = (np.reshape(x, shape) if np.size(x) == math.prod(shape) else np.asarray(x) for x in (low, high))
    if np.any(low > high):
        raise ValueError(f"low: expected at most high = {high.tolist()}, received {low.tolist()}; are the two swapped?")


def action_space(space: Any) -> Any:
    """The action space of gymnax, craftax, jumanji or Gymnasium in our words, with its parts; `None` for what is unknown."""
    if isinstance(space, ActionSpace):
        return space
    inner = parts_of(space)
    if inner is not None:
        found = map_spaces(action_space, inner)
        return None if any(x is None for x in jax.tree.leaves(found, is_leaf=_is_whole)) else found
    return None if getattr(space, "shape", None) is None else _of_one_array(space, tuple(space.shape))


def _is_whole(x: Any) -> bool:
    return x is None or isinstance(x, ActionSpace)


def _of_one_array(space: Any, shape: tuple[int, ...]) -> ActionSpace | None:
    kind = f"{type(space).__name__} of shape {shape}"
    if type(space).__name__ == "MultiBinary":
        return ActionSpace(shape, True, (2,) * math.prod(shape), kind)
    values = next((getattr(space, name) for name in ("num_values", "nvec", "n") if hasattr(space, name)), None)
    if values is not None and np.shape(values) == shape and not check.is_traced(values):
        if shape == ():
            return ActionSpace((), True, int(values), f"{int(values)} actions")
        return ActionSpace(shape, True, tuple(np.asarray(values).ravel().tolist()), kind)
    if not (hasattr(space, "low") or hasattr(space, "minimum")):
        return None
    if not jnp.issubdtype(jnp.dtype(space.dtype), jnp.inexact):
        return ActionSpace(shape, True, None, kind)
    low, high = (
        getattr(space, "low", getattr(space, "minimum", None)),
        getattr(space, "high", getattr(space, "maximum", None)),
    )
    return ActionSpace(shape, False, None, kind, _bound(low, shape), _bound(high, shape))


def _bound(bound: Any, shape: tuple[int, ...]) -> float | tuple[float, ...] | None:
    """One number where all are alike, else those of one row, or of all where rows differ."""
    if bound is None or check.is_traced(bound):
        return None
    numbers = np.broadcast_to(np.asarray(bound, float), shape)
    if numbers.size == 0 or (numbers == numbers.flat[0]).all():
        return float(numbers.flat[0]) if numbers.size else 0.0
    rows = numbers.reshape(-1, shape[-1])
    return tuple((rows[0] if (rows == rows[0]).all() else rows.ravel()).tolist())


def parts_of(space: Any) -> dict[Any, Any] | tuple[Any, ...] | None:
    """The spaces that a space, or a dictionary or tuple of spaces, is made of; `None` of one without parts."""
    if type(space).__name__ in ("Dict", "Tuple"):
        space = getattr(space, "spaces", None)
    if isinstance(space, Mapping):
        return dict(space)
    plain = isinstance(space, tuple | list) and not hasattr(space, "_fields")
    return tuple(space) if plain else None


def map_spaces(function: Any, inner: Any, *rest: Any) -> Any:
    """The function of each part, in a dictionary or tuple of the same form."""
    if isinstance(inner, dict):
        return {key: function(x, *(r[key] for r in rest)) for key, x in inner.items()}
    return tuple(function(*x) for x in zip(inner, *rest, strict=True))


def from_start(space: Any, action: Any) -> Any:
    """An action of a policy, which counts from 0, as one of a space that may count from its attribute `start`; part by part."""
    inner = parts_of(space)
    if inner is not None:
        return map_spaces(from_start, inner, action)
    start = getattr(space, "start", None)
    return action if start is None else action + np.asarray(start, action.dtype)


def into_bounds(space: Any, action: Any) -> Any:
    """An action whose real numbers are clipped to the bounds of their space; part by part."""
    inner = parts_of(space)
    if inner is not None:
        return map_spaces(into_bounds, inner, action)
    if not hasattr(space, "low") or not jnp.issubdtype(jnp.result_type(action), jnp.floating):
        return action
    low, high = (jnp.asarray(bound, jnp.result_type(action)) for bound in (space.low, space.high))
    return jnp.clip(action, low, high)


def flat_spaces(space: Any) -> tuple[list[tuple[str, ActionSpace]], Any]:
    """The parts of an action space, each with its place, and their structure."""
    paths, structure = jax.tree_util.tree_flatten_with_path(space, is_leaf=_is_whole)
    return [(jax.tree_util.keystr(path), part) for path, part in paths], structure


def check_action(environment: Any, distribution: Any, action: Any) -> None:
    """Raise where a policy cannot mean the actions of this environment; for use at trace time.

    Args:
        environment: Checked where its `action_space` is an `ActionSpace`, as that of every adapter is, a dictionary or tuple of
            them, or a space of a suite.
        distribution: What the policy returned.
        action: One action drawn from it.

    Raises:
        ValueError: An action of another structure or shape, or a categorical distribution over more actions than there are.
        TypeError: Real numbers for whole ones, or the other way round.
    """
    space = action_space(getattr(environment, "action_space", None))
    if space is None:
        return
    parts, structure = flat_spaces(space)
    laws = [distribution]
    if jax.tree.structure(space, is_leaf=_is_whole) != jax.tree.structure(0):
        if jax.tree.structure(action) != structure:
            kinds = ", ".join(f"{place} {part.name}" for place, part in parts)
            raise ValueError(
                f"actions: this environment takes {structure} of {kinds}; the policy drew {jax.tree.structure(action)}. Return "
                "logderiv.distributions.Joint of such parts, or take logderiv.policy_for."
            )
        laws = _laws_of_parts(distribution, structure)
    for (place, part), law, drawn in zip(parts, laws, structure.flatten_up_to(action), strict=True):
        _check_part(f"actions{place}", part, law, drawn)


def _laws_of_parts(distribution: Any, structure: Any) -> list[Any]:
    """The distribution of each part where a `Joint` tells them, else `None` for each."""
    if isinstance(distribution, Joint):
        laws, own = jax.tree.flatten(distribution.parts, is_leaf=lambda x: hasattr(x, "log_prob"))
        if own == structure:
            return laws
    return [None] * structure.num_leaves


def _check_part(name: str, space: ActionSpace, distribution: Any, action: Any) -> None:
    takes, shapes = f"{name}: this environment takes {space.name}", [jnp.shape(x) for x in jax.tree.leaves(action)]
    if shapes != [space.shape]:
        drew = ", ".join(map(str, shapes))
        raise ValueError(
            f"{takes}, one action of shape {space.shape}; the policy drew {drew}. The last axis of logderiv.Normal is the event."
        )
    (dtype,) = map(jnp.result_type, jax.tree.leaves(action))
    if jnp.issubdtype(dtype, jnp.inexact) == space.integer:
        kind, fitting = ("whole", "Categorical") if space.integer else ("real", "Normal")
        raise TypeError(f"{takes}, {kind} numbers; the policy drew {dtype}. Return logderiv.{fitting}.")
    if isinstance(distribution, Joint) and hasattr(distribution.parts, "log_prob"):
        distribution = distribution.parts
    categories, num_values = num_categories(distribution, action), space.num_values
    most = max(num_values, default=None) if isinstance(num_values, tuple) else num_values
    if most is not None and categories is not None and categories > most:
        raise ValueError(
            f"{name}: the policy chooses among {categories}, this environment has {space.name}; "
            "is the last layer as wide as the number of actions?"
        )


@contextlib.contextmanager
def standard_promotion() -> Iterator[None]:
    """JAX's standard promotion while a suite's code is traced: suites mix dtypes and ranks, whatever the caller's rules."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def no_params(params: Any, name: str) -> None:
    """Raise `TypeError` where parameters are passed to a suite whose environments keep their own."""
    if params is not None:
        raise TypeError(f"environment_params: {name} keeps its parameters in the environment object; pass None.")
