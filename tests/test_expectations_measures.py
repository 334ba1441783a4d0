"""Normal and Poisson choices by the alternative path: every number that is drawn is integrated over, by quadrature."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax import lax

import logderiv as ld
from logderiv._core.pytrees import pytree
from logderiv.distributions import Poisson
from logderiv.expectations import gradients_measure_valued, measures
from logderiv.expectations.forced import Detour
from logderiv.expectations.sources import Given
from logderiv.expectations.tape import Tape

from .mostly import slow
from .quadrature import gauss_hermite

POINT = jnp.array([0.4, -0.3])


@pytree(static=("stride",))
class Nodes(Given):
    """Nodes of a quadrature in place of draws: standard normal numbers, or counts."""

    def choose(self, distribution, where=True):
        del where
        number = self.choices.at[self.position].get(mode="fill", fill_value=0)
        value = (
            number.astype(jnp.int32)
            if isinstance(distribution, Poisson)
            else distribution.loc + distribution.scale * number
        )
        return dataclasses.replace(self, position=self.position + self.stride), value

    def draw(self, distribution):
        return self.choose(distribution)


@jax.jit
def slopes(objective, params, first, second, picked):
    """The first derivatives of the runs with these numbers; `picked` is made otherwise, by the numbers of `second`."""
    zeros, rows = jnp.zeros(len(first)), Nodes.of(first, second)
    tapes = Tape(Nodes(*dataclasses.astuple(rows)[:5]), zeros, zeros, detour=jax.vmap(Detour.start)(picked))
    return jax.jacfwd(lambda params: objective.on_tapes(params, tapes).values)(params)


def moments(model, params, parts):
    """Mean and covariance over `(first, second, picked, weights)`, whose weights sum to 1."""
    rows = []
    for first, second, picked, weights in parts:
        found = slopes(ld.expectation(model), params, first, second, np.full(len(first), picked, np.int32))
        found = np.asarray(found).reshape(len(first), -1)
        rows.append((weights.sum(), weights @ found, (found.T * weights) @ found))
    total, mean, squares = (np.sum(x, axis=0) for x in zip(*rows, strict=True))
    np.testing.assert_allclose(total, 1, rtol=1e-13)
    return mean, squares - np.outer(mean, mean)


def normal_parts(choices, points, more):
    """Standard normal numbers Z, of which each is picked in turn and replaced by √(Z² + 2 E)."""
    first, weights = gauss_hermite(choices, points)
    e, by_e = np.polynomial.laguerre.laggauss(more)
    for k in range(choices):
        rows, second = np.repeat(first, more, axis=0), np.repeat(first, more, axis=0)
        second[:, k] = np.sqrt(second[:, k] ** 2 + 2 * np.tile(e, len(first)))
        yield rows, second, k, np.outer(weights, by_e).ravel() / choices


def draw(loc, scale, method="alternative"):
    return ld.sample(ld.Normal(loc, scale), method=method)


def single(cost):
    return lambda params: cost(draw(params[0], params[1]))


# By hand: E x² = μ² + σ², E x³ = μ³ + 3 μ σ², P(x > 0) = Φ(μ / σ).

MU, SIGMA = 0.7, 1.3
BY_HAND = {
    "square": (jnp.square, (2 * MU, 2 * SIGMA), (0, 4 * SIGMA**2 + 4 * MU**2)),
    "cube": (
        lambda x: x**3,
        (3 * MU**2 + 3 * SIGMA**2, 6 * MU * SIGMA),
        (6 * SIGMA**4, 9 * MU**4 + 54 * MU**2 * SIGMA**2 + 15 * SIGMA**4),
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_polynomials_have_the_mean_and_the_variance_of_closed_forms(name):
    cost, mean, variance = BY_HAND[name]
    found, covariance = moments(single(cost), jnp.array([MU, SIGMA]), normal_parts(1, 8, 4))
    np.testing.assert_allclose(found, mean, rtol=1e-12)
    np.testing.assert_allclose(np.diag(covariance), variance, rtol=1e-11, atol=1e-11)


def panels(ends, density, num=40):
    """Gauss-Legendre nodes between neighbouring ends, and weights times the density, which sum to 1."""
    x, w = np.polynomial.legendre.leggauss(num)
    nodes = np.concatenate([a + (b - a) * (x + 1) / 2 for a, b in itertools.pairwise(ends)])
    weights = np.concatenate([w * (b - a) / 2 for a, b in itertools.pairwise(ends)])
    weights = weights * density(nodes)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)
    return nodes, weights / weights.sum()


def standard(kink):
    """Of a standard normal number, where something jumps at one."""
    return panels((-10, min(kink, 0) - 2, kink, max(kink, 0) + 2, 10), scipy.stats.norm.pdf)


def maxwell(kink):
    """Of √(Z² + 2 E), which a mean alone does not see beside Z."""
    return panels((0, abs(kink), abs(kink) + 2, 10), scipy.stats.maxwell.pdf)


def test_a_jump_has_the_mean_and_the_variance_of_closed_forms():
    """The derivatives of Φ(μ / σ); in the mean the square of 1[M > |μ| / σ] / (2 σ M)."""
    a = MU / SIGMA
    (z, by_z), (m, by_m) = standard(-a), maxwell(a)
    rows = np.repeat(z, len(m))[:, None], np.tile(m, len(z))[:, None], 0, np.outer(by_z, by_m).ravel()
    found, covariance = moments(single(lambda x: (x > 0).astype(float)), jnp.array([MU, SIGMA]), [rows])
    density = scipy.stats.norm.pdf(a)
    np.testing.assert_allclose(found, [density / SIGMA, -MU * density / SIGMA**2], atol=1e-12)
    expected = scipy.stats.norm.sf(a) / (2 * SIGMA**2) - (density / SIGMA) ** 2
    np.testing.assert_allclose(covariance[0, 0], expected, atol=1e-12)


# Models of two choices.


def smooth(method):
    """A chain in a scan, with a cost at each step that depends on the parameters, too."""

    def model(params):
        def step(level, _):
            x = draw(params[0] + 0.5 * level, jnp.exp(params[1]) / 2, method)
            ld.cost(jnp.sin(x) * params[0])
            return level * params[1] + x, None

        level, _ = lax.scan(step, jnp.zeros(()), None, length=2)
        ld.cost(jnp.cos(level))

    return model


def smooth_by_hand(params, z):
    """Costs of the chain with these standard normal numbers."""
    scale = jnp.exp(params[1]) / 2
    x = params[0] + scale * z[:, 0]
    y = params[0] + 0.5 * x + scale * z[:, 1]
    return (jnp.sin(x) + jnp.sin(y)) * params[0] + jnp.cos(params[1] * x + y)


def test_a_chain_has_the_exact_mean_and_real_keys_its_covariance():
    z, weights = gauss_hermite(2, 24)
    exact = jax.grad(lambda params: jnp.dot(weights, smooth_by_hand(params, z)))(POINT)
    mean, covariance = moments(smooth("alternative"), POINT, normal_parts(2, 24, 24))
    np.testing.assert_allclose(mean, exact, atol=1e-12)
    num = 20_000
    runs = ld.expectation(smooth("alternative"), num_samples=num)
    found = np.asarray(jax.jit(jax.jacfwd(lambda params: runs.runs(params, jax.random.key(3)).values))(POINT))
    ld.testing.assert_unbiased(found, exact, resolution=0.1)
    squares = (found - mean)[:, :, None] * (found - mean)[:, None, :]
    error = 4 * np.std(squares, axis=0) / np.sqrt(num)
    assert np.all(np.abs(np.mean(squares, axis=0) - covariance) < error)
    assert np.all(np.abs(np.mean(squares, axis=0) - 1.2 * covariance)[np.diag_indices(2)] > np.diag(error))


def test_a_rayleigh_number_in_the_place_of_a_maxwell_number_is_seen(monkeypatch):
    def rayleigh(self, number, key):
        del self
        return jnp.sqrt(2 * jax.random.exponential(key, dtype=number.dtype))

    monkeypatch.setattr(measures._OfNormal, "other", rayleigh)
    runs = ld.expectation(lambda params: smooth("alternative")(params), num_samples=20_000)
    found = jax.jit(jax.jacfwd(lambda params: runs.runs(params, jax.random.key(3)).values))(POINT)
    z, weights = gauss_hermite(2, 24)
    exact = jax.grad(lambda params: jnp.dot(weights, smooth_by_hand(params, z)))(POINT)
    with pytest.raises(AssertionError):
        ld.testing.assert_unbiased(found, exact, resolution=0.1)


def branching(method):
    """The sign of one choice decides on another one, and on the cost."""

    def model(params):
        x = draw(params[0], jnp.exp(params[1]), method)
        return lax.cond(x > 0, lambda: jnp.square(draw(params[1] * x, 1 + 0 * x, method) + 2), lambda: x)

    return model


def branching_exact(params):
    """E[1[x > 0] ((θ₁ x + 2)² + 1) + 1[x ≤ 0] x], over values of x, so that the jump stays where it is."""
    x, w = np.polynomial.legendre.leggauss(60)
    nodes = jnp.asarray(np.concatenate([6 * (x - 1), 6 * (x + 1)]))
    cost = jnp.where(nodes > 0, jnp.square(params[1] * nodes + 2) + 1, nodes)
    return jnp.dot(
        np.tile(6 * w, 2), cost * jnp.exp(jax.vmap(ld.Normal(params[0], jnp.exp(params[1])).log_prob)(nodes))
    )


def branching_parts():
    kink = -float(POINT[0]) / math.exp(POINT[1])
    z, by_z = standard(kink)
    m, by_m = maxwell(kink)
    y, by_y = gauss_hermite(1, 6)
    e, by_e = np.polynomial.laguerre.laggauss(4)
    grid = np.array([[a, b] for a in z for b in y[:, 0]])
    weights, both = np.outer(by_z, by_y).ravel(), grid[:, 0] > kink  # where a second choice is made
    for k, (nodes, by_node) in enumerate(((m, by_m), (None, by_e))):
        chosen = both | (k == 0)
        share = weights[chosen] / np.where(both[chosen], 2, 1)
        first = np.repeat(grid[chosen], len(by_node), axis=0)
        second = first.copy()
        other = np.tile(e if nodes is None else nodes, chosen.sum())
        second[:, k] = other if nodes is not None else np.sqrt(first[:, 1] ** 2 + 2 * other)
        yield first, second, k, np.outer(share, by_node).ravel()


def test_a_branch_on_the_sign_of_a_choice_is_exact_where_pathwise_is_not():
    exact = jax.jit(jax.grad(branching_exact))(POINT)
    mean, _ = moments(branching("alternative"), POINT, branching_parts())
    np.testing.assert_allclose(mean, exact, atol=1e-12)
    wrong, _ = moments(branching("pathwise"), POINT, branching_parts())
    assert np.min(np.abs(wrong - exact)) > 0.1


def test_counts_in_a_row_are_exact():
    """Two counts, the second one's rate by the first; where that one is made otherwise, the second is drawn again."""
    most, params = 22, jnp.array([-0.3, -0.4])

    def model(params):
        x = ld.sample(Poisson(params[0]), method="alternative").astype(float)
        y = ld.sample(Poisson(params[1] + 0.1 * x), method="alternative").astype(float)
        return jnp.cos(x) * params[1] + jnp.square(y - x)

    def exact(params):
        x, y = jnp.indices((most, most), np.int32).reshape(2, -1)
        logs = Poisson(params[0]).log_prob(x) + Poisson(params[1] + 0.1 * x.astype(float)).log_prob(y)
        return jnp.dot(jnp.exp(logs), jnp.cos(x.astype(float)) * params[1] + jnp.square(y - x).astype(float))

    x, y, again = np.indices((most, most, most)).reshape(3, -1).astype(float)
    rates = [np.exp(params[0]) * np.ones_like(x), np.exp(params[1] + 0.1 * x), np.exp(params[1] + 0.1 * (x + 1))]
    first, second, other = (scipy.stats.poisson.pmf(n, rate) for n, rate in zip((x, y, again), rates, strict=True))
    share = first * second * other / (rates[0] + rates[1])
    chosen = again == 0
    parts = [
        (np.stack([x, y], axis=1), np.stack([x + 1, again], axis=1), 0, share * rates[0]),
        (np.stack([x, y], axis=1)[chosen], np.stack([x, y + 1], axis=1)[chosen], 1, (share * rates[1] / other)[chosen]),
    ]
    mean, _ = moments(model, params, parts)
    np.testing.assert_allclose(mean, jax.grad(exact)(params), atol=1e-12)
    runs = ld.expectation(model, num_samples=20_000)
    found = jax.jit(jax.jacfwd(lambda params: runs.runs(params, jax.random.key(3)).values))(params)
    ld.testing.assert_unbiased(found, jax.grad(exact)(params), resolution=0.2)
    with pytest.raises(AssertionError):
        ld.testing.assert_unbiased(1.3 * found, jax.grad(exact)(params), resolution=0.2)


