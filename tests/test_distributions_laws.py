"""The law that is drawn is the law that is scored: every distribution, every dtype, both tails."""

# pyright: reportArgumentType=false

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import logderiv as ld
from logderiv._core import noise
from logderiv._core.keys import KeyBits
from logderiv.distributions.quantiles import antithetic_sample
from logderiv.processes.jump import NextEvent

HALVES = [jnp.float16, jnp.bfloat16]
DTYPES = [*HALVES, jnp.float32]
NUM = 200_000


def p_value(counts, probabilities):
    """Of a chi-squared test, cells of fewer than 5 expected draws taken together."""
    expected = np.asarray(probabilities, float) * counts.sum()
    few = expected < 5
    counts, expected = (np.append(x[~few], x[few].sum()) for x in (counts.astype(float), expected))
    keep = expected > 0
    return scipy.stats.chisquare(counts[keep], expected[keep] * counts[keep].sum() / expected[keep].sum()).pvalue


@functools.cache
def logits_of(size, dtype, spread=1.0):
    return (spread * jax.random.normal(jax.random.key(size), (size,), jnp.float32)).astype(dtype)


def drawn(distribution, num=NUM, seed=0):
    return np.asarray(jax.jit(jax.vmap(distribution.sample))(jax.random.split(jax.random.key(seed), num)))


SIZES = [pytest.param(size, marks=pytest.mark.slow if size not in (2, 10) else ()) for size in (2, 3, 10, 100, 1000)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_draws_of_a_categorical_follow_the_law_of_its_logits_in_float32(size, dtype):
    logits = logits_of(size, dtype)
    num = NUM if size <= 10 else NUM // 4
    law = scipy.special.softmax(np.asarray(logits, float))
    counts = np.bincount(drawn(ld.Categorical(logits), num), minlength=size)
    assert p_value(counts, law) > 1e-4
    other = np.roll(law, 1) if size < 10 else law * np.linspace(0.98, 1.02, size)
    assert p_value(100 * counts, other / other.sum()) < 1e-4  # the test can fail


def test_draws_in_half_precision_are_rejected():
    """What `jax.random.categorical` draws from equal logits of bfloat16: the first half of them, nearly always."""
    logits = jnp.zeros(1000, jnp.bfloat16)
    theirs, ours = (jax.random.split(jax.random.key(seed), 4000) for seed in (0, 1))
    theirs = jax.jit(jax.vmap(lambda key: jax.random.categorical(key, logits)))(theirs)
    ours = jax.jit(jax.vmap(ld.Categorical(logits).sample))(ours)
    assert (np.asarray(theirs) < 500).mean() > 0.9
    assert abs((np.asarray(ours) < 500).mean() - 0.5) < 5 * 0.5 / np.sqrt(4000)


@pytest.mark.parametrize("offset", [-(2.0**22), 1e8, 2.0**40])
def test_draws_do_not_depend_on_what_all_logits_share(offset):
    """Noise that is added to the logits themselves, the wrong twin, loses its digits: the same four outcomes are drawn .95 to .02."""
    logits = jnp.array([0.0, 0.0, 0.0, -jnp.inf, 0.0], jnp.float32)  # that is exact with any offset
    shared = logits + jnp.float32(offset)

    def drawn_with(seed, function):
        return jax.jit(jax.vmap(function))(jax.random.split(jax.random.key(seed), 4000))

    draws = drawn_with(2, ld.Categorical(shared).sample)
    np.testing.assert_array_equal(draws, drawn_with(2, ld.Categorical(logits).sample))
    one_hot = drawn_with(2, ld.distributions.OneHotCategorical(shared).sample)
    np.testing.assert_array_equal(jnp.argmax(one_hot, axis=-1), draws)
    twin = drawn_with(2, lambda key: jnp.argmax(shared + noise.gumbel(key, (5,), jnp.float32)))
    assert np.mean(np.asarray(twin) == np.asarray(draws)) < 0.98


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, *(pytest.param(d, marks=pytest.mark.slow) for d in (jnp.float16, jnp.float32))]
)
def test_draws_of_the_others_follow_their_laws(dtype):
    """Of a Bernoulli, of normals and of waiting times, in cells of equal probability."""
    logit, loc, scale = (jnp.asarray(x, dtype) for x in (-1.3, 0.4, 1.7))
    flips = drawn(ld.Bernoulli(logit))
    p = float(jax.nn.sigmoid(logit.astype(jnp.float32)))
    assert abs(flips.mean() - p) < 5 * np.sqrt(p * (1 - p) / NUM)
    law = scipy.stats.norm(float(loc), float(scale))
    both = ld.distributions.MultivariateNormal(loc[None], scale[None, None])
    events = NextEvent(jnp.asarray([0.5, 1.5], dtype), jnp.asarray(100.0, dtype))
    waits = jax.jit(jax.vmap(lambda key: events.sample(key).wait))(jax.random.split(jax.random.key(1), NUM))
    quantiles = {
        "Normal": law.cdf(drawn(ld.Normal(loc, scale))),
        "MultivariateNormal": law.cdf(drawn(both)[:, 0]),
        "TanhNormal": law.cdf(np.arctanh(drawn(ld.distributions.TanhNormal(loc / 4, scale / 4)).astype(float)) * 4),
        "NextEvent": scipy.stats.expon(scale=0.5).cdf(waits),
    }
    for name, values in quantiles.items():
        counts = np.bincount(np.minimum((values * 500).astype(int), 499), minlength=500)
        assert p_value(counts, np.full(500, 1 / 500)) > 1e-4, name


