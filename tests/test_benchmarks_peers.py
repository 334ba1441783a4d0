"""Peers of the library at a tiny size: the environments that they step by hand, their arithmetic, and that they learn what they are paid for."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.environments import ActionSpace
from logderiv.types import Step
from tests import worlds

pytest.importorskip("gymnax")
from benchmarks import peers_sb3, rl_peers, solved_peers
from benchmarks.gymnax_style import GymnaxStyle, Logged

TINY = rl_peers.Settings(num_environments=2, num_steps=8, minibatches=2, epochs=2, hidden=(4,))
MAKERS = [rl_peers.purejaxrl_style, rl_peers.rejax_ppo]

# what the peers import warns of JAX's own deprecations
pytestmark = [pytest.mark.usefixtures("as_shipped"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]


class Line:
    """A point that a push in [-1, 1] moves; each step pays where it arrives, and beyond 2 the episode ends."""

    horizon = 3
    action_space = ActionSpace((1,), False, None, "a push", -1.0, 1.0)

    def see(self, x):
        return {"far": x > 1, "x": jnp.stack([x, 10 * x])}

    def reset(self, key, params=None):
        return self.see(jnp.float32(0)), 0.0

    def step(self, key, state, action, params=None):
        state = state + action[0]
        return Step(self.see(state), state, state, state >= 2, jnp.zeros((), bool))


def bandit():
    """One choice an episode: the second arm pays 1, the first nothing."""
    tables = {"initial": [1.0, 0.0], "transition": np.tile([0.0, 1.0], (2, 2, 1)), "terminal": [False, True]}
    return ld.environments.TabularMDP(reward=np.array([[0.0, 1.0], [0.0, 0.0]]), horizon=2, **tables)


def made(make, settings, environment):
    peer = make(settings, environment)
    return pytest.skip("not installed") if peer is None else peer


def walked(environment, actions):
    """Observations, rewards, ends and information of one environment."""

    def one(carry, key_and_action):
        key, action = key_and_action
        observation, state, *rest = environment.step(key, carry, action, None)
        return state, (observation, *rest)

    _, state = environment.reset(jax.random.key(0), None)
    keys = jax.random.split(jax.random.key(1), len(actions))
    return jax.jit(lambda: jax.lax.scan(one, state, (keys, jnp.asarray(actions)[:, None]))[1])()


def test_an_episode_that_ends_starts_anew_whether_it_was_over_or_cut():
    actions = [5.0, 0.5, 0.5, 0.25, 0.25, 0.25, 1.0]  # the first is clipped to 1; the third arrives at 2
    observations, rewards, done, _ = walked(GymnaxStyle(Line(), reward_scale=0.5), actions)
    x = np.array([1, 1.5, 0, 0.25, 0.5, 0, 1])
    np.testing.assert_array_equal(observations, np.stack([x > 1, x, 10 * x], axis=1))
    np.testing.assert_array_equal(rewards, 0.5 * np.array([1, 1.5, 2, 0.25, 0.5, 0.75, 1]))
    np.testing.assert_array_equal(done, [False, False, True, False, False, True, False])
    actions[2] = 0.25
    assert walked(GymnaxStyle(Line()), actions)[2].tolist() == [False, False, True, False, False, True, False]
    np.testing.assert_array_equal(walked(GymnaxStyle(Line()), [1.0, 1.0, 0.5])[2], [False, True, False])


def test_the_log_has_the_return_of_the_episode_that_ended_last():
    _, _, done, info = walked(Logged(GymnaxStyle(Line(), 2.0)), [1.0, 1.0, 0.5, 0.0, 0.0, 0.5])
    np.testing.assert_array_equal(info["returned_episode_returns"], [0, 6, 6, 6, 3, 3])
    np.testing.assert_array_equal(info["returned_episode"], done)


def test_what_a_peer_is_shown_of_spaces():
    line, tabular = GymnaxStyle(Line()), GymnaxStyle(worlds.terminating())
    assert (line.num_outputs, line.observation_space().shape, line.action_space().shape) == (1, (3,), (1,))
    np.testing.assert_array_equal([line.action_space().low, line.action_space().high], [[-1], [1]])
    assert (tabular.num_outputs, tabular.action_space().n, tabular.observation_space().shape) == (2, 2, (3,))
    np.testing.assert_array_equal(tabular.vector(jnp.int32(1)), [0, 1, 0])
    assert line.default_params.max_steps_in_episode == 3
    assert tabular.default_params.max_steps_in_episode == 0
    each = ActionSpace((2,), False, None, "two", (-1.0, -2.0), (1.0, 2.0))
    bounded = type("Bounded", (Line,), {"action_space": each})
    np.testing.assert_array_equal(GymnaxStyle(bounded()).low, [-1, -2])
    several = type("Several", (Line,), {"action_space": ActionSpace((2,), True, (3, 3), "two choices")})
    with pytest.raises(
        TypeError, match=r"environment.action_space: expected one choice or real numbers, received .*two choices"
    ):
        GymnaxStyle(several())


def test_advantages_are_the_librarys_on_rows_with_ends():
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 4)
        rewards, values = (jax.random.normal(key, (5, 2), float) for key in keys[:2])
        last, done = jax.random.normal(keys[2], (2,), float), jax.random.bernoulli(keys[3], 0.4, (5, 2))
        row = rl_peers.Row(rewards, rewards, rewards, values, rewards, done)
        following = jnp.concatenate([values[1:], last[None]])

        def ours(discounts):
            one = jax.vmap(lambda *x: ld.advantages.generalized_advantages(*x, lambda_=0.95), 1, 1)
            return one(rewards, discounts, values, following)

        theirs = rl_peers.advantages(TINY, row, last)
        assert done.any()
        np.testing.assert_allclose(theirs, ours(0.99 * (1 - done)), rtol=0, atol=1e-12)
        assert np.abs(theirs - ours(jnp.full((5, 2), 0.99))).max() > 0.1  # ends that go on


def test_statistics_are_those_of_all_batches():
    batches = np.random.default_rng(0).normal([5.0, -2.0], [3.0, 0.1], (4, 3, 2)).astype(np.float32)
    found = rl_peers.Moments.start(2)
    for batch in batches:
        found = found.after(batch)
    rows, weight = (
        batches.reshape(-1, 2).astype(float),
        1e-4 / (1e-4 + 12),
    )  # they start from mean 0 and variance 1, of weight 1e-4
    mean = (1 - weight) * rows.mean(0)
    variance = weight * (1 + mean**2) + (1 - weight) * (rows.var(0) + (rows.mean(0) - mean) ** 2)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-4)
    np.testing.assert_allclose(found.normalize(jnp.asarray(mean + 2 * np.sqrt(variance))), [2, 2], rtol=1e-4)


def test_the_rate_falls_from_update_to_update():
    settings = TINY._replace(learning_rate=1.0, anneal=True)  # four steps of the optimizer an update
    assert [settings.rate(2)(count) for count in (0, 3, 4, 7)] == [1.0, 1.0, 0.5, 0.5]
    assert TINY.rate(2) == TINY.learning_rate


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("world", [Line, bandit])
@pytest.mark.parametrize("make", MAKERS)
def test_a_peer_trains_on_any_environment(make, world, normalize):
    environment = world()
    peer = made(make, TINY._replace(normalize=normalize, log_std=-1.5, learning_rate=1e-3), environment)
    keys = jax.random.split(jax.random.key(0), 2)
    snapshots = jax.jit(jax.vmap(lambda key: peer.train(key, 2, 1)))(keys)
    first, last = (jax.tree.map(lambda x, i=i: x[1, i], snapshots) for i in (0, 1))
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), first[0], last[0]))
    assert 0 < max(moved) < 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(last[0]))
    policy = ld.FunctionPolicy(peer.policy)
    returns = ld.evaluate(last, jax.random.key(1), policy, environment, num_episodes=4)
    assert returns.shape == (4,)
    if isinstance(environment, Line):
        law = peer.policy(last, environment.see(jnp.float32(0)))
        np.testing.assert_allclose(np.log(law.normal.scale), -1.5, atol=0.02)
        assert law._replace(normal=ld.Normal(jnp.array([9.0]), law.normal.scale)).sample(jax.random.key(0)) == 1


@pytest.mark.parametrize(("reward_scale", "arm"), [(2.0, 1), (-2.0, 0)])
@pytest.mark.parametrize("make", MAKERS)
def test_a_peer_learns_what_it_is_paid_for(make, reward_scale, arm):
    settings = TINY._replace(learning_rate=0.05, reward_scale=reward_scale, entropy_weight=0.0, anneal=True)
    peer = made(make, settings, bandit())
    snapshots = jax.jit(lambda key: peer.train(key, 20, 20))(jax.random.key(0))
    law = peer.policy(jax.tree.map(lambda x: x[0], snapshots), jnp.int32(0))
    assert np.exp(law.log_prob(jnp.int32(arm))) > 0.9


def test_statistics_of_a_peer_count_what_it_was_shown():
    peer = made(rl_peers.purejaxrl_style, TINY._replace(normalize=True), Line())
    _, moments, _ = jax.jit(lambda key: peer.train(key, 3, 1))(jax.random.key(0))
    np.testing.assert_allclose(moments.num_rows, 2 * (1 + 8 * np.array([1, 2, 3])), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "low", "high"),
    [("CartPole-v1", {}, 8, 500), ("Pendulum-v1", {"use_sde": True}, -3300, -300), ("a maker", {}, 6, 6)],
)
def test_stable_baselines3_trains_and_its_snapshots_are_evaluated(name, options, low, high):
    make = gymnasium_line if name == "a maker" else name
    settings = TINY._replace(normalize=True, anneal=True, learning_rate=0.01, reward_scale=0.1, activation="relu")
    model = peers_sb3.stable_baselines3_ppo(settings, 0, make, **options)
    if model is None:
        pytest.skip("not installed")
    snapshots = peers_sb3.stable_baselines3_train(model, settings, 4, 2)
    assert [round(x.moments.count) for x in snapshots] == [2 * (1 + 16), 2 * (1 + 32)]
    assert model.num_timesteps == 4 * settings.batch
    weights = [x.parameters["action_net.weight"] for x in snapshots]
    assert (weights[0] != weights[1]).any()
    before = snapshots[0].moments.mean.copy()
    found = peers_sb3.stable_baselines3_return(model, 2, make=make, snapshot=snapshots[0])
    np.testing.assert_array_equal(snapshots[0].moments.mean, before)
    assert low <= found <= high


@pytest.mark.parametrize("name", rl_peers.PEERS)
def test_curves_of_a_peer_are_evaluations_of_what_it_was(name):
    """Every episode of this bandit is one choice, so that a mean return is how often the arm that pays is chosen."""
    settings = TINY._replace(learning_rate=0.05, entropy_weight=0.0)
    counts: Any = {"num_updates": 20, "every": 10, "num_episodes": 64}
    curve = solved_peers.peer_curves(name, bandit(), settings, jax.random.split(jax.random.key(0), 2), **counts)
    if curve is None:
        pytest.skip("not installed")
    np.testing.assert_array_equal(curve.steps, [[160, 320], [160, 320]])
    assert curve.returns.shape == (2, 2)
    assert curve.final.shape == (2,)
    assert (curve.final > 0.9).all()
    assert (curve.final == np.round(curve.final * 256) / 256).all()
    assert curve.compile_seconds > curve.seconds > 0


def test_curves_of_stable_baselines3_are_those_of_its_seeds():
    counts: Any = {"num_updates": 4, "every": 2, "num_episodes": 2}
    keys = jax.random.split(jax.random.key(0), 2)
    curves = partial(solved_peers.peer_curves, solved_peers.SB3, None, TINY, keys)
    assert curves(**counts) is None  # no environment of Gymnasium
    curve = curves(**counts, gymnasium=gymnasium_line)
    if curve is None:
        pytest.skip("not installed")
    np.testing.assert_array_equal(curve.steps, [[32, 64], [32, 64]])
    np.testing.assert_array_equal(curve.returns, np.full((2, 2), 6))
    np.testing.assert_array_equal(curve.final, [6, 6])
    assert np.isnan(curve.compile_seconds)
    assert curve.seconds > 0


def test_curves_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match=r"num_updates: expected a multiple of every = 2, received 3"):
        solved_peers.peer_curves(
            "rejax", bandit(), TINY, jax.random.split(jax.random.key(0), 1), num_updates=3, every=2, num_episodes=1
        )
    with pytest.raises(ValueError, match=r"name: expected one of .*'rejax', 'stable-baselines3'\], received 'x'"):
        solved_peers.peer_curves(
            "x", bandit(), TINY, jax.random.split(jax.random.key(0), 1), num_updates=2, every=2, num_episodes=1
        )


def gymnasium_line():
    """Six steps that pay 1, with an action of two parts."""
    import gymnasium

    class Six(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-10, 10, (1,))
        action_space = gymnasium.spaces.MultiDiscrete([3, 2])
        time = 0

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.time = 0
            return np.zeros(1, np.float32), {}

        def step(self, action):
            assert action.shape == (2,)
            self.time += 1
            return np.full(1, self.time, np.float32), 1.0, self.time == 6, False, {}

    return Six()