def test_counts_have_the_variance_of_a_closed_form():
    """f = x²: λ (2 x + 1), of mean λ (2 λ + 1) and variance 4 λ³; as one choice, and as a choice of a model."""
    rate, num = 1.7, 20_000

    def model(log_rate):
        return jnp.square(ld.sample(Poisson(log_rate), method="alternative").astype(float))

    runs = ld.expectation(model, num_samples=num)
    one = jax.jit(jax.jacfwd(lambda p: runs.runs(p, jax.random.key(3)).values))(jnp.log(rate))
    two = jax.jit(lambda p: gradients_measure_valued(p, jax.random.key(3), Poisson, lambda x: x * x, num_samples=num))(
        jnp.log(rate)
    )
    for found in (one, two):
        ld.testing.assert_unbiased(found, jnp.asarray(rate * (2 * rate + 1)), resolution=0.5)
        squares = np.square(found - np.mean(found))
        error = 4 * np.std(squares) / np.sqrt(num)
        assert abs(np.mean(squares) - 4 * rate**3) < error < abs(np.mean(squares) - 1.2 * 4 * rate**3)


def mixed(params):
    """A scored coin, normal numbers side by side, a coin made otherwise, and a count, in costs of all together."""
    coin = ld.sample(ld.Bernoulli(params[0])).astype(float)
    xs = ld.plate(lambda a: draw(a * params[0] + coin, jnp.exp(params[1])))(jnp.array([1.0, -2.0]))
    flip = ld.sample(ld.Bernoulli(params[1] + xs[0]), method="alternative").astype(float)
    count = ld.sample(Poisson(params[1] - 0.2 * flip), method="alternative").astype(float)
    ld.cost(jnp.square(jnp.sum(xs) * 0.5 + flip) + count * xs[1] * flip)


