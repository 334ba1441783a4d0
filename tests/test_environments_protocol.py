"""What reset and step return, taken on: any dtype of a reward, any kind of an end, and no other order of the values."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld

KEYS = jax.random.split(jax.random.key(0), 4)
Z = np.zeros(2, np.float32)
STATE = jnp.int32(0)


def world(step: Any, start: Any = (Z, STATE), **attributes: Any) -> Any:
    """An environment whose step is `step(state)`."""

    class World:
        horizon, num_actions = 4, 2

        def reset(self, key: Any, params: Any = None) -> Any:
            return start

        def step(self, key: Any, state: Any, action: Any, params: Any = None) -> Any:
            return step(state)

    made = World()
    vars(made).update(attributes)
    return made


def play(environment: Any, keys: Any = KEYS) -> ld.Trajectory:
    return ld.rollout(jnp.zeros(2), jax.random.clone(keys), ld.shared_softmax, environment)


def three_steps(reward: Any, ends: Any = jnp.asarray, truncated: Any = False) -> Any:
    """Pays 1, 2 and 3 in the form of `reward`, and ends at the third step in that of `ends`."""
    return world(lambda s: (Z, s + 1, reward(s + 1), ends(s >= 2), truncated))


REWARDS: list[Any] = [
    (lambda s: s[None].astype(float), [1, 2, 3]),
    (lambda s: [s], [1, 2, 3]),
    (lambda s: (100 * s).astype(jnp.uint8), [100, 200, 300 - 256]),  # the eight bits are the world's own
    (lambda s: s.reshape(1, 1).astype(jnp.bfloat16), [1, 2, 3]),
    (lambda s: s > 1, [0, 1, 1]),
    (lambda s: 2, [2, 2, 2]),
]
ENDS: list[Any] = [
    (lambda e: e.astype(jnp.int32), 0),
    (lambda e: e.astype(float)[None], np.zeros(1)),
    (lambda e: -e.astype(jnp.int8), np.False_),
    (lambda e: [e], jnp.float16(0)),
    (lambda e: e, False),
    (lambda e: e.astype(jnp.uint8), [0.0]),
]


@pytest.mark.parametrize("number", range(6))
def test_a_reward_of_one_entry_and_an_end_of_any_kind_are_those_of_the_protocol(number):
    """By hand. As they were, a reward of shape (1,) made four episodes of four steps a table (4, 4), and `~` of an int32 was no "not"."""
    (reward, pays), (ends, truncated) = REWARDS[number], ENDS[number]
    taus = play(three_steps(reward, ends, truncated))
    assert taus.rewards.dtype == taus.discounts.dtype
    assert taus.rewards.dtype.itemsize >= 4
    np.testing.assert_array_equal(taus.rewards, [[*pays, 0]] * 4)
    np.testing.assert_array_equal(taus.discounts, [[1, 1, 0, 1]] * 4)


def test_returns_streams_and_listings_are_those_of_the_same_numbers():
    """Rewards of shape (1,), whole, with ends that are an int32 and a Python int: sums by hand."""
    plain, other = three_steps(lambda s: s.astype(float)), three_steps(lambda s: s[None], lambda e: e.astype(int), 0)
    for environment, seed in ((plain, 1), (other, 2)):
        keys = jax.random.split(jax.random.key(seed), 3)
        returns = ld.evaluate(jnp.zeros(2), keys[0], ld.shared_softmax, environment, num_episodes=4)
        np.testing.assert_array_equal(returns, [6] * 4)
        start = ld.sampling.start_streams(keys[1], environment, 2)
        stream, _ = ld.sampling.collect(jnp.zeros(2), keys[2], ld.shared_softmax, environment, start, num_steps=4)
        info = ld.types.batch_info(stream)
        assert (info.truncated_fraction, info.num_episodes, info.mean_return) == (1, 2, 6)
        value = ld.exact.value(jnp.zeros(2), ld.shared_softmax, environment, horizon=3, discount=0.5)
        np.testing.assert_allclose(value, 1 + 2 / 2 + 3 / 4, rtol=1e-12)


def test_a_game_has_a_place_for_each_player_also_for_one_alone():
    """A reward of shape (1,) is a number, unless the environment says that it is a game."""
    single, game = (lambda s: (Z, s, jnp.ones(1), False, False)), ld.processes.prisoners_dilemma(horizon=2)
    assert play(world(single)).rewards.shape == (4, 4)
    assert play(world(single, num_players=1)).rewards.shape == (4, 4, 1)
    with pytest.raises(ValueError, match=r"value 2, reward: expected shape \(2,\), received \(1,\)"):
        play(world(single, num_players=2))
    returns = ld.evaluate(
        game.init(), jax.random.key(0), game.policy, game, num_episodes=2
    )  # as many as steps and players
    taus = ld.rollout(game.init(), jax.random.split(jax.random.key(0), 2), game.policy, game)
    np.testing.assert_array_equal(returns, taus.rewards.sum(1))


MISFITS = {
    "gymnax": (
        (lambda s: (Z, s + 1, 1.0, s >= 2, {})),
        TypeError,
        "value 4 is a dict, expected truncated; the order is",
    ),
    "Gymnasium": ((lambda s: (Z, 1.0, s >= 2, False, {})), TypeError, "value 1, state is int32 .* and not Gymnasium's"),
    "Gym": ((lambda s: (Z, 1.0, s >= 2, {})), TypeError, "5 values, received 4 values: .*, a float, bool.*, a dict"),
    "brax": ((lambda s: {"obs": Z, "done": s}), TypeError, "5 values, received one dict"),
    "info": ((lambda s: (Z, s, 1.0, s >= 2, False, {})), TypeError, "received 6 values"),
    "swapped": ((lambda s: (s, Z, 1.0, s >= 2, False)), ValueError, "value 0, observation: expected shape"),
    "two rewards": ((lambda s: (Z, s, jnp.ones(2), False, False)), ValueError, "value 2, reward.*num_players"),
    "no reward": ((lambda s: (Z, s, None, False, False)), TypeError, "value 2 is a NoneType, expected reward"),
    "complex": (
        (lambda s: (Z, s, 1j, False, False)),
        TypeError,
        "value 2, reward: expected real numbers, received comp",
    ),
    "complex end": ((lambda s: (Z, s, 1.0, 1j, False)), TypeError, "value 3, terminated: expected real numbers"),
    "ends": ((lambda s: (Z, s, 1.0, False, jnp.zeros(3))), ValueError, r"value 4, truncated: .* received \(3,\)"),
    "fractions": (
        (lambda s: (Z, s + 0.5, 1.0, False, False)),
        TypeError,
        "value 1, state is int32 after reset and float",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_values_that_do_not_fit_are_named_by_their_position(name, as_shipped):
    step, error, words = MISFITS[name]
    listed = {"params": jnp.zeros(2), "policy": ld.shared_softmax, "environment": world(step), "horizon": 2}
    for call in (lambda: play(world(step)), lambda: ld.exact.value(**listed)):
        with pytest.raises(error, match=words):
            call()


@pytest.mark.parametrize("start", [Z, {"obs": Z}, (Z, STATE, {})], ids=["array", "one", "three"])
def test_a_start_is_two_values(start):
    with pytest.raises(TypeError, match=r"environment.reset: expected \(observation, state\), 2 values, received"):
        play(world(lambda s: (Z, s, 1.0, False, False), start))


def test_narrow_numbers_are_not_cut_off():
    """A counter of 8 bits would go round, one of half precision stop at 2048; a weak Python number is as narrow as it is added to."""
    for start in (jnp.uint8(0), jnp.float16(0), jnp.bool_(False)):
        with pytest.raises(TypeError, match=r"after reset and .* after step; let reset return .* too"):
            play(world(lambda s: (Z, s.astype(jnp.float32) + 1, 1.0, False, False), (Z, start)))
    assert play(world(lambda s: (Z, s + 1, 1.0, s >= 2, False), (Z, jnp.uint8(0)))).valid.sum() == 12


@pytest.mark.parametrize("make", ["Discrete", "MultiDiscrete"])
def test_actions_count_from_zero_and_reach_a_space_that_starts_elsewhere(make):
    """All three, and no other; who counts from `start` is told that there are three."""
    gym = pytest.importorskip("gymnasium")
    seen, one = set(), make == "Discrete"
    space = gym.spaces.Discrete(3, start=-1) if one else gym.spaces.MultiDiscrete([3, 2], start=[-1, 4])

    class Env(gym.Env):
        observation_space, action_space = gym.spaces.Box(-1, 1, (1,)), space

        def reset(self, *, seed=None, options=None):
            return np.zeros(1, np.float32), {}

        def step(self, action):
            assert space.contains(action)
            seen.add(tuple(np.ravel(action).tolist()))
            return (
                np.zeros(1, np.float32),
                np.ones(1),
                np.array([1]),
                0,
                {},
            )  # a reward of shape (1,), ends of other kinds

    environment = ld.environments.Gymnasium(Env, horizon=1)
    shape = (3,) if one else (2, 2)
    policy = ld.shared_softmax if one else ld.FunctionPolicy(lambda p, o: Pair(ld.Categorical(p)))
    taus = ld.rollout(jnp.zeros(shape), jax.random.split(jax.random.key(0), 50), policy, environment)
    assert taus.rewards.sum() == 50
    assert (taus.discounts == 0).all()
    assert seen == ({(-1,), (0,), (1,)} if one else {(a, b) for a in (-1, 0) for b in (4, 5)})
    if one:
        with pytest.raises(ValueError, match="chooses among 4, this environment has 3 actions"):
            ld.rollout(jnp.zeros(4), jax.random.key(0), policy, environment)


@jax.tree_util.register_pytree_node_class
class Pair:
    """Two independent choices."""

    def __init__(self, choices):
        self.choices = choices

    def log_prob(self, action):
        return jnp.sum(self.choices.log_prob(action))

    def sample(self, key):
        return self.choices.sample(key)

    def tree_flatten(self):
        return (self.choices,), None

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(*children)


def test_what_a_gymnasium_environment_returns_is_named_where_it_does_not_fit():
    gym = pytest.importorskip("gymnasium")

    def env(*found):
        class Env(gym.Env):
            observation_space, action_space = gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(2)

            def reset(self, *, seed=None, options=None):
                return np.zeros(1, np.float32), {}

            def step(self, action):
                return np.zeros(1, np.float32), *found

        return ld.environments.Gymnasium(Env, horizon=1)

    cases = {
        "info.*, received 4 values": (1.0, True, {}),
        "value 1, reward: expected one real number": (np.ones(2), True, False, {}),
        "value 2, terminated: expected one real number": (1.0, {}, False, {}),
    }
    for words, found in cases.items():
        with pytest.raises(jax.errors.JaxRuntimeError, match=words):
            jax.block_until_ready(play(env(*found)))
