"""Policies of tokens that hand over hidden states and unembedding: the estimates of their log-factors, for three products with the vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from tests.agreement import assert_same
from tests.mostly import mostly_slow
from tests.plain_tokens import multiplications, normal, numbers_of
from tests.worlds import trajectory

WIDTH, VOCABULARY = 3, 23


def answers(num=4, length=6):
    """Answers of several lengths, a reward at the end of each, garbage after it; the hidden state of a step has seen the tokens before it."""
    tokens, lengths = (
        jax.random.randint(jax.random.key(1), (num, length), 0, VOCABULARY),
        jnp.array([[6], [3], [1], [4]]),
    )
    steps = jnp.arange(length)[None]
    valid = steps < lengths
    return trajectory(
        observations=jnp.where(valid, jnp.roll(tokens, 1, axis=1).at[:, 0].set(0), -5),
        actions=jnp.where(valid, tokens, 99),
        rewards=jnp.where(valid, jnp.where(steps == lengths - 1, normal(9, num, 1), 0), jnp.nan),
        discounts=jnp.where(valid & (steps != lengths - 1), 1.0, 0.0),
        valid=valid,
    )


def states(params, tau):
    return jnp.tanh(jnp.cumsum(params["embedding"][tau.observations], axis=0) @ params["mix"])


def never_step_by_step(params, observation):
    raise NotImplementedError


def at_once(params, tau):
    return numbers_of(params["embedding"], states(params, tau), tau.actions).log_prob


BY_STATES = ld.likelihood.HiddenStates(states, lambda params: params["embedding"])
ESTIMATORS = {"RLOO": ld.RLOO(), "GRPO": ld.GRPO(group_size=4, clip=0.2), "DrGRPO": ld.estimators.DrGRPO(group_size=2)}


@pytest.mark.parametrize("name", mostly_slow(ESTIMATORS, ("GRPO",)))
def test_a_policy_of_hidden_states_gives_every_estimator_what_its_log_factors_would(name):
    params = {"embedding": normal(10, VOCABULARY, WIDTH), "mix": normal(11, WIDTH, WIDTH)}
    taus, estimator = answers(), ESTIMATORS[name]

    def of(log_factors):
        policy = ld.FunctionPolicy(never_step_by_step, log_factors=log_factors)

        def everything(params):
            factors = ld.log_factors(params, policy, taus)
            drawn = taus._replace(behavior_log_probs=jax.lax.stop_gradient(factors) + 0.05)
            estimate = estimator.estimate(params, estimator.init(params), policy, drawn)[0].grads
            return factors, ld.log_prob(params, policy, taus), estimate

        return everything

    found = assert_same(of(BY_STATES), of(at_once), params)
    assert min(np.linalg.norm(x) for x in jax.tree.leaves(found)) > 1e-3


def test_an_estimate_of_a_policy_of_hidden_states_takes_three_products_with_the_vocabulary():
    params = {"embedding": jnp.ones((512, 8)), "mix": jnp.ones((8, 8))}
    taus = answers()
    taus = taus._replace(actions=jnp.where(taus.valid, taus.actions, 0))

    def products(log_factors):
        policy = ld.FunctionPolicy(never_step_by_step, log_factors=log_factors)

        def estimate(params):
            estimator = ld.RLOO()
            return estimator.estimate(params, estimator.init(params), policy, taus)[0].grads

        return multiplications(jax.make_jaxpr(estimate)(params).jaxpr) / (taus.valid.size * 512 * 8)

    assert 3 <= products(BY_STATES) < 3.2  # the rest are the network's own
    assert 4 <= products(lambda params, tau: BY_STATES(params, tau)) < 4.2


def test_temperature_and_soft_cap_are_those_of_the_tokens_that_were_drawn():
    params, taus = {"embedding": normal(10, VOCABULARY, WIDTH), "mix": normal(11, WIDTH, WIDTH)}, answers()
    options = {"temperature": 0.7, "soft_cap": 1.5}
    model = ld.likelihood.HiddenStates(states, lambda params: params["embedding"], **options)

    def plain(params, tau):
        return numbers_of(params["embedding"], states(params, tau), tau.actions, **options).log_prob

    def of(log_factors):
        policy = ld.FunctionPolicy(never_step_by_step, log_factors=log_factors)
        return lambda params: jnp.sum(ld.log_prob(params, policy, taus))

    assert_same(of(model), of(plain), params, modes=[jax.value_and_grad])
    one = jax.tree.map(lambda x: x[1], taus)
    np.testing.assert_allclose(model(params, one)[one.valid], plain(params, one)[one.valid], rtol=1e-12)


def test_a_token_outside_the_vocabulary_is_named_and_no_trajectory_has_no_gradient():
    params, taus = {"embedding": normal(10, VOCABULARY, WIDTH), "mix": normal(11, WIDTH, WIDTH)}, answers()
    policy = ld.FunctionPolicy(never_step_by_step, log_factors=BY_STATES)
    with pytest.raises(ValueError, match=r"received 23 at index \(0, 2\)"):
        ld.log_prob(params, policy, taus._replace(actions=taus.actions.at[0, 2].set(VOCABULARY)))
    empty = jax.tree.map(lambda x: x[:0], taus)
    assert ld.log_prob(params, policy, empty).shape == (0,)
