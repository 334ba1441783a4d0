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
    """Probabilities, entropy, mode; the score is one-hot minus probabilities."""
    dist, probs = ld.Categorical(LOGITS), np.exp(LOGITS) / np.exp(LOGITS).sum()
    np.testing.assert_allclose(jax.vmap(dist.log_prob)(jnp.arange(3)), np.log(probs), rtol=1e-14)
    np.testing.assert_allclose(jax.vmap(dist.prob)(jnp.arange(3)), probs, rtol=1e-14)
    np.testing.assert_allclose(dist.entropy(), scipy.stats.entropy(probs), rtol=1e-14)
    assert dist.mode() == 2
    score = jax.grad(lambda x: ld.Categorical(x).log_prob(jnp.int32(0)))(LOGITS)
    np.testing.assert_allclose(score, np.eye(3)[0] - probs, rtol=1e-14)


@pytest.mark.parametrize(("kind", "logits"), [(ld.Categorical, LOGITS), (ld.Bernoulli, LOGITS[0])])
def test_an_action_out_of_range_has_log_probability_minus_infinity(kind, logits):
    actions = jnp.array([-1, 3, 2**31 - 1, -(2**31)], jnp.int32)
    logs, slopes = jax.vmap(jax.value_and_grad(lambda x, a: kind(x).log_prob(a)), (None, 0))(logits, actions)
    assert (logs == -jnp.inf).all()
    assert (jax.vmap(kind(logits).prob)(actions) == 0).all()
    np.testing.assert_array_equal(slopes, np.zeros((4, *logits.shape)))


def test_an_action_of_eight_bits_may_be_one_of_more_than_they_hold():
    dist = ld.Categorical(jnp.zeros(300))
    for action in (jnp.int8(127), jnp.uint8(255)):
        assert dist.log_prob(action) == pytest.approx(-np.log(300), rel=1e-14)
    assert dist.log_prob(jnp.int8(-1)) == -jnp.inf


def test_a_masked_action_leaves_value_entropy_and_gradients_finite():
    dist = ld.Categorical(MASKED)
    assert dist.log_prob(jnp.int32(1)) == -jnp.inf
    assert dist.prob(jnp.int32(1)) == 0

    def finite(logits):
        dist = ld.Categorical(logits)
        return jnp.stack([dist.entropy(), dist.log_prob(jnp.int32(0)), dist.prob(jnp.int32(1))])

    assert np.isfinite(finite(MASKED)).all()
    assert np.isfinite(jax.jacrev(finite)(MASKED)).all()
    assert not (jax.vmap(dist.sample)(jax.random.split(jax.random.key(0), 1000)) == 1).any()


def test_masked_logits_are_the_softmax_over_what_is_allowed():
    mask, allowed = jnp.array([True, False, True]), jnp.array([0, 2])
    logits = jnp.array([0.3, jnp.nan, 2.0])  # what the network says of a masked action does not matter
    dist, own = ld.Categorical(ld.masked(logits, mask)), ld.Categorical(logits[allowed])
    assert dist.logits[1] == -jnp.inf
    np.testing.assert_allclose(dist.prob(allowed), own.prob(jnp.arange(2)), rtol=1e-14)
    np.testing.assert_allclose(dist.entropy(), own.entropy(), rtol=1e-14)

    def both(logits):
        return jnp.stack([ld.Categorical(logits).log_prob(jnp.int32(0)), ld.Categorical(logits).entropy()])

    slopes = jax.jacrev(lambda x: both(ld.masked(x, mask)))(logits)
    np.testing.assert_allclose(slopes[:, allowed], jax.jacrev(both)(logits[allowed]))
    assert (slopes[:, 1] == 0).all()
    nothing = ld.Categorical(ld.masked(logits, jnp.zeros(3, bool)))
    assert jnp.isnan(nothing.log_prob(jnp.int32(0)))
    assert jnp.isnan(nothing.entropy())
    assert nothing.sample(jax.random.key(0)) == 0


