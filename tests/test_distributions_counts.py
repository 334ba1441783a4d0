"""The Poisson distribution: against scipy and decimal arithmetic, in float32 at large rates, and at its edges."""

from decimal import Decimal, getcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import logderiv as ld
from logderiv.distributions import Poisson

RATES = np.array([1e-6, 0.3, 1.0, 7.5, 15.2, 40.0])
COUNTS = np.arange(60)


def test_probabilities_are_those_of_scipy():
    dist = Poisson(jnp.log(RATES))
    logs, probs = jax.jit(jax.vmap(lambda a: (dist.log_prob(a), dist.prob(a))))(COUNTS)
    reference: Any = scipy.stats.poisson(RATES)
    np.testing.assert_allclose(logs, reference.logpmf(COUNTS[:, None]), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(probs, reference.pmf(COUNTS[:, None]), rtol=1e-11, atol=1e-300)
    assert dist.mode().tolist() == [0, 0, 1, 7, 15, 40]


@pytest.mark.parametrize("count", [2, 7, 15, 16, 3000])
def test_no_digits_are_lost_at_large_rates(count):
    """By 50 decimals, on both sides of the switch to Stirling's series; the plain formula is off by more in float32."""
    getcontext().prec = 50
    rate = 1.01 * count
    log_factorial = sum((Decimal(k).ln() for k in range(2, count + 1)), Decimal(0))
    exact = float(count * Decimal(rate).ln() - Decimal(rate) - log_factorial)
    found = Poisson(jnp.log(rate)).log_prob(jnp.int32(count))
    np.testing.assert_allclose(found, exact, rtol=1e-12)
    log_rate = jnp.log(jnp.float32(rate))
    at = float(log_rate)  # what float32 can hold of the rate
    wanted = float(count * Decimal(at) - Decimal(at).exp() - log_factorial)
    assert abs(float(Poisson(log_rate).log_prob(jnp.int32(count))) - wanted) < abs(count - rate) * 1.2e-7 * at + 1e-6
    plain = count * log_rate - jnp.exp(log_rate) - jax.scipy.special.gammaln(jnp.float32(count + 1))
    assert count < 3000 or abs(float(plain) - wanted) > 1e-4


def test_derivatives_are_those_of_the_formula():
    """∂ log p / ∂ℓ = a - λ, and -λ from the second order on."""
    for count in (0, 3, 400):
        found = []
        function = lambda x, count=count: Poisson(x).log_prob(jnp.int32(count))  # noqa: E731
        for _ in range(3):
            function = jax.grad(function)
            found.append(float(function(jnp.log(2.5))))
        np.testing.assert_allclose(found, [count - 2.5, -2.5, -2.5], rtol=1e-12)


def test_what_is_no_count_has_probability_zero_or_is_refused():
    dist = Poisson(jnp.array([0.3, -jnp.inf]))
    assert dist.log_prob(jnp.int32(-1)).tolist() == [-jnp.inf] * 2
    assert dist.prob(jnp.int32(-1)).tolist() == [0, 0]
    assert dist.log_prob(jnp.int32(0))[1] == 0  # a rate of 0 gives 0 for certain
    assert dist.log_prob(jnp.int32(2))[1] == -jnp.inf
    assert jax.grad(lambda x: Poisson(x).log_prob(jnp.int32(-3)))(0.3) == 0
    assert jnp.isnan(Poisson(jnp.array(jnp.nan)).log_prob(jnp.int32(2)))
    with pytest.raises(TypeError, match=r"action: expected integers, received dtype float.*astype\(jnp.int32\)"):
        dist.log_prob(jnp.array(2.0))
    with pytest.raises(ValueError, match="action: expected a shape that broadcasts"):
        dist.log_prob(jnp.arange(3))


def test_samples_have_the_score_and_the_mean_of_the_law():
    dist, keys = Poisson(jnp.log(jnp.array([0.4, 30.0]))), jax.random.split(jax.random.key(1), 20_000)
    draws = jax.jit(jax.vmap(dist.sample))(keys)
    assert draws.dtype == jnp.int32
    mean, sem = np.asarray(draws).mean(axis=0), np.sqrt(np.array([0.4, 30.0]) / len(keys))
    assert (abs(mean - np.array([0.4, 30.0])) < 4 * sem).all()
    assert (abs(mean - 1.05 * np.array([0.4, 30.0])) > 4 * sem).all()  # a rate off by 5 % would be seen
    report = ld.testing.check_score(
        jnp.log(3.0),
        jax.random.key(2),
        lambda x, a: Poisson(x).log_prob(a),
        lambda x, key: Poisson(x).sample(key),
        resolution=0.2,
        num_samples=20_000,
    )
    assert report.passed, report
