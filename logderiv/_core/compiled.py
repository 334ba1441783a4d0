"""Calling a function of parameters, policies and estimators under `jax.jit`, whatever kind of object they are."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Held:
    """An object that `jax.jit` cannot take, or must not trace, as its argument.

    The object may be changed between two calls, so nothing compiled for it is used again: holders differ by identity.
    """

    value: Any


def compiled(function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
    """`function(*arguments, **options)` under `jax.jit`.

    Pytrees of arrays are traced; objects registered static are part of the cache's key, like `options`; anything else
    is held, and compiles anew. Functions are compared by identity: pass one that lives at module level.
    """
    return _call(function, tuple(options.items()), *(held(x) for x in arguments))


def held(x: Any) -> Any:
    """An argument as `jax.jit` takes it: itself, or its holder. Hold once what several calls are to share a program for."""
    arrays = all(isinstance(leaf, jax.Array | np.ndarray | float) for leaf in jax.tree.leaves(x))
    return x if arrays else Held(x)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _call(function: Callable[..., Any], options: tuple[tuple[str, Any], ...], *arguments: Any) -> Any:
    return function(*(x.value if isinstance(x, Held) else x for x in arguments), **dict(options))
