"""Streams: environments that go on across batches; restarts, bootstrapping at a cut, and the law of what is drawn."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import logderiv as ld
from logderiv._core.arrays import as_steps
from logderiv.types import num_trajectories
from tests.worlds import TERMINATING_LOGITS, terminating, two_states

GAMMA = 0.9
VALUES = jnp.array([0.7, -0.3, 0.4])
GIVEN = ld.baselines.Value(lambda state: VALUES[state])
collect = jax.jit(ld.sampling.collect, static_argnames=("num_steps", "horizon"))


def _streams(
    seed: int = 0, num_environments: int = 5, state: Any = None, **options: Any
) -> tuple[ld.types.Stream, ld.sampling.StreamState]:
    mdp, keys = terminating(), jax.random.split(jax.random.key(seed))
    options = {"num_steps": 12, "horizon": 4} | options
    start = ld.sampling.start_streams(keys[0], mdp, num_environments) if state is None else state
    return collect(TERMINATING_LOGITS, keys[1], ld.tabular_softmax, mdp, start, **options)


def test_a_stream_goes_on_from_the_true_observation_or_from_a_fresh_start():
    """Also across batches; times and returns count from the start of the episode."""
    first, state = _streams()
    second, _ = _streams(1, state=state)
    both = jax.tree.map(lambda a, b: np.concatenate([a, b], axis=1), first, second)
    states, nexts = both.steps.observations[..., 0], both.steps.final_observation
    ended = both.ends[:, :-1]
    np.testing.assert_array_equal(states[:, 1:][~ended], nexts[:, :-1][~ended])
    assert (states[:, 1:][ended] < 2).all()  # the start is never the goal
    np.testing.assert_array_equal(both.steps.discounts[..., 0] == 0, nexts == 2)
    assert ((nexts != 2) & both.ends).any()  # cut by the horizon: true observation, discount 1
    np.testing.assert_array_equal(both.ends, (nexts == 2) | (both.times == 3))
    times, returns = np.zeros(5, int), np.zeros(5)
    for t in range(24):
        returns = returns + both.steps.rewards[:, t, 0]
        np.testing.assert_array_equal(both.times[:, t], times)
        np.testing.assert_allclose(both.returns[:, t], returns, rtol=1e-15)
        times, returns = np.where(both.ends[:, t], 0, times + 1), np.where(both.ends[:, t], 0, returns)
    assert both.steps.valid.all()
    logs = jax.jit(ld.log_factors)(TERMINATING_LOGITS, ld.tabular_softmax, first.steps)
    np.testing.assert_allclose(first.steps.behavior_log_probs, logs, rtol=1e-14)


def _pieces(stream: ld.types.Stream) -> list[tuple[int, slice, ld.Trajectory]]:
    """Every environment's steps, cut into episodes by hand and padded."""
    found = []
    for e, ends in enumerate(stream.ends):
        stops = [*(np.flatnonzero(ends[:-1]) + 1), len(ends)]
        for a, b in zip([0, *stops], stops, strict=False):

            def padded(x, e=e, a=a, b=b):
                return np.pad(x[e, None, a:b, 0], [(0, 0), (0, 4 - (b - a)), *[(0, 0)] * (x.ndim - 3)])

            rows = jax.tree.map(padded, stream.steps._replace(final_observation=stream.steps.observations))
            last = stream.steps.final_observation[e, b - 1 : b]
            found.append((e, slice(a, b), rows._replace(final_observation=last)))
    return found


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("gamma_t", [True, False])
def test_weights_of_a_stream_are_those_of_its_episodes_cut_by_hand(lambda_, gamma_t):
    """To 1e-12. The twin that does not cut the recursion where an episode was truncated is rejected."""
    estimator = ld.ScoreFunction(ld.advantages.GAE(lambda_, GIVEN), discount=GAMMA, gamma_t=gamma_t)
    stream, _ = jax.tree.map(np.asarray, _streams())
    weigh = jax.jit(lambda tau: estimator.advantages(TERMINATING_LOGITS, (), ld.tabular_softmax, tau)[0])
    ours = weigh(stream)
    assert ours.shape == (5, 12, 1)
    for e, part, tau in _pieces(stream):
        scale = GAMMA ** stream.times[e, part.start] if gamma_t else 1.0
        expected = scale * weigh(tau)[0, : part.stop - part.start]
        np.testing.assert_allclose(ours[e, part, 0], expected, rtol=1e-12, atol=1e-13)
    twin = weigh(stream._replace(ends=stream.steps.discounts[..., 0] == 0))
    assert (np.abs(twin - ours).max() > 1e-3) == (lambda_ > 0)


def _exact_values(horizonless: ld.environments.TabularMDP) -> tuple[np.ndarray, np.ndarray]:
    """V and Q of the world without a limit, discounted, by a linear solve."""
    policy = np.asarray(jax.nn.softmax(TERMINATING_LOGITS))
    transition, reward = np.asarray(horizonless.transition), np.asarray(horizonless.reward)
    live = ~np.asarray(horizonless.terminal)
    step = np.einsum("sa,sat->st", policy, transition) * live[:, None] * live[None]
    values = np.linalg.solve(np.eye(3) - GAMMA * step, np.sum(policy * reward, axis=1) * live)
    return values, reward + GAMMA * transition @ (values * live)