BITS = np.array([0, 1, 100, 2**20, 2**31 - 1, 2**31, 2**32 - 100, 2**32 - 2, 2**32 - 1], np.uint32)


@pytest.fixture
def given_bits(monkeypatch):
    """All random bits are these."""

    def give(bits):
        monkeypatch.setattr(noise.jax.random, "bits", lambda key, shape, dtype: jnp.asarray(bits, dtype).reshape(shape))

    return give


@pytest.mark.parametrize(
    ("draw", "law"),
    [
        (noise.normal, scipy.stats.norm),
        (lambda *of: noise.logit(*noise.uniform(*of)), scipy.stats.logistic),
        (noise.exponential, scipy.stats.expon),
        (noise.gumbel, scipy.stats.gumbel_r),
    ],
)
def test_both_tails_are_right_to_probabilities_of_two_to_the_minus_32(draw, law, given_bits):
    given_bits(BITS)
    values = np.asarray(draw(jax.random.key(0), BITS.shape, jnp.float32), float)
    below = (BITS.astype(float) + 0.5) / 2**32
    np.testing.assert_allclose(law.cdf(values), below, rtol=2e-5)
    np.testing.assert_allclose(law.sf(values), 1 - below, rtol=2e-5)


def test_a_rare_outcome_is_as_rare_as_it_should_be(given_bits):
    """σ(-20) is 8.85 of 2³²; of numbers of 23 bits one in 2²³ is 0, 58 times as many."""
    bits = np.arange(1000, dtype=np.uint32)
    given_bits(bits)
    key, size = jax.random.key(0), (1000,)
    assert ld.Bernoulli(jnp.full(size, -20.0, jnp.float32)).sample(key).sum() == 9
    given_bits(~bits)
    assert (ld.Bernoulli(jnp.full(size, 20.0, jnp.float32)).sample(key) == 0).sum() == 9


@pytest.mark.slow
def test_rare_outcomes_among_two_to_the_28():
    keys = jax.random.split(jax.random.key(0), 8)
    flips = jax.jit(lambda key: ld.Bernoulli(jnp.full(2**25, -20.0, jnp.float32)).sample(key).sum())
    assert sum(int(flips(key)) for key in keys) < 6  # 0.55 expected
    logits = jnp.asarray([0.0, -16.0], jnp.float32)
    rare = jax.jit(lambda key: ld.Categorical(jnp.broadcast_to(logits, (2**23, 2))).sample(key).sum())
    found, expected = sum(int(rare(key)) for key in keys), 2**26 * scipy.special.expit(-16.0)
    assert abs(found - expected) < 5 * np.sqrt(expected)


def mean_score(make, score_of, params, num=NUM):
    """The mean of the score over draws, and its standard error; drawn by one distribution and scored by another."""

    @jax.jit
    def both(keys):
        actions = jax.vmap(make(*params).sample)(keys)
        scores = jax.vmap(jax.grad(lambda p, a: score_of(*p).log_prob(a)), (None, 0))(params, actions)
        return jax.tree.map(lambda x: (x.astype(float).mean(0), x.astype(float).std(0) / num**0.5), scores)

    return both(jax.random.split(jax.random.key(3), num))


def in_dtype(kind, dtype):
    return lambda *params: kind(*(p.astype(dtype) for p in params))


@pytest.mark.parametrize(
    ("kind", "dtype", "params"),
    [
        (ld.Categorical, jnp.bfloat16, (logits_of(40, jnp.float32),)),
        (ld.Bernoulli, jnp.float16, (jnp.asarray(-2.5, jnp.float32),)),
        (ld.Normal, jnp.bfloat16, (jnp.asarray(0.5, jnp.float32), jnp.asarray(1.5, jnp.float32))),
        (ld.distributions.TanhNormal, jnp.bfloat16, (jnp.asarray(2.0, jnp.float32), jnp.asarray(1.0, jnp.float32))),
    ],
)
def test_the_score_of_draws_in_half_precision_has_mean_zero(kind, dtype, params):
    params = tuple(p.astype(dtype).astype(jnp.float32) for p in params)
    for mean, sem in mean_score(in_dtype(kind, dtype), kind, params):
        assert (np.abs(mean) <= 5 * sem).all()


