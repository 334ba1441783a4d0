"""Terms of steps: every kind of policy, every reduction, and padding that never matters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.distributions import Forced, Joint, Poisson
from logderiv.likelihood import over_steps
from tests.agreement import assert_same
from tests.mostly import slow
from tests.worlds import batch

TAUS = batch(jax.random.key(0), (2, 3, 30))
TAUS = TAUS._replace(valid=jnp.arange(30)[None, None] < jnp.array([[30, 11, 1], [29, 0, 17]])[..., None])
TAUS = TAUS._replace(behavior_log_probs=jnp.where(TAUS.valid, -0.5, jnp.nan))
ADVANTAGES = jnp.where(TAUS.valid, jax.random.normal(jax.random.key(1), (2, 3, 30)), jnp.nan)
LINEAR, GRU = ld.MLP(2, hidden=()), ld.GRU(2, hidden=3)


def _logits(params, observation):
    return ld.Categorical(observation @ params[0]["weight"] + params[0]["bias"])


WHOLE = ld.FunctionPolicy(
    _logits, log_factors=lambda p, tau: jax.vmap(lambda o, a: _logits(p, o).log_prob(a))(tau.observations, tau.actions)
)


def clipped(params, step, distribution, advantage):
    """What PPO adds for a step."""
    ratio = jnp.exp(distribution.log_prob(step.action) - step.behavior_log_prob)
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)


def entropy(params, step, distribution):
    return distribution.entropy()


def params_of(policy):
    net = LINEAR if policy is WHOLE else policy
    return jax.tree.map(lambda x: x + 0.1, net.init(jax.random.key(2), jnp.zeros(4)))


@pytest.mark.parametrize("policy", [slow(LINEAR), GRU, WHOLE], ids=["memoryless", "with memory", "of whole sequences"])
def test_a_term_with_extras_is_that_of_each_step_and_its_sums(policy):
    def of(params):
        arguments = clipped, params, policy, TAUS, ADVANTAGES
        return [over_steps(*arguments, reduce=reduce, block_size=8) for reduce in (None, "time", "all")]

    def by_hand(params):
        logs = ld.log_factors(params, LINEAR if policy is WHOLE else policy, TAUS)
        ratios = jnp.exp(logs - jnp.where(TAUS.valid, TAUS.behavior_log_probs, 0))
        weights = jnp.where(TAUS.valid, ADVANTAGES, 0)
        steps = jnp.minimum(ratios * weights, jnp.clip(ratios, 0.8, 1.2) * weights)
        return [steps, steps.sum(-1), steps.sum()]

    def gradients(function):
        return lambda params: [jax.grad(lambda p, i=i: jnp.sum(function(p)[i]))(params) for i in range(3)]

    assert_same(of, by_hand, params_of(policy), atol=1e-14)
    assert_same(of, by_hand, params_of(policy), modes=[gradients], rtol=1e-10, atol=1e-13)


def test_a_policy_of_whole_sequences_knows_nothing_but_its_log_factors():
    with pytest.raises(TypeError, match="does not give its entropy"):
        over_steps(entropy, params_of(WHOLE), WHOLE, TAUS)
    assert over_steps(entropy, params_of(LINEAR), LINEAR, TAUS).shape == (2, 3, 30)


def test_any_other_term_of_a_tabular_policy_is_not_counted():
    states = jnp.zeros(TAUS.valid.shape, int)
    found = over_steps(entropy, jnp.zeros((1, 2)), ld.tabular_softmax, TAUS._replace(observations=states), reduce="all")
    np.testing.assert_allclose(found, int(TAUS.valid.sum()) * np.log(2), rtol=1e-12)


# Choices of a step, actions of four steps of which the third is out of range, and what is said of it.
OUT_OF_RANGE = {
    "bernoulli": (
        lambda p: ld.Bernoulli(p[0]),
        np.array([0, 1, -1, 1]),
        r"actions: expected integers in 0 .. 1, received -1",
    ),
    "counts": (
        lambda p: Poisson(p[0]),
        np.array([0, 7, -2, 1]),
        r"actions: expected integers >= 0, received -2 at index \(2,\)",
    ),
    "several": (
        lambda p: Joint(ld.Categorical(jnp.stack([p, p])[None])),
        np.array([[[0, 1]], [[1, 1]], [[2, 3]], [[0, 0]]]),
        r"trajectory.actions: expected integers in 0 .. 2, received 3 at index \(2, 0, 1\)",
    ),
    "parts": (
        lambda p: Joint({"a": (ld.Normal(p[0], jnp.exp(p[1])), ld.Categorical(p)), "b": Joint([ld.Bernoulli(p[:2])])}),
        {"a": (np.ones(4), np.array([2, 1, 0, 1])), "b": [np.array([[0, 1], [1, 1], [1, 2], [0, 0]])]},
        r"trajectory.actions\['b'\]\[0\]: expected integers in 0 .. 1, received 2 at index \(2, 1\)",
    ),
    "prescribed": (
        lambda p: Forced(ld.Categorical(p), jnp.array(0), jnp.zeros((), bool)),
        np.array([0, 2, 3, 0]),
        r"trajectory.actions: expected integers in 0 .. 2, received 3 at index \(2,\)",
    ),
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_an_action_out_of_range_raises_in_every_leaf_and_is_impossible_under_jit(name):
    choose, actions, message = OUT_OF_RANGE[name]
    params, policy = jnp.array([0.3, 0.1, -0.2]), ld.FunctionPolicy(lambda p, x: choose(p))
    tau = batch(jax.random.key(0), (4,))._replace(actions=jax.tree.map(jnp.asarray, actions))
    log_prob = jax.jit(lambda tau: ld.log_prob(params, policy, tau))
    with pytest.raises(ValueError, match=message):
        ld.log_prob(params, policy, tau)
    assert log_prob(tau) == -jnp.inf
    cut = tau._replace(valid=jnp.arange(4) < 2)  # what stands in padding does not matter
    np.testing.assert_allclose(ld.log_prob(params, policy, cut), log_prob(cut), rtol=1e-14)
    assert log_prob(cut) > -jnp.inf