def test_the_expected_update_on_a_stream_is_the_discounted_gradient_at_the_states_it_visits():
    """Truncation every third step: with true values and any lambda the advantages are unbiased for Q - V of the world without a limit.

    The twin takes a cut for an end, as code with a single `done` does.
    """
    table, q_values = map(jnp.asarray, _exact_values(terminating()))
    given = ld.baselines.Value(lambda s: table[s])
    estimator = ld.ScoreFunction(ld.advantages.GAE(0.8, given), discount=GAMMA, gamma_t=False)
    stream, _ = _streams(3, 20_000, num_steps=4, horizon=3)

    @jax.jit
    def samples(stream):
        weights, _ = estimator.advantages(TERMINATING_LOGITS, (), ld.tabular_softmax, stream)
        policy = jax.nn.softmax(TERMINATING_LOGITS)
        states, actions = stream.steps.observations[..., 0], stream.steps.actions[..., 0]
        scores = jax.nn.one_hot(actions, 2) - policy[states]
        exact = q_values[states, actions] - table[states]
        per_state = jax.nn.one_hot(states, 3)[..., None] * scores[..., None, :]
        return [jnp.sum(w[..., None, None] * per_state, axis=1)[:, :2, 0] for w in (weights[..., 0], exact)]

    ours, exact = samples(stream)
    ld.testing.assert_unbiased(ours - exact, jnp.zeros((2,)), resolution=0.04)
    merged = stream.steps._replace(discounts=jnp.where(stream.ends[..., None], 0, stream.steps.discounts))
    twin, exact = samples(stream._replace(steps=merged))
    with pytest.raises(AssertionError):
        ld.testing.assert_unbiased(twin - exact, jnp.zeros((2,)), resolution=0.04)


def test_the_first_steps_of_streams_have_the_law_of_trajectories():
    """191 trajectories of T = 3 by exact binomial tails, as in test_environments; a sharper policy is rejected."""
    mdp, n = terminating(), 20_000
    every = ld.exact.enumerate_trajectories(mdp, horizon=3)
    probs = np.asarray(jax.jit(ld.prob)(TERMINATING_LOGITS, ld.tabular_softmax, every, environment=mdp))
    stream, _ = _streams(5, n, num_steps=3, horizon=None)

    def numbers(states, actions, nexts, valid):
        """One number for each trajectory: states, actions and next states of its valid steps as digits."""
        return np.where(valid, 1 + 6 * states + 3 * actions + nexts, 0) @ 19 ** np.arange(3)

    listed = numbers(every.observations, every.actions, ld.types.next_observations(every), every.valid)
    steps = stream.steps
    going = np.asarray(stream.times) == np.arange(3)
    drawn = numbers(steps.observations[..., 0], steps.actions[..., 0], steps.final_observation, going)
    assert len(set(listed.tolist())) == len(probs) == 191
    assert np.isin(drawn, listed).all()
    counts = np.sum(drawn == listed[:, None], axis=1)

    def familywise(probs):
        law: Any = scipy.stats.binom(n, probs)
        return 2 * len(probs) * np.minimum(law.cdf(counts), law.sf(counts - 1)).min()

    assert familywise(probs) > 1e-4
    assert familywise(probs**1.1 / np.sum(probs**1.1)) < 1e-4


def test_info_of_a_stream_counts_the_episodes_that_ended():
    stream, _ = _streams()
    info = ld.types.batch_info(stream)
    ends = np.asarray(stream.ends)
    assert info.num_episodes == ends.sum() > 0
    assert info.num_steps == 60
    np.testing.assert_allclose(info.mean_return, np.asarray(stream.returns)[ends].mean(), rtol=1e-14)
    np.testing.assert_allclose(info.truncated_fraction, 1 - ends[:, -1].mean())
    none = ld.types.batch_info(stream._replace(ends=jnp.zeros_like(stream.ends)))
    assert jnp.isnan(none.mean_return)
    assert none.num_episodes == 0


def test_an_environment_may_restart_itself():
    """`renew` in the place of reset and select, called for one environment with its own `ended`."""

    class Counting:
        def reset(self, key, params=None):
            return jnp.zeros(()), jnp.zeros(())

        def step(self, key, state, action, params=None):
            return state + 1, state + 1, jnp.ones(()), state >= 1, jnp.zeros((), bool)

        def renew(self, key, ended, observation, state, params=None):
            return jnp.where(ended, 10.0, observation), jnp.where(ended, -2.0, state)

    start = ld.sampling.start_streams(jax.random.key(0), Counting(), 2)
    run = jax.jit(lambda key: ld.sampling.collect(jnp.zeros(2), key, ld.shared_softmax, Counting(), start, num_steps=6))
    stream, _ = run(jax.random.key(1))
    assert stream.steps.observations[0, :, 0].tolist() == [0, 1, 10, -1, 0, 1]
    assert stream.ends[0].tolist() == [False, True, False, False, False, True]


def test_every_step_of_a_stream_is_a_trajectory():
    stream, _ = _streams()
    assert as_steps(stream) is stream.steps
    assert num_trajectories(stream) == 60


def test_episodes_of_a_stream_are_no_longer_than_the_environments_horizon():
    """An attribute `horizon` says so, as to `rollout`; an argument goes before it. A truncated episode has discount 1."""
    mdp, params = dataclasses.replace(two_states(), horizon=3), jnp.zeros((2, 2))
    start = ld.sampling.start_streams(jax.random.key(0), mdp, 2)
    for horizon, last in ((None, 2), (5, 4)):
        stream, _ = ld.sampling.collect(
            params, jax.random.key(1), ld.tabular_softmax, mdp, start, num_steps=10, horizon=horizon
        )
        np.testing.assert_array_equal(stream.ends, stream.times == last)
        assert (stream.steps.discounts == 1).all()


def test_whole_episodes_are_needed_by_some():
    stream, _ = _streams()
    for estimator in (ld.ScoreFunction(), ld.RLOO(), ld.ScoreFunction(ld.advantages.VTrace(GIVEN))):
        with pytest.raises(TypeError, match="needs whole episodes, received a Stream"):
            estimator.estimate(TERMINATING_LOGITS, estimator.init(None), ld.tabular_softmax, stream)
