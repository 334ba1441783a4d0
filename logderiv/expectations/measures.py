"""Derivatives of laws as differences of two laws: one table, of what one choice and choices of a model are made otherwise by.

A measure-valued (weak) derivative: the derivative of a density is a difference of two densities, ∂p_θ/∂θ = c (p⁺ - p⁻), so
∂E[f]/∂θ = c (E₊[f] - E₋[f]) with one expectation under each: no derivative of the cost, at the price of two or more evaluations
per parameter. The two sides are drawn from common noise (coupled), which removes the noise where the cost is nearly symmetric
about the mean or flat. It is no free lunch: on a steep slope the two sides of a mean's derivative move apart with the common
noise, and the variance is up to twice that of independent draws.

| distribution, parameter | c | p⁺ | p⁻ | common noise |
|---|---|---|---|---|
| Normal, mean | 1 / (σ √(2π)) | μ + σ W | μ - σ W | W Weibull, shape 2, scale √2 (Rayleigh) |
| Normal, scale | 1 / σ | μ + σ M | μ + σ M U | M double-sided Maxwell, U uniform; M U is standard Normal |
| Categorical, logit a | p_a | the outcome a | the draw | nothing to draw for p⁺; 0 if the draw is a |
| Bernoulli, logit | p (1 - p) | 1 | 0 | no noise at all: exact |
| Poisson, log-rate | λ | the draw + 1 | the draw | no further noise |

For the choices of a model, where one evaluation is a run of the rest of it, the draw itself is a side, and sides are shared:

- Of finitely many outcomes: every pair {x, a} with weight p(x) p(a), for all logits together. One other run.
- Normal: given the draw μ + σ Z the Maxwell number is M = √(Z² + 2 E), E exponential, with a random sign; f at both signs serves both
  parameters. In the scale it is (f(μ + σ M) + f(μ - σ M)) / 2 - f(μ + σ Z), over σ. In the mean the Rayleigh number is drawn by
  the Maxwell law, whose density is √(2/π) W times its own, so that c becomes 1 / (2 σ M): a difference quotient with a random
  step, which does not vary at all where f is quadratic. Two other runs.
- Poisson: f(x + 1) - f(x). One other run.

References:
    Mohamed, Rosca, Figurnov & Mnih (2020), "Monte Carlo gradient estimation in machine learning", JMLR 21(132), section 6, table 1 and
    section 7.2 (coupling); Pflug (1989), Annals of Operations Research 18; from memory.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from logderiv import distributions
from logderiv._core.arrays import scalar_cost
from logderiv.distributions.basic import Bernoulli, Categorical
from logderiv.distributions.counts import Poisson
from logderiv.distributions.finite import num_outcomes, outcome
from logderiv.distributions.normal import Normal, event_shape
from logderiv.types import Key

Cost = Callable[[Any], jax.Array]
HALF = 0.5  # each pair of outcomes is met twice: either is drawn, and the other one made instead


class Otherwise(Protocol):
    """How one choice of a model is made otherwise: a number is drawn by `law`, another one is taken for it, and both say what is made.

    With the runs f of the draw and f⁺, f⁻ of its two sides, the derivative of E f is that of
    `chance` (`even` ((f⁺ + f⁻) / 2 - f) + `odd` (f⁺ - f⁻)); where there is one side only, f⁻ = f⁺.

    Attributes:
        law: What the number is drawn from, detached.
        num_sides: How many other runs it takes.
    """

    law: Any
    num_sides: int

    def chance(self, number: jax.Array) -> jax.Array:
        """What the choice is picked in proportion to, among all of a run; detached."""
        ...

    def other(self, number: jax.Array, key: jax.Array) -> jax.Array:
        """Another number for this one; `key` is consumed."""
        ...

    def value(self, number: jax.Array, side: jax.Array) -> Any:
        """What is made by this number on this side, 1 or -1; the draw is on side 1."""
        ...

    def slopes(self, number: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`even` and `odd`, whose derivatives count."""
        ...


