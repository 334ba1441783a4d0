"""Streams: environments that go on across batches; restarts, bootstrapping at a cut, and the law of what is drawn."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import logderiv as ld
from logderiv.types import as_steps, num_trajectories
from tests.worlds import TERMINATING_LOGITS, terminating, two_states

GAMMA = 0.9
VALUES = jnp.array([0.7, -0.3, 0.4])
GIVEN = ld.baselines.Value(lambda state: VALUES[state])
collect = jax.jit(ld.collect, static_argnames=("num_steps", "horizon"))


def _streams(
    num_environments: int = 5, num_steps: int = 12, horizon: int | None = 4
) -> tuple[ld.Stream, ld.sampling.StreamState]:
    mdp = terminating()
    start = ld.start_streams(jax.random.key(0), mdp, num_environments)
    return collect(
        TERMINATING_LOGITS, jax.random.key(1), ld.tabular_softmax, mdp, start, num_steps=num_steps, horizon=horizon
    )


def test_a_stream_goes_on_from_the_true_observation_or_from_a_fresh_start():
    """Also across batches; times and returns count from the start of the episode."""
    first, state = _streams()
    second, _ = collect(
        TERMINATING_LOGITS, jax.random.key(2), ld.tabular_softmax, terminating(), state, num_steps=12, horizon=4
    )
    both = jax.tree.map(lambda a, b: np.concatenate([a, b], axis=1), first, second)
    states, nexts = both.steps.observations[..., 0], both.steps.final_observation
    ended = both.ends[:, :-1]
    np.testing.assert_array_equal(states[:, 1:][~ended], nexts[:, :-1][~ended])
    assert (states[:, 1:][ended] < 2).all()  # the start is never the goal
    np.testing.assert_array_equal(both.steps.discounts[..., 0] == 0, nexts == 2)
    assert ((nexts != 2) & both.ends).any()  # cut by the horizon: true observation, discount 1
    times, returns = np.zeros(5, int), np.zeros(5)
    for t in range(24):
        np.testing.assert_array_equal(both.times[:, t], times)
        returns = returns + both.steps.rewards[:, t, 0]
        np.testing.assert_allclose(both.returns[:, t], returns, rtol=1e-15)
        ends = both.ends[:, t]
        np.testing.assert_array_equal(ends, (nexts[:, t] == 2) | (times == 3))
        times, returns = np.where(ends, 0, times + 1), np.where(ends, 0, returns)
    np.testing.assert_array_equal(both.steps.valid, True)
    logs = jax.jit(ld.log_factors)(TERMINATING_LOGITS, ld.tabular_softmax, first.steps)
    np.testing.assert_allclose(first.steps.behavior_log_probs, logs, rtol=1e-14)


def _pieces(stream: ld.Stream) -> list[tuple[int, slice, ld.Trajectory]]:
    """Every environment's steps, cut into episodes by hand."""
    found = []
    for e in range(stream.ends.shape[0]):
        starts = [0, *(np.flatnonzero(stream.ends[e][:-1]) + 1)]
        for a, b in zip(starts, [*starts[1:], stream.ends.shape[1]], strict=True):
            part = jax.tree.map(lambda x, e=e, a=a, b=b: x[e, a:b], stream.steps)
            row = jax.tree.map(lambda x: x[None, :, 0], part._replace(final_observation=part.observations))
            found.append((e, slice(a, b), row._replace(final_observation=part.final_observation[-1:])))
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
    longest = max(s.stop - s.start for _, s, _ in _pieces(stream))
    for e, part, tau in _pieces(stream):
        length = part.stop - part.start
        pad = longest - length

        def padded(x, pad=pad):
            return np.concatenate([x, np.zeros((1, pad, *x.shape[2:]), x.dtype)], axis=1)

        whole = jax.tree.map(padded, tau._replace(final_observation=tau.observations))
        expected = weigh(whole._replace(final_observation=tau.final_observation))[0, :length]
        scale = GAMMA ** stream.times[e, part.start] if gamma_t else 1.0
        np.testing.assert_allclose(ours[e, part, 0], scale * expected, rtol=1e-12, atol=1e-13)
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
    mdp, n, steps = terminating(), 20_000, 4
    values, q_values = _exact_values(mdp)
    table = jnp.asarray(values)
    estimator = ld.ScoreFunction(
        ld.advantages.GAE(0.8, ld.baselines.Value(lambda s: table[s])), discount=GAMMA, gamma_t=False
    )
    start = ld.start_streams(jax.random.key(3), mdp, n)
    stream, _ = collect(
        TERMINATING_LOGITS, jax.random.key(4), ld.tabular_softmax, mdp, start, num_steps=steps, horizon=3
    )

    @jax.jit
    def samples(stream):
        weights, _ = estimator.advantages(TERMINATING_LOGITS, (), ld.tabular_softmax, stream)
        policy = jax.nn.softmax(TERMINATING_LOGITS)
        states, actions = stream.steps.observations[..., 0], stream.steps.actions[..., 0]
        scores = jax.nn.one_hot(actions, 2) - policy[states]
        exact = jnp.asarray(q_values)[states, actions] - table[states]
        per_state = jax.nn.one_hot(states, 3)[..., None] * scores[..., None, :]
        return [jnp.sum(w[..., None, None] * per_state, axis=1)[:, :2, 0] for w in (weights[..., 0], exact)]

    ours, exact = samples(stream)
    ld.testing.assert_unbiased(ours - exact, jnp.zeros((2,)), resolution=0.04)
    merged = jnp.where(stream.ends[..., None], 0, stream.steps.discounts)
    twin, exact = samples(stream._replace(steps=stream.steps._replace(discounts=merged)))
    with pytest.raises(AssertionError):
        ld.testing.assert_unbiased(twin - exact, jnp.zeros((2,)), resolution=0.04)


