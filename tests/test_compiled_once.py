"""What compiles itself does so once: a second call with the same function objects compiles nothing."""

import jax
import jax.numpy as jnp
import pytest

import logderiv as ld
from logderiv import diagnostics, testing
from tests.worlds import batch

POLICY = ld.MLP(2, hidden=())
PARAMS = POLICY.init(jax.random.key(0), jnp.zeros(4))
ESTIMATOR = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()), discount=0.9)
SAMPLES = {"a": jax.random.normal(jax.random.key(0), (50, 2)), "b": jax.random.normal(jax.random.key(1), (50,))}
EXACT = {"a": jnp.zeros(2), "b": jnp.zeros(())}
LOGITS = jnp.array([0.3, -0.2])


def taus(seed):
    found = batch(jax.random.key(seed), (8, 3))
    return found._replace(valid=jnp.arange(3)[None] < 1 + jnp.arange(8)[:, None] % 3)


def log_prob(params, x):
    return ld.Categorical(params).log_prob(x)


def sample(params, key):
    return ld.Categorical(params).sample(key)


def masked_sum(params, trajectories):
    rewards = jnp.where(trajectories.valid, trajectories.rewards, 0)
    return jnp.sum(params) * jnp.sum(rewards)


def flips(params, tape):
    tape, first = tape.sample(ld.Bernoulli(params[0]))
    tape, second = tape.sample(ld.Bernoulli(params[1]))
    return tape.cost(first * second)


OBJECTIVE = ld.expectation(flips, num_samples=2, baseline="leave_one_out")
SIZES = {"num_choices": 2, "num_outcomes": 2}
CALLS = {
    "per_trajectory_gradients": lambda i: diagnostics.per_trajectory_gradients(PARAMS, POLICY, taus(i), ESTIMATOR),
    "of groups": lambda i: diagnostics.per_trajectory_gradients(PARAMS, POLICY, taus(i), ESTIMATOR, num_groups=4),
    "gradient_moments": lambda i: diagnostics.gradient_moments(PARAMS, POLICY, taus(i), ESTIMATOR),
    "variance_by_step": lambda i: diagnostics.variance_by_step(PARAMS, POLICY, taus(i), jnp.ones((8, 3))),
    "summary": lambda i: diagnostics.summary(jax.tree.map(lambda x: x + i, SAMPLES)).noise_scale(),
    "sem": lambda i: diagnostics.sem(jax.tree.map(lambda x: x + i, SAMPLES)),
    "cosine": lambda i: diagnostics.cosine(SAMPLES, jax.tree.map(lambda x: x + i, SAMPLES)),
    "variance_ratio": lambda i: diagnostics.variance_ratio(jax.tree.map(lambda x: x * x + i, SAMPLES), SAMPLES),
    "assert_unbiased": lambda i: testing.assert_unbiased(SAMPLES, EXACT, resolution=2.0 + i),
    "another k": lambda i: testing.assert_unbiased(SAMPLES, EXACT, resolution=2.0, k=4.0 + i, raises=False),
    "check_score": lambda i: testing.check_score(LOGITS, jax.random.key(i), log_prob, sample, num_samples=4000),
    "few samples": lambda i: testing.check_score(
        LOGITS + i, jax.random.key(i), log_prob, sample, num_samples=300, raises=False
    ),
    "check_padding": lambda i: testing.check_padding(LOGITS + i, masked_sum, taus(i)),
    "program_value": lambda i: ld.exact.program_value(LOGITS + i, flips, **SIZES),
    "program_derivatives": lambda i: ld.exact.program_derivatives(LOGITS + i, OBJECTIVE, order=1, **SIZES),
    "expectation": lambda i: OBJECTIVE(LOGITS + i, jax.random.key(i)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_second_call_compiles_nothing(name, caplog):
    CALLS[name](0)
    caplog.clear()
    with jax.log_compiles():
        CALLS[name](2)
    assert not [record.getMessage() for record in caplog.records if "XLA compilation" in record.getMessage()]


def test_the_count_sees_a_function_that_is_built_anew(caplog):
    with jax.log_compiles():
        testing.check_padding(LOGITS, lambda params, trajectories: masked_sum(params, trajectories), taus(0))
    assert any("XLA compilation" in record.getMessage() for record in caplog.records)
