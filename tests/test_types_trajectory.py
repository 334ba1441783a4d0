"""Trajectories, keys and signed logarithms."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv._core.arrays import as_keys
from tests.worlds import batch


def test_next_observations_ends_in_the_final_observation_and_not_in_padding():
    tau = batch(jax.random.key(0), (2, 4), size=1)
    observations = jnp.array([[10.0, 11, 12, 13], [20, 21, 99, 99]])[..., None]
    valid = jnp.array([[True] * 4, [True, True, False, False]])
    tau = tau._replace(observations=observations, valid=valid, final_observation=jnp.array([[14.0], [22]]))
    expected = [[11, 12, 13, 14], [21, 22, 22, 22]]
    assert ld.types.next_observations(tau)[..., 0].tolist() == expected


def test_raw_and_typed_keys_draw_the_same():
    raw, typed = jax.random.PRNGKey(3), jax.random.key(3)
    assert jax.random.uniform(as_keys(raw)) == jax.random.uniform(typed)
    keys, corridor = jax.random.split(jax.random.PRNGKey(3), 4), ld.environments.short_corridor(horizon=5)
    assert ld.rollout(jnp.zeros(2), keys, ld.shared_softmax, corridor).rewards.shape == (4, 5)
    with pytest.raises(TypeError, match=r"jax\.random\.key"):
        as_keys(jnp.zeros(2))


def test_policies_rebuilt_from_the_same_fields_do_not_retrace():
    def apply(params, observation):
        return ld.Categorical(params * observation[:2])

    log_prob = jax.jit(chex.assert_max_traces(lambda *args: ld.log_prob(*args), n=1))
    for seed in (0, 1):
        log_prob(jnp.ones(2), ld.FunctionPolicy(apply), batch(jax.random.key(seed), (5,)))
    with pytest.raises(AssertionError, match="traced"):
        log_prob(jnp.ones(2), ld.FunctionPolicy(lambda *args: apply(*args)), batch(jax.random.key(0), (5,)))
    first, second = ld.MLP(2, hidden=(8,)), ld.MLP(2, hidden=(8,))
    assert (first, hash(first)) == (second, hash(second))
    assert ld.ScoreFunction(discount=0.9) == ld.ScoreFunction(discount=0.9)


def test_batch_info_counts_what_the_horizon_cut():
    tau = batch(jax.random.key(0), (4, 3))
    valid = jnp.array([[True, True, True], [True, True, True], [True, False, False], [False, False, False]])
    discounts = jnp.array([[1.0, 1, 1], [1, 1, 0], [0, 1, 1], [1, 1, 1]])
    info = ld.types.batch_info(tau._replace(valid=valid, discounts=discounts, rewards=jnp.where(valid, 1.0, jnp.nan)))
    assert (info.truncated_fraction, info.num_empty, info.num_steps) == (0.25, 1, 7)
    np.testing.assert_allclose(info.mean_return, 7 / 4)
