"""Distributions: agreement with scipy, and the edges where libraries disagree."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import logderiv as ld
from logderiv import distributions

LOGITS = jnp.array([0.3, -1.2, 2.0])
MASKED = jnp.array([0.3, -jnp.inf, 2.0])


def test_categorical_agrees_with_its_definition():
    dist = ld.Categorical(LOGITS)
    probs = np.exp(LOGITS) / np.exp(LOGITS).sum()
    np.testing.assert_allclose(jax.vmap(dist.log_prob)(jnp.arange(3)), np.log(probs), rtol=1e-14)
    np.testing.assert_allclose(jax.vmap(dist.prob)(jnp.arange(3)), probs, rtol=1e-14)
    np.testing.assert_allclose(dist.entropy(), scipy.stats.entropy(probs), rtol=1e-14)
    assert dist.mode() == 2


def test_categorical_score_is_one_hot_minus_probabilities():
    score = jax.grad(lambda x: ld.Categorical(x).log_prob(jnp.int32(0)))(LOGITS)
    np.testing.assert_allclose(score, np.eye(3)[0] - jax.nn.softmax(LOGITS), rtol=1e-14)


@pytest.mark.parametrize("action", [-1, 3, 2**31 - 1, -(2**31)])
def test_an_action_out_of_range_has_log_probability_minus_infinity(action):
    action = jnp.int32(action)
    assert ld.Categorical(LOGITS).log_prob(action) == -jnp.inf
    assert ld.Categorical(LOGITS).prob(action) == 0
    assert ld.Bernoulli(LOGITS[0]).log_prob(action) == -jnp.inf
    assert ld.Bernoulli(LOGITS[0]).prob(action) == 0
    for cls, logits in ((ld.Categorical, LOGITS), (ld.Bernoulli, LOGITS[0])):
        gradient = jax.grad(lambda x, cls=cls: cls(x).log_prob(action))(logits)
        np.testing.assert_array_equal(gradient, jnp.zeros_like(logits))


def test_an_action_of_eight_bits_may_be_one_of_more_than_they_hold():
    dist = ld.Categorical(jnp.zeros(300))
    for action in (jnp.int8(127), jnp.uint8(255)):
        assert dist.log_prob(action) == pytest.approx(-np.log(300), rel=1e-14)
    assert dist.log_prob(jnp.int8(-1)) == -jnp.inf


def test_a_masked_action_leaves_value_entropy_and_gradients_finite():
    dist = ld.Categorical(MASKED)
    assert dist.log_prob(jnp.int32(1)) == -jnp.inf
    assert dist.prob(jnp.int32(1)) == 0
    assert jnp.isfinite(dist.entropy())
    for of in (lambda d: d.entropy(), lambda d: d.log_prob(jnp.int32(0)), lambda d: d.prob(jnp.int32(1))):
        value, gradient = jax.value_and_grad(lambda x, of=of: of(ld.Categorical(x)))(MASKED)
        assert jnp.isfinite(value)
        assert jnp.all(jnp.isfinite(gradient))
    draws = jax.vmap(dist.sample)(jax.random.split(jax.random.key(0), 1000))
    assert not jnp.any(draws == 1)


def test_masked_logits_are_the_softmax_over_what_is_allowed():
    mask, allowed = jnp.array([True, False, True]), jnp.array([0, 2])
    logits = jnp.array([0.3, jnp.nan, 2.0])  # what the network says of a masked action does not matter
    dist, own = ld.Categorical(ld.masked(logits, mask)), ld.Categorical(logits[allowed])
    assert dist.logits[1] == -jnp.inf
    np.testing.assert_allclose(dist.prob(allowed), own.prob(jnp.arange(2)), rtol=1e-14)
    np.testing.assert_allclose(dist.entropy(), own.entropy(), rtol=1e-14)
    for of in (lambda d: d.log_prob(jnp.int32(0)), lambda d: d.entropy()):
        slope = jax.grad(lambda x, of=of: of(ld.Categorical(ld.masked(x, mask))))(logits)
        np.testing.assert_allclose(slope[allowed], jax.grad(lambda x, of=of: of(ld.Categorical(x)))(logits[allowed]))
        assert slope[1] == 0
    nothing = ld.Categorical(ld.masked(logits, jnp.zeros(3, bool)))
    assert jnp.isnan(nothing.log_prob(jnp.int32(0)))
    assert jnp.isnan(nothing.entropy())
    assert nothing.sample(jax.random.key(0)) == 0
    with pytest.raises(TypeError, match="expected booleans"):
        ld.masked(logits, jnp.ones(3))


def test_float_actions_are_refused():
    for dist in (ld.Categorical(LOGITS), ld.Bernoulli(LOGITS)):
        with pytest.raises(TypeError, match="expected integers"):
            dist.log_prob(jnp.array(1.0))
    assert ld.Bernoulli(LOGITS[0]).log_prob(jnp.array(True)) == ld.Bernoulli(LOGITS[0]).log_prob(jnp.int32(1))


@pytest.mark.parametrize("logit", [-800.0, -3.0, 0.0, 5.0, 800.0])
def test_bernoulli_is_exact_in_both_tails(logit):
    x = jnp.asarray(logit)
    for a in (0, 1):
        exact = -np.logaddexp(0, -logit if a == 1 else logit)
        np.testing.assert_allclose(ld.Bernoulli(x).log_prob(jnp.int32(a)), exact, rtol=1e-14)
        assert jnp.isfinite(jax.grad(lambda x, a=a: ld.Bernoulli(x).log_prob(jnp.int32(a)))(x))
    p = jax.nn.sigmoid(x)
    np.testing.assert_allclose(
        ld.Bernoulli(x).entropy(), scipy.stats.bernoulli.entropy(float(p)), rtol=1e-10, atol=1e-300
    )
    assert jnp.isfinite(jax.grad(lambda x: ld.Bernoulli(x).entropy())(x))


def test_bernoulli_entropy_is_zero_at_infinite_logits():
    for x in (jnp.inf, -jnp.inf):
        assert ld.Bernoulli(jnp.asarray(x)).entropy() == 0


def test_normal_agrees_with_scipy_and_sums_its_event():
    loc, scale, x = jnp.array([0.5, -1.0]), jnp.array([0.7, 2.0]), jnp.array([0.1, 0.4])
    reference: Any = scipy.stats.norm(loc, scale)
    np.testing.assert_allclose(ld.Normal(loc, scale).log_prob(x), reference.logpdf(x).sum(), rtol=1e-14)
    np.testing.assert_allclose(ld.Normal(loc, scale).entropy(), reference.entropy().sum(), rtol=1e-14)
    np.testing.assert_allclose(ld.Normal(loc[0], scale[0]).log_prob(x[0]), reference.logpdf(x)[0], rtol=1e-14)


@pytest.mark.parametrize(
    ("dist", "mean", "variance"),
    [
        (ld.Categorical(jnp.log(jnp.array([0.2, 0.5, 0.3]))), 1.1, 0.49),
        (ld.Bernoulli(jnp.log(jnp.asarray(0.3 / 0.7))), 0.3, 0.21),
        (ld.Normal(jnp.asarray(0.4), jnp.asarray(1.5)), 0.4, 2.25),
    ],
)
def test_samples_have_the_declared_mean_within_four_standard_errors(dist, mean, variance):
    draws = jax.jit(jax.vmap(dist.sample))(jax.random.split(jax.random.key(1), 20_000)).astype(float)
    sem = (variance / len(draws)) ** 0.5
    assert abs(draws.mean() - mean) < 4 * sem
    assert abs(draws.mean() - (mean + 0.1)) > 4 * sem  # a mean off by 0.1 would be seen


def test_half_precision_keeps_its_dtype():
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        assert ld.Categorical(LOGITS.astype(dtype)).log_prob(jnp.int32(1)).dtype == dtype
        assert ld.Normal(LOGITS.astype(dtype), jnp.ones((), dtype)).log_prob(LOGITS.astype(dtype)).dtype == dtype


class _SilentCategorical:
    """As TFP's: log-probability 0 for an action that does not exist."""

    def __init__(self, logits):
        self.logits = logits

    def log_prob(self, action):
        return jnp.sum(jnp.where(jnp.arange(3, dtype=action.dtype) == action, jax.nn.log_softmax(self.logits), 0))

    def sample(self, sample_shape: Any = (), seed: Any = None):
        return jax.random.categorical(seed, self.logits, shape=sample_shape)


class _KeyFirst:
    """As numpyro's: the key comes first."""

    def __init__(self, logits):
        self.logits = logits

    def sample(self, key, sample_shape=()):
        return jax.random.categorical(key, self.logits, shape=sample_shape)


def test_other_libraries_categoricals_never_give_log_probability_zero_out_of_range():
    dist = _SilentCategorical(LOGITS)
    assert dist.log_prob(jnp.int32(3)) == 0  # what is guarded against
    assert distributions.log_prob(dist, jnp.int32(3)) == -jnp.inf
    assert distributions.prob(dist, jnp.int32(-1)) == 0
    assert distributions.log_prob(dist, jnp.int32(1)) == ld.Categorical(LOGITS).log_prob(jnp.int32(1))
    with pytest.raises(TypeError, match="expected integers"):
        distributions.log_prob(dist, jnp.array(1.5))


def test_one_helper_samples_from_every_librarys_signature():
    key = jax.random.key(5)
    expected = ld.Categorical(LOGITS).sample(jax.random.clone(key))
    assert int(distributions.sample(_SilentCategorical(LOGITS), jax.random.clone(key))) == int(expected)
    assert int(distributions.sample(_KeyFirst(LOGITS), jax.random.clone(key))) == int(expected)
