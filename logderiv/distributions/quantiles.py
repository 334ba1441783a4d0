"""Draws by quantile functions, of uniform numbers that other draws share."""

import inspect
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core.noise import uniform
from logderiv.distributions.basic import Categorical
from logderiv.distributions.finite import OneHotCategorical, num_outcomes, outcome
from logderiv.distributions.interop import log_probs, sample


def antithetic_sample(distribution: Any, key: jax.Array, mirrored: Any) -> Any:
    """Draw one action by its quantile function Q: Q(U) of uniform numbers U, or Q(1 - U) where `mirrored`.

    Args:
        distribution: One with the method `quantile` (this library, TensorFlow Probability) or `icdf` (numpyro), or one choice
            among outcomes that can be counted.
        key: Consumed.
        mirrored: Shape `()`, bool. Two draws with one key, of which one is mirrored, are antithetic.

    Returns:
        One action.

    Raises:
        TypeError: `distribution` has no quantile function.

    Gradients: as those of the quantile function: reparameterized, where draws are real numbers.
    """
    like = jax.eval_shape(partial(sample, distribution), jax.random.key(0))
    if not isinstance(like, jax.ShapeDtypeStruct):
        raise _without_quantiles(distribution)
    shape = like.shape[:-1] if isinstance(distribution, OneHotCategorical) else like.shape
    x, upper = uniform(key, shape, jnp.zeros(()).dtype)
    upper = jnp.logical_xor(upper, jnp.broadcast_to(mirrored, shape))
    quantile = getattr(distribution, "quantile", getattr(distribution, "icdf", None))
    if quantile is not None and "upper" in inspect.signature(quantile).parameters:
        return quantile(x, upper=upper)
    num = num_outcomes(distribution)
    if num is not None:
        numbers = jnp.arange(num, dtype=jnp.int32)
        logits = jax.vmap(lambda i: log_probs(distribution, outcome(distribution, i)))(numbers)
        return outcome(distribution, Categorical(logits).quantile(x, upper=upper))
    try:
        if quantile is not None:
            below_one = 1 - float(jnp.finfo(x.dtype).epsneg)  # 1 itself is what 1 - x may be rounded to
            return quantile(jnp.where(upper, jnp.minimum(1 - x, below_one), x))
    except (NotImplementedError, ImportError) as error:
        raise _without_quantiles(distribution) from error
    raise _without_quantiles(distribution)


def _without_quantiles(distribution: Any) -> TypeError:
    return TypeError(
        f"draws='antithetic': expected distributions with a quantile function (a method quantile, or icdf), received "
        f"{type(distribution).__name__}; take draws='independent'."
    )
