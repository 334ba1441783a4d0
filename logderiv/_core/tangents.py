"""Derivative rules that are taken only in what moves: of most arguments the tangent is known to be zero."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero


def is_zero(tangent: Any) -> bool:
    """Whether this is the tangent of something detached, of an integer, or of nothing at all (`None`)."""
    return tangent is None or isinstance(tangent, SymbolicZero) or tangent.dtype == jax.dtypes.float0


def moving(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[list[Any], list[Any], Callable[..., list[Any]]]:
    """The arguments that have a tangent, these tangents, and how to put values of the former among all the others."""
    places = [i for i, tangent in enumerate(tangents) if not is_zero(tangent)]

    def among_all(values: Sequence[Any]) -> list[Any]:
        arguments = list(primals)
        for i, value in zip(places, values, strict=True):
            arguments[i] = value
        return arguments

    return [primals[i] for i in places], [tangents[i] for i in places], among_all


def jvp_of_moving(function: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
    """`jax.jvp` in those arguments that have a tangent, so that the others cost nothing."""
    values, directions, among_all = moving(primals, tangents)
    return jax.jvp(lambda *values: function(*among_all(values)), values, directions)