class _OfFinite:
    """Another outcome a instead of x, with probability p(a) / q, q = 1 - p(x)."""

    num_sides = 1

    def __init__(self, distribution: Any, num: int) -> None:
        self._distribution, self._numbers = distribution, jnp.arange(num, dtype=jnp.int32)
        self._logs = jax.vmap(lambda a: distributions.log_probs(distribution, outcome(distribution, a)))(self._numbers)
        self.law = Categorical(lax.stop_gradient(self._logs))

    def chance(self, number: jax.Array) -> jax.Array:
        return -jnp.expm1(lax.stop_gradient(self._logs)[number])

    def other(self, number: jax.Array, key: jax.Array) -> jax.Array:
        return Categorical(jnp.where(self._numbers == number, -jnp.inf, self.law.logits)).sample(key)

    def value(self, number: jax.Array, side: jax.Array) -> Any:
        del side
        return outcome(self._distribution, number)

    def slopes(self, number: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
        even = HALF * (self._logs[other] - self._logs[number])
        return even, jnp.zeros_like(even)


class _OfNormal:
    """M = √(Z² + 2 E) instead of Z, with either sign."""

    num_sides = 2

    def __init__(self, distribution: Normal) -> None:
        self._live, self._fixed = distribution, jax.tree.map(lax.stop_gradient, distribution)
        self.law = Normal(jnp.zeros_like(distribution.loc), jnp.ones_like(distribution.scale))

    def chance(self, number: jax.Array) -> jax.Array:
        return jnp.ones_like(number)

    def other(self, number: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.square(number) + 2 * jax.random.exponential(key, dtype=number.dtype))

    def value(self, number: jax.Array, side: jax.Array) -> jax.Array:
        return self._fixed.loc + self._fixed.scale * number * side.astype(number.dtype)

    def slopes(self, number: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
        del number
        apart = 2 * self._fixed.scale * jnp.where(other == 0, 1, other)  # at 0 both sides are one
        return jnp.log(self._live.scale), self._live.loc / apart


class _OfPoisson:
    """x + 1 instead of x."""

    num_sides = 1

    def __init__(self, distribution: Poisson) -> None:
        self._log_rate = distribution.log_rate
        self.law = Poisson(lax.stop_gradient(distribution.log_rate))

    def chance(self, number: jax.Array) -> jax.Array:
        del number
        return jnp.exp(self.law.log_rate)

    def other(self, number: jax.Array, key: jax.Array) -> jax.Array:
        del key
        return number + 1

    def value(self, number: jax.Array, side: jax.Array) -> jax.Array:
        del side
        return number

    def slopes(self, number: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
        del number, other
        return self._log_rate, jnp.zeros_like(self._log_rate)


def otherwise(name: str, distribution: Any) -> Otherwise:
    """How a choice from this distribution is made otherwise.

    Args:
        name: What needs it, for the message.
        distribution: One choice with finitely many outcomes, of this library, distrax, TensorFlow Probability or numpyro; or a `Normal`
            or `Poisson` of this library.

    Returns:
        The decomposition of its derivative.

    Raises:
        TypeError: None is known, or these are several choices.
    """
    if isinstance(distribution, Normal) and not event_shape(distribution):
        return _OfNormal(distribution)
    if isinstance(distribution, Poisson) and not distribution.log_rate.ndim:
        return _OfPoisson(distribution)
    num = num_outcomes(distribution)
    if num is None:
        kind = type(distribution)
        raise TypeError(
            f"{name}: expected one choice with finitely many outcomes, or a logderiv.Normal or logderiv.distributions.Poisson, without "
            f"batch axes, received {kind.__module__.partition('.')[0]}'s {kind.__name__}; another real number is drawn by 'score' or 'pathwise', another count by "
            "'score', several choices are made by logderiv.plate."
        )
    return _OfFinite(distribution, num)


class NormalNoise(NamedTuple):
    """Noise of one coupled sample; arrays of the shape of the mean.

    Attributes:
        base: Standard Normal, for the coordinates that are not being differentiated.
        weibull: `W`.
        maxwell: `M`.
        uniform: `U`.
    """

    base: jax.Array
    weibull: jax.Array
    maxwell: jax.Array
    uniform: jax.Array


def normal_derivative(normal: Normal, cost: Cost, noise: NormalNoise) -> Normal:
    """Derivatives in mean and scale (as a `Normal`) for given noise."""
    loc, scale = jnp.broadcast_arrays(normal.loc, normal.scale)
    x = loc + scale * noise.base

    def costs(side: jax.Array) -> jax.Array:
        """Of `x` with one coordinate after the other from this side."""
        if not x.ndim:
            return scalar_cost(cost(side))
        return jax.vmap(lambda i: scalar_cost(cost(x.at[i].set(side[i]))))(jnp.arange(x.shape[0]))

    def sides(plus: jax.Array, minus: jax.Array) -> jax.Array:
        return costs(plus) - costs(minus)

    by_loc = sides(loc + scale * noise.weibull, loc - scale * noise.weibull) / (scale * math.sqrt(2 * math.pi))
    by_scale = sides(loc + scale * noise.maxwell, loc + scale * noise.maxwell * noise.uniform) / scale
    slopes = _reduce_to(by_loc, normal.loc), _reduce_to(by_scale, normal.scale)
    return jax.tree.unflatten(jax.tree.structure(normal), slopes)


def normal_noise(key: Key, shape: tuple[int, ...], dtype: Any) -> NormalNoise:
    """Draw the noise of one sample; `key` is consumed."""
    keys = jax.random.split(key, 4)
    return NormalNoise(
        jax.random.normal(keys[0], shape, dtype),
        jax.random.weibull_min(keys[1], math.sqrt(2), 2.0, shape, dtype),
        jax.random.double_sided_maxwell(keys[2], 0.0, 1.0, shape, dtype),
        jax.random.uniform(keys[3], shape, dtype),
    )


def categorical_derivative(categorical: Categorical, cost: Cost, x: jax.Array) -> Categorical:
    """The slopes p_a (f(a) - f(x)) for every outcome `a`, given the draw `x` (as a `Categorical`)."""
    logits = categorical.logits
    values = jax.vmap(lambda a: scalar_cost(cost(a)))(jnp.arange(logits.shape[-1], dtype=x.dtype))
    return Categorical(jax.nn.softmax(logits) * (values - values[x]).astype(logits.dtype))


def bernoulli_derivative(bernoulli: Bernoulli, cost: Cost) -> Bernoulli:
    """The slope p (1 - p) (f(1) - f(0)) (as a `Bernoulli`)."""
    zero, one = (scalar_cost(cost(jnp.full((), x, jnp.int32))) for x in (0, 1))
    logits = bernoulli.logits
    return Bernoulli(jax.nn.sigmoid(logits) * jax.nn.sigmoid(-logits) * (one - zero).astype(logits.dtype))


def poisson_derivative(poisson: Poisson, cost: Cost, x: jax.Array) -> Poisson:
    """The slope λ (f(x + 1) - f(x)), given the draw `x` (as a `Poisson`)."""
    here, above = (scalar_cost(cost(a)) for a in (x, x + 1))
    return Poisson(jnp.exp(poisson.log_rate) * (above - here).astype(poisson.log_rate.dtype))


def _reduce_to(derivative: jax.Array, parameter: jax.Array) -> jax.Array:
    """Sum over the coordinates that a broadcast parameter is shared by."""
    _, pull = jax.vjp(lambda x: jnp.broadcast_to(x, derivative.shape), parameter)
    return pull(derivative.astype(jnp.result_type(parameter)))[0]
