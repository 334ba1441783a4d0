"""Top-k and top-p by hand, and the score of what is left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.policies import Truncated

LOGITS = jnp.log(jnp.array([0.15, 0.5, 0.05, 0.3]))


def chances(policy, logits=LOGITS):
    distribution = policy.apply(logits, jnp.zeros(()))
    return np.array([float(distribution.prob(jnp.int32(a))) for a in range(4)])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.15, 0.5, 0.05, 0.3]),
        ({"top_k": 2}, [0, 0.625, 0, 0.375]),
        ({"top_k": 9}, [0.15, 0.5, 0.05, 0.3]),
        ({"top_p": 0.75}, [0, 0.625, 0, 0.375]),
        ({"top_p": 0.4}, [0, 1, 0, 0]),
        ({"top_p": 0.0}, [0, 1, 0, 0]),
        ({"top_k": 2, "top_p": 0.6}, [0, 1, 0, 0]),  # 0.5 / 0.8 is enough; not of the whole
    ],
)
def test_what_is_kept(options, expected):
    np.testing.assert_allclose(chances(Truncated(ld.shared_softmax, **options)), expected, atol=1e-12)


def test_of_equal_actions_the_first_are_kept():
    np.testing.assert_allclose(chances(Truncated(ld.shared_softmax, top_k=2), jnp.zeros(4)), [0.5, 0.5, 0, 0])


def test_the_score_is_that_given_what_is_kept():
    policy = Truncated(ld.shared_softmax, top_k=2)

    def logarithm(policy):
        return jax.grad(lambda logits: policy.apply(logits, jnp.zeros(())).log_prob(jnp.int32(3)))(LOGITS)

    np.testing.assert_allclose(logarithm(policy), [0, -0.625, 0, 0.625], atol=1e-12)
    assert np.abs(logarithm(policy) - logarithm(ld.shared_softmax)).max() > 0.1  # of the whole policy


def test_prescribed_steps_stay_and_draws_are_of_what_is_kept():
    model = ld.processes.TokenModel(
        ld.MLP(4, hidden=()), lambda tokens, length: jnp.zeros(()), vocabulary=4, end=0, horizon=4, prompts=[[3, 1]]
    )
    params, policy = model.policy.init(jax.random.key(0)), Truncated(model.policy, top_k=1)
    taus = ld.rollout(params, jax.random.split(jax.random.key(1), 5), policy, model)
    np.testing.assert_array_equal(taus.actions[:, :2], [[3, 1]] * 5)
    assert len(np.unique(taus.actions, axis=0)) == 1
    np.testing.assert_allclose(ld.log_factors(params, policy, taus), 0, atol=1e-12)


def test_what_is_truncated_is_categorical():
    with pytest.raises(TypeError, match="inner: expected a policy over"):
        Truncated(lambda params, x: ld.Normal(params, params)).apply(jnp.ones(1), jnp.zeros(()))
    with pytest.raises(ValueError, match="top_p"):
        Truncated(ld.shared_softmax, top_p=1.5)


@pytest.mark.parametrize(("options", "kept"), [({}, 4), ({"top_k": 3}, 3)])
def test_a_peaked_policy_keeps_all_with_a_top_p_of_one(options, kept):
    """The sum of the largest chances is rounded to 1 before the last; the wrong twin compares that sum with 1."""
    logits = jnp.array([17.0, 0.0, -1.0, -30.0], jnp.float32)
    truncated = jax.jit(lambda p: Truncated(ld.shared_softmax, top_p=p, **options).apply(logits, jnp.zeros(())).logits)
    assert jnp.isfinite(truncated(1.0)).sum() == kept
    before = jnp.cumsum(jax.nn.softmax(logits)) - jax.nn.softmax(logits)
    assert (before < 1).sum() < kept


def test_a_logit_that_is_nan_is_not_truncated_away():
    logits = jnp.array([1.0, jnp.nan, 0.5, 0.2])
    policy = Truncated(ld.shared_softmax, top_k=2)
    value, slope = jax.value_and_grad(lambda x: policy.apply(x, jnp.zeros(())).log_prob(jnp.int32(0)))(logits)
    assert np.isnan(value)
    assert np.isnan(slope).any()
