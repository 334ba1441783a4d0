"""What contains a loop compiles itself: a second call with the same shapes, equal settings and the same functions compiles nothing."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import logderiv as ld
from logderiv import diagnostics, testing
from logderiv.policies import TabularSoftmax
from tests.mostly import mostly_slow
from tests.worlds import TERMINATING_LOGITS, batch, terminating

POLICY = ld.MLP(2, hidden=())
PARAMS = POLICY.init(jax.random.key(0), jnp.zeros(4))
ESTIMATOR = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()), discount=0.9)
SAMPLES = {"a": jax.random.normal(jax.random.key(0), (50, 2)), "b": jax.random.normal(jax.random.key(1), (50,))}
EXACT = {"a": jnp.zeros(2), "b": jnp.zeros(())}
LOGITS = jnp.array([0.3, -0.2])


def linear(params, observation):
    return ld.Categorical(observation @ params)


def likelihood(of):
    """One trajectory, another at the second call; the policy is a plain function."""
    return lambda seed: of(jnp.full((4, 2), 0.1 * seed), linear, batch(jax.random.key(seed), (600,)))


def collect(seed):
    key, start = jax.random.split(jax.random.key(seed))
    state = ld.sampling.start_streams(start, terminating(), 3)
    return ld.sampling.collect(TERMINATING_LOGITS, key, TabularSoftmax(), terminating(), state, num_steps=4, horizon=5)


def rollout(seed, num=(3,), **options):
    keys = jax.random.split(jax.random.key(seed), num)
    return ld.rollout(TERMINATING_LOGITS, keys, TabularSoftmax(), terminating(), horizon=5, **options)


def with_environment(of, num):
    return lambda seed: of(TERMINATING_LOGITS, TabularSoftmax(), rollout(seed, num), environment=terminating())


def taus(seed):
    found = batch(jax.random.key(seed), (8, 3))
    return found._replace(valid=jnp.arange(3)[None] < 1 + jnp.arange(8)[:, None] % 3)


def moved(tree, by):
    return jax.tree.map(lambda x: x + by, tree)


def log_prob(params, x):
    return ld.Categorical(params).log_prob(x)


def sample(params, key):
    return ld.Categorical(params).sample(key)


def masked_sum(params, trajectories):
    return jnp.sum(params) * jnp.sum(jnp.where(trajectories.valid, trajectories.rewards, 0))


def flips(params, tape):
    tape, first = tape.sample(ld.Bernoulli(params[0]))
    tape, second = tape.sample(ld.Bernoulli(params[1]))
    return tape.cost(first * second)


def plain_calls(params):
    def step(ones, logit):
        return ones + ld.sample(ld.Bernoulli(logit)), None

    return jax.lax.scan(step, 0, params)[0]


def check_score(i, **options):
    return testing.check_score(LOGITS + i, jax.random.key(i), log_prob, sample, **options)


OBJECTIVE = ld.expectation(flips, num_samples=2, baseline="leave_one_out")
OF_MODEL = ld.expectation(plain_calls, num_samples=2, baseline="leave_one_out")
SIZES: Any = {"num_choices": 2, "num_outcomes": 2}
CALLS = {
    "log_prob": likelihood(ld.log_prob),
    "its gradient": likelihood(lambda *args: jax.value_and_grad(ld.log_prob)(*args)),
    "log_prob with an environment": with_environment(ld.log_prob, (3,)),
    "prob": likelihood(ld.prob),
    "grad_prob": likelihood(ld.grad_prob),
    "log_factors": likelihood(ld.log_factors),
    "rollout": rollout,
    "rollout in blocks": lambda i: rollout(i, block_size=2),
    "collect": collect,
    "compare": with_environment(ld.compare, ()),
    "fisher": lambda i: ld.likelihood.fisher_vector_product(moved(PARAMS, i), POLICY, taus(i))(PARAMS),
    "per_trajectory_gradients": lambda i: diagnostics.per_trajectory_gradients(PARAMS, POLICY, taus(i), ESTIMATOR),
    "of groups": lambda i: diagnostics.per_trajectory_gradients(PARAMS, POLICY, taus(i), ESTIMATOR, num_groups=4),
    "gradient_moments": lambda i: diagnostics.gradient_moments(PARAMS, POLICY, taus(i), ESTIMATOR),
    "variance_by_step": lambda i: diagnostics.variance_by_step(PARAMS, POLICY, taus(i), jnp.ones((8, 3))),
    "summary": lambda i: diagnostics.summary(moved(SAMPLES, i)).noise_scale(),
    "sem": lambda i: diagnostics.sem(moved(SAMPLES, i)),
    "cosine": lambda i: diagnostics.cosine(SAMPLES, moved(SAMPLES, i)),
    "variance_ratio": lambda i: diagnostics.variance_ratio(jax.tree.map(lambda x: x * x + i, SAMPLES), SAMPLES),
    "assert_unbiased": lambda i: testing.assert_unbiased(SAMPLES, EXACT, resolution=2.0 + i),
    "another k": lambda i: testing.assert_unbiased(SAMPLES, EXACT, resolution=2.0, k=4.0 + i, raises=False),
    "check_score": lambda i: check_score(i, num_samples=4000),
    "few samples": lambda i: check_score(i, num_samples=300, raises=False),
    "check_padding": lambda i: testing.check_padding(LOGITS + i, masked_sum, taus(i)),
    "program_value": lambda i: ld.exact.program_value(LOGITS + i, flips, **SIZES),
    "program_derivatives": lambda i: ld.exact.program_derivatives(LOGITS + i, OBJECTIVE, order=1, **SIZES),
    "expectation": lambda i: OBJECTIVE(LOGITS + i, jax.random.key(i)),
    "expectation of a model": lambda i: jax.grad(OF_MODEL)(LOGITS + i, jax.random.key(i)),
}


def compiled(call, caplog):
    """How many programs a call compiles."""
    caplog.clear()
    with jax.log_compiles():
        jax.block_until_ready(call())
    return sum(record.getMessage().startswith("Compiling ") for record in caplog.records)


SOME = ("log_prob", "rollout", "collect", "per_trajectory_gradients", "sem", "cosine", "check_score", "expectation")


@pytest.mark.parametrize("call", mostly_slow(CALLS.values(), [CALLS[name] for name in SOME]), ids=CALLS)
def test_a_second_call_compiles_nothing(call, caplog):
    call(0)
    assert compiled(lambda: call(2), caplog) == 0


def test_a_function_that_is_built_anew_compiles_anew(caplog):
    tau = batch(jax.random.key(0), (600,))
    for _ in range(2):
        assert compiled(lambda: ld.log_prob(jnp.ones((4, 2)), lambda p, x: ld.Categorical(x @ p), tau), caplog) > 0
        assert compiled(lambda: testing.check_padding(LOGITS, lambda p, t: masked_sum(p, t), taus(0)), caplog) > 0
