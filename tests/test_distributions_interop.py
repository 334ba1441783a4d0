"""Other libraries' distributions and networks, unmodified."""

import contextlib
import importlib
import inspect
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from tests.mostly import slow
from tests.worlds import batch, rollout, two_states

TAUS = batch(jax.random.key(0), (3, 6))
WEIGHTS = jnp.array([[0.3, -0.2], [0.1, 0.4], [-0.5, 0.2], [0.7, 0.6]])


@jax.jit
def log_prob_and_score(params, policy):
    return jax.value_and_grad(lambda p: jnp.sum(ld.log_prob(p, policy, TAUS, block_size=4)))(params)


def _categoricals():
    numpyro = pytest.importorskip("numpyro.distributions")
    yield lambda logits: numpyro.Categorical(logits=logits, validate_args=False)
    for module in ("distrax", "tensorflow_probability.substrates.jax.distributions"):
        with contextlib.suppress(ImportError, AttributeError):
            yield partial(lambda library, logits: library.Categorical(logits=logits), importlib.import_module(module))


def test_categorical_of_any_library_gives_our_likelihood_score_and_rollout():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        ours = log_prob_and_score(WEIGHTS, ld.FunctionPolicy(lambda p, x: ld.Categorical(x @ p)))
        for categorical in _categoricals():
            policy = ld.FunctionPolicy(lambda p, x, c=categorical: c(x @ p))
            chex.assert_trees_all_close(log_prob_and_score(WEIGHTS, policy), ours, rtol=1e-6)
            table = ld.FunctionPolicy(lambda p, s, c=categorical: c(p[s]))
            taus = rollout(jnp.zeros((2, 2)), jax.random.key(1), table, two_states(), horizon=4)
            np.testing.assert_allclose(taus.behavior_log_probs, np.log(0.5), rtol=1e-6)
            bad = TAUS._replace(actions=TAUS.actions.at[0, 0].set(2))
            assert jax.jit(ld.log_prob)(WEIGHTS, policy, bad)[0] == -jnp.inf
            with pytest.raises(ValueError, match="received 2"):
                ld.log_prob(WEIGHTS, policy, bad)


def test_choices_and_counts_of_numpyro_out_of_range_are_refused_or_impossible():
    numpyro = pytest.importorskip("numpyro.distributions")
    laws = {"in 0 .. 1": lambda p: numpyro.Bernoulli(logits=p), ">= 0": lambda p: numpyro.Poisson(jnp.exp(p))}
    for expected, law in laws.items():
        tau = TAUS._replace(actions=TAUS.actions.at[0, 0].set(-1))
        policy = ld.FunctionPolicy(lambda p, x, law=law: law(p))
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            assert np.isneginf(jax.jit(ld.log_prob)(jnp.float32(0.3), policy, tau)).tolist() == [True, False, False]
            with pytest.raises(ValueError, match=f"actions: expected integers {expected}, received -1 at index"):
                ld.log_prob(jnp.float32(0.3), policy, tau)


def test_independent_normal_of_numpyro_gives_our_diagonal_normal():
    numpyro = pytest.importorskip("numpyro.distributions")
    taus = TAUS._replace(actions=jnp.sin(TAUS.observations[..., :2]))
    ours = ld.FunctionPolicy(lambda p, x: ld.Normal(x @ p, jnp.full(2, 0.7)))
    theirs = ld.FunctionPolicy(lambda p, x: numpyro.Normal(x @ p, 0.7).to_event(1))
    with jax.numpy_rank_promotion("allow"):
        a, b = (jax.jit(jax.grad(lambda p, q=q: jnp.sum(ld.log_prob(p, q, taus))))(WEIGHTS) for q in (ours, theirs))
    np.testing.assert_allclose(a, b, rtol=1e-12)


class Contexts:
    """One step: the observation is a random sign pattern, the reward 1 for the action that equals its first sign."""

    horizon = 1

    def reset(self, key, params=None):
        signs = jax.random.rademacher(key, (4,), jnp.float32)
        return signs, signs

    def step(self, key, state, action, params=None):
        right = (action == (state[0] > 0).astype(action.dtype)).astype(jnp.float32)
        return state, state, right, jnp.ones((), bool), jnp.zeros((), bool)


def _linen():
    linen = pytest.importorskip("flax.linen")
    network = linen.Sequential([linen.Dense(16), linen.tanh, linen.Dense(2)])
    params = network.init(jax.random.key(0), jnp.zeros(4, jnp.float32))
    return params, lambda params, x: ld.Categorical(network.apply(params, x))


def _nnx():
    nnx = pytest.importorskip("flax.nnx")
    rngs = nnx.Rngs(0)
    network = nnx.Sequential(nnx.Linear(4, 16, rngs=rngs), nnx.tanh, nnx.Linear(16, 2, rngs=rngs))
    graph, params = nnx.split(network)
    return params, lambda params, x: ld.Categorical(nnx.merge(graph, params)(x))


def _equinox():
    eqx = pytest.importorskip("equinox")
    network = eqx.nn.MLP(4, 2, 16, 1, activation=jnp.tanh, key=jax.random.key(0))
    params, static = eqx.partition(network, eqx.is_inexact_array)
    return params, lambda params, x: ld.Categorical(eqx.combine(params, static)(x))


def _plain():
    keys = jax.random.split(jax.random.key(0))
    params = [0.5 * jax.random.normal(keys[0], (4, 16)), jnp.zeros((16, 2))]
    return params, lambda params, x: ld.Categorical(jnp.tanh(x @ params[0]) @ params[1])


@pytest.mark.parametrize(
    "make", [slow(_linen), _nnx, slow(_equinox), _plain], ids=["linen", "nnx", "equinox", "function"]
)
def test_a_policy_of_any_library_is_written_in_under_15_lines_and_learns(make):
    """Its score is finite and not zero. Random play earns 0.5; after 60 updates at least 0.95."""
    assert len(inspect.getsource(make).splitlines()) < 15
    estimator = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()))
    options = {"estimator": estimator, "optimizer": optax.adam(3e-2), "num_updates": 60}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        with jax.debug_key_reuse(False):
            params, policy = make()
        _, score = log_prob_and_score(params, ld.FunctionPolicy(policy))
        params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
        result = ld.train(params, jax.random.key(1), policy, Contexts(), ld.Episodes(64), **options)
    chex.assert_tree_all_finite(score)
    assert any((x != 0).any() for x in jax.tree.leaves(score))
    returns = result.metrics.mean_return
    assert 0.3 < returns[0] < 0.7
    assert returns[-10:].mean() > 0.95
