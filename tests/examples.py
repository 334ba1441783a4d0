"""One small example of every process, policy, distribution and adapter, by the name of its class: a new class needs one line here."""

import functools
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

import logderiv as ld
from logderiv import environments, processes


class Example(NamedTuple):
    """An environment, a policy for it, and parameters."""

    environment: Any
    policy: Any
    params: Any


def own(process: Any, params: Any) -> Example:
    """A process that carries its policy."""
    return Example(process, process.policy, params)


def two_actions(environment: Any) -> Example:
    """An environment in which anything chooses between two actions."""
    return Example(environment, ld.shared_softmax, jnp.array([0.3, -0.2]))


@functools.cache
def process(name: str) -> Example:
    """An example of a class of `logderiv.processes`, of arrays also where it is first asked for within a program that is traced."""
    with jax.ensure_compile_time_eval():
        return PROCESSES[name]()


@functools.cache
def environment(name: str) -> Example:
    """An example of a class of `logderiv.environments`, as `process`."""
    with jax.ensure_compile_time_eval():
        return ENVIRONMENTS[name]()


class Fake(SimpleNamespace):
    """What a suite's environment looks like to its adapter, a clock that stops at 3; compared by identity."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]


def gymnax() -> Example:
    fake = Fake(
        default_params=jnp.array(0.5),
        action_space=lambda params: SimpleNamespace(n=2, shape=()),
        reset_env=lambda key, params: (jnp.zeros(1), jnp.int32(0)),
        step_env=lambda key, t, action, params: (
            jnp.full(1, t.astype(float)),
            t + 1,
            params * action.astype(float),
            t + 1 >= 3,
            {},
        ),
        is_truncated=lambda t, params: t >= 5,
    )
    return two_actions(environments.Gymnax(fake, horizon=4))


class Clock(NamedTuple):
    """A state of brax."""

    obs: jax.Array
    reward: jax.Array
    done: jax.Array


def brax() -> Example:
    def step(state: Clock, action: jax.Array) -> Clock:
        obs = state.obs + 1
        return Clock(obs, jnp.sum(action), (obs[0] >= 3).astype(obs.dtype))

    fake = Fake(action_size=1, observation_size=1, step=step)
    fake.reset = lambda key: Clock(jnp.zeros(1), jnp.zeros(()), jnp.zeros(()))
    policy = ld.FunctionPolicy(lambda params, _: ld.Normal(params, jnp.ones(1)))
    return Example(environments.Brax(fake, horizon=4), policy, jnp.array([0.3]))


class Timestep(NamedTuple):
    """A time step of dm_env, as jumanji has it."""

    observation: jax.Array
    reward: jax.Array
    discount: jax.Array

    def last(self) -> jax.Array:
        return self.discount == 0


def jumanji() -> Example:
    def step(t: jax.Array, action: jax.Array) -> tuple[jax.Array, Timestep]:
        return t + 1, Timestep(t + 1, action.astype(float), (t + 1 < 3).astype(float))

    fake = Fake(time_limit=4, action_spec=SimpleNamespace(num_values=2, shape=()), observation_spec=None, step=step)
    fake.reset = lambda key: (jnp.int32(0), Timestep(jnp.int32(0), jnp.zeros(()), jnp.ones(())))
    return two_actions(environments.Jumanji(fake))


def gymnasium() -> Example:
    pytest.importorskip("gymnasium")
    return two_actions(environments.Gymnasium("CartPole-v1", horizon=4))


def linear_gaussian() -> Example:
    eye, zero = jnp.eye(2), jnp.zeros((2, 2))
    params = processes.LinearGaussianParams(jnp.zeros(2), zero, 0.5 * eye, zero, jnp.ones((1, 2)), jnp.zeros((1, 1)))
    return own(processes.LinearGaussian(num_states=2, horizon=3), params)


def linear_quadratic() -> Example:
    one = jnp.ones((1, 1))
    world = processes.LinearQuadratic(0.9 * one, one, 0.3 * one, one, 0.1 * one, jnp.ones(1), 0.2 * one, horizon=3)
    return own(world, processes.LinearPolicyParams(-0.4 * one, jnp.zeros(1)))


def token_model() -> Example:
    model = processes.TokenModel(
        ld.MLP(3, hidden=()), lambda tokens, length: length.astype(float), vocabulary=3, end=0, horizon=3
    )
    return own(model, model.policy.init(jax.random.key(0)))


def matrix_game() -> Example:
    game = processes.prisoners_dilemma(horizon=3)
    return own(game, game.init())


PROCESSES = {
    "Autoregressive": lambda: own(
        processes.Autoregressive(horizon=3), processes.AutoregressiveParams(jnp.array(0.5), jnp.array(0.1))
    ),
    "EulerMaruyama": lambda: own(
        processes.EulerMaruyama(processes.double_well_drift, 0.5, [-1.0, 0.5], 0.1, 3), jnp.array([1.0, 0.8])
    ),
    "Fitness": lambda: Example(
        processes.Fitness(lambda x, key: -jnp.sum(x**2)), processes.NormalSearch(0.5), jnp.array([1.0, 2.0])
    ),
    "HiddenMarkovModel": lambda: own(
        processes.HiddenMarkovModel(horizon=3),
        processes.HiddenMarkovParams(jnp.zeros(2), jnp.eye(2), jnp.array([[1.0, 0.0], [0.0, 1.0]])),
    ),
    "JumpProcess": lambda: own(processes.birth_death(2, 0.5, horizon=6), jnp.array([0.3, -0.4])),
    "LinearGaussian": linear_gaussian,
    "LinearQuadratic": linear_quadratic,
    "LocalLevel": lambda: own(
        processes.LocalLevel(0.5, 2.0, horizon=3), processes.LocalLevelParams(jnp.array(0.2), jnp.array(-0.3))
    ),
    "MarkovChain": lambda: own(
        processes.MarkovChain(jnp.array([1.0, -0.5]), horizon=3),
        processes.MarkovChainParams(jnp.array([0.3, 0.1]), jnp.array([[0.1, 0.9], [0.2, -0.4]])),
    ),
    "MatrixGame": matrix_game,
    "RandomWalk": lambda: own(processes.RandomWalk(4), jnp.array(3.0)),
    "TokenModel": token_model,
}
ENVIRONMENTS = {
    "Brax": brax,
    "Gymnasium": gymnasium,
    "Gymnax": gymnax,
    "Jumanji": jumanji,
    "TabularMDP": lambda: two_actions(ld.environments.short_corridor(horizon=4)),
}
