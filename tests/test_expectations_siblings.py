"""Score, pathwise and measure-valued gradients of one expectation: exact means and variances by quadrature, then sampled.

The closed forms are those of Mohamed et al. (2020), section 3: N(mu, sigma^2), costs (x - k)^2, exp(-k x^2), cos(k x).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from benchmarks.three_estimators import COSTS, ESTIMATORS, RAYLEIGH, by_quadrature, moments, normal, point, score_term
from logderiv import diagnostics
from logderiv._core.pytrees import pytree
from logderiv.expectations import gradients_measure_valued, gradients_pathwise, gradients_score
from logderiv.expectations.measures import categorical_derivative, normal_noise


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(("k", "mu", "sigma"), [(-3.0, 1.0, 1.0), (3.0, 1.0, 1.5)])
def test_square_cost_has_the_published_mean_and_variance(name, k, mu, sigma):
    """m = mu - k; Mohamed et al. (2020), section 3, in closed form."""
    m, s = mu - k, sigma
    variance = {
        "score": (15 * s**2 + 14 * m**2 + m**4 / s**2, 74 * s**2 + 60 * m**2 + 2 * m**4 / s**2),
        "pathwise": (4 * s**2, 8 * s**2 + 4 * m**2),
        "measure": (m**2 * (16 / np.pi - 4), 4 * m**2 + 4 * s**2),
    }[name]
    got = by_quadrature(name, lambda x: COSTS["square"](k, x), mu, sigma)
    for (mean, var), exact, expected in zip(got, (2 * m, 2 * s), variance, strict=True):
        np.testing.assert_allclose(mean, exact, rtol=1e-11)
        np.testing.assert_allclose(var, expected, rtol=1e-11)


def test_score_function_with_constant_baselines():
    """k = -3, mu = sigma = 1: mean baseline 138 and 696, optimal 134 and 664 (baselines 17, 19 and 21)."""
    for baseline, var_mu, var_sigma in ((17.0, 138.0, 696.0), (19.0, 134.0, None), (21.0, None, 664.0)):
        got = by_quadrature("score", lambda x: COSTS["square"](-3.0, x), 1.0, 1.0, baseline)
        for (mean, var), exact, expected in zip(got, (8.0, 2.0), (var_mu, var_sigma), strict=True):
            np.testing.assert_allclose(mean, exact, rtol=1e-11)
            if expected is not None:
                np.testing.assert_allclose(var, expected, rtol=1e-11)


# cost, k, sigma (mu = 1): gradient in mu, variances of score, pathwise and measure; gradient in sigma, score, pathwise.
# The integrals of Mohamed et al. (2020), section 3, by mpmath's quadrature with 25 digits.
SMOOTH = [
    ("exp", 1.0, 1.0, (-0.27579303002838174, 0.17575024444333243, 0.2117233929941279, 0.012567615545902987),
        (-0.09193101000946056, 0.1766904939400678, 0.17573120997871328)),
    ("exp", 0.1, 1.5, (-0.10691204794828799, 0.1702580088514486, 0.026736393872557034, 0.0008783194385134984),
        (-0.1382483378641655, 0.2431890668515959, 0.0236312006553976)),
    ("cos", 2.0, 1.0, (-0.24612004961155348, 0.4410694687299561, 1.9398634671927397, 0.22408251939841003),
        (0.2252773999685115, 0.9279806114070651, 1.9426719028604287)),
    ("cos", 0.5, 1.5, (-0.18094469137168104, 0.14075610846454673, 0.07033270907446994, 0.003944793423076985),
        (-0.24841277689868338, 0.30721158146370137, 0.09069897926090642)),
]  # fmt: skip


@pytest.mark.parametrize("row", SMOOTH, ids=lambda r: f"{r[0]}-{r[1]}-{r[2]}")
def test_smooth_costs_have_the_published_mean_and_variance(row):
    """Neither wins everywhere: at cos(2x) the pathwise variance is 4 times that of the score function."""
    cost, k, sigma, (mu, *in_mu), (by_sigma, *in_sigma) = row
    variances = zip(("score", "pathwise", "measure"), in_mu, (*in_sigma, None), strict=True)
    for name, var_mu, var_sigma in variances:
        got = by_quadrature(name, lambda x: COSTS[cost](k, x), 1.0, sigma)
        np.testing.assert_allclose([*got[0], got[1][0]], [mu, var_mu, by_sigma], rtol=1e-9, err_msg=name)
        if var_sigma is not None:
            np.testing.assert_allclose(got[1][1], var_sigma, rtol=1e-9)


@pytest.mark.parametrize(
    ("m", "coupled", "uncoupled"), [(0.5, 0.2732395447, 1.4098593), (4.0, 17.4873308631, 10.0169049763)]
)
def test_coupling_pays_near_an_optimum_and_costs_on_a_slope(m, coupled, uncoupled):
    """Both sides from one Rayleigh draw against two: (8 m^2 (2 - pi/2) + 8) / (2 pi) where they are independent."""
    w, weights = RAYLEIGH
    sides = [moments((m + sign * w) ** 2 / np.sqrt(2 * np.pi), weights) for sign in (1, -1)]
    (mean, var), _ = by_quadrature("measure", lambda x: jnp.square(x), m, 1.0)
    np.testing.assert_allclose(mean, sides[0][0] - sides[1][0], rtol=1e-10)
    np.testing.assert_allclose([var, sides[0][1] + sides[1][1]], [coupled, uncoupled], rtol=1e-6)


# The noise that is drawn is the noise that was integrated over.


def test_noise_has_the_stated_laws():
    num = 200_000
    noise = jax.jit(lambda key: normal_noise(key, (num,), jnp.float64))(jax.random.key(0))
    moments = {
        "base": (0, 1, 3),
        "weibull": (np.sqrt(np.pi / 2), 2, 8),
        "maxwell": (0, 3, 15),
        "uniform": (1 / 2, 1 / 3, 1 / 5),
    }
    cases = [(getattr(noise, name), zip((1, 2, 4), exact, strict=True)) for name, exact in moments.items()]
    for values, exact in [*cases, (noise.maxwell * noise.uniform, ((2, 1), (4, 3), (6, 15)))]:
        for power, moment in exact:
            powers = np.asarray(values) ** power
            assert abs(powers.mean() - moment) < 5 * powers.std() / np.sqrt(num), power


@pytest.mark.parametrize("name", ESTIMATORS)
def test_sampled_mean_and_variance_agree_with_the_closed_forms(name):
    """m = 2, sigma = 1, 10^5 samples, with the standard errors that their own second and fourth moments give."""
    variance = {"score": (87, 346), "pathwise": (4, 24), "measure": (4 * (16 / np.pi - 4), 20)}[name]

    @jax.jit
    def run(key):
        samples = ESTIMATORS[name](point(2.0, 1.0), key, normal, jnp.square, num_samples=100_000)
        return samples, diagnostics.summary(samples)

    samples, (mean, var, _) = run(jax.random.key(11))
    sem = diagnostics.sem(samples)
    for leaf, exact, expected in (("mu", 4, variance[0]), ("sigma", 2, variance[1])):
        assert abs(mean[leaf] - exact) < 4.5 * sem[leaf]
        assert abs(1.5 * mean[leaf] - exact) > 4.5 * sem[leaf]
        fourth = np.mean((np.asarray(samples[leaf]) - exact) ** 4)
        assert abs(var[leaf] - expected) < 4.5 * np.sqrt((fourth - expected**2) / 100_000)


def test_a_cost_that_jumps_needs_no_derivative_and_fools_pathwise():
    """E 1[x > 0] under N(mu, 1): the derivative is the density at 0. Pathwise silently returns 0."""

    def run(estimator, key):
        cost = lambda x: (x > 0).astype(jnp.int32)  # noqa: E731
        samples = estimator(point(0.3, 1.0), key, normal, cost, num_samples=20_000)
        found = diagnostics.summary(samples)
        return found.mean["mu"], found.sem["mu"]

    exact = np.exp(-0.045) / np.sqrt(2 * np.pi)
    for name in ("score", "measure"):
        mean, sem = jax.jit(run, static_argnums=0)(ESTIMATORS[name], jax.random.key(2))
        assert 0 < abs(mean - exact) < 4.5 * sem
        assert abs(1.5 * mean - exact) > 4.5 * sem
    mean, sem = jax.jit(run, static_argnums=0)(gradients_pathwise, jax.random.key(2))
    assert (mean, sem) == (0, 0)


def _linear_head(params):
    """Three correlated coordinates of mean and one shared scale, through two leaves of parameters."""
    return ld.Normal(jnp.array([1.0, -1.0, 0.5], params["w"].dtype) * params["w"] + params["b"], jnp.exp(params["s"]))


@pytest.mark.parametrize(("name", "dtype"), [*((n, jnp.float64) for n in ESTIMATORS), ("measure", jnp.float32)])
def test_vectors_and_the_chain_rule(name, dtype):
    """E (sum_i x_i)^2 has a closed form; coordinates interact, the scale is shared."""
    params = {k: jnp.asarray(v, dtype) for k, v in (("w", 0.4), ("b", 0.7), ("s", -0.5))}

    def value(p):
        d = _linear_head(p)
        return jnp.square(jnp.sum(d.loc)) + 3 * jnp.square(d.scale)

    @jax.jit
    def run(params, key):
        samples = ESTIMATORS[name](params, key, _linear_head, lambda x: jnp.square(jnp.sum(x)), num_samples=20_000)
        found = diagnostics.summary(samples)
        return found.mean, found.sem, jax.grad(value)(params)

    mean, sem, exact = run(params, jax.random.key(3))
    for leaf in params:
        assert mean[leaf].dtype == dtype
        assert 0 < sem[leaf] < 0.3
        assert abs(mean[leaf] - exact[leaf]) < 4.5 * sem[leaf]
        assert abs(2 * mean[leaf] - exact[leaf]) > 4.5 * sem[leaf]


# Discrete


TABLE = jnp.array([1.0, -2.0, 0.5, 4.0])
LOGITS = jnp.array([0.3, -0.2, 0.9, 0.0])


def test_categorical_estimates_by_enumeration():
    """Every outcome weighed by its probability: both means exact, the measure-valued variance p_a^2 Var f."""

    @jax.jit
    def run(logits):
        outcomes = jnp.arange(4, dtype=jnp.int32)
        cost = lambda a: TABLE[a]  # noqa: E731
        score = jax.vmap(lambda x: score_term(logits, x, ld.Categorical, cost))(outcomes)
        measure = jax.vmap(lambda x: categorical_derivative(ld.Categorical(logits), cost, x).logits)(outcomes)
        return score, measure, jax.grad(lambda p: jax.nn.softmax(p) @ TABLE)(logits)

    score, measure, exact = run(LOGITS)
    p = np.asarray(jax.nn.softmax(LOGITS))
    np.testing.assert_allclose(p @ score, exact, atol=1e-14)
    np.testing.assert_allclose(p @ measure, exact, atol=1e-14)
    var = p @ (np.asarray(measure) - np.asarray(exact)) ** 2
    f = np.asarray(TABLE)
    np.testing.assert_allclose(var, p**2 * (p @ f**2 - (p @ f) ** 2), rtol=1e-12)
    assert var.sum() < (p @ (np.asarray(score) - np.asarray(exact)) ** 2).sum()


def test_categorical_and_bernoulli_through_the_public_calls():
    @jax.jit
    def run(keys):
        cost = lambda a: TABLE[a]  # noqa: E731
        both = (gradients_score, gradients_measure_valued)
        calls = [f(LOGITS, k, ld.Categorical, cost, num_samples=20_000) for f, k in zip(both, keys[:2], strict=True)]
        coin = [f(LOGITS[0], k, ld.Bernoulli, cost, num_samples=2000) for f, k in zip(both, keys[2:], strict=True)]
        return calls, coin, jax.grad(lambda p: jax.nn.softmax(p) @ TABLE)(LOGITS)

    calls, coin, exact = run(jax.random.split(jax.random.key(4), 4))
    for samples in calls:
        assert samples.shape == (20_000, 4)
        found = diagnostics.summary(samples)
        assert np.all(np.abs(found.mean - exact) < 4.5 * found.sem)
        assert np.any(np.abs(1.5 * found.mean - exact) > 4.5 * found.sem)
    p = 1 / (1 + np.exp(-0.3))
    np.testing.assert_allclose(coin[1], -3 * p * (1 - p), rtol=1e-12)  # no noise at all
    assert abs(coin[0].mean() + 3 * p * (1 - p)) < 4.5 * coin[0].std() / np.sqrt(2000)


@pytest.mark.parametrize(
    ("estimator", "params", "distribution", "cost", "num_samples", "error", "message"),
    [
        (gradients_pathwise, LOGITS, ld.Categorical, lambda a: TABLE[a], 2, TypeError, "discrete"),
        (gradients_pathwise, LOGITS[0], ld.Bernoulli, lambda a: TABLE[a], 2, TypeError, "discrete"),
        (gradients_pathwise, point(0.0, 1.0), normal, lambda x: x[None], 2, ValueError, "scalar"),
        (gradients_score, point(0.0, 1.0), normal, jnp.square, 0, ValueError, "num_samples"),
        (gradients_score, jnp.arange(3), ld.Categorical, jnp.square, 2, TypeError, "floating"),
        (gradients_measure_valued, LOGITS[0], lambda p: _Uniform(p), jnp.square, 2, TypeError, "Uniform"),
        (gradients_measure_valued, jnp.ones((2, 3)), ld.Categorical, jnp.square, 2, ValueError, "without batch axes"),
    ],
)
def test_bad_requests_are_refused(estimator, params, distribution, cost, num_samples, error, message):
    with pytest.raises(error, match=message):
        estimator(params, jax.random.key(0), distribution, cost, num_samples=num_samples)


@pytree
class _Uniform:
    high: jax.Array


def test_libraries_that_declare_no_reparameterization_are_refused():
    dist = pytest.importorskip("numpyro.distributions")
    with pytest.raises(TypeError, match="Poisson"):
        gradients_pathwise(jnp.asarray(2.0), jax.random.key(0), dist.Poisson, lambda x: x * 1.0, num_samples=2)


def test_a_score_never_differentiates_the_cost_or_the_sampler():
    cost = jax.custom_jvp(jnp.square)

    def refused(primals, tangents):
        raise AssertionError("differentiated")

    cost.defjvp(refused)

    for name in ("score", "measure"):
        ESTIMATORS[name](point(0.3, 1.0), jax.random.key(0), normal, cost, num_samples=2)
    with pytest.raises(AssertionError, match="differentiated"):
        gradients_pathwise(point(0.3, 1.0), jax.random.key(0), normal, cost, num_samples=2)
