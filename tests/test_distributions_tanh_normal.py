"""The tanh-Normal: its density, its bounds, its entropy."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.stats

import logderiv as ld
from logderiv.distributions.tanh_normal import log_ndtr

FLOATS = [jnp.float32, jnp.float64]
GAP = float(jnp.finfo(jnp.float64).eps) ** (2 / 3)
LAST = 0.5 * np.log((2 - GAP) / GAP)  # where the bounds begin in u
value_and_score = jax.jit(
    jax.value_and_grad(lambda loc, scale, y: ld.distributions.TanhNormal(loc, scale).log_prob(y), (0, 1))
)


def exact(loc, scale, y):
    """Log-density and score in loc and scale, 40 digits."""
    with mpmath.workdps(40):
        loc, scale, y = (mpmath.mpf(float(x)) for x in (loc, scale, y))
        u = mpmath.atanh(y)
        value = mpmath.log(mpmath.npdf(u, loc, scale)) - mpmath.log(1 - y**2)
        x = (u - loc) / scale
        return np.array([float(value), float(x / scale), float((x**2 - 1) / scale)])


@pytest.mark.parametrize("dtype", FLOATS)
def test_density_and_score_agree_with_forty_digits(dtype):
    rtol = 3e-6 if dtype == jnp.float32 else 1e-13
    for (loc, scale), u in itertools.product(((0.0, 1.0), (1.5, 0.1), (-8.0, 3.0)), (0.0, 1e-6, -0.7, 3.0, 5.5, -5.5)):
        arguments = [jnp.asarray(x, dtype) for x in (loc, scale, np.tanh(u))]
        value, score = value_and_score(*arguments)
        assert value.dtype == dtype
        np.testing.assert_allclose([value, *score], exact(*arguments), rtol=rtol, atol=1e-6)


@jax.jit
@lambda f: jax.value_and_grad(f, has_aux=True)
def masses(x):
    """Mass inside, by Gauss-Legendre quadrature over u, together with the masses of the two bounds; these alone."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    y = np.tanh(LAST * nodes)
    dist = ld.distributions.TanhNormal(x[0], x[1])
    inside = jnp.exp(jax.vmap(dist.log_prob)(jnp.asarray(y))) * LAST * weights * (1 - y) * (1 + y)
    bounds = jnp.exp(dist.log_prob(jnp.array(1.0))) + jnp.exp(dist.log_prob(jnp.array(-1.0)))
    return jnp.sum(inside) + bounds, bounds


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (-2.0, 0.5), (11.0, 2.0), (-14.0, 1.0)])
def test_mass_inside_and_on_the_bounds_is_one_and_the_score_has_mean_zero(loc, scale):
    (mass, bounds), slope = masses(jnp.array([loc, scale]))
    np.testing.assert_allclose(mass, 1, rtol=1e-6)
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    if abs(loc) > 10:
        assert abs(mass - bounds - 1) > 1e-2  # the density alone is not a law


def test_bounds_begin_where_they_are_said_to():
    gap = float(jnp.finfo(jnp.float32).eps) ** (2 / 3)
    dist = ld.distributions.TanhNormal(jnp.float32(0.3), jnp.float32(1.7))
    tail: Any = scipy.stats.norm(0.3, 1.7)
    last = np.arctanh(1 - gap)
    np.testing.assert_allclose(dist.log_prob(jnp.float32(1)), tail.logsf(last), rtol=1e-6)
    np.testing.assert_allclose(dist.log_prob(jnp.float32(-1)), tail.logcdf(-last), rtol=1e-6)
    assert dist.log_prob(jnp.float32(1 - 0.4 * gap)) == dist.log_prob(jnp.float32(1))
    assert dist.log_prob(jnp.float32(1 - gap)) > dist.log_prob(jnp.float32(1)) + 5  # a density


@pytest.mark.parametrize("dtype", [*FLOATS, jnp.bfloat16])
def test_values_and_gradients_are_finite_on_the_bounds_and_absent_beyond(dtype):
    eps = float(jnp.finfo(dtype).eps)
    for loc, scale in ((0.0, 1.0), (100.0, 1e-3), (-30.0, 50.0)):
        for y in (-1.0, eps / 2 - 1, 1 - eps / 2, 1.0, 1 + 2 * eps):
            value, score = value_and_score(*(jnp.asarray(x, dtype) for x in (loc, scale, y)))
            score = np.asarray(score, float)
            assert np.isfinite(score).all()
            if y > 1:
                assert value == -jnp.inf
                assert (score == 0).all()
            else:
                assert np.isfinite(float(value))
                assert score[0] * y >= 0 or loc * y > 0  # towards the bound