@pytest.mark.parametrize("stored", [None, jnp.bfloat16])
def test_a_draw_on_a_bound_is_one_in_any_dtype(stored):
    """Drawn in float32, scored in float64, or stored in bfloat16 in between: the gap is that of the action."""
    params = jnp.asarray(4.0), jnp.asarray(2.0)
    keys = jax.random.split(jax.random.key(0), NUM)

    @jax.jit
    def scores(keys):
        actions = jax.vmap(in_dtype(ld.distributions.TanhNormal, jnp.float32)(*params).sample)(keys)
        actions = actions if stored is None else actions.astype(stored)
        score = jax.vmap(jax.grad(lambda loc, a: ld.distributions.TanhNormal(loc, params[1]).log_prob(a)), (None, 0))
        return score(params[0], actions), score(params[0], actions.astype(jnp.float64))

    right, as_before = (np.asarray(x) for x in scores(keys))
    sem = right.std() / np.sqrt(NUM)
    assert abs(right.mean()) < (5 * sem if stored is None else 0.01)  # rounding moves a density, too
    assert abs(as_before.mean()) > 0.1  # where the gap is that of the parameters' dtype


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)])
def test_a_network_in_half_precision_is_scored_by_what_it_drew_from(dtype):
    policy = ld.MLP(5, hidden=(16,))
    params = policy.init(jax.random.key(0), jnp.zeros(4))
    params = jax.tree.map(lambda x: (20 * x).astype(dtype), params)
    observations = jax.random.normal(jax.random.key(1), (64, 4), dtype)

    class Fixed:
        horizon = 20

        def reset(self, key, params=None):
            return observations[0], jnp.int32(0)

        def step(self, key, state, action, params=None):
            return observations[(state + 1) % 64], state + 1, jnp.zeros(()), jnp.zeros((), bool), jnp.zeros((), bool)

    taus = ld.rollout(params, jax.random.split(jax.random.key(2), 32), policy, Fixed())
    again = ld.log_factors(params, policy, taus)
    assert again.dtype == taus.behavior_log_probs.dtype == jnp.float32
    np.testing.assert_allclose(again, taus.behavior_log_probs, atol=1e-5)


GRID = (np.arange(4096) + 0.5) / 4096  # uniform numbers, every one of them


def of_uniform(distribution, u):
    """Outcomes by the quantile function: of each number and of its distance to 1, which say the same."""
    u = jnp.asarray(u)
    lower, upper = jax.vmap(distribution.quantile)(u), jax.vmap(lambda x: distribution.quantile(x, upper=True))(1 - u)
    np.testing.assert_allclose(lower, upper, rtol=1e-11)
    return np.asarray(lower)


def test_quantiles_of_real_numbers_are_those_of_scipy():
    law = scipy.stats.norm(0.4, 1.7)
    np.testing.assert_allclose(of_uniform(ld.Normal(0.4, 1.7), GRID), law.ppf(GRID), rtol=1e-12)
    squashed = of_uniform(ld.distributions.TanhNormal(0.4, 1.7, low=-2.0, high=2.0), GRID)
    np.testing.assert_allclose(squashed, 2 * np.tanh(law.ppf(GRID)), rtol=1e-12)


