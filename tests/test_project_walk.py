"""How far a reader has to go: the files that one call passes, from the first function to the last."""

import jax
import jax.numpy as jnp
import pytest

import logderiv as ld
from tests.mostly import slow
from tests.walks import stations
from tests.worlds import batch


def walk(call, at_most):
    """The failure's message is the list of stations."""
    jax.clear_caches()  # a first call
    found = stations(call)
    assert len(found) <= at_most, "\n".join([f"{len(found)} stations:", *found])


def test_log_prob_of_one_trajectory():
    policy, tau = ld.MLP(2, hidden=(3,)), batch(jax.random.key(0), (5,))
    params = policy.init(jax.random.key(1), jnp.zeros(4))
    walk(lambda: ld.log_prob(params, policy, tau), at_most=12)


@pytest.mark.parametrize(("name", "at_most"), [slow(("ActorCritic", 33)), ("A2C", 34)])
def test_estimate_of_an_actor_and_a_critic(name, at_most):
    """The gradient of one batch. Of the stations

    - 9 ask before anything runs: shapes, dtypes, structure, parameters, range of the actions, for which a step of the policy is taken;
    - 3 lead into the compiled program and out of it, with what is said of the batch;
    - 9 give the weights: the batch, the network's values, GAE, the baseline that learns nothing, whether all are finite;
    - 12 are the one pass over the steps: normalizer, blocks, a step, its distribution, its term. A2C has the entropy besides.

    Most are a network, a distribution or a baseline that might be another one, which is why they stand in files of their own.
    """
    network, taus = ld.MLPActorCritic(2, hidden=(3,)), batch(jax.random.key(0), (6, 5))
    params = network.init(jax.random.key(1), jnp.zeros(4))
    estimator = {
        "ActorCritic": ld.ActorCritic(ld.ScoreFunction(ld.advantages.GAE(0.95)), value=network.value),
        "A2C": ld.A2C(network.value),
    }[name]
    state = estimator.init(params)
    walk(lambda: estimator.estimate(params, state, network, taus), at_most)
