"""Worlds and rollouts: the protocol, densities, ends of episodes, gymnax of both contracts."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import logderiv as ld
from tests.worlds import TERMINATING_LOGITS, TWO_STATES_LOGITS, rollout, terminating, trajectory, two_states


def test_sampled_trajectories_have_their_enumerated_probabilities():
    """191 trajectories of the terminating world at T = 3, many of them rare: exact binomial tails, false alarm below 1e-4."""
    mdp, n = terminating(), 20_000
    every = ld.exact.enumerate_trajectories(mdp, horizon=3)
    probs = np.asarray(jax.jit(ld.prob)(TERMINATING_LOGITS, ld.tabular_softmax, every, environment=mdp))
    taus = rollout(TERMINATING_LOGITS, jax.random.split(jax.random.key(0), n), ld.tabular_softmax, mdp, horizon=3)

    def names(tau):
        steps = [np.where(tau.valid, x, -1) for x in (tau.observations, tau.actions)]
        return [tuple(row) for row in np.column_stack([*steps, tau.final_observation]).tolist()]

    index = {name: i for i, name in enumerate(names(every))}
    assert len(index) == len(probs)
    counts = np.bincount([index[name] for name in names(taus)], minlength=len(probs))

    def familywise(probs):
        """Twice the smaller tail of the least likely count, times the number of counts."""
        law: Any = scipy.stats.binom(n, probs)
        return 2 * len(probs) * np.minimum(law.cdf(counts), law.sf(counts - 1)).min()

    assert len(probs) == 191
    assert familywise(probs) > 1e-4
    assert familywise(probs**1.1 / np.sum(probs**1.1)) < 1e-4  # a policy and a world a little too sure of themselves


def test_behavior_log_probs_are_the_log_factors_and_invalid_steps_are_neutral():
    mdp = terminating()
    taus = rollout(TERMINATING_LOGITS, jax.random.split(jax.random.key(1), 50), ld.tabular_softmax, mdp, horizon=6)
    logs = jax.jit(ld.log_factors)(TERMINATING_LOGITS, ld.tabular_softmax, taus)
    np.testing.assert_allclose(taus.behavior_log_probs, logs, rtol=1e-14)
    taus = jax.tree.map(np.asarray, taus)
    assert (np.diff(taus.valid.astype(int), axis=1) <= 0).all()
    assert (taus.rewards[~taus.valid] == 0).all()
    assert (taus.discounts[~taus.valid] == 1).all()
    ended = taus.final_observation == 2
    assert ended.any()
    np.testing.assert_array_equal(ended, (taus.discounts == 0).sum(1))  # once, or never


class _MaskedLater(ld.environments.TabularMDP):
    """The wrong twin: the logarithm of every step, of which `log_prob` drops the invalid ones."""

    def log_factors(self, trajectory):
        following = ld.types.next_observations(trajectory)
        return jnp.log(self.transition[trajectory.observations, trajectory.actions, following])


def test_padding_does_not_reach_the_derivatives_in_the_tables():
    """Counts of valid steps over their probabilities, by hand; a padded step is often an impossible one, and one trajectory has no other."""
    mdp = terminating()
    every = ld.exact.enumerate_trajectories(mdp, horizon=3)
    every = every._replace(valid=every.valid & (jnp.arange(len(every.valid)) > 0)[:, None])
    n, t = np.nonzero(every.valid)
    step = every.observations[n, t], every.actions[n, t], ld.types.next_observations(every)[n, t]
    counts, starts = np.zeros((len(every.valid), 3, 2, 3)), np.zeros((len(every.valid), 3))
    np.add.at(counts, (n, *step), 1)
    np.add.at(starts, (n[t == 0], step[0][t == 0]), 1)
    tables = {"initial": mdp.initial, "transition": mdp.transition}

    def total(of, tables, kind=ld.environments.TabularMDP):
        world = kind(**tables, reward=mdp.reward, terminal=mdp.terminal)
        return jnp.sum(of(TERMINATING_LOGITS, ld.tabular_softmax, every, environment=world))

    @jax.jit
    def run(tables):
        log_slope = jax.grad(functools.partial(total, ld.log_prob))
        probs = ld.prob(TERMINATING_LOGITS, ld.tabular_softmax, every, environment=mdp)
        twin = jax.grad(functools.partial(total, ld.log_prob, kind=_MaskedLater))(tables)
        return (
            jax.jvp(log_slope, (tables,), (tables,)),
            jax.grad(functools.partial(total, ld.prob))(tables),
            probs,
            twin,
        )

    (slope, along), of_prob, probs, twin = run(tables)
    for name, of_each in (("initial", starts), ("transition", counts)):
        chances = np.where(tables[name] > 0, tables[name], 1)
        np.testing.assert_allclose(slope[name], of_each.sum(0) / chances, rtol=1e-12)
        np.testing.assert_allclose(along[name], -of_each.sum(0) / chances, rtol=1e-12)
        np.testing.assert_allclose(of_prob[name], np.tensordot(probs, of_each, 1) / chances, rtol=1e-12)
    assert (every.valid.sum() < every.valid.size) & np.isnan(twin["transition"]).any()


def test_a_valid_step_that_is_impossible_stays_so():
    """1 -> 2 by action 0 has probability 0; the derivatives of the other steps are those they have without it."""
    mdp, tau = terminating(), trajectory(observations=jnp.array([0, 1]), final_observation=jnp.array(2))
    of = jax.jit(jax.value_and_grad(lambda x, t: jnp.sum(dataclasses.replace(mdp, transition=x).log_factors(t))))
    value, slope = of(mdp.transition, tau)
    expected = np.zeros((3, 2, 3))
    expected[0, 0, 1], expected[1, 0, 2] = 1 / 0.3, np.inf
    assert value == -jnp.inf
    np.testing.assert_allclose(slope, expected, rtol=1e-14)
    padded = of(mdp.transition, tau._replace(valid=jnp.array([True, False]), final_observation=jnp.array(1)))
    np.testing.assert_allclose(padded[0], np.log(0.3), rtol=1e-14)
    np.testing.assert_allclose(padded[1], np.where(expected == np.inf, 0, expected), rtol=1e-14)


def test_the_sample_is_held_so_no_reparameterized_derivative_leaks():
    """A Normal's own draw moves with its mean; differentiating through it would give a score of exactly zero."""
    policy = ld.FunctionPolicy(lambda params, _: ld.Normal(params, jnp.ones(())))

    class Walk:
        horizon = 4

        def reset(self, key, params=None):
            return jnp.zeros(()), jnp.zeros(())

        def step(self, key, state, action, params=None):
            return state + action, state + action, action, jnp.zeros((), bool), jnp.zeros((), bool)

    def held(params):
        tau = ld.rollout(params, jax.random.key(0), policy, Walk())
        return ld.log_prob(params, policy, tau), tau

    score, tau = jax.jit(jax.grad(held, has_aux=True))(jnp.asarray(0.3))
    np.testing.assert_allclose(score, jnp.sum(tau.actions - 0.3), rtol=1e-12)
    assert abs(score) > 0.1