def test_slope_of_the_tail_agrees_with_four_hundred_digits():
    slope = jax.jit(jax.grad(log_ndtr))
    for x in (3.0, -3.0, -9.9, -10.1, -49.0, -51.0, -1000.0):
        with mpmath.workdps(400):
            mills = float(mpmath.npdf(mpmath.mpf(x)) / mpmath.ncdf(mpmath.mpf(x)))
        np.testing.assert_allclose(slope(jnp.float64(x)), mills, rtol=1e-11)
        np.testing.assert_allclose(slope(jnp.float32(x)), mills, rtol=1e-5)


def test_draws_lie_in_the_box_and_on_its_bounds_as_often_as_said():
    n, low, high = 20_000, (-2.0, 0.0), (2.0, 5.0)
    dist = ld.distributions.TanhNormal(jnp.array([0.2, 5.0], jnp.float32), jnp.ones(2, jnp.float32), low, high)
    draws = jax.jit(jax.vmap(dist.sample))(jax.random.split(jax.random.key(0), n))
    assert ((np.asarray(draws) >= low) & (np.asarray(draws) <= high)).all()
    assert np.isfinite(jax.jit(jax.vmap(dist.log_prob))(draws)).all()
    probability = float(
        jnp.exp(ld.distributions.TanhNormal(jnp.float32(5), jnp.float32(1), 0.0, 5.0).log_prob(jnp.float32(5)))
    )
    share, sem = float((draws[:, 1] == 5).mean()), np.sqrt(probability * (1 - probability) / n)
    assert 0.1 < probability < 0.9
    assert abs(share - probability) < 4 * sem
    assert abs(share - 1.1 * probability) > 4 * sem  # a tenth too many would be seen
    assert (draws[:, 0] != 2).all()
    np.testing.assert_allclose(dist.mode(), [2 * np.tanh(0.2), 2.5 + 2.5 * np.tanh(5)], rtol=1e-6)


def test_bounds_move_the_density_by_their_width():
    loc, scale, y = jnp.array([0.3, -1.0]), jnp.array([0.5, 2.0]), jnp.array([0.1, -0.8])
    unit, box = (
        ld.distributions.TanhNormal(loc, scale),
        ld.distributions.TanhNormal(loc, scale, (-2.0, 1.0), (2.0, 4.0)),
    )
    moved = jnp.array([0.0, 2.5]) + jnp.array([2.0, 1.5]) * y
    np.testing.assert_allclose(box.log_prob(moved), unit.log_prob(y) - np.log(3), rtol=1e-13)
    np.testing.assert_allclose(box.entropy(), unit.entropy() + np.log(3), rtol=1e-13)


@pytest.mark.parametrize(("loc", "scale", "rtol"), [(0.0, 0.3, 1e-13), (1.0, 1.0, 1e-13), (-3.0, 3.0, 1e-6)])
def test_entropy_and_its_slope_agree_with_adaptive_quadrature(loc, scale, rtol):
    def entropy(loc, scale):
        def integrand(x):
            u = loc + scale * x
            return mpmath.npdf(x) * 2 * (mpmath.log(2) - u - mpmath.log1p(mpmath.exp(-2 * u)))

        normal = mpmath.log(scale) + (1 + mpmath.log(2 * mpmath.pi)) / 2
        return normal + mpmath.quad(integrand, [-12, -4, -1, 0, 1, 4, 12])

    ours = jax.jit(jax.value_and_grad(lambda loc, scale: ld.distributions.TanhNormal(loc, scale).entropy(), (0, 1)))
    value, slope = ours(loc, scale)
    np.testing.assert_allclose(value, float(entropy(loc, scale)), rtol=rtol)
    h = mpmath.mpf("1e-4")
    ends = (entropy(loc + h, scale) - entropy(loc - h, scale), entropy(loc, scale + h) - entropy(loc, scale - h))
    expected = [float(x / (2 * h)) for x in ends]
    np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-5 if scale > 1 else 1e-7)


def test_heads_and_free_outputs():
    mlp = ld.MLP(4, hidden=(3,), head=ld.policies.TanhNormalHead(-2.0, (1.0, 2.0)), state_independent=2)
    params = mlp.init(jax.random.key(0), jnp.zeros(5))
    assert params[-1]["weight"].shape == (3, 2)
    np.testing.assert_array_equal(params[-1]["state_independent"], jnp.zeros(2))
    params[-1]["state_independent"] = jnp.log(jnp.array([0.5, 3.0]))
    apply = jax.jit(mlp.apply)
    for x in (jnp.zeros(5), jnp.ones(5)):
        np.testing.assert_allclose(apply(params, x).scale, [0.5, 3.0], rtol=1e-14)
    assert (apply(params, jnp.ones(5)).loc != apply(params, jnp.zeros(5)).loc).all()
    score = jax.jit(jax.grad(lambda p: mlp.apply(p, jnp.ones(5)).log_prob(jnp.array([0.1, -0.2]))))(params)
    assert (score[-1]["state_independent"] != 0).all()
    assert ld.policies.tanh_normal_head(jnp.zeros(2)).high == 1
