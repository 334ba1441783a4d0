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
from jax import lax

EXACT = lax.Precision.HIGHEST
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
        precision = _asked_of_jax() or EXACT
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
    with jax.default_matmul_precision(_asked_of_jax() or "highest"):
        yield


def _asked_of_jax() -> Any:
    return jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
