"""What the adapters of public suites share: action spaces, and room for a suite's own code."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from logderiv.distributions.interop import num_categories


class ActionSpace(NamedTuple):
    """What a suite takes as one action, read from its own space object.

    Attributes:
        shape: Shape of one action.
        integer: Whether it is made of whole numbers.
        num_values: How many values `0 .. num_values - 1` there are, where it is one whole number.
        name: For messages.
    """

    shape: tuple[int, ...]
    integer: bool
    num_values: int | None
    name: str


def action_space(space: Any) -> ActionSpace | None:
    """The action space of gymnax, craftax, jumanji or Gymnasium in our words; `None` for what is nested or unknown."""
    values = getattr(space, "num_values", getattr(space, "n", None))
    if values is not None and np.ndim(values) == 0 and getattr(space, "shape", None) == ():
        return ActionSpace((), True, int(values), f"{int(values)} actions")
    if hasattr(space, "low") or hasattr(space, "minimum") or hasattr(space, "nvec"):
        integer = hasattr(space, "nvec") or not jnp.issubdtype(jnp.dtype(space.dtype), jnp.inexact)
        return ActionSpace(tuple(space.shape), integer, None, f"{type(space).__name__} of shape {tuple(space.shape)}")
    return None


def from_start(space: Any, action: Any) -> Any:
    """An action of a policy, which counts from 0, as one of a space that may count from its attribute `start`."""
    start = getattr(space, "start", None)
    return action if start is None else action + np.asarray(start, action.dtype)


def check_action(environment: Any, distribution: Any, action: Any) -> None:
    """Raise where a policy cannot mean the actions of this environment; for use at trace time.

    Args:
        environment: Checked where its `action_space` is an `ActionSpace`, as that of every adapter is.
        distribution: What the policy returned.
        action: One action drawn from it.

    Raises:
        ValueError: An action of another shape, or a categorical distribution over more actions than there are.
        TypeError: Real numbers for whole ones, or the other way round.
    """
    space = getattr(environment, "action_space", None)
    if not isinstance(space, ActionSpace):
        return
    takes, shapes = f"actions: this environment takes {space.name}", [jnp.shape(x) for x in jax.tree.leaves(action)]
    if shapes != [space.shape]:
        drew = ", ".join(map(str, shapes))
        raise ValueError(
            f"{takes}, one action of shape {space.shape}; the policy drew {drew}. The last axis of logderiv.Normal is the event."
        )
    (dtype,) = map(jnp.result_type, jax.tree.leaves(action))
    if jnp.issubdtype(dtype, jnp.inexact) == space.integer:
        kind, fitting = ("whole", "Categorical") if space.integer else ("real", "Normal")
        raise TypeError(f"{takes}, {kind} numbers; the policy drew {dtype}. Return logderiv.{fitting}.")
    categories = num_categories(distribution, action)
    if space.num_values is not None and categories is not None and categories > space.num_values:
        raise ValueError(
            f"actions: the policy chooses among {categories}, this environment has {space.name}; "
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
