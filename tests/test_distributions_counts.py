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
from logderiv.distributions.counts import _proposal

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


def exact_log_prob(count, rate):
    """log p(count) with 50 decimals, by Stirling's series."""
    getcontext().prec = 50
    k, rate = Decimal(int(count)), Decimal(float(rate))
    log_root = (2 * Decimal("3.14159265358979323846264338327950288419716939937510") * k).ln() / 2
    remainder = 1 / (12 * k) - 1 / (360 * k**3) + 1 / (1260 * k**5)
    return float(k * (rate / k).ln() - rate + k - log_root - remainder)


@pytest.mark.parametrize("rate", [1000.0, 1000.7, 12345.6, 1e7, 1e9, 2.1e9])
def test_a_count_of_a_large_rate_is_accepted_with_the_probability_that_leaves_its_law(rate):
    """⌊G(U)⌋ accepted with p(k) G'(U) / c has the law p exactly, where that is at most 1."""
    b = 0.931 + 2.53 * np.sqrt(rate)
    a, c = -0.059 + 0.02483 * b, 1.126 + 1.1328 / (b - 3.4)
    place = jax.vmap(jax.value_and_grad(lambda u: (2 * a / (0.5 - abs(u)) + b) * u + rate + 0.43))
    u = np.concatenate([np.linspace(-0.499, 0.499, 4000), 0.5 - np.logspace(-9, -3, 50)])
    offset, log_accepted = jax.jit(_proposal)(jnp.full(u.shape, rate), jnp.asarray(0.5 - abs(u)), jnp.asarray(u > 0))
    places, slopes = place(jnp.asarray(u))
    counts = np.floor(rate) + np.asarray(offset)
    assert (abs(counts - np.floor(places)) <= (rate > 1e6)).all()  # the sum is rounded there, the offset is not
    assert log_accepted.max() <= 0
    assert log_accepted.max() > -0.003  # and the bound is no larger than it has to be
    near = np.flatnonzero(abs(counts - rate) < 12 * np.sqrt(rate))[::40]
    law = np.array([exact_log_prob(k, rate) for k in counts[near]])
    np.testing.assert_allclose(log_accepted[near] - jnp.log(slopes[near]) + np.log(c), law, rtol=1e-12)
    assert np.isneginf(log_accepted[abs(counts / rate - 1) > 1]).all()


@pytest.mark.parametrize("rate", [1e4, 3e7, 1e9])
def test_draws_in_float32_have_the_law_at_large_rates(rate):
    """Variance and distribution function; from 1e7 on those of `jax.random.poisson` have not."""
    dist, num = Poisson(jnp.log(jnp.float32(rate))), 20_000
    exact = np.exp(float(dist.log_rate))

    def deviates(sample, seed):
        draws = jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(seed), num))
        z = (np.asarray(draws) + np.random.default_rng(0).uniform(-0.5, 0.5, num) - exact) / np.sqrt(exact)
        tested: Any = scipy.stats.kstest(z, "norm")
        return abs(z.var() - 1) / np.sqrt(2 / num), tested.pvalue

    variance, chance = deviates(dist.sample, 3)
    assert variance < 4
    assert chance > 1e-3
    if rate > 1e7:
        twin = lambda key: jax.random.poisson(key, jnp.exp(dist.log_rate), (), jnp.int32)  # noqa: E731
        assert deviates(twin, 6)[0] > 10


def test_small_and_large_rates_stand_beside_each_other():
    log_rates, key = jnp.log(jnp.array([3.0, 5e3, 40.0, 0.0])), jax.random.key(4)
    draws = jax.jit(lambda x: Poisson(x).sample(key))(log_rates)
    small = jax.random.poisson(jax.random.key(4), jnp.array([3.0, 0.0, 40.0, 0.0]), dtype=jnp.int32)
    assert draws[jnp.array([0, 2, 3])].tolist() == small[jnp.array([0, 2, 3])].tolist()
    assert abs(float(draws[1]) - 5e3) < 5 * np.sqrt(5e3)
    slope = jax.grad(lambda x: Poisson(x).log_prob(Poisson(x).sample(jax.random.key(5))))(log_rates[1])
    assert abs(slope) < 5 * np.sqrt(5e3)  # a draw has no derivative, and the loop needs none
