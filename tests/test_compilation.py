"""What contains a loop compiles itself: a second call with the same shapes, equal settings and the same functions compiles nothing."""

import jax
import jax.numpy as jnp
import pytest

import logderiv as ld
from logderiv.likelihood import fisher_vector_product
from logderiv.policies import TabularSoftmax
from tests.worlds import TERMINATING_LOGITS, batch, terminating


def _linear(params, observation):
    return ld.Categorical(observation @ params)


def _likelihood(of):
    """One trajectory, another at the second call; the policy is a plain function."""
    return lambda seed: of(jnp.full((4, 2), 0.1 * seed), _linear, batch(jax.random.key(seed), (600,)))


def _collect(seed):
    mdp = terminating()
    key, start = jax.random.split(jax.random.key(seed))
    state = ld.start_streams(start, mdp, 3)
    return ld.collect(TERMINATING_LOGITS, key, TabularSoftmax(), mdp, state, num_steps=4, horizon=5)


def _rollout(seed, **options):
    keys = jax.random.split(jax.random.key(seed), 3)
    return ld.rollout(TERMINATING_LOGITS, keys, TabularSoftmax(), terminating(), horizon=5, **options)


def _compare(seed):
    mdp = terminating()
    tau = ld.rollout(TERMINATING_LOGITS, jax.random.key(seed), ld.tabular_softmax, mdp, horizon=5)
    return ld.compare(TERMINATING_LOGITS, ld.tabular_softmax, tau, environment=mdp)


def _with_environment(seed):
    taus = _rollout(seed)
    return ld.log_prob(TERMINATING_LOGITS, ld.tabular_softmax, taus, environment=terminating())


def _fisher(seed):
    taus = batch(jax.random.key(seed), (3, 5))
    params = jnp.full((4, 2), 0.1 * seed)
    return fisher_vector_product(params, _linear, taus)(params)


CALLS = {
    "log_prob": _likelihood(ld.log_prob),
    "its gradient": _likelihood(lambda *args: jax.value_and_grad(ld.log_prob)(*args)),
    "log_prob with an environment": _with_environment,
    "prob": _likelihood(ld.prob),
    "grad_prob": _likelihood(ld.grad_prob),
    "log_factors": _likelihood(ld.log_factors),
    "rollout": _rollout,
    "rollout in blocks": lambda seed: _rollout(seed, block_size=2),
    "collect": _collect,
    "compare": _compare,
    "fisher_vector_product": _fisher,
}


def compiled(call, caplog):
    """How many programs a call compiles."""
    caplog.clear()
    with jax.log_compiles():
        jax.block_until_ready(call())
    return sum(record.getMessage().startswith("Compiling ") for record in caplog.records)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_second_call_compiles_nothing(call, caplog):
    jax.clear_caches()
    assert compiled(lambda: call(1), caplog) > 0
    assert compiled(lambda: call(2), caplog) == 0


def test_a_function_that_is_built_anew_compiles_anew(caplog):
    tau = batch(jax.random.key(0), (600,))
    for _ in range(2):
        assert compiled(lambda: ld.log_prob(jnp.ones((4, 2)), lambda p, x: ld.Categorical(x @ p), tau), caplog) > 0
