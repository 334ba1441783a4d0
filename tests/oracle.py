"""Expectations over every batch that can be drawn, by counting tuples; shares no code with `logderiv.exact.moments`."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import logderiv as ld

from .zoo import DISCOUNT, off_policy, seen


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """A decision process, a policy with one logit per live state, and parameters to draw with. Compared by identity."""

    mdp: ld.environments.TabularMDP
    horizon: int
    params: jax.Array
    behavior: jax.Array
    discount: float = DISCOUNT


QUICK: Any = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # run once: compile fast
POLICY = ld.FunctionPolicy(lambda params, state: ld.Bernoulli(params[jnp.minimum(state, 1)]))


def _world(initial: list[float], transition: Any, horizon: int) -> World:
    mdp = ld.environments.TabularMDP(
        initial=jnp.array(initial),
        transition=jnp.array([*transition, [[0.0, 0.0, 1.0]] * 2]),
        reward=jnp.array([[1.0, -0.5], [0.25, 2.0], [0.0, 0.0]]),
        terminal=jnp.array([False, False, True]),
    )
    return World(mdp, horizon, jnp.array([0.3, -0.5]), jnp.array([-0.4, 0.2]))


@functools.cache
def cut(horizon: int = 2) -> World:
    """Episodes of random length, some cut by the horizon. 6 trajectories at T = 2, 10 at T = 3. Rows: state, action."""
    return _world([1.0, 0.0, 0.0], [[[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]], horizon)


@functools.cache
def ending() -> World:
    """Episodes of one or two steps in a horizon of three: always padding, never a cut. 7 trajectories."""
    return _world([0.75, 0.25, 0.0], [[[0.0, 0.6, 0.4], [0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]], 3)


@functools.cache
def trajectories(world: World, *, off_policy: bool = False) -> tuple[ld.Trajectory, np.ndarray]:
    """Every trajectory, `behavior_log_probs` filled, garbage in its padding; and its probability. NumPy arrays."""
    drawn_by = world.behavior if off_policy else world.params

    @jax.jit
    def fill(every: ld.Trajectory) -> tuple[ld.Trajectory, jax.Array]:
        bad = jnp.where(every.valid, 0, jnp.nan)
        logs = ld.log_factors(drawn_by, POLICY, every)
        filled = every._replace(rewards=every.rewards + bad, behavior_log_probs=logs + bad)
        return filled, ld.prob(drawn_by, POLICY, every, environment=world.mdp)

    with jax.ensure_compile_time_eval():
        return jax.tree.map(np.asarray, fill(ld.exact.enumerate_trajectories(world.mdp, horizon=world.horizon)))


def batch(world: World, number: int, *, off_policy: bool = False) -> ld.Trajectory:
    """The first few trajectories."""
    return jax.tree.map(lambda x: x[:number], trajectories(world, off_policy=off_policy)[0])


@functools.cache
def gradient(world: World) -> np.ndarray:
    """The exact gradient, by dynamic programming."""
    with jax.ensure_compile_time_eval():
        return np.asarray(jax.jit(jax.grad(value(world)))(world.params))


def over_tuples(
    function: Callable[[ld.Trajectory], Any], worlds: Iterable[World], number: int, *, off_policy: bool = False
) -> tuple[list[Any], list[np.ndarray]]:
    """By world, `function(batch)` of every batch of `number` trajectories and their probabilities; all worlds in one program."""
    batches, weights = [], []
    for world in worlds:
        every, probabilities = trajectories(world, off_policy=off_policy)
        indices = np.moveaxis(np.indices((len(probabilities),) * number), 0, -1).reshape(-1, number)
        batches.append(jax.tree.map(lambda x, indices=indices: x[indices], every))
        weights.append(np.prod(probabilities[indices], axis=1))
    # An argument of the program, or the compiler would fold it as a constant.
    together = jax.tree.map(lambda *x: np.concatenate(x), *batches)
    values = jax.tree.map(np.asarray, jax.jit(jax.vmap(function), compiler_options=QUICK)(together))
    ends = np.cumsum([len(x) for x in weights])[:-1]
    split = [jax.tree.map(lambda x, k=k: np.split(x, ends)[k], values) for k in range(len(weights))]
    return split, weights


def expectations(
    function: Callable[[ld.Trajectory], Any], worlds: Iterable[World], number: int, *, off_policy: bool = False
) -> list[Any]:
    """By world, E of `function(batch)` over all batches of `number` trajectories."""
    found = zip(*over_tuples(function, worlds, number, off_policy=off_policy), strict=True)
    return [jax.tree.map(lambda v, w=w: np.tensordot(w, v, axes=1), values) for values, w in found]


def expectation(function: Callable[[ld.Trajectory], Any], world: World, number: int, **options: bool) -> Any:
    """The same of one world."""
    return expectations(function, [world], number, **options)[0]


def expected_gradient(estimator: Any, world: World, number: int, *, state: Any = None) -> np.ndarray:
    """E[g] of an estimator at `world.params`."""
    state = seen(estimator, world.params) if state is None else state

    def gradient(batch: ld.Trajectory) -> jax.Array:
        return estimator.estimate(world.params, state, POLICY, batch)[0].grads

    return expectation(gradient, world, number, off_policy=off_policy(estimator))


def derivatives(function: Callable[[jax.Array], jax.Array], params: jax.Array) -> tuple[jax.Array, ...]:
    """The first three derivatives of a scalar function."""
    first = jax.grad(function)
    second = jax.jacfwd(first)
    return first(params), second(params), jax.jacfwd(second)(params)


def value(world: World) -> Callable[[jax.Array], jax.Array]:
    """The objective itself, by dynamic programming."""
    return lambda p: ld.exact.value(p, POLICY, world.mdp, horizon=world.horizon, discount=world.discount)
