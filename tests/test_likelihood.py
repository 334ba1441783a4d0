"""log P as a sum, P as a product, and both as signed logarithms."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
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


class CausalSequence:
    """A whole-sequence model: each step sees the running mean of the observations so far."""

    @staticmethod
    def apply(params, carry, observation):
        total, count = carry[0] + observation, carry[1] + 1
        return ld.Categorical((total / count) @ params), (total, count)

    @staticmethod
    def initial_carry(params):
        return jnp.zeros(params.shape[0], params.dtype), jnp.zeros((), params.dtype)

    @staticmethod
    def log_factors(params, tau):
        counts = jnp.arange(1, tau.valid.shape[0] + 1, dtype=params.dtype)[:, None]
        means = jnp.cumsum(tau.observations, axis=0) / counts
        return ld.Categorical(means @ params).log_prob(tau.actions)


STEPWISE = ld.FunctionPolicy(CausalSequence.apply, CausalSequence.initial_carry)
WHOLE = ld.FunctionPolicy(CausalSequence.apply, CausalSequence.initial_carry, CausalSequence.log_factors)


@pytest.mark.parametrize("policy", [MLP, GRU], ids=["mlp", "gru"])
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 5)])
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
    ours, expected = jax.jit(lambda p: (ld.log_factors(p, policy, tau, block_size=4), loop(p, tau)))(params)
    np.testing.assert_allclose(ours, expected, rtol=1e-13)
    total = jax.jit(partial(ld.log_prob, policy=policy, trajectory=tau))(params)
    np.testing.assert_allclose(total, expected.sum(-1), rtol=1e-13)


def test_a_whole_sequence_model_equals_its_stepwise_form():
    tau = batch(jax.random.key(2), (3, 6))
    params = jax.random.normal(jax.random.key(3), (4, 2))
    a, b = jax.jit(lambda p: (ld.log_factors(p, WHOLE, tau), ld.log_factors(p, STEPWISE, tau)))(params)
    np.testing.assert_allclose(a, b, rtol=1e-12)


def test_the_probabilities_of_all_trajectories_sum_to_one():
    for mdp, logits in ((two_states(), TWO_STATES_LOGITS), (terminating(), TERMINATING_LOGITS)):
        every = ld.exact.enumerate_trajectories(mdp, horizon=3)
        probs, logs = (
            jax.jit(partial(of, environment=mdp))(logits, ld.tabular_softmax, every) for of in (ld.prob, ld.log_prob)
        )
        np.testing.assert_allclose(probs.sum(), 1, rtol=1e-14)
        np.testing.assert_allclose(np.log(probs), logs, rtol=1e-13)


def test_p_of_one_trajectory_by_hand():
    """s0 = 0, a = 1, s1 = 1, a = 0, end in 0; softmax of equal logits is 1/2."""
    tau = trajectory(observations=jnp.array([0, 1]), actions=jnp.array([1, 0]), final_observation=jnp.array(0))
    mdp, logits = two_states(), jnp.zeros((2, 2))
    expected = 0.6 * 0.5 * 0.8 * 0.5 * 0.5
    whole, log_whole, log_policy = jax.jit(
        lambda *args: (ld.prob(*args, environment=mdp), ld.log_prob(*args, environment=mdp), ld.log_prob(*args))
    )(logits, ld.tabular_softmax, tau)
    np.testing.assert_allclose(whole, expected, rtol=1e-15)
    np.testing.assert_allclose(log_whole, math.log(expected), rtol=1e-15)
    np.testing.assert_allclose(log_policy, 2 * math.log(0.5), rtol=1e-15)


def test_start_and_dynamics_drop_out_of_the_score():
    mdp = terminating()
    tau = rollout(TERMINATING_LOGITS, jax.random.key(0), ld.tabular_softmax, mdp, horizon=12)
    score, with_dynamics = (
        jax.jit(jax.grad(f))(TERMINATING_LOGITS, ld.tabular_softmax, tau)
        for f in (ld.log_prob, partial(ld.log_prob, environment=mdp))
    )
    np.testing.assert_array_equal(with_dynamics, score)


@pytest.mark.parametrize("of", [ld.log_prob, ld.prob], ids=["log_prob", "prob"])
@pytest.mark.parametrize("policy", [MLP, GRU], ids=["mlp", "gru"])
def test_derivatives_agree_with_the_vectorized_form_at_orders_one_and_two(of, policy):
    tau, params = batch(jax.random.key(4), (6,)), _params(policy)
    direction = jax.tree.map(jnp.cos, params)

    @jax.jit
    def check(params):
        def plain(params):
            logs = ld.log_factors(params, policy, tau, block_size=10**6)
            return jnp.sum(logs) if of is ld.log_prob else jnp.exp(jnp.sum(logs))

        def ours(params):
            return of(params, policy, tau, block_size=2)

        def curvature(f):
            return lambda p: jax.jvp(jax.grad(f), (p,), (direction,))[1]

        return [(m(ours)(params), m(plain)(params)) for m in (jax.grad, curvature)]

    for ours, expected in check(params):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14), ours, expected)


def test_log_prob_is_differentiable_in_the_observations():
    tau, params = batch(jax.random.key(5), (9,)), _params(MLP)
    ours, expected = jax.jit(
        lambda x: [
            jax.grad(lambda x, r=r: ld.log_prob(params, MLP, tau._replace(observations=x), block_size=r))(x)
            for r in (2, 100)
        ]
    )(tau.observations)
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_the_gradient_keeps_the_dtype_of_the_parameters_and_sums_have_at_least_32_bits(dtype):
    tau, params = cast(batch(jax.random.key(6), (600,)), dtype), cast(_params(MLP), dtype)
    value, score = jax.jit(jax.value_and_grad(ld.log_prob), static_argnums=())(params, MLP, tau)
    assert value.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
    assert all(g.dtype == dtype for g in jax.tree.leaves(score))
    reference = jax.jit(ld.log_prob)(cast(params, jnp.float64), MLP, cast(tau, jnp.float64))
    np.testing.assert_allclose(float(value), float(reference), rtol=20 * float(jnp.finfo(dtype).eps))


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
    mdp = two_states()
    short = rollout(TWO_STATES_LOGITS, jax.random.key(1), ld.tabular_softmax, mdp, horizon=5)
    long = rollout(TWO_STATES_LOGITS, jax.random.key(1), ld.tabular_softmax, mdp, horizon=5000)
    form = jax.jit(ld.grad_prob)(TWO_STATES_LOGITS, ld.tabular_softmax, short)
    direct = jax.jit(jax.grad(ld.prob))(TWO_STATES_LOGITS, ld.tabular_softmax, short)
    np.testing.assert_allclose(form.sign * np.exp(form.logabs), direct, rtol=1e-13)
    form = jax.jit(ld.grad_prob)(TWO_STATES_LOGITS, ld.tabular_softmax, long)
    score = jax.jit(jax.grad(ld.log_prob))(TWO_STATES_LOGITS, ld.tabular_softmax, long)
    logp = jax.jit(ld.log_prob)(TWO_STATES_LOGITS, ld.tabular_softmax, long)
    assert jax.jit(ld.prob)(TWO_STATES_LOGITS, ld.tabular_softmax, long) == 0
    np.testing.assert_array_equal(form.sign, np.sign(score))
    np.testing.assert_allclose(form.logabs - logp, np.log(np.abs(score)), rtol=1e-9)


def test_a_zero_score_is_sign_zero_and_logabs_minus_infinity():
    tau = batch(jax.random.key(0), (3,))._replace(observations=jnp.zeros((3, 4)))
    form = jax.jit(ld.grad_prob, static_argnums=1)(jnp.ones((4, 2)), lambda p, x: ld.Categorical(x @ p), tau)
    assert jnp.all(form.sign == 0)
    assert jnp.all(form.logabs == -jnp.inf)


def test_the_product_is_differentiated_directly_at_a_factor_of_zero():
    """P = theta * (1 - theta) at theta = 0: dP = 1. The exponential of a sum of logs gives NaN there."""

    class Coin:
        def __init__(self, theta):
            self.theta = theta

        def prob(self, action):
            return jnp.where(action == 1, self.theta, 1 - self.theta)

        def log_prob(self, action):
            return jnp.log(self.prob(action))

    tau = trajectory(actions=jnp.array([1, 0]))
    value, slope = jax.value_and_grad(ld.prob)(jnp.asarray(0.0), lambda p, _: Coin(p), tau)
    assert (value, slope) == (0, 1)
    assert jnp.isnan(jax.grad(lambda p: jnp.exp(ld.log_prob(p, lambda p, _: Coin(p), tau)))(jnp.asarray(0.0)))


def test_vmap_over_parameters_and_over_trajectories():
    taus, params = batch(jax.random.key(8), (3, 6)), _params(MLP)
    stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)

    @jax.jit
    def check(stacked):
        native = ld.log_prob(params, MLP, taus)
        mapped = jax.vmap(ld.log_prob, (None, None, 0))(params, MLP, taus)
        both = jax.vmap(ld.log_prob, (0, None, None))(stacked, MLP, taus)
        scores = jax.vmap(jax.grad(ld.log_prob), (None, None, 0))(params, MLP, taus)
        total = jax.grad(lambda p: jnp.sum(ld.log_prob(p, MLP, taus)))(params)
        return native, mapped, both, scores, total

    native, mapped, both, scores, total = check(stacked)
    np.testing.assert_allclose(native, mapped, rtol=1e-13)
    np.testing.assert_allclose(both[0], native, rtol=1e-13)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a.sum(0), b, rtol=1e-10, atol=1e-14), scores, total)


@pytest.mark.parametrize("shape", [(3, 24), (2, 3, 21)])
def test_a_batch_in_one_pass_equals_the_sum_of_its_factors_at_every_order(shape):
    policy = ld.MLP(2, hidden=(3,))
    tau, params = batch(jax.random.key(4), shape), _params(policy)

    def one_pass(params):
        return ld.log_prob(params, policy, tau, block_size=8)

    def summed(params):
        return jnp.sum(ld.log_factors(params, policy, tau, block_size=8), axis=-1)

    @jax.jit
    def check(params):
        modes = (lambda f: f, jax.jacrev, jax.jacfwd, lambda f: jax.hessian(lambda p: jnp.sum(f(p) ** 2)))
        return [(mode(one_pass)(params), mode(summed)(params)) for mode in modes]

    for ours, expected in check(params):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12), ours, expected)
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
