"""At which precision products of arrays are taken: with all digits that their operands have, unless something else is asked for.

On accelerators XLA takes float32 products in fewer digits unless it is told otherwise, TF32's 10 bits of mantissa on a GPU, bfloat16's 7 on a TPU, and
the log-probability of a small network is wrong by 1e-4. Here a precision of `None` means what `jax_default_matmul_precision` says, where that is set, and
otherwise exact products. A product's precision is bound when it is traced; its derivatives and its batched form inherit it. A CPU takes every float32
product exactly, and float64 or half-precise operands are not rounded anywhere.
"""

import contextlib
import enum
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

EXACT = lax.Precision.HIGHEST
_LEVELS = {name: lax.Precision(name) for name in ("default", "high", "highest", "bfloat16", "tensorfloat32", "float32")}
_PRESETS = {preset.name: preset for preset in lax.DotAlgorithmPreset if preset.name != "DEFAULT"}
_NAMES: dict[Any, Any] = _LEVELS | _PRESETS
_IN_PARTS = "TF32_TF32_F32_X3", "BF16_BF16_F32_X6"  # measured on an H100; there X9 is no better than TF32
_ALL_DIGITS = {EXACT, *(_NAMES[name] for name in ("F32_F32_F32", "F64_F64_F64", *_IN_PARTS))}
_HIDING = ("pure_callback", "io_callback", "ffi_call")


class Products(enum.IntEnum):
    """What becomes of the float32 products of a program on a device that shortens them."""

    EXACT = 0
    SHORTENED = 1
    UNNAMED = 2
    HIDDEN = 3


_SAID = (  # of these, in their order
    "float32 products are exact",
    "float32 products are taken in fewer digits, as was asked for",
    "float32 products name no precision: a GPU rounds their operands by 5e-4, a TPU by 4e-3; "
    "jax_default_matmul_precision='highest' keeps all digits",
    "at which precision products are taken is not known: a callback hides them",
)


def precision_of(precision: Any = None, name: str = "precision") -> Any:
    """What `jnp.matmul` or `lax.dot_general` is given for a precision that somebody asked for, or did not.

    Args:
        precision: A `jax.lax.Precision`, a `jax.lax.DotAlgorithmPreset` or `DotAlgorithm`, a name that `jax.default_matmul_precision` knows; `None` for
            `jax_default_matmul_precision` where that is set, else `EXACT`.
        name: That of the argument, for the message.

    Returns:
        A `Precision`, `DotAlgorithmPreset` or `DotAlgorithm`.

    Raises:
        ValueError: Something else.
    """
    if precision is None:
        precision = jax.default_matmul_precision.value or EXACT
    if isinstance(precision, lax.Precision | lax.DotAlgorithmPreset | lax.DotAlgorithm):
        return precision
    if not isinstance(precision, str) or precision not in _NAMES:
        expected = f"None, a jax.lax.Precision, a jax.lax.DotAlgorithmPreset, or one of the names {', '.join(_NAMES)}"
        raise ValueError(f"{name}: expected {expected}; received {precision!r}.")
    return _NAMES[precision]


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Products that are traced within it without a precision get that of `None`. Also a decorator.

    For products of the library alone: what a user's function traces within it would get it as well.
    """
    with jax.default_matmul_precision(jax.default_matmul_precision.value or "highest"):
        yield


def precisions(jaxpr: Any, dtype: Any = jnp.floating) -> set[Any]:
    """The precision of every product in a program, and in the programs within it.

    Args:
        jaxpr: From `jax.make_jaxpr`.
        dtype: Products of other operands are left out.

    Returns:
        What JAX wrote down: one value where it is that of both operands, `None` where none was named, and `Products.HIDDEN`
        where a call cannot be looked into.
    """
    found: set[Any] = set()
    for eqn in jaxpr.eqns:
        if "precision" in eqn.params and all(jnp.issubdtype(x.aval.dtype, dtype) for x in eqn.invars[:2]):
            precision = eqn.params["precision"]
            found.add(precision[0] if type(precision) is tuple and len({*precision}) == 1 else precision)
        if eqn.primitive.name in _HIDING:
            found.add(Products.HIDDEN)
        for inner in jax.tree.leaves(eqn.params, is_leaf=_is_program):
            found |= precisions(inner, dtype) if _is_program(inner) else set()
    return found


def _is_program(x: Any) -> bool:
    return hasattr(x, "eqns")


def float32_products(function: Callable[..., Any], *args: Any) -> jax.Array:
    """Which of `Products` a function has, int32; it is traced, nothing is computed."""
    found = precisions(jax.make_jaxpr(function)(*args), jnp.float32) - _ALL_DIGITS
    if None in found:
        return jnp.int32(Products.UNNAMED)
    shortened = Products.SHORTENED if found else Products.EXACT
    return jnp.int32(Products.HIDDEN if Products.HIDDEN in found else shortened)


def said_of(products: Any) -> list[str]:
    """A line for a report where this device makes something of it; a CPU does not."""
    return [_SAID[int(products)]] if products and jax.default_backend() != "cpu" else []
