"""Two functions compared, at every order of derivative that is asked for, in one compiled program."""

from collections.abc import Callable, Iterable
from typing import Any

import chex
import jax


def value(function: Callable[..., Any]) -> Callable[..., Any]:
    """The mode that differentiates nothing."""
    return function


def assert_same(
    ours: Callable[..., Any],
    expected: Callable[..., Any],
    *arguments: Any,
    modes: Iterable[Any] = (value,),
    rtol=1e-12,
    atol=1e-12,
) -> Any:
    """`mode(ours)` and `mode(expected)` agree for every mode, such as `jax.grad`; returns ours, a list with an entry for each."""

    @jax.jit
    def both(*arguments: Any) -> Any:
        return [[mode(function)(*arguments) for mode in modes] for function in (ours, expected)]

    found, right = both(*arguments)
    chex.assert_trees_all_close(found, right, rtol=rtol, atol=atol)
    return found
