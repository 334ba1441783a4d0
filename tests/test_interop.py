"""Other libraries' distributions and networks, unmodified."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from tests.worlds import batch, two_states

TAUS = batch(jax.random.key(0), (3, 6))
WEIGHTS = jnp.array([[0.3, -0.2], [0.1, 0.4], [-0.5, 0.2], [0.7, 0.6]])


def _categoricals():
    numpyro = pytest.importorskip("numpyro.distributions")
    yield "numpyro", lambda logits: numpyro.Categorical(logits=logits, validate_args=False)
    try:
        import distrax
    except ImportError:
        distrax = None
    if distrax is not None:
        yield "distrax", lambda logits: distrax.Categorical(logits=logits)
    try:
        from tensorflow_probability.substrates import jax as tfp
    except (ImportError, AttributeError):
        tfp = None
    if tfp is not None:
        yield "tfp", lambda logits: tfp.distributions.Categorical(logits=logits)


def test_categorical_of_any_library_gives_our_likelihood_score_and_rollout():
    @jax.jit
    def everything(params, policy, head_is_ours):
        del head_is_ours
        f = jax.value_and_grad(lambda p: jnp.sum(ld.log_prob(p, policy, TAUS, block_size=4)))
        return f(params)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        ours = everything(WEIGHTS, ld.FunctionPolicy(lambda p, x: ld.Categorical(x @ p)), True)
        for name, categorical in _categoricals():
            policy = ld.FunctionPolicy(lambda p, x, c=categorical: c(x @ p))
            theirs = everything(WEIGHTS, policy, False)
            jax.tree.map(lambda a, b, n=name: np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=n), ours, theirs)
            table = ld.FunctionPolicy(lambda p, s, c=categorical: c(p[s]))
            taus = jax.jit(lambda k, t=table: ld.rollout(jnp.zeros((2, 2)), k, t, two_states(), horizon=4))(
                jax.random.key(1)
            )
            np.testing.assert_allclose(taus.behavior_log_probs, np.log(0.5), rtol=1e-6)
            bad = TAUS._replace(actions=TAUS.actions.at[0, 0].set(2))
            assert jax.jit(ld.log_prob)(WEIGHTS, policy, bad)[0] == -jnp.inf
            with pytest.raises(ValueError, match="received 2"):
                ld.log_prob(WEIGHTS, policy, bad)


def test_independent_normal_of_numpyro_gives_our_diagonal_normal():
    numpyro = pytest.importorskip("numpyro.distributions")
    taus = TAUS._replace(actions=jnp.sin(TAUS.observations[..., :2]))
    ours = ld.FunctionPolicy(lambda p, x: ld.Normal(x @ p, jnp.full(2, 0.7)))
    theirs = ld.FunctionPolicy(lambda p, x: numpyro.Normal(x @ p, 0.7).to_event(1))
    with jax.numpy_rank_promotion("allow"):
        a, b = (jax.jit(jax.grad(lambda p, q=q: jnp.sum(ld.log_prob(p, q, taus))))(WEIGHTS) for q in (ours, theirs))
    np.testing.assert_allclose(a, b, rtol=1e-12)


def _finite_and_not_zero(params, policy):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        score = jax.jit(jax.grad(lambda p: jnp.sum(ld.log_prob(p, policy, TAUS))))(params)
    leaves = jax.tree.leaves(score)
    assert leaves
    assert all(jnp.isfinite(x).all() for x in leaves)
    assert any((x != 0).any() for x in leaves)


def test_a_flax_linen_network_is_a_policy_in_one_line():
    linen = pytest.importorskip("flax.linen")
    network = linen.Sequential([linen.Dense(8), linen.tanh, linen.Dense(2)])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params = network.init(jax.random.key(0), jnp.zeros(4))
    _finite_and_not_zero(params, ld.FunctionPolicy(lambda params, x: ld.Categorical(network.apply(params, x))))


def test_a_flax_nnx_network_is_a_policy_in_one_line():
    nnx = pytest.importorskip("flax.nnx")
    with jax.debug_key_reuse(False):
        graph, params = nnx.split(nnx.Linear(4, 2, rngs=nnx.Rngs(0)))
    _finite_and_not_zero(params, ld.FunctionPolicy(lambda params, x: ld.Categorical(nnx.merge(graph, params)(x))))


def test_an_equinox_network_is_a_policy_in_one_line():
    eqx = pytest.importorskip("equinox")
    params, static = eqx.partition(eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(0)), eqx.is_inexact_array)
    _finite_and_not_zero(params, ld.FunctionPolicy(lambda params, x: ld.Categorical(eqx.combine(params, static)(x))))


class Contexts:
    """One step: the observation is a random sign pattern, the reward 1 for the action that equals its first sign."""

    horizon = 1

    def reset(self, key, params=None):
        signs = jax.random.rademacher(key, (4,), jnp.float32)
        return signs, signs

    def step(self, key, state, action, params=None):
        right = (action == (state[0] > 0).astype(action.dtype)).astype(jnp.float32)
        return state, state, right, jnp.ones((), bool), jnp.zeros((), bool)


def _learns(params, policy):
    """Random play earns 0.5; after 60 updates at least 0.95."""
    estimator = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()))
    options = {"estimator": estimator, "optimizer": optax.adam(3e-2), "num_updates": 60}
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        result = ld.train(params, jax.random.key(1), policy, Contexts(), ld.Episodes(64), **options)
    returns = result.metrics.mean_return
    assert 0.3 < returns[0] < 0.7
    assert returns[-10:].mean() > 0.95


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


@pytest.mark.parametrize("make", [_linen, _nnx, _equinox, _plain], ids=["linen", "nnx", "equinox", "function"])
def test_a_policy_of_any_library_is_written_in_under_15_lines_and_learns(make):
    assert len(inspect.getsource(make).splitlines()) < 15
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):
        params, policy = make()
    _learns(params, policy)