def mixed_exact(params):
    z, weights = gauss_hermite(2, 40)
    total = 0.0
    for coin in (0.0, 1.0):
        p = jax.nn.sigmoid((2 * coin - 1) * params[0])
        x = (params[0] * jnp.array([1.0, -2.0]) + coin)[None] + jnp.exp(params[1]) * z
        for flip in (0.0, 1.0):
            q = jax.nn.sigmoid((2 * flip - 1) * (params[1] + x[:, 0]))
            cost = jnp.square(jnp.sum(x, axis=1) * 0.5 + flip) + jnp.exp(params[1] - 0.2 * flip) * x[:, 1] * flip
            total = total + p * jnp.dot(weights, q * cost)
    return total


@pytest.mark.parametrize("options", [slow({}), {"baseline": "leave_one_out"}], ids=["alone", "leave one out"])
def test_methods_and_distributions_mix(options):
    runs = ld.expectation(mixed, num_samples=4, **options)
    keys = jax.random.split(jax.random.key(3), 40_000)
    found = jax.jit(jax.vmap(jax.grad(runs), (None, 0)))(POINT, keys)
    exact = jax.grad(mixed_exact)(POINT)
    ld.testing.assert_unbiased(found, exact, resolution=0.1)
    with pytest.raises(AssertionError):
        ld.testing.assert_unbiased(1.3 * found, exact, resolution=0.1)


