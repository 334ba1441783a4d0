"""Three gradients for one random choice: ∇_θ E f(x) with x ~ p_θ, by the score function, pathwise, and measure-valued.

They share one signature and return one gradient per sample, so the choice can be made on numbers: `logderiv.diagnostics` takes
what they return. All assume that the cost itself does not depend on the parameters. The first two are programs of one choice.

| estimator | needs | of the cost |
|---|---|---|
| `gradients_score` | a density that can be evaluated, fixed support | values only |
| `gradients_pathwise` | a differentiable sampler | a derivative |
| `gradients_measure_valued` | a known decomposition of the density's derivative | values only, 2 or more per parameter |

The decompositions stand in `logderiv.expectations.measures`.

References:
    Mohamed, Rosca, Figurnov & Mnih (2020), "Monte Carlo gradient estimation in machine learning", JMLR 21(132), section 6, table 1 and
    section 7.2 (coupling) for measures; Pflug (1989), Annals of Operations Research 18.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from logderiv._core import check
from logderiv._core.arrays import as_key, check_params, wide
from logderiv.distributions.basic import Bernoulli, Categorical
from logderiv.distributions.counts import Poisson
from logderiv.distributions.normal import Normal
from logderiv.expectations.measures import (
    Cost,
    bernoulli_derivative,
    categorical_derivative,
    normal_derivative,
    normal_noise,
    poisson_derivative,
)
from logderiv.expectations.programs import expectation
from logderiv.expectations.tape import Tape
from logderiv.types import Distribution, Key, Params

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
    return _of_each_sample(partial(Tape.sample, baseline=baseline), params, key, distribution, cost, num_samples)


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
    return _of_each_sample(Tape.sample_pathwise, params, key, distribution, cost, num_samples)


def gradients_measure_valued(
    params: Params, key: Key, distribution: MakeDistribution, cost: Cost, *, num_samples: int
) -> Any:
    """The coupled measure-valued estimate of ∇_θ E f(x) for each sample; unbiased.

    The weak derivative is taken in the distribution's own parameters (mean and scale, logits, or log-rate) and carried to `params`
    by the chain rule. The cost is never differentiated and may jump.

    Args:
        params: Parameters, floating point.
        key: Consumed.
        distribution: `params -> distribution`: a `logderiv.Normal` (mean `()` or `(D,)`), a `Categorical` (logits
            `(A,)`), a `Bernoulli` (logit `()`) or a `logderiv.distributions.Poisson` (log-rate `()`).
        cost: `f`, from one sample to a scalar; evaluated `4 D`, `A + 1` or 2 times per sample.
        num_samples: `N`.

    Returns:
        One gradient per sample: pytree of `params` with a leading axis `N`.

    Raises:
        TypeError: Another distribution; a parameter is not floating point.
        ValueError: The distribution is a batch, the cost is not a scalar, or `num_samples` is below 1.

    References:
        Mohamed et al. (2020), section 6.
    """
    keys = _sample_keys(params, key, num_samples)
    made, pull = jax.vjp(distribution, wide(params))
    one = _derivative(lax.stop_gradient(made), cost)
    return jax.vmap(lambda key: pull(one(key))[0])(keys)


def _derivative(made: Any, cost: Cost) -> Any:
    """From a key to the derivatives in the distribution's own parameters, a distribution of cotangents."""
    if isinstance(made, Normal):
        shape = jnp.broadcast_shapes(jnp.shape(made.loc), jnp.shape(made.scale))
        _check_event("Normal mean", shape[1:])
        dtype = jnp.result_type(made.loc, made.scale)
        return lambda key: normal_derivative(made, cost, normal_noise(key, shape, dtype))
    if isinstance(made, Categorical):
        _check_event("Categorical logits", jnp.shape(made.logits)[1:])
        return lambda key: categorical_derivative(made, cost, made.sample(key))
    if isinstance(made, Bernoulli):
        _check_event("Bernoulli logits", jnp.shape(made.logits))
        return lambda _: bernoulli_derivative(made, cost)
    if isinstance(made, Poisson):
        _check_event("Poisson log-rate", jnp.shape(made.log_rate))
        return lambda key: poisson_derivative(made, cost, made.sample(key))
    raise TypeError(
        f"distribution: expected a logderiv.Normal, Categorical, Bernoulli or distributions.Poisson, received {type(made).__name__}; no "
        "decomposition of its derivative is known here. Use logderiv.expectations.gradients_score."
    )


def _check_event(name: str, extra: tuple[int, ...]) -> None:
    if extra:
        raise ValueError(f"distribution: expected one {name} without batch axes, received axes {extra}; use jax.vmap.")


def _of_each_sample(
    choose: Callable[[Tape, Any], tuple[Tape, Any]], params: Params, key: Key, make: Any, cost: Cost, num_samples: int
) -> Params:
    """Gradients of the program that makes one choice and pays its cost."""

    def program(params: Params, tape: Tape) -> Tape:
        tape, x = choose(tape, make(params))
        return tape.cost(cost(x))

    keys = _sample_keys(params, key, num_samples)
    return jax.vmap(jax.grad(expectation(program)), (None, 0))(wide(params), keys)


def _sample_keys(params: Params, key: Key, num_samples: int) -> jax.Array:
    """`num_samples` keys, after a check of what every estimator here takes."""
    num_samples = check.whole(num_samples=num_samples)
    check_params(params)
    return jax.random.split(as_key(key), num_samples)