def test_the_first_steps_of_streams_have_the_law_of_trajectories():
    """191 trajectories of T = 3 by exact binomial tails, as in test_environments; a sharper policy is rejected."""
    mdp, n = terminating(), 20_000
    every = ld.exact.enumerate_trajectories(mdp, horizon=3)
    probs = np.asarray(jax.jit(ld.prob)(TERMINATING_LOGITS, ld.tabular_softmax, every, environment=mdp))
    start = ld.start_streams(jax.random.key(5), mdp, n)
    stream, _ = collect(TERMINATING_LOGITS, jax.random.key(6), ld.tabular_softmax, mdp, start, num_steps=3)

    def names(states, actions, nexts, valid):
        return [
            tuple(r)
            for r in np.stack([np.where(valid, x, -1) for x in (states, actions, nexts)], 1)
            .reshape(len(valid), -1)
            .tolist()
        ]

    nexts = np.asarray(ld.types.next_observations(every))
    index = {name: i for i, name in enumerate(names(every.observations, every.actions, nexts, every.valid))}
    assert len(index) == len(probs) == 191
    steps = jax.tree.map(np.asarray, stream.steps)
    drawn = names(
        steps.observations[..., 0],
        steps.actions[..., 0],
        steps.final_observation,
        np.asarray(stream.times) == np.arange(3),
    )
    counts = np.bincount([index[name] for name in drawn], minlength=191)

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

    policy = ld.FunctionPolicy(lambda params, _: ld.Categorical(params))
    start = ld.start_streams(jax.random.key(0), Counting(), 2)
    stream, _ = jax.jit(lambda key: ld.collect(jnp.zeros(2), key, policy, Counting(), start, num_steps=6))(
        jax.random.key(1)
    )
    assert stream.steps.observations[0, :, 0].tolist() == [0, 1, 10, -1, 0, 1]
    assert stream.ends[0].tolist() == [False, True, False, False, False, True]


def test_every_step_of_a_stream_is_a_trajectory():
    stream, _ = _streams()
    assert as_steps(stream) is stream.steps
    assert num_trajectories(stream) == 60


def test_episodes_of_a_stream_are_no_longer_than_the_environments_horizon():
    """An attribute `horizon` says so, as to `rollout`; an argument goes before it. A truncated episode has discount 1."""
    mdp, params = dataclasses.replace(two_states(), horizon=3), jnp.zeros((2, 2))
    start = ld.start_streams(jax.random.key(0), mdp, 2)
    for horizon, last in ((None, 2), (5, 4)):
        stream, _ = ld.collect(params, jax.random.key(1), ld.tabular_softmax, mdp, start, num_steps=10, horizon=horizon)
        np.testing.assert_array_equal(stream.ends, stream.times == last)
        assert (stream.steps.discounts == 1).all()


def test_bad_streams_are_refused():
    mdp, key = two_states(), jax.random.key(0)
    start = ld.start_streams(key, mdp, 2)
    with pytest.raises(ValueError, match="num_environments: expected a whole number >= 1, received 0"):
        ld.start_streams(key, mdp, 0)
    with pytest.raises(ValueError, match="num_steps"):
        ld.collect(jnp.zeros((2, 2)), key, ld.tabular_softmax, mdp, start, num_steps=0)
    with pytest.raises(ValueError, match="horizon: expected a whole number >= 1, received 0"):
        ld.collect(jnp.zeros((2, 2)), key, ld.tabular_softmax, mdp, start, num_steps=1, horizon=0)
    with pytest.raises(TypeError, match="memory"):
        ld.collect({}, key, ld.GRU(2), mdp, start, num_steps=1)
    stream, _ = _streams()
    for estimator in (ld.ScoreFunction(), ld.RLOO(), ld.ScoreFunction(ld.advantages.VTrace(GIVEN))):
        with pytest.raises(TypeError, match="needs whole episodes, received a Stream"):
            estimator.estimate(TERMINATING_LOGITS, estimator.init(None), ld.tabular_softmax, stream)