def test_sites_say_how_many_runs_a_choice_takes():
    found = [(s.distribution, s.method, s.runs, s.order) for s in ld.expectation(mixed).sites(POINT)]
    assert found == [
        ("Bernoulli", "score", 1, None),
        ("Normal", "alternative", 3, 1),
        ("Bernoulli", "alternative", 2, 1),
        ("Poisson", "alternative", 2, 1),
    ]


def test_a_normal_of_another_library_is_refused_by_its_name():
    dist = pytest.importorskip("numpyro.distributions")
    with pytest.raises(
        TypeError, match=r"a logderiv\.Normal or .* received numpyro's Normal; .* 'score' or 'pathwise'"
    ):
        ld.expectation(lambda p: ld.sample(dist.Normal(p, 1.0), method="alternative"))(0.3, jax.random.key(0))


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
def test_a_second_derivative_raises(mode):
    with pytest.raises(ValueError, match="first derivative only"):
        mode(jax.grad(ld.expectation(smooth("alternative"))))(POINT, jax.random.key(3))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_half_and_single_precision(dtype):
    """At a scale that is hardly seen beside the mean the difference quotient stays finite; a rate of 0 makes nothing."""

    def model(params):
        x = draw(params[0], jnp.exp(params[1]))
        return x.astype(jnp.float32) * 2 + ld.sample(Poisson(params[1] - jnp.inf), method="alternative")

    with jax.numpy_dtype_promotion("standard"):
        found = jax.grad(ld.expectation(model, num_samples=8))(jnp.array([0.5, -1.0], dtype), jax.random.key(3))
        far = jax.grad(ld.expectation(model, num_samples=8))(jnp.array([1e6, -30.0], dtype), jax.random.key(3))
    assert found.dtype == dtype
    np.testing.assert_allclose(found[0].astype(float), 2.0, rtol=1e-2)
    assert np.all(np.isfinite(far.astype(float)))
