"""Suites written in JAX, unmodified: where an episode ends, with which observation, and which actions it takes.

Each adapter is held to the suite's own raw steps; its wrong twin resets by itself, as the suites' wrappers do.
"""

import dataclasses
import importlib
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from logderiv.environments import ActionSpace, as_environment

LOO = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()))


def suite(name):
    """A suite, or a skip where it is missing or does not import beside this JAX. Importing some of them warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except Exception as error:
            pytest.skip(f"{name} does not import: {type(error).__name__}: {error}")


class Started:
    """An environment that always starts alike, so that the suite's own functions can be run beside it.

    With `params` it is the wrong twin: after the last step of an episode stands the first observation of the next.
    """

    def __init__(self, environment):
        self.environment = environment
        self.action_space = environment.action_space

    def reset(self, key, params=None):
        return self.environment.reset(jax.random.key(7))

    def step(self, key, state, action, params=None):
        new = self.environment.step(key, state, action)
        first = self.environment.reset(jax.random.key(8))[0]
        resets = params & (new.terminated | new.truncated)
        return new._replace(observation=jax.tree.map(lambda a, b: jnp.where(resets, a, b), first, new.observation))


def constant(action):
    """Always this action, up to 1e-7 where it is real."""
    if isinstance(action, int):
        only = np.where(np.arange(action + 1) == action, 0, -np.inf).astype(np.float32)
        return ld.FunctionPolicy(lambda params, _: ld.Categorical(only + 0 * params))
    return ld.FunctionPolicy(lambda params, _: ld.Normal(jnp.float32(action) + 0 * params, jnp.float32(1e-7)))


def check(environment, policy, observations, *, terminated=False):
    """The episode has the suite's own observations, and ends with the last of them, by termination or by a cut."""
    steps = len(jax.tree.leaves(observations)[0]) - 1

    @jax.jit
    def draw(resets):
        options = {"horizon": steps + 2, "environment_params": resets}
        return ld.rollout(jnp.float32(0), jax.random.key(0), policy, Started(environment), **options)

    tau, twin = draw(False), draw(True)
    assert tau.valid.sum() == steps
    assert tau.discounts.tolist() == [*[1] * (steps - 1), 1 - terminated, 1, 1]
    own = jax.tree.map(lambda x: x[:-1], observations), jax.tree.map(lambda x: x[-1], observations)

    def compare(tau):
        ours = jax.tree.map(lambda x: x[:steps], tau.observations), tau.final_observation
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), own, ours)

    compare(tau)
    with pytest.raises(AssertionError):
        compare(twin)


def unrolled(first, step, num_steps):
    """The observations of a suite's own raw steps: `step(state)` gives the next one and its observation."""
    (observation, state), observations = first, [first[0]]
    for _ in range(num_steps):
        observation, state = step(state)
        observations.append(observation)
    return jax.tree.map(lambda *x: np.stack(x), *observations)


def test_gymnax_is_cut_with_its_own_last_observation(as_shipped):
    gymnax = suite("gymnax")
    environment, params = gymnax.make("Pendulum-v1")
    params = params.replace(max_steps_in_episode=4)
    first = environment.reset_env(jax.random.key(7), params)
    step = lambda state: environment.step_env(jax.random.key(0), state, jnp.full(1, 0.5), params)[:2]  # noqa: E731
    check(ld.environments.Gymnax(environment, params), constant([0.5]), unrolled(first, step, 4))


@pytest.mark.parametrize(("clip", "cost"), [(False, 0.9), (True, 0.1)])
def test_an_action_out_of_bounds_costs_what_it_does_where_it_is_clipped(as_shipped, clip, cost):
    """A force of -3 acts as -1 either way; MountainCarContinuous takes 0.1 times its square."""
    environment = ld.environments.Gymnax(*suite("gymnax").make("MountainCarContinuous-v0"), clip=clip)
    _, state = environment.reset(jax.random.key(0))
    step = jax.jit(environment.step)
    far, least = (step(jax.random.key(1), state, jnp.array([force])) for force in (-3.0, -1.0))
    np.testing.assert_allclose(far.reward, -cost, rtol=1e-6)
    np.testing.assert_array_equal(far.observation, least.observation)


