"""At which precision products of arrays are taken: with all digits that their operands have, unless something else is asked for.

On accelerators XLA takes float32 products in fewer digits unless it is told otherwise, TF32's 10 bits of mantissa on a GPU, bfloat16's 7 on a TPU, and
the log-probability of a small network is wrong by 1e-4. Here a precision of `None` means what `jax_default_matmul_precision` says, where that is set, and
otherwise exact products. A product's precision is bound when it is traced; its derivatives and its batched form inherit it. A CPU takes every float32
product exactly, and float64 or half-precise operands are not rounded anywhere.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr

EXACT = lax.Precision.HIGHEST
HIDDEN = "not known"
_HIDING = ("pure_callback", "io_callback", "ffi_call", "custom_call")
_LEVELS = {name: lax.Precision(name) for name in ("default", "high", "highest", "bfloat16", "tensorfloat32", "float32")}
_NAMES: dict[Any, Any] = _LEVELS | {
    preset.name: preset for preset in lax.DotAlgorithmPreset if preset.name != "DEFAULT"
}


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
        What JAX wrote down: one value where it is that of both operands, `None` where none was named, and `HIDDEN` where a call
        cannot be looked into.
    """
    found: set[Any] = set()
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if "precision" in eqn.params and all(jnp.issubdtype(x.aval.dtype, dtype) for x in eqn.invars[:2]):
            precision = eqn.params["precision"]
            found.add(precision[0] if type(precision) is tuple and len({*precision}) == 1 else precision)
        if eqn.primitive.name in _HIDING:
            found.add(HIDDEN)
        for inner in jax.tree.leaves(eqn.params, is_leaf=_is_program):
            found |= precisions(inner, dtype) if _is_program(inner) else set()
    return found


def _is_program(x: Any) -> bool:
    return isinstance(x, Jaxpr | ClosedJaxpr)
