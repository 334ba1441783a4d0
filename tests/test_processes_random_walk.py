"""The random walk of Arya et al.: the published setting, small walks by hand, and steps against the tables."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld

# n, p: E[X^2], its derivative, standard deviation of the score estimator without and with E[X^2] subtracted.
# By dynamic programming over positions, for the first two moments of the score and of score times return, in a separate program; the
# numbers for n = 50 are in test_exact_moments.
TABLE = {(10, 20): (50.032740, 1.489818, 3.7963, 1.8668), (100, 50): (1007.798935, 30.294989, 133.6867, 47.5117)}


@pytest.mark.parametrize(("n", "p"), TABLE)
def test_values_of_an_independent_computation(n, p):
    walk = ld.processes.RandomWalk(n)

    @jax.jit
    def ours(p):
        value, slope = jax.value_and_grad(ld.exact.value)(p, walk.policy, walk, horizon=n)

        def deviation(baseline):
            moments = ld.exact.weighted_score_moments(
                p, walk.policy, walk, horizon=n, credit=ld.advantages.total_return, baseline=baseline
            )
            return jnp.sqrt(moments.covariance[0, 0])

        return jnp.stack([value, slope, *jax.vmap(deviation)(jnp.stack([jnp.zeros_like(value), value]))])

    np.testing.assert_allclose(ours(jnp.array(float(p))), TABLE[n, p], rtol=2e-5, atol=0)


def test_two_steps_by_hand():
    """Up for certain, then up with exp(-1/p): 4 or 0. The score of the second step is 1/p^2 or -exp(-1/p) / (p^2 (1 - exp(-1/p)))."""
    walk, p = ld.processes.RandomWalk(2), jnp.array(3.0)
    up = math.exp(-1 / 3)
    assert float(ld.exact.value(p, walk.policy, walk, horizon=2)) == pytest.approx(4 * up)
    assert float(ld.exact.gradient(p, walk.policy, walk, horizon=2)) == pytest.approx(4 * up / 9)
    taus = jax.jit(lambda k: ld.rollout(p, k, walk.policy, walk))(jax.random.split(jax.random.key(0), 16))
    score = jax.jit(lambda taus: jax.vmap(lambda tau: jax.grad(ld.log_prob)(p, walk.policy, tau))(taus))(taus)
    ends = np.asarray(taus.final_observation)
    assert set(ends.tolist()) == {0, 2}
    np.testing.assert_allclose(score, np.where(ends == 2, 1 / 9, -up / (9 * (1 - up))), rtol=1e-12)
    np.testing.assert_array_equal(taus.rewards.sum(1), ends**2)


def test_steps_are_those_of_the_tables():
    walk = ld.processes.RandomWalk(6)
    states, actions = np.meshgrid(np.arange(6), [0, 1], indexing="ij")
    step = jax.vmap(jax.vmap(lambda s, a: walk.step(jax.random.key(0), s, a).state))
    found = step(jnp.asarray(states, jnp.int32), jnp.asarray(actions, jnp.int32))
    np.testing.assert_array_equal(found, np.argmax(walk.transition[:6], axis=-1))
    tau = ld.rollout(jnp.array(5.0), jax.random.key(1), walk.policy, walk)
    assert tau.valid.shape == (6,)
    assert np.isfinite(ld.log_prob(jnp.array(5.0), walk.policy, tau, environment=walk))