@pytest.mark.parametrize("size", [2, 3, 8, 100])
def test_quantiles_of_a_choice_step_where_its_probabilities_add_up(size):
    logits = np.array(logits_of(size, jnp.float32), float)
    logits[:: max(size // 3, 2)] = -np.inf  # excluded outcomes, the first one among them
    probs = scipy.special.softmax(logits)
    expected = np.searchsorted(np.cumsum(probs), GRID, side="right")
    np.testing.assert_array_equal(of_uniform(ld.Categorical(logits), GRID), expected)
    one_hot = of_uniform(ld.distributions.OneHotCategorical(logits), GRID)
    np.testing.assert_array_equal(one_hot, np.eye(size)[expected])
    assert not np.isin(expected, np.flatnonzero(probs == 0)).any()


def test_quantiles_of_a_flip_step_at_the_probability_of_0():
    np.testing.assert_array_equal(of_uniform(ld.Bernoulli(-0.3), GRID), 1 / (1 + np.exp(-0.3)) < GRID)


def test_no_excluded_outcome_is_drawn_where_sums_round(given_bits):
    """Sums of many probabilities differ by their rounding, and a number may fall between two that should be equal."""
    logits = jnp.where(jnp.arange(1000) % 2 == 0, -jnp.inf, jnp.sin(jnp.arange(1000.0))).astype(jnp.float32)
    probs = jax.nn.softmax(logits)
    ends = jnp.cumsum(probs)
    u = jnp.concatenate([jnp.nextafter(ends, x) for x in (0.0, 1.0)] + [ends])
    u = u[(u > 0) & (u < 1)].astype(jnp.float32)
    for upper in (False, True):
        drawn = jax.vmap(lambda x: ld.Categorical(logits).quantile(x, upper=upper))(u)  # noqa: B023
        assert np.all(np.asarray(drawn) % 2 == 1)


def test_small_probabilities_at_either_end_are_drawn_as_rarely_as_they_should_be():
    """In float32, of numbers near 0 and near 1: 2⁻³⁰ at the top is not rounded away, as 1 - 2⁻³⁰ would be."""
    flips = ld.Categorical(jnp.log(jnp.array([2.0**-30, 1.0, 2.0**-30], jnp.float32)))
    near = jnp.array([2.0**-31, 2.0**-29], jnp.float32)
    np.testing.assert_array_equal(jax.vmap(flips.quantile)(near), [0, 1])
    np.testing.assert_array_equal(jax.vmap(lambda x: flips.quantile(x, upper=True))(near), [2, 1])


def test_quantiles_take_leading_axes_of_either_side():
    logits, u = jnp.log(jnp.array([[0.5, 0.5], [0.1, 0.9]])), jnp.array([[0.3, 0.3], [0.7, 0.05]])
    np.testing.assert_array_equal(ld.Categorical(logits).quantile(u), [[0, 1], [1, 0]])
    np.testing.assert_array_equal(ld.Categorical(logits).quantile(jnp.array(0.3)), [0, 1])
    np.testing.assert_array_equal(ld.Categorical(logits[1]).quantile(u), [[1, 1], [1, 0]])


@pytest.mark.parametrize("name", ["Normal", "Exponential", "Categorical", "Bernoulli", "Poisson"])
def test_quantiles_of_other_libraries(name, broadcasting):
    """By their own quantile functions where they have one, of a finite choice from its probabilities, else refused by name."""
    numpyro = pytest.importorskip("numpyro.distributions")
    made = {
        "Normal": lambda: numpyro.Normal(0.5, 2.0),
        "Exponential": lambda: numpyro.Exponential(2.0),
        "Categorical": lambda: numpyro.Categorical(logits=jnp.array([0.3, -0.2, 0.9])),
        "Bernoulli": lambda: numpyro.Bernoulli(logits=jnp.array(0.4)),
        "Poisson": lambda: numpyro.Poisson(3.0),
    }[name]()
    key = jax.random.key(0)
    if name == "Poisson":
        with pytest.raises(TypeError, match=r"antithetic.*quantile function.*Poisson"):
            antithetic_sample(made, key, False)
        return
    keys = jax.random.split(key, 20_000)
    ours, theirs = (
        jax.vmap(lambda k, m=m: antithetic_sample(made, k, m))(KeyBits.of(keys).keys()) for m in (False, True)
    )
    for values in (ours, theirs):
        error = np.std(values) / np.sqrt(20_000)
        mean = {"Normal": 0.5, "Exponential": 0.5, "Bernoulli": 1 / (1 + np.exp(-0.4))}
        probs = scipy.special.softmax([0.3, -0.2, 0.9])
        assert abs(np.mean(values) - mean.get(name, probs @ np.arange(3))) < 4 * error
    if name == "Normal":
        np.testing.assert_allclose(ours + theirs, 1.0, atol=1e-9)
    assert np.corrcoef(ours, theirs)[0, 1] < -0.4


def test_quantiles_of_other_libraries_are_finite_next_to_one(given_bits, broadcasting):
    """Of a uniform number within 2⁻⁶⁵ of 1, which is rounded to 1; there the quantile of the wrong twin is infinite."""
    numpyro = pytest.importorskip("numpyro.distributions")
    given_bits(np.array(2**64 - 1, np.uint64))
    law = numpyro.Normal(0.5, 2.0)
    assert law.icdf(jnp.array(1 - 2.0**-65)) == jnp.inf
    top, bottom = (antithetic_sample(law, jax.random.key(0), mirrored) for mirrored in (False, True))
    np.testing.assert_allclose(top, 0.5 + 2 * scipy.stats.norm.isf(2.0**-53), rtol=1e-6)
    assert np.isfinite(bottom)
    assert bottom < -top
