"""On a CPU what a GPU does with float32 products that name no precision, or a low one: their operands have TF32's ten bits of mantissa.

`LOGDERIV_TF32=1 python -m pytest ...` runs any tests so; `.ci/tf32` runs those that compute in float32.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax._src.lax.lax import _dot_general_lower
from jax.interpreters import mlir

ALWAYS = bool(os.environ.get("LOGDERIV_TF32"))
ROUNDED = {(lax.Precision.DEFAULT, lax.Precision.DEFAULT), (lax.Precision.HIGH, lax.Precision.HIGH)}
ROUNDED |= {None, lax.DotAlgorithmPreset.TF32_TF32_F32}
EXACT = lax.Precision.HIGHEST, lax.Precision.HIGHEST
usual = partial(_dot_general_lower, platform="cpu")


def rounding(context: Any, *operands: Any, precision: Any, **options: Any) -> Any:
    """The lowering of a product: also of those that differentiating and batching have made."""
    if precision not in ROUNDED or any(x.dtype != jnp.float32 for x in context.avals_in):
        return usual(context, *operands, precision=precision, **options)

    def product(*operands: jax.Array) -> jax.Array:
        rounded = [lax.reduce_precision(x, exponent_bits=8, mantissa_bits=10) for x in operands]
        return lax.dot_general_p.bind(*rounded, precision=EXACT, **options)

    return mlir.lower_fun(product, multiple_results=False)(context, *operands)


def install(rule: Any = rounding) -> None:
    """From now on, for this process."""
    jax.clear_caches()
    mlir.register_lowering(lax.dot_general_p, rule, platform="cpu")


@contextmanager
def emulated() -> Iterator[None]:
    """Within it alone, unless everything is run so."""
    install()
    yield
    if not ALWAYS:
        install(usual)
