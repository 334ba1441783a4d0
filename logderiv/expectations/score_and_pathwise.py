"""The score function and its sibling, the pathwise gradient, for one random choice: ∇_θ E f(x) with x ~ p_θ.

The estimators of this module and of `logderiv.expectations.measure_valued` share one signature and return one gradient per sample, so
the choice can be made on numbers: `logderiv.diagnostics` takes what they return. All assume that the cost itself does
not depend on the parameters.

| estimator | needs | of the cost |
|---|---|---|
| `gradients_score` | a density that can be evaluated, fixed support | values only |
| `gradients_pathwise` | a differentiable sampler | a derivative |
| `gradients_measure_valued` | a known decomposition of the density's derivative | values only, 2 or more per parameter |

References:
    Mohamed, Rosca, Figurnov & Mnih (2020), "Monte Carlo gradient estimation in machine learning", JMLR 21(132).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from logderiv._core import check
from logderiv._core.arrays import as_keys, scalar_cost
from logderiv.distributions.interop import log_prob, sample
from logderiv.types import Distribution, Key, Params

Cost = Callable[[Any], jax.Array]
MakeDistribution = Callable[[Any], Distribution]


def gradients_score(
    params: Params, key: Key, distribution: MakeDistribution, cost: Cost, *, num_samples: int, baseline: Any = 0.0
) -> Any:
    """(f(x) - b) ∇ log p_θ(x) for each sample; unbiased.

    The sample is detached, and the cost is never differentiated. Choose it where the cost jumps, cannot be differentiated, or
    the choice is discrete.

    Args:
        params: Parameters, floating point.
        key: Consumed.
        distribution: `params -> distribution`, of this library, distrax, TFP or numpyro.
        cost: `f`, from one sample to a scalar. It must not depend on `params`.
        num_samples: `N`.
        baseline: A number that does not depend on the samples.

    Returns:
        One gradient per sample: pytree of `params` with a leading axis `N`.

    Raises:
        TypeError: A parameter is not floating point.
        ValueError: The cost is not a scalar, or `num_samples` is below 1.

    References:
        Mohamed et al. (2020), section 4.
    """

    def one(key: jax.Array) -> Any:
        x = detached_sample(distribution(params), key)
        value = scalar_cost(cost(x))
        return score_term(params, x, distribution, value - jnp.asarray(baseline).astype(value.dtype))

    return jax.vmap(one)(sample_keys(params, key, num_samples))


def gradients_pathwise(
    params: Params, key: Key, distribution: MakeDistribution, cost: Cost, *, num_samples: int
) -> Any:
    """∇_θ f(x_θ(ε)) for each sample: the derivative through the sampler; unbiased for a smooth cost.

    Choose it where the cost is smooth and its slope does not vary much.

    Args:
        params: Parameters, floating point.
        key: Consumed.
        distribution: `params -> distribution`, with a sampler that is differentiable in its parameters (reparameterized).
        cost: `f`, differentiable almost everywhere and continuous: the jumps of a cost contribute nothing here, silently.
        num_samples: `N`.

    Returns:
        One gradient per sample: pytree of `params` with a leading axis `N`.

    Raises:
        TypeError: The distribution is discrete or not reparameterized: its samples have no derivative; or a parameter is not
            floating point.
        ValueError: The cost is not a scalar, or `num_samples` is below 1.

    References:
        Mohamed et al. (2020), section 5; Kingma & Welling (2014), arXiv:1312.6114.
    """

    def value(params: Any, key: jax.Array) -> jax.Array:
        made = distribution(params)
        x = sample(made, key)
        check_reparameterized(made, x)
        return scalar_cost(cost(x))

    return jax.vmap(jax.grad(value), (None, 0))(params, sample_keys(params, key, num_samples))


def score_term(params: Params, x: Any, distribution: MakeDistribution, weight: jax.Array) -> Any:
    """The term w ∇ log p_θ(x) at a given `x`; pytree of `params`."""
    x, weight = lax.stop_gradient((x, weight))

    def surrogate(params: Any) -> jax.Array:
        logp = log_prob(distribution(params), x)
        return weight.astype(logp.dtype) * logp

    return jax.grad(surrogate)(params)


def detached_sample(distribution: Distribution, key: Key) -> Any:
    """A sample that carries no derivative; `key` is consumed."""
    return lax.stop_gradient(sample(distribution, key))


def sample_keys(params: Params, key: Key, num_samples: int) -> jax.Array:
    """`num_samples` keys, after a check of what every estimator here takes."""
    check.params(params)
    check.whole(num_samples=num_samples)
    return jax.random.split(as_keys(key), num_samples)


def check_reparameterized(distribution: Any, x: Any) -> None:
    """Refuse samples without a derivative: integers, or where the library says so (numpyro, TFP)."""
    discrete = any(not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in jax.tree.leaves(x))
    declared = getattr(distribution, "has_rsample", True)
    kind = str(getattr(distribution, "reparameterization_type", ""))
    if discrete or declared is False or "NOT_REPARAMETERIZED" in kind:
        raise TypeError(
            f"distribution: expected one whose samples are differentiable in its parameters, received "
            f"{type(distribution).__name__}, whose samples are discrete or not reparameterized: the pathwise gradient would be "
            "zero or undefined. Use logderiv.expectations.gradients_score or logderiv.expectations.gradients_measure_valued."
        )
