"""How far a reader has to go: the files that one call passes, from the first function to the last."""

import jax
import jax.numpy as jnp

import logderiv as ld
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