@pytest.mark.parametrize("table", [jnp.array([jnp.nan, 0.0, 1.0]), ld.masked(LOGITS, jnp.zeros(3, bool))])
def test_logits_of_nan_are_nan_of_unit_vectors_too(table):
    """As of a `Categorical`; that which is no unit vector stays impossible."""
    dist, unit = distributions.OneHotCategorical(table), jnp.array([0.0, 1.0, 0.0])
    assert np.isnan([dist.log_prob(unit), dist.prob(unit)]).all()
    assert np.isnan(jax.grad(lambda x: distributions.OneHotCategorical(x).log_prob(unit))(table)).any()
    assert dist.log_prob(2 * unit) == -jnp.inf
    assert distributions.OneHotCategorical(MASKED).log_prob(unit) == -jnp.inf


def test_a_unit_vector_may_have_another_dtype_than_the_logits():
    dist = distributions.OneHotCategorical(LOGITS.astype(jnp.float32))
    for unit in (jnp.array([0.0, 1.0, 0.0], jnp.float64), jnp.array([0, 1, 0]), jnp.array([0, 1, 0], jnp.bfloat16)):
        np.testing.assert_allclose(dist.log_prob(unit), ld.Categorical(LOGITS).log_prob(jnp.int32(1)), rtol=1e-6)
        np.testing.assert_allclose(dist.prob(unit), ld.Categorical(LOGITS).prob(jnp.int32(1)), rtol=1e-6)


def test_bernoulli_is_exact_in_both_tails():
    logits = np.array([-800.0, -3.0, 0.0, 5.0, 800.0])
    for action, towards in ((jnp.int32(0), logits), (jnp.int32(1), -logits), (jnp.array(True), -logits)):
        log_prob = jax.value_and_grad(lambda x, action=action: ld.Bernoulli(x).log_prob(action))
        values, slopes = jax.vmap(log_prob)(logits)
        np.testing.assert_allclose(values, -np.logaddexp(0, towards), rtol=1e-14)
        assert np.isfinite(slopes).all()
    entropies, slopes = jax.vmap(jax.value_and_grad(lambda x: ld.Bernoulli(x).entropy()))(logits)
    exact = [scipy.stats.bernoulli.entropy(p) for p in np.asarray(jax.nn.sigmoid(logits)).tolist()]
    np.testing.assert_allclose(entropies, exact, rtol=1e-10, atol=1e-300)
    assert np.isfinite(slopes).all()
    assert (ld.Bernoulli(jnp.array([jnp.inf, -jnp.inf])).entropy() == 0).all()


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


def test_half_precision_is_scored_in_float32():
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        assert ld.Categorical(LOGITS.astype(dtype)).log_prob(jnp.int32(1)).dtype == jnp.float32
        normal = ld.Normal(LOGITS.astype(dtype), jnp.ones((), dtype))
        assert normal.log_prob(LOGITS.astype(dtype)).dtype == normal.sample(jax.random.key(0)).dtype == jnp.float32


class _KeyFirst:
    """As numpyro's: the key comes first."""

    def __init__(self, logits):
        self.logits = logits

    def sample(self, key, sample_shape=()):
        return jax.random.categorical(key, self.logits, shape=sample_shape)


class _SilentCategorical(_KeyFirst):
    """As TFP's: log-probability 0 for an action that does not exist; the key comes last."""

    def log_prob(self, action):
        return jnp.sum(jnp.where(jnp.arange(3, dtype=action.dtype) == action, jax.nn.log_softmax(self.logits), 0))

    def sample(self, sample_shape: Any = (), seed: Any = None):  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().sample(seed, sample_shape)


def test_other_libraries_categoricals_never_give_log_probability_zero_out_of_range():
    dist = _SilentCategorical(LOGITS)
    assert dist.log_prob(jnp.int32(3)) == 0  # what is guarded against
    assert distributions.log_prob(dist, jnp.int32(3)) == -jnp.inf
    assert distributions.prob(dist, jnp.int32(-1)) == 0
    assert distributions.log_prob(dist, jnp.int32(1)) == ld.Categorical(LOGITS).log_prob(jnp.int32(1))
    with pytest.raises(TypeError, match="expected integers"):
        distributions.log_prob(dist, jnp.array(1.5))


def test_one_helper_samples_from_every_librarys_signature():
    expected = ld.Categorical(LOGITS).sample(jax.random.key(5))
    for kind in (_SilentCategorical, _KeyFirst):
        assert int(distributions.sample(kind(LOGITS), jax.random.key(5))) == int(expected)