def test_brax_is_cut_with_its_own_last_observation(as_shipped):
    envs = suite("brax.envs")
    raw = envs.get_environment("fast")
    adapter = as_environment(envs.create("fast", episode_length=4))  # inside AutoReset and Episode
    assert isinstance(adapter, ld.environments.Brax)
    assert adapter.horizon == 4
    assert type(adapter.environment) is type(raw)
    assert as_environment(raw).horizon == 1000

    def step(state):
        state = raw.step(state, jnp.ones(1))
        return state.obs, state

    first = raw.reset(jax.random.key_data(jax.random.key(7)))
    check(adapter, constant([1.0]), unrolled((first.obs, first), step, 4))
    with pytest.raises(ValueError, match="action_repeat"):
        ld.environments.Brax(envs.create("fast", action_repeat=2))


@pytest.mark.filterwarnings("ignore:Brax System:UserWarning", "ignore:Accessing .* directly:DeprecationWarning")
@pytest.mark.slow
def test_brax_physics_trains_a_squashed_policy(as_shipped):
    envs = suite("brax.envs")
    environment = ld.environments.Brax(envs.get_environment("inverted_pendulum", backend="generalized"), horizon=20)
    policy = ld.MLP(2, hidden=(), head=ld.policies.tanh_normal_head, state_independent=1)
    params, options = policy.init(jax.random.key(0), jnp.zeros(4)), {"estimator": LOO, "optimizer": optax.adam(1e-1)}
    result = ld.train(params, jax.random.key(1), policy, environment, ld.Episodes(16), num_updates=12, **options)
    returns = np.asarray(result.metrics.mean_return)
    assert returns[-3:].mean() > returns[:3].mean() + 1


def test_jumanji_terminates_with_its_own_last_observation(as_shipped):
    jumanji = suite("jumanji")
    environment = jumanji.make("Snake-v1", time_limit=3)
    assert isinstance(as_environment(environment), ld.environments.Jumanji)
    assert as_environment(environment).horizon == 3
    tsp = suite("jumanji.wrappers").AutoResetWrapper(jumanji.make("TSP-v1"))
    assert as_environment(tsp).environment is tsp.unwrapped
    raw_step = jax.jit(tsp.unwrapped.step)

    def step(state):
        state, timestep = raw_step(state, jnp.int32(3))
        return timestep.observation, state

    state, timestep = tsp.unwrapped.reset(jax.random.key_data(jax.random.key(7)))
    observations = unrolled((timestep.observation, state), step, 2)  # visiting a city twice ends it
    check(as_environment(tsp), constant(3), observations, terminated=True)


def test_jumanji_is_cut_where_it_says_so(as_shipped):
    """A clock in jumanji's own terms, with one agent and with two: its smallest environment with a cut compiles for 5 s."""
    jumanji, types = suite("jumanji"), suite("jumanji.types")
    spec = suite("jumanji.specs").DiscreteArray(2)

    class Clock(jumanji.Environment):
        time_limit = 3
        agents: Any = ()
        observation_spec = property(lambda self: None)
        action_spec = property(lambda self: spec)

        def reset(self, key):
            return jnp.int32(0), types.restart(jnp.int32(0))

        def step(self, state, action):
            state, reward = state + 1, jnp.ones(self.agents)
            go, cut = types.transition(reward, state), types.truncation(reward, state)
            return state, jax.tree.map(lambda a, b: jnp.where(state >= 3, a, b), cut, go)

    check(as_environment(Clock()), constant(0), np.arange(4))
    Clock.agents = (2,)
    with pytest.raises(ValueError, match="MultiToSingleWrapper"):
        check(ld.environments.Jumanji(Clock()), constant(0), np.arange(4))


def test_craftax_is_recognized(as_shipped):
    craftax = suite("craftax.craftax_env")
    adapter = as_environment(craftax.make_craftax_env_from_name("Craftax-Classic-Symbolic-v1", auto_reset=True))
    assert isinstance(adapter, ld.environments.Gymnax)
    assert adapter.horizon == 10_000
    assert adapter.action_space == ActionSpace((), True, 17, "17 actions")