def test_short_corridor_has_the_values_of_the_book():
    """J(p) = (2 p - 4) / (p (1 - p)); optimum -(6 + 4 sqrt 2). Sutton & Barto (2018), example 13.1."""
    mdp = ld.environments.short_corridor()
    p = np.array([0.2, 0.5, 2 - np.sqrt(2)])
    both = jax.jit(jax.vmap(jax.value_and_grad(lambda x: ld.exact.value(x, ld.shared_softmax, mdp, horizon=4000))))
    values, slopes = both(jnp.log(jnp.stack([1 - p, p], axis=1)))
    np.testing.assert_allclose(values, (2 * p - 4) / (p * (1 - p)), rtol=1e-12)
    np.testing.assert_allclose(values[-1], -(6 + 4 * np.sqrt(2)), rtol=1e-12)
    np.testing.assert_allclose(slopes[-1], 0, atol=1e-10)


def test_value_and_gradient_are_those_of_an_independent_enumeration():
    """J at T = 1, 2 and the gradient at T = 2: every trajectory of this world enumerated by another program."""
    for horizon, expected in ((1, 0.6495128338952352), (2, 1.2545818476558974)):
        where = {"policy": ld.tabular_softmax, "environment": two_states(), "horizon": horizon, "discount": 0.9}
        value, slope = jax.jit(jax.value_and_grad(functools.partial(ld.exact.value, **where)))(TWO_STATES_LOGITS)
        np.testing.assert_allclose(value, expected, rtol=1e-14)
    np.testing.assert_allclose(slope[0, 0], 0.3600762392217371, rtol=1e-13)


