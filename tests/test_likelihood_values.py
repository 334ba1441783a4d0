"""log P as a sum, P as a product, and both as signed logarithms."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from tests.agreement import assert_same, value
from tests.mostly import slow
from tests.worlds import (
    TERMINATING_LOGITS,
    TWO_STATES_LOGITS,
    batch,
    cast,
    rollout,
    terminating,
    trajectory,
    two_states,
)

MLP, GRU = ld.MLP(2, hidden=(8,)), ld.GRU(2, hidden=5)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _params(policy, key=0, size=4):
    params = policy.init(jax.random.key(key), jnp.zeros(size))
    return jax.tree.map(lambda x: 0.5 * jax.random.normal(jax.random.key(x.size), x.shape), params)


@pytest.mark.parametrize("policy", [MLP, GRU], ids=["mlp", "gru"])
@pytest.mark.parametrize("shape", [slow(((7,),)), (2, 3, 5)])
def test_log_factors_of_a_batch_are_those_of_its_trajectories(policy, shape):
    tau, params = batch(jax.random.key(1), shape), _params(policy)

    def loop(params, tau):
        """One trajectory, one step at a time."""
        carry, logs = None if policy.initial_carry is None else policy.initial_carry(params), []
        for t in range(shape[-1]):
            if carry is None:
                dist = policy.apply(params, tau.observations[t])
            else:
                dist, carry = policy.apply(params, carry, tau.observations[t])
            logs.append(dist.log_prob(tau.actions[t]))
        return jnp.stack(logs)

    for _ in shape[:-1]:
        loop = jax.vmap(loop, (None, 0))

    def ours(params, tau):
        return ld.log_factors(params, policy, tau, block_size=4), ld.log_prob(params, policy, tau)

    def expected(params, tau):
        return loop(params, tau), loop(params, tau).sum(-1)

    assert_same(ours, expected, params, tau, rtol=1e-13, atol=0)


def test_the_probabilities_of_all_trajectories_sum_to_one():
    for mdp, logits in ((two_states(), TWO_STATES_LOGITS), (terminating(), TERMINATING_LOGITS)):
        every = ld.exact.enumerate_trajectories(mdp, horizon=2)
        both = [jax.jit(partial(of, environment=mdp)) for of in (ld.prob, ld.log_prob)]
        probs, logs = (of(logits, ld.tabular_softmax, every) for of in both)
        np.testing.assert_allclose(probs.sum(), 1, rtol=1e-14)
        np.testing.assert_allclose(np.log(probs), logs, rtol=1e-13)


def test_p_of_one_trajectory_by_hand():
    """s0 = 0, a = 1, s1 = 1, a = 0, end in 0; softmax of equal logits is 1/2."""
    tau = trajectory(observations=jnp.array([0, 1]), actions=jnp.array([1, 0]), final_observation=jnp.array(0))
    mdp, logits = two_states(), jnp.zeros((2, 2))
    expected = 0.6 * 0.5 * 0.8 * 0.5 * 0.5
    both = jax.jit(lambda *args: [of(*args, environment=mdp) for of in (ld.prob, ld.log_prob)])
    found = *both(logits, ld.tabular_softmax, tau), ld.log_prob(logits, ld.tabular_softmax, tau)
    np.testing.assert_allclose(found, [expected, math.log(expected), 2 * math.log(0.5)], rtol=1e-15)


def test_start_and_dynamics_drop_out_of_the_score():
    mdp = terminating()
    tau = rollout(TERMINATING_LOGITS, jax.random.key(0), ld.tabular_softmax, mdp, horizon=12)
    score, with_dynamics = (
        jax.jit(jax.grad(f))(TERMINATING_LOGITS, ld.tabular_softmax, tau)
        for f in (ld.log_prob, partial(ld.log_prob, environment=mdp))
    )
    np.testing.assert_array_equal(with_dynamics, score)


@pytest.mark.parametrize(
    ("of", "policy"),
    [(ld.log_prob, GRU), slow((ld.prob, MLP)), slow((ld.prob, GRU))],
    ids=["log_prob with memory", "prob", "prob with memory"],
)
def test_derivatives_agree_with_the_vectorized_form_at_orders_one_and_two(of, policy):
    """Those of `log_prob` of a policy without memory: below, in one pass."""
    tau, params = batch(jax.random.key(4), (6,)), _params(policy)

    def plain(params):
        log_prob = jnp.sum(ld.log_factors(params, policy, tau, block_size=10**6))
        return log_prob if of is ld.log_prob else jnp.exp(log_prob)

    def curvature(f):
        return lambda p: jax.jvp(jax.grad(f), (p,), (jax.tree.map(jnp.cos, p),))[1]

    ours, modes = lambda p: of(p, policy, tau, block_size=2), (jax.grad, curvature)
    assert_same(ours, plain, params, modes=modes, rtol=1e-10, atol=1e-14)


def test_log_prob_is_differentiable_in_the_observations():
    tau, params = batch(jax.random.key(5), (9,)), _params(MLP)

    def of(rows):
        return lambda x: ld.log_prob(params, MLP, tau._replace(observations=x), block_size=rows)

    assert_same(of(2), of(100), tau.observations, modes=[jax.grad], atol=0)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_the_gradient_keeps_the_dtype_of_the_parameters_and_sums_have_at_least_32_bits(dtype):
    tau, params = cast(batch(jax.random.key(6), (600,)), dtype), cast(_params(MLP), dtype)
    total, score = jax.jit(jax.value_and_grad(ld.log_prob))(params, MLP, tau)
    assert total.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
    assert all(g.dtype == dtype for g in jax.tree.leaves(score))
    reference = jax.jit(ld.log_prob)(cast(params, jnp.float64), MLP, cast(tau, jnp.float64))
    np.testing.assert_allclose(float(total), float(reference), rtol=20 * float(jnp.finfo(dtype).eps))


COIN = ld.FunctionPolicy(lambda params, observation: ld.Bernoulli(params * observation))


def _coins(observations):
    ones = jnp.ones_like(observations)
    return trajectory(observations=observations, actions=ones.astype(jnp.int32), rewards=ones)


def test_float32_log_prob_of_a_million_steps_is_summed_without_drift():
    """A plain float32 scan of the same factors is off by 8e-5."""
    tau = _coins(jax.random.uniform(jax.random.key(7), (10**6,), jnp.float32))

    @jax.jit
    def both(params, tau):
        logs = ld.log_factors(params, COIN, tau)
        plain, _ = jax.lax.scan(lambda c, x: (c + x, None), jnp.float32(0), logs)
        return ld.log_prob(params, COIN, tau), logs, plain

    ours, logs, plain = both(jnp.float32(0.3), tau)
    exact = math.fsum(np.asarray(logs, float))
    assert abs(float(ours) - exact) <= 1e-6 * abs(exact)
    assert abs(float(plain) - exact) > 1e-5 * abs(exact)


def test_float32_scores_that_all_agree_are_summed_without_drift():
    """10^6 identical scores: one running float32 sum is wrong in the third digit."""
    horizon = 10**6
    ours = jax.jit(jax.grad(ld.log_prob))(jnp.float32(0.3), COIN, _coins(jnp.ones(horizon, jnp.float32)))
    each = float(jax.nn.sigmoid(jnp.float32(-0.3)))
    assert abs(float(ours) - horizon * each) <= 5e-6 * horizon * each


def test_grad_prob_carries_sign_and_magnitude_beyond_underflow():
    @jax.jit
    def run(params, tau):
        of = params, ld.tabular_softmax, tau
        both = [jax.value_and_grad(f)(*of) for f in (ld.prob, ld.log_prob)]
        return ld.grad_prob(*of), *both

    short, long = (
        rollout(TWO_STATES_LOGITS, jax.random.key(1), ld.tabular_softmax, two_states(), horizon=n) for n in (5, 5000)
    )
    form, (_, direct), _ = run(TWO_STATES_LOGITS, short)
    np.testing.assert_allclose(form.sign * np.exp(form.logabs), direct, rtol=1e-13)
    form, (prob, _), (logp, score) = run(TWO_STATES_LOGITS, long)
    assert prob == 0
    np.testing.assert_array_equal(form.sign, np.sign(score))
    np.testing.assert_allclose(form.logabs - logp, np.log(np.abs(score)), rtol=1e-9)


def test_a_zero_score_is_sign_zero_and_logabs_minus_infinity():
    tau = batch(jax.random.key(0), (3,))._replace(observations=jnp.zeros((3, 4)))
    form = jax.jit(ld.grad_prob, static_argnums=1)(jnp.ones((4, 2)), lambda p, x: ld.Categorical(x @ p), tau)
    assert jnp.all(form.sign == 0)
    assert jnp.all(form.logabs == -jnp.inf)


def test_vmap_over_parameters_and_over_trajectories():
    taus, params = batch(jax.random.key(8), (3, 6)), _params(MLP)

    def native(params):
        whole = ld.log_prob(params, MLP, taus)
        return whole, whole, jax.grad(lambda p: jnp.sum(ld.log_prob(p, MLP, taus)))(params)

    def mapped(params):
        values, scores = jax.vmap(jax.value_and_grad(ld.log_prob), (None, None, 0))(params, MLP, taus)
        stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)
        over_params = jax.vmap(ld.log_prob, (0, None, None))(stacked, MLP, taus)[0]
        return values, over_params, jax.tree.map(lambda x: x.sum(0), scores)

    assert_same(native, mapped, params, rtol=1e-13, atol=1e-14)


def test_a_batch_in_one_pass_equals_the_sum_of_its_factors_at_every_order():
    policy = ld.MLP(2, hidden=(3,))
    tau, params = batch(jax.random.key(4), (2, 3, 21)), _params(policy)

    def one_pass(params):
        return ld.log_prob(params, policy, tau, block_size=8)

    def summed(params):
        return jnp.sum(ld.log_factors(params, policy, tau, block_size=8), axis=-1)

    modes = (value, jax.jacrev, jax.jacfwd, lambda f: jax.hessian(lambda p: jnp.sum(f(p) ** 2)))
    assert_same(one_pass, summed, params, modes=modes, rtol=1e-11)
    assert "custom_jvp_call" in str(jax.make_jaxpr(one_pass)(params))  # it is that route
    assert "custom_jvp_call" not in str(jax.make_jaxpr(summed)(params))


@pytest.mark.parametrize("length", [3, 600])
def test_a_batch_of_no_trajectories_has_no_log_prob(length):
    empty = trajectory(rewards=jnp.ones((0, length)), observations=jnp.ones((0, length, 1)))
    policy = lambda p, x: ld.Categorical(p * x)  # noqa: E731
    assert ld.log_prob(jnp.ones(2), policy, empty).shape == (0,)
    assert ld.log_factors(jnp.ones(2), policy, empty).shape == (0, length)
    grads = jax.grad(lambda p: ld.log_prob(p, policy, empty).sum())(jnp.ones(2))
    np.testing.assert_array_equal(grads, jnp.zeros(2))


def test_a_gradient_larger_than_its_trajectory_is_not_held_for_each_of_a_batch():
    policy = ld.MLP(2, hidden=(64,))
    tau, params = batch(jax.random.key(5), (3, 24)), _params(policy)
    assert "custom_jvp_call" not in str(jax.make_jaxpr(lambda p: ld.log_prob(p, policy, tau, block_size=8))(params))
