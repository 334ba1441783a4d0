"""Rewards that are paid on arrival or drawn: every exact answer against a list of paths over (s, a, s', r) written in NumPy."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from tests.worlds import TERMINATING_LOGITS, rollout, terminating, trajectory

DISCOUNT, HORIZON = 0.9, 2
VALUES = np.array([0.7, -0.3, 0.0])
SHAPE = (3, 2, 3)
ON_ARRIVAL = np.linspace(-1.0, 2.0, 18).reshape(SHAPE)
CHANCES = np.stack([np.linspace(0.1, 0.8, 18), 1 - np.linspace(0.1, 0.8, 18)], axis=-1).reshape(*SHAPE, 2)
REWARDS = {
    "on arrival": ON_ARRIVAL,
    "law of the choice": ld.environments.RewardLaw([-1.0, 2.0, 2.0], np.full((3, 2, 3), [0.5, 0.25, 0.25])),
    "law on arrival": ld.environments.RewardLaw([-1.0, 2.0], CHANCES),
    "values on arrival": ld.environments.RewardLaw(np.stack([ON_ARRIVAL, ON_ARRIVAL**2], axis=-1), CHANCES),
}
BEHAVIOR = TERMINATING_LOGITS + jnp.array([[0.5, 0.0], [-0.4, 0.0], [0.0, 0.0]])
VALUE = ld.baselines.Value(lambda values, state: values[state], lambda _: jnp.asarray(VALUES))
ESTIMATORS = {
    "return": (ld.ScoreFunction(ld.advantages.Return(), discount=DISCOUNT), False),
    "to go": (ld.ScoreFunction(ld.advantages.ToGo(), discount=DISCOUNT), False),
    "gae": (ld.ScoreFunction(ld.advantages.GAE(0.5, VALUE), discount=DISCOUNT), False),
    "per decision": (
        ld.ScoreFunction(ld.advantages.ToGo(), discount=DISCOUNT, importance=ld.importance.Importance()),
        True,
    ),
    "trajectory ratio": (
        ld.ScoreFunction(
            ld.advantages.Return(), discount=DISCOUNT, importance=ld.importance.Importance(per="trajectory")
        ),
        True,
    ),
}


def world(reward: Any) -> ld.environments.TabularMDP:
    tables = terminating()
    return ld.environments.TabularMDP(tables.initial, tables.transition, reward, tables.terminal)


def softmax(logits: Any) -> np.ndarray:
    found = np.exp(np.asarray(logits))
    return found / found.sum(-1, keepdims=True)


def outcomes(reward: Any, step: tuple[int, int, int]) -> dict[float, float]:
    """Probability of each reward of a step."""
    if not isinstance(reward, ld.environments.RewardLaw):
        return {float(reward[step]): 1.0}
    chances, values = (np.asarray(x) for x in (reward.probabilities, reward.values))
    chances = chances[step[: chances.ndim - 1]]
    values = values if values.ndim == 1 else values[step]
    return {v: sum(chances[values == v]) for v in set(values.tolist())}


def paths(reward: Any, logits: Any) -> list[tuple[float, list[tuple[int, int, int, float]]]]:
    """Probability and steps (s, a, s', r) of every path; state 2 ends it."""
    tables, policy = terminating(), softmax(logits)
    initial, transition = np.asarray(tables.initial), np.asarray(tables.transition)
    found: list[Any] = [(initial[s], s, []) for s in (0, 1)]
    for _ in range(HORIZON):
        longer = []
        for chance, s, steps in found:
            if s == 2:
                longer.append((chance, s, steps))
                continue
            for a, new in np.ndindex(2, 3):
                for r, q in outcomes(reward, (s, a, new)).items():
                    p = chance * policy[s, a] * transition[s, a, new] * q
                    longer += [(p, new, [*steps, (s, a, new, r)])] if p > 0 else []
        found = longer
    return [(chance, steps) for chance, _, steps in found]


def weights(name: str, steps: list[tuple[int, int, int, float]], ratios: np.ndarray) -> np.ndarray:
    """What multiplies the score of each step."""
    powers = DISCOUNT ** np.arange(len(steps))
    rewards = np.array([r for *_, r in steps]) * powers
    if name == "gae":
        values = [(VALUES[s], 0 if new == 2 else VALUES[new]) for s, _, new, _ in steps]
        deltas = [p * (r + DISCOUNT * w - v) for p, (*_, r), (v, w) in zip(powers, steps, values, strict=True)]
        return np.array([sum(0.5 ** (u - t) * deltas[u] for u in range(t, len(steps))) for t in range(len(steps))])
    if name in ("return", "trajectory ratio"):
        return np.full(len(steps), rewards.sum() * np.prod(ratios))
    return np.cumsum((rewards * np.cumprod(ratios))[::-1])[::-1]


def by_hand(name: str, reward: Any, off: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the estimate from one path."""
    target, drawn = softmax(TERMINATING_LOGITS), softmax(BEHAVIOR)
    chances, estimates = [], []
    for chance, steps in paths(reward, BEHAVIOR if off else TERMINATING_LOGITS):
        ratios = np.array([target[s, a] / drawn[s, a] if off else 1.0 for s, a, *_ in steps])
        found = np.zeros((3, 2))
        for w, (s, a, *_) in zip(weights(name, steps, ratios), steps, strict=True):
            found[s] += w * (np.eye(2)[a] - target[s])
        chances.append(chance)
        estimates.append(found.ravel())
    p, g = np.array(chances), np.array(estimates)
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-14)
    return p @ g, (g.T * p) @ g - np.outer(p @ g, p @ g)


@functools.cache
def exactly(name: str, kind: str) -> ld.exact.Moments:
    estimator, off = ESTIMATORS[name]
    options: Any = {"behavior_params": BEHAVIOR} if off else {}
    where = TERMINATING_LOGITS, ld.tabular_softmax, world(REWARDS[kind]), estimator
    return ld.exact.moments(*where, horizon=HORIZON, num_trajectories=1, **options)


@pytest.mark.parametrize("kind", REWARDS)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_mean_and_covariance_are_those_of_a_list_of_paths(name, kind):
    found = exactly(name, kind)
    mean, covariance = by_hand(name, REWARDS[kind], ESTIMATORS[name][1])
    np.testing.assert_allclose(np.ravel(found.mean), mean, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(np.reshape(found.covariance, (6, 6)), covariance, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", REWARDS)
def test_a_mean_entered_for_the_reward_keeps_the_gradient_and_changes_the_covariance(kind):
    mean = np.asarray(world(REWARDS[kind]).expected_reward())
    entered = by_hand("return", np.broadcast_to(mean[:, :, None], SHAPE), off=False)
    found = exactly("return", kind)
    np.testing.assert_allclose(np.ravel(found.mean), entered[0], rtol=1e-12, atol=1e-13)
    assert np.max(np.abs(np.reshape(found.covariance, (6, 6)) - entered[1])) > 0.01


def test_a_coin_on_arrival_has_a_quarter():
    """R (±1/2, ∓1/2) with R = 0 or 1: each coordinate has variance 1/2 · 1/4. With the mean 1/2 entered, 1/4 · 1/4."""

    def trace(reward: Any) -> float:
        tables: Any = [1.0, 0, 0], [[[0, 0.5, 0.5]] * 2] * 3, reward, [False, True, True]
        mdp = ld.environments.TabularMDP(*tables)
        estimator = ld.ScoreFunction(ld.advantages.Return())
        found = ld.exact.moments(jnp.zeros(2), ld.shared_softmax, mdp, estimator, horizon=1, num_trajectories=1)
        np.testing.assert_array_equal(found.mean, 0)
        return float(np.trace(np.asarray(found.covariance)))

    assert trace([[[0.0, 0, 1]] * 2] * 3) == pytest.approx(0.25, abs=1e-14)
    assert trace(ld.environments.RewardLaw([0.0, 1.0], np.full((3, 2, 2), 0.5))) == pytest.approx(0.25, abs=1e-14)
    assert trace([[0.5, 0.5]] * 3) == pytest.approx(0.125, abs=1e-14)


@pytest.mark.parametrize("kind", REWARDS)
def test_dynamic_programming_is_the_enumeration(kind):
    mdp = world(REWARDS[kind])
    where: Any = {"horizon": HORIZON, "discount": DISCOUNT}
    chances, steps = zip(*paths(REWARDS[kind], TERMINATING_LOGITS), strict=True)
    totals = [sum(DISCOUNT**t * x[3] for t, x in enumerate(path)) for path in steps]
    for method in ("dynamic", "enumeration"):
        value = ld.exact.value(TERMINATING_LOGITS, ld.tabular_softmax, mdp, method=method, **where)
        np.testing.assert_allclose(value, np.dot(chances, totals), rtol=1e-12)
    slopes = [
        ld.exact.gradient(TERMINATING_LOGITS, ld.tabular_softmax, mdp, method=method, **where)
        for method in ("dynamic", "enumeration")
    ]
    np.testing.assert_allclose(*slopes, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(
        slopes[0].ravel(), by_hand("return", REWARDS[kind], off=False)[0], rtol=1e-12, atol=1e-14
    )
    for credit, name in ((ld.advantages.total_return, "return"), (ld.advantages.reward_to_go, "to go")):
        found = ld.exact.weighted_score_moments(TERMINATING_LOGITS, ld.tabular_softmax, mdp, credit=credit, **where)
        mean, covariance = by_hand(name, REWARDS[kind], off=False)
        np.testing.assert_allclose(found.mean.ravel(), mean, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(np.reshape(found.covariance, (6, 6)), covariance, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", REWARDS)
def test_probabilities_of_trajectories_sum_to_one_and_sampled_rewards_are_listed(kind):
    """Equal rewards of a law are one outcome; the factor of the reward is part of P, and of no gradient of the policy."""
    mdp, reward = world(REWARDS[kind]), REWARDS[kind]
    every = ld.exact.enumerate_trajectories(mdp, horizon=HORIZON)
    probabilities = np.asarray(ld.prob(TERMINATING_LOGITS, ld.tabular_softmax, every, environment=mdp))
    expected = sorted(chance for chance, _ in paths(reward, TERMINATING_LOGITS))
    np.testing.assert_allclose(np.sort(probabilities), expected, rtol=1e-12)
    assert ld.exact.count_trajectories(mdp, HORIZON) == len(expected)
    slopes = [
        jax.grad(lambda x, e=e: jnp.sum(ld.log_prob(x, ld.tabular_softmax, every, environment=e)))(TERMINATING_LOGITS)
        for e in (mdp, None)
    ]
    np.testing.assert_allclose(*slopes, rtol=1e-12, atol=1e-12)
    other = every._replace(rewards=every.rewards + 0.125)
    drawn = isinstance(reward, ld.environments.RewardLaw)
    assert np.all(np.asarray(ld.prob(TERMINATING_LOGITS, ld.tabular_softmax, other, environment=mdp)) == 0) == drawn


def test_sampled_rewards_have_their_probabilities():
    """20 000 first steps; each count within 5 standard errors, which a law that is 0.05 off is not."""
    mdp, n = world(REWARDS["law on arrival"]), 20_000
    taus = rollout(TERMINATING_LOGITS, jax.random.split(jax.random.key(0), n), ld.tabular_softmax, mdp, horizon=1)
    step = taus.observations[:, 0], taus.actions[:, 0], taus.final_observation
    high = CHANCES[..., 1][step]
    for off, fits in ((0.0, True), (0.05, False)):
        excess = np.sum((taus.rewards[:, 0] == 2) - high - off)
        assert (abs(excess) < 5 * np.sqrt(np.sum(high * (1 - high)))) == fits


def test_tables_of_rewards_are_differentiated_and_mapped_over():
    """J is linear in the law: its derivative is the difference; a map over laws is the loop."""

    def value(values: Any, chances: Any) -> jax.Array:
        mdp = world(ld.environments.RewardLaw(values, chances))
        return ld.exact.value(TERMINATING_LOGITS, ld.tabular_softmax, mdp, horizon=HORIZON)

    values, chances = jnp.array([-1.0, 2.0]), jnp.asarray(CHANCES)
    slope = jax.jit(jax.grad(value))(values, chances)
    np.testing.assert_allclose(slope @ values, value(values, chances), rtol=1e-12)
    mapped = jax.jit(jax.vmap(value, (0, None)))(jnp.stack([values, 2 * values]), chances)
    np.testing.assert_allclose(mapped, [value(values, chances), 2 * value(values, chances)], rtol=1e-12)


LAW = ld.environments.RewardLaw
BAD = {
    r"RewardLaw.probabilities: expected probabilities that sum to 1, off by 0.1": lambda: LAW(
        [0.0, 1.0], np.full((3, 2, 2), 0.45)
    ),
    r"RewardLaw.probabilities: expected probabilities that sum to 1 and are at least 0, received -0.5": lambda: LAW(
        [0.0, 1.0], np.full((3, 2, 2), [-0.5, 1.5])
    ),
    r"RewardLaw.probabilities: expected shape \(S, A, K\) or \(S, A, S, K\), received \(2,\)": lambda: LAW(
        [0.0, 1.0], [0.5, 0.5]
    ),
    r"RewardLaw.values: expected shape \(2,\) or \(3, 2, 2\), that of probabilities, received \(3,\)": lambda: LAW(
        [0.0, 1.0, 2.0], np.full((3, 2, 2), 0.5)
    ),
    r"TabularMDP.reward: expected shape \(S, A\), or \(S, A, S\) where it is paid on arrival, received \(3, 2, 4\)": (
        lambda: world(np.zeros((3, 2, 4)))
    ),
    r"TabularMDP.initial: expected shape \(4,\)": lambda: world(LAW([0.0, 1.0], np.full((4, 2, 2), 0.5))),
}


@pytest.mark.parametrize("message", BAD)
def test_wrong_laws_are_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_a_reward_that_never_comes_may_be_anything():
    """NaN where the transition has probability 0, infinity where the law has: by every method the value is that of 0 in its place."""
    start, ends, logits = jnp.array([1.0, 0.0]), jnp.array([False, True]), jnp.array([0.2, -0.3])
    moves = jnp.array([[[1.0, 0.0], [0.2, 0.8]], [[0.0, 1.0], [0.0, 1.0]]])
    nan, inf = jnp.nan, jnp.inf
    tables = [jnp.array([[[1.0, x], [2.0, 3.0]], [[x, x], [x, x]]]) for x in (0.0, nan)]
    laws = [ld.environments.RewardLaw(jnp.array([1.0, x]), jnp.array([[[1.0, 0.0]] * 2] * 2)) for x in (0.0, inf)]
    estimator = ld.ScoreFunction(ld.advantages.ToGo())
    for pair in (tables, laws):
        found = []
        for reward in pair:
            mdp = ld.environments.TabularMDP(start, moves, reward, ends)
            values = [
                ld.exact.value(logits, ld.shared_softmax, mdp, horizon=2, method=m) for m in ("dynamic", "enumeration")
            ]
            listed = ld.exact.moments(logits, ld.shared_softmax, mdp, estimator, horizon=2, num_trajectories=1)
            by_step = ld.exact.weighted_score_moments(logits, ld.shared_softmax, mdp, horizon=2)
            found.append([*map(float, values), np.trace(listed.covariance), float(jnp.trace(by_step.covariance))])
        np.testing.assert_allclose(found[1], found[0], rtol=1e-12)
        np.testing.assert_allclose(found[0][::2], found[0][1::2], rtol=1e-12)


@pytest.mark.parametrize("outside", [-1, 3, 7])
def test_a_logged_step_outside_the_tables_is_impossible(outside):
    """An index that is clamped, or counts from the end, would give it the probability of another step."""
    states, actions = jnp.array([0, 1]), jnp.array([1, 0])
    inside = trajectory(observations=states, actions=actions, final_observation=jnp.array(0))
    for reward in (jnp.zeros((3, 2)), REWARDS["law on arrival"]):
        world = dataclasses.replace(terminating(), reward=reward)
        tau = inside._replace(rewards=jnp.full(2, 2.0))
        assert np.isfinite(world.log_factors(tau)).all()
        assert np.isfinite(world.log_initial(tau))
        assert world.log_initial(tau._replace(observations=states.at[0].set(outside))) == -jnp.inf
        for other in (
            tau._replace(observations=states.at[1].set(outside)),
            tau._replace(actions=actions.at[1].set(outside)),
            tau._replace(final_observation=jnp.array(outside)),
        ):
            assert world.log_factors(other)[1] == -jnp.inf


@pytest.mark.parametrize("given", [CHANCES, CHANCES[:, :, 0]], ids=["on arrival", "of the choice"])
def test_padding_does_not_reach_the_derivatives_in_the_law(given):
    """By hand: 1 over the probability of what was paid. A padded reward is 0, which is never paid; the twin drops its logarithm afterwards."""
    law = ld.environments.RewardLaw([-1.0, 0.0, 2.0], np.insert(given, 1, 0.0, axis=-1))
    every = ld.exact.enumerate_trajectories(world(law), horizon=HORIZON)
    assert np.all(np.asarray(every.rewards)[~np.asarray(every.valid)] == 0)
    expected, chances = np.zeros(law.probabilities.shape), np.asarray(law.probabilities)
    values, paid = np.broadcast_to(law.values, expected.shape), np.asarray(every.rewards)
    steps = [np.asarray(x) for x in (every.observations, every.actions, ld.types.next_observations(every))]
    for n, t in np.argwhere(every.valid):
        at = tuple(x[n, t] for x in steps)[: expected.ndim - 1]
        same = values[at] == paid[n, t]
        expected[at] += same / np.sum(chances[at], where=same)

    def total(chances, log_prob):
        return jnp.sum(log_prob(ld.environments.RewardLaw(law.values, chances)))

    def later(law):
        return jnp.where(every.valid, jax.vmap(law.log_prob)(every.rewards, *map(jnp.asarray, steps)), 0)

    def ours(law):
        return ld.log_prob(TERMINATING_LOGITS, ld.tabular_softmax, every, environment=world(law))

    slopes = jax.jit(lambda x: [jax.grad(total)(x, of) for of in (ours, later)])(law.probabilities)
    np.testing.assert_allclose(slopes[0], expected, rtol=1e-12)
    assert np.isnan(slopes[1]).any()


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int32, bool])
def test_whole_rewards_are_compared_as_numbers(dtype):
    law = ld.environments.RewardLaw([0.0, 0.5], [[[0.3, 0.7]]])
    at = jnp.zeros(2, int)
    np.testing.assert_allclose(jnp.exp(law.log_prob(jnp.array([0, 1], dtype), at, at, at)), [0.3, 0], rtol=1e-12)


@pytest.mark.parametrize("reward", [jnp.zeros((3, 2)), REWARDS["law on arrival"]], ids=["table", "law"])
def test_states_and_actions_that_are_no_whole_numbers_are_named(reward):
    tau, real = trajectory(observations=jnp.array([0, 1]), final_observation=jnp.array(0)), jnp.float32
    for name in ("observations", "actions", "final_observation"):
        wrong = tau._replace(**{name: getattr(tau, name).astype(real)})
        with pytest.raises(
            TypeError, match=rf"^trajectory.{name}: expected integers, received float32; use trajectory.{name}.ast"
        ):
            ld.log_prob(jnp.zeros(2), ld.FunctionPolicy(_any_action), wrong, environment=world(reward))
    with pytest.raises(TypeError, match=r"^new: expected integers, received float32; use new.astype"):
        REWARDS["law on arrival"].log_prob(tau.rewards, tau.observations, tau.actions, tau.actions.astype(real))


def _any_action(params, observation):
    """A policy that takes what it is given, of whatever kind."""
    return ld.Normal(params[0] + 0 * jnp.asarray(observation, params.dtype), jnp.ones(()))


def test_a_policy_of_more_actions_than_the_tables_have_is_refused():
    with pytest.raises(ValueError, match=r"chooses among 3, this environment has Discrete\(2\)"):
        ld.rollout(jnp.zeros((3, 3)), jax.random.key(0), ld.tabular_softmax, terminating(), horizon=2)