class _State(NamedTuple):
    time: Any


class _Params(NamedTuple):
    max_steps_in_episode: int = 3

    def replace(self, **changes):
        return self._replace(**changes)


class _OldGymnax:
    """The 0.x contract: five values, `done` also at the time limit."""

    default_params = _Params()

    def reset_env(self, key, params):
        del key, params
        return jnp.zeros(2), _State(jnp.int32(0))

    def step_env(self, key, state, action, params):
        del key
        state = _State(state.time + 1)
        done = ((action == 1) & (state.time >= 2)) | (state.time >= params.max_steps_in_episode)
        return jnp.full(2, state.time.astype(float)), state, jnp.float32(1), done, {}


class _NewGymnax(_OldGymnax):
    """The 1.x contract: the fourth value of `step_env` is `terminated`, the limit is asked for apart."""

    def step_env(self, key, state, action, params):
        observation, state, reward, _, info = super().step_env(key, state, action, params)
        return observation, state, reward, (action == 1) & (state.time >= 2), info

    def is_truncated(self, state, params):
        return state.time >= params.max_steps_in_episode


@pytest.mark.parametrize("environment", [_OldGymnax(), _NewGymnax()], ids=["0.x", "1.x"])
def test_both_gymnax_contracts_tell_an_end_from_a_time_limit(environment):
    def play(action, **options):
        logits = jnp.where(jnp.arange(2) == action, 0.0, -jnp.inf)
        policy = ld.FunctionPolicy(lambda params, _: ld.Categorical(logits + 0 * params))
        return ld.rollout(jnp.zeros(2), jax.random.key(0), policy, environment, **options)

    ends = play(1, horizon=5)
    assert ends.valid.tolist() == [True, True, False, False, False]
    assert ends.discounts.tolist() == [1, 0, 1, 1, 1]
    assert ends.final_observation.tolist() == [2, 2]
    late = play(0, horizon=5)
    assert late.valid.tolist() == [True, True, True, False, False]
    assert late.discounts.tolist() == [1] * 5
    assert play(0).valid.shape == (3,)


def test_gymnax_cartpole_unmodified():
    gymnax = pytest.importorskip("gymnax")
    with jax.numpy_dtype_promotion("standard"):
        environment, params = gymnax.make("CartPole-v1")
        policy = ld.MLP(2, hidden=())
        weights = policy.init(jax.random.key(0), jnp.zeros(4))
        adapter, keys = ld.environments.Gymnax(environment, params), jax.random.split(jax.random.key(1), 200)
        wrapped = rollout(weights, jax.random.clone(keys), policy, adapter, horizon=60)
        options = {"horizon": 60, "environment_params": params}
        taus = jax.jit(lambda k: ld.rollout(weights, k, policy, environment, **options))(keys)
    lengths = taus.valid.sum(1)
    assert 15 < lengths.mean() < 35  # a random policy balances for about 22 steps
    final = np.asarray(taus.final_observation)[np.asarray(lengths) < 60]
    assert ((np.abs(final[:, 0]) > 2.4) | (np.abs(final[:, 2]) > 12 * np.pi / 180)).all()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12), taus, wrapped)
    assert adapter.horizon == 500


def test_recurrent_rollouts_carry_their_memory():
    policy = ld.GRU(2, hidden=4)
    params = jax.tree.map(
        lambda x: np.cos(np.arange(x.size, dtype=x.dtype).reshape(x.shape)),
        jax.eval_shape(policy.init, jax.random.key(0), jnp.zeros(1)),
    )
    taus = rollout(params, jax.random.split(jax.random.key(1), 3), policy, two_states(), horizon=7)
    np.testing.assert_allclose(taus.behavior_log_probs, jax.jit(ld.log_factors)(params, policy, taus), rtol=1e-12)


def test_batches_of_keys_equal_vmapped_rollouts():
    keys = jax.random.split(jax.random.key(0), 6)
    mdp = ld.environments.short_corridor(horizon=9)
    native = rollout(jnp.zeros(2), keys.reshape(2, 3), ld.shared_softmax, mdp)
    of_each = jax.jit(jax.vmap(ld.rollout, (None, 0, None, None)))
    mapped = of_each(jnp.zeros(2), jax.random.clone(keys), ld.shared_softmax, mdp)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.reshape(b.shape), b), native, mapped)
