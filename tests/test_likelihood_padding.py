"""What stands in invalid steps changes nothing: value, gradient and curvature, bit for bit."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv._core.arrays import expand
from logderiv.testing.padding import FIELDS, extend
from tests.mostly import mostly_slow
from tests.worlds import TERMINATING_LOGITS, batch, rollout, terminating, trajectory

SIZE, LENGTH = 3, 6
MASKS = {
    "prefix": [True, True, True, False, False, False],
    "one step": [True] + [False] * 5,
    "full but one": [True] * 5 + [False],
}
FLOATS = [0.0, -1.0, 1e30, jnp.inf, -jnp.inf, jnp.nan]
INTEGERS = [0, -1, 2**31 - 1, -(2**31), 7, 1]


def _nasty(params, observation):
    """A policy with a pole at zero, a logarithm, and a mask that forbids the second action when the first entry is negative."""
    logits = params["w"] @ jnp.log(jnp.abs(observation)) + params["b"] / observation[:2] + jnp.linalg.norm(observation)
    return ld.Categorical(jnp.where(observation[0] < 0, jnp.array([0.0, -jnp.inf]), logits))


def _recurrent(params, carry, observation):
    carry = jnp.tanh(carry + jnp.log(jnp.abs(observation)))
    return ld.Categorical(params["w"] @ carry + params["b"]), carry


def _sequence(params, tau):
    return jax.vmap(lambda o, a: _nasty(params, o).log_prob(a))(tau.observations, tau.actions)


POLICIES = {
    "memoryless": ld.FunctionPolicy(_nasty),
    "recurrent": ld.FunctionPolicy(_recurrent, lambda params: jnp.zeros(SIZE)),
    "whole sequence": ld.FunctionPolicy(_nasty, log_factors=_sequence),
}
PARAMS = {"w": jnp.array([[0.3, -0.2, 0.5], [0.1, 0.4, -0.6]]), "b": jnp.array([0.2, -0.3])}


def _dirty(tau, number, integer):
    def dirty(x):
        bad = jnp.asarray(number if jnp.issubdtype(x.dtype, jnp.floating) else integer, x.dtype)
        return jnp.where(expand(tau.valid, x), x, bad)

    return tau._replace(**{name: dirty(getattr(tau, name)) for name in FIELDS})


def _everything(policy, params, tau):
    """Log-probability of a batch and of one, probability, and the objectives of two estimators."""
    advantage, one = ld.advantages.ToGo(ld.baselines.LeaveOneOut()), jax.tree.map(lambda x: x[0], tau)
    dice = ld.ScoreFunction(advantage, discount=0.9, surrogate=ld.estimators.DiCE())
    found = [jnp.sum(ld.log_prob(params, policy, tau, block_size=4)), ld.log_prob(params, policy, one, block_size=2)]
    for of in (ld.ScoreFunction(advantage, discount=0.9), dice):
        weights, _ = of.advantages(params, of.init(params), policy, tau)
        found.append(of.objective(params, policy, tau, weights))
    return jnp.stack([*found, jnp.sum(ld.prob(params, policy, tau))])


@pytest.mark.parametrize(
    "policy", mostly_slow(POLICIES.values(), (POLICIES["memoryless"], POLICIES["whole sequence"])), ids=POLICIES
)
def test_value_gradient_and_curvature_do_not_see_the_padding(policy):
    tau = batch(jax.random.key(0), (4, LENGTH), size=SIZE)
    valid = jnp.array([*MASKS.values(), [True] * LENGTH])
    legal = jnp.where(tau.observations[..., 0] < 0, 0, tau.actions)  # the masked action is never taken
    tau = tau._replace(valid=valid, actions=legal)
    direction = jax.tree.map(jnp.sin, PARAMS)

    @jax.jit
    def derivatives(params, tau):
        def gradients(params):
            values, pull = jax.vjp(lambda p: _everything(policy, p, tau), params)
            return values, jax.vmap(pull)(jnp.eye(5))

        return gradients(params), jax.jvp(gradients, (params,), (direction,))[1]

    clean = derivatives(PARAMS, _dirty(tau, 1.0, 0))
    chex.assert_tree_all_finite(clean)
    for number, integer in zip(FLOATS, INTEGERS, strict=True):
        jax.tree.map(np.testing.assert_array_equal, clean, derivatives(PARAMS, _dirty(tau, number, integer)))


def test_masking_the_output_alone_would_have_given_nan():
    """The simple pattern that this library does not use: right value, NaN gradient."""
    tau = _dirty(batch(jax.random.key(0), (LENGTH,), size=SIZE)._replace(valid=jnp.array(MASKS["prefix"])), 0.0, 0)

    def masked_output(params):
        logs = jax.vmap(lambda o, a: _nasty(params, o).log_prob(a))(tau.observations, tau.actions)
        return jnp.sum(jnp.where(tau.valid, logs, 0))

    value, gradient = jax.jit(jax.value_and_grad(masked_output))(PARAMS)
    assert jnp.isfinite(value)
    assert not all(jnp.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_padding_does_not_reach_the_dynamics():
    mdp = terminating()
    taus = rollout(TERMINATING_LOGITS, jax.random.split(jax.random.key(0), 6), ld.tabular_softmax, mdp, horizon=5)
    assert not taus.valid.all()
    of = jax.jit(jax.value_and_grad(lambda p, t: jnp.sum(ld.log_prob(p, ld.tabular_softmax, t, environment=mdp))))
    clean = of(TERMINATING_LOGITS, taus)
    for integer in INTEGERS:
        jax.tree.map(np.testing.assert_array_equal, clean, of(TERMINATING_LOGITS, _dirty(taus, jnp.nan, integer)))


def test_a_trajectory_without_a_valid_step_has_probability_one_and_no_score():
    tau = batch(jax.random.key(0), (LENGTH,), size=SIZE)._replace(valid=jnp.zeros(LENGTH, bool))
    tau = _dirty(tau, jnp.nan, -1)
    for policy in POLICIES.values():
        both = jax.jit(lambda *args: (jax.value_and_grad(ld.log_prob)(*args), ld.prob(*args)))
        log_prob_and_score, prob = both(PARAMS, policy, tau)
        assert all((x == 0).all() for x in jax.tree.leaves(log_prob_and_score))
        assert prob == 1


@pytest.mark.parametrize("kind", ["a table of one row", "a mask in eight bits", "a divisor"])
def test_a_trajectory_without_a_valid_step_has_no_score_beside_others(kind):
    """What stands for its observation is a row of the table, allows an action and may divide; filled with ones throughout, the first is NaN."""
    shape, valid = (2, 3), jnp.array([[True, True, False], [False] * 3])
    policy, observation = {
        "a table of one row": (ld.FunctionPolicy(ld.tabular_softmax.apply), jnp.zeros(shape, int)),
        "a mask in eight bits": (
            ld.FunctionPolicy(lambda p, o: ld.Categorical(ld.masked(p[0], o.astype(bool)))),
            jnp.ones((*shape, 2), jnp.int8),
        ),
        "a divisor": (ld.FunctionPolicy(lambda p, o: ld.Categorical(p[0] / o)), jnp.ones(shape)),
    }[kind]
    taus = trajectory(observations=jnp.where(expand(valid, observation), observation, 0), valid=valid)

    def total(params, of, taus):
        return jnp.sum(of(params, policy, taus))

    run = jax.jit(lambda p, t: [jax.value_and_grad(total)(p, of, t) for of in (ld.log_factors, ld.log_prob, ld.prob)])
    found, alone = (run(jnp.array([[0.3, -0.2]]), t) for t in (taus, jax.tree.map(lambda x: x[:1], taus)))
    for (value, slope), (expected, by_one) in zip(found[:2], alone[:2], strict=True):
        assert value == expected
        np.testing.assert_array_equal(slope, by_one)
    assert found[2][0] == alone[2][0] + 1
    np.testing.assert_array_equal(found[2][1], alone[2][1])


def test_longer_padding_changes_nothing_beyond_rounding():
    tau = batch(jax.random.key(0), (LENGTH,), size=SIZE)
    pad = _dirty(extend(tau, LENGTH), jnp.nan, -7)
    of = jax.jit(jax.value_and_grad(ld.log_prob))
    for policy in POLICIES.values():
        chex.assert_trees_all_close(of(PARAMS, policy, pad), of(PARAMS, policy, tau), rtol=1e-13)