@pytest.mark.slow
def test_craftax_is_cut_with_its_own_last_observation(as_shipped):
    """Half a minute of compiling for each of the two."""
    craftax = suite("craftax.craftax_env")
    environment = craftax.make_craftax_env_from_name("Craftax-Classic-Symbolic-v1", auto_reset=True)
    params = environment.default_params.replace(max_timesteps=3)
    first = jax.jit(environment.reset_env)(jax.random.key(7), params)
    step = jax.jit(lambda state: environment.step_env(jax.random.key(0), state, jnp.int32(0), params)[:2])

    class SameKey(ld.environments.Gymnax):
        def step(self, key, state, action, params=None):
            return super().step(jax.random.key(0), state, action, params)

    check(SameKey(environment, params), constant(0), unrolled(first, step, 3))


class Board(NamedTuple):
    """As of jumanji and pgx."""

    position: jax.Array
    action_mask: jax.Array


class Stairs:
    """Four actions, two of them allowed, which ones depends on where one is; the higher of the two is paid."""

    horizon, action_space = 4, None

    def reset(self, key, params=None):
        return self.look(jnp.int32(0)), jnp.int32(0)

    def step(self, key, state, action, params=None):
        allowed = self.look(state).action_mask
        reward = jnp.where(allowed[action], jnp.where(action == 3 - state % 2, 1.0, 0.0), jnp.nan)
        return self.look(state + 1), state + 1, reward, state + 1 >= 4, jnp.array(False)

    def look(self, state):
        mask = jnp.where(state % 2 == 0, jnp.array([True, False, False, True]), jnp.array([False, True, True, False]))
        return Board(jax.nn.one_hot(state, 4, dtype=float), mask & (state < 4))  # nothing is allowed at the end


def test_a_masked_policy_trains_and_never_takes_what_is_not_allowed(standard_promotion):
    network = ld.MLP(4, hidden=())

    def policy(params, board):
        return ld.Categorical(ld.masked(network.apply(params, board.position).logits, board.action_mask))

    def train(policy):
        params, policy = network.init(jax.random.key(0), jnp.zeros(4)), ld.FunctionPolicy(policy)
        batch = ld.Episodes(16, horizon=6)  # the last two steps of every row are padding on which nothing is allowed
        options = {"estimator": LOO, "optimizer": optax.adam(0.3), "num_updates": 20}
        return ld.train(params, jax.random.key(1), policy, Stairs(), batch, **options)

    returns = train(policy).metrics.mean_return
    assert 1 < returns[0] < 3
    assert returns[-1] > 3.9
    with pytest.warns(UserWarning, match="batches were left out whole"):
        unmasked = train(lambda params, board: network.apply(params, board.position))
    assert jnp.isnan(unmasked.metrics.mean_return[0])


def test_a_policy_that_cannot_mean_these_actions_is_refused_at_trace_time():
    def draw(space, distribution):
        environment = Stairs()
        environment.action_space = space
        policy = ld.FunctionPolicy(lambda params, _: distribution)
        return jax.eval_shape(lambda key: ld.rollout(jnp.zeros(()), key, policy, environment), jax.random.key(0))

    two, box = ActionSpace((), True, 2, "2 actions"), ActionSpace((3,), False, None, "Box of shape (3,)")
    draw(two, ld.Categorical(jnp.zeros(2)))
    for error, message, space, distribution in (
        (ValueError, r"chooses among 3, this environment has 2 actions", two, ld.Categorical(jnp.zeros(3))),
        (TypeError, r"2 actions, whole numbers; .* float64.*Categorical", two, ld.Normal(jnp.zeros(()), jnp.ones(()))),
        (ValueError, r"action of shape \(3,\); the policy drew \(2,\)", box, ld.Normal(jnp.zeros(2), jnp.ones(2))),
        (ValueError, r"one action of shape \(3,\); the policy drew \(\)", box, ld.Categorical(jnp.zeros(2))),
        (
            TypeError,
            r"real numbers; .* int32.*Normal",
            dataclasses.replace(box, shape=()),
            ld.Categorical(jnp.zeros(2)),
        ),
    ):
        with pytest.raises(error, match=message):
            draw(space, distribution)


def test_spaces_of_gymnax_are_read():
    two, box = ActionSpace((), True, 2, "2 actions"), ActionSpace((1,), False, None, "Box of shape (1,)", -2.0, 2.0)
    for name, space in (("CartPole-v1", two), ("Pendulum-v1", box)):
        assert as_environment(suite("gymnax").make(name)[0]).action_space == space
    with pytest.raises(TypeError, match="environment_params: brax"):
        ld.environments.Brax(Stairs()).reset(jax.random.key(0), 3)
