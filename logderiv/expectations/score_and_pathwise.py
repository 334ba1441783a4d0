r"""The score function and its sibling, the pathwise gradient, for one random choice: $\nabla_\theta\, \mathbb{E}_{x \sim p_\theta} f(x)$.

The estimators of this module and of `logderiv.measure_valued` share one signature and return one gradient per sample, so
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

from logderiv._core.arrays import as_keys, scalar_cost
from logderiv.distributions.interop import log_prob, sample
from logderiv.types import check_params

Cost = Callable[[Any], jax.Array]
MakeDistribution = Callable[[Any], Any]


def gradients_score(
    params: Any,
    key: jax.Array,
    distribution: MakeDistribution,
    cost: Cost,
    *,
    num_samples: int,
    baseline: float | jax.Array = 0.0,
) -> Any:
    r"""$(f(x) - b)\, \nabla\log p_\theta(x)$ for each sample; unbiased.

    The sample is held (`stop_gradient`), and the cost is never differentiated.

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
        x = held_sample(distribution(params), key)
        value = scalar_cost(cost(x))
        return score_term(params, x, distribution, value - jnp.asarray(baseline).astype(value.dtype))

    return jax.vmap(one)(sample_keys(params, key, num_samples))


def gradients_pathwise(
    params: Any, key: jax.Array, distribution: MakeDistribution, cost: Cost, *, num_samples: int
) -> Any:
    r"""$\nabla_\theta f(x_\theta(\epsilon))$ for each sample: the derivative through the sampler; unbiased for a smooth cost.

    Args:
        params: Parameters, floating point.
        key: Consumed.
        distribution: `params -> distribution`, with a sampler that is differentiable in its parameters (reparameterized).
        cost: `f`, differentiable almost everywhere and continuous: the jumps of a cost contribute nothing here, silently.
        num_samples: `N`.

    Returns:
        As `gradients_score`.

    Raises:
        TypeError: The distribution is discrete or not reparameterized: its samples have no derivative.
        ValueError: As `gradients_score`.

    References:
        Mohamed et al. (2020), section 5; Kingma & Welling (2014), arXiv:1312.6114.
    """

    def value(params: Any, key: jax.Array) -> jax.Array:
        made = distribution(params)
        x = sample(made, key)
        check_reparameterized(made, x)
        return scalar_cost(cost(x))

    return jax.vmap(jax.grad(value), (None, 0))(params, sample_keys(params, key, num_samples))


def score_term(params: Any, x: Any, distribution: MakeDistribution, weight: jax.Array) -> Any:
    r"""$w\, \nabla\log p_\theta(x)$ at a given `x`; pytree of `params`."""
    x, weight = lax.stop_gradient((x, weight))

    def surrogate(params: Any) -> jax.Array:
        logp = log_prob(distribution(params), x)
        return weight.astype(logp.dtype) * logp

    return jax.grad(surrogate)(params)


def held_sample(distribution: Any, key: jax.Array) -> Any:
    """A sample that carries no derivative; `key` is consumed."""
    return lax.stop_gradient(sample(distribution, key))


def sample_keys(params: Any, key: jax.Array, num_samples: int) -> jax.Array:
    """`num_samples` keys, after a check of what every estimator here takes."""
    check_params(params)
    if num_samples < 1:
        raise ValueError(f"num_samples: expected a whole number >= 1, received {num_samples}.")
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
            "zero or undefined. Use logderiv.gradients_score or logderiv.gradients_measure_valued."
        )
