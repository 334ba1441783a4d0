"""Small worlds and batches that several tests share."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import logderiv as ld

_rollout = jax.jit(ld.rollout, static_argnames="horizon")  # one program instead of a hundred small ones


def rollout(*arguments: Any, **options: Any) -> Any:
    """Trajectories as NumPy arrays, so that no look at them is a program of its own."""
    return jax.tree.map(np.asarray, _rollout(*arguments, **options))


def two_states() -> ld.environments.TabularMDP:
    """Two states, two actions, no end; every number given by hand."""
    return ld.environments.TabularMDP(
        initial=jnp.array([0.6, 0.4]),
        transition=jnp.array([[[0.7, 0.3], [0.2, 0.8]], [[0.5, 0.5], [0.9, 0.1]]]),
        reward=jnp.array([[1.0, -0.5], [0.25, 2.0]]),
        terminal=jnp.array([False, False]),
    )


TWO_STATES_LOGITS = jnp.array([[0.2, -0.1], [0.4, 0.3]])


def terminating() -> ld.environments.TabularMDP:
    """Two live states and a goal that either action may reach; episodes have random length."""
    return ld.environments.TabularMDP(
        initial=jnp.array([0.7, 0.3, 0.0]),
        transition=jnp.array(
            [[[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]], [[0.4, 0.6, 0.0], [0.2, 0.3, 0.5]], [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]]
        ),
        reward=jnp.array([[1.0, -0.5], [0.25, 2.0], [0.0, 0.0]]),
        terminal=jnp.array([False, False, True]),
    )


class InUnits:
    """`terminating`, seen as four numbers in units of their own, the last one always the same, beside the number of the state."""

    horizon = 6

    def __init__(self, dtype: Any = jnp.float64) -> None:
        numbers = [[1000.0, 1.0, 0.002, 5.0], [-2000.0, 0.0, 0.001, 5.0], [0.0, 3.0, 0.004, 5.0]]
        self.mdp, self.numbers = cast(terminating(), dtype), jnp.asarray(numbers, dtype)

    def see(self, state: Any) -> Any:
        return {"x": self.numbers[state], "state": state}

    def reset(self, key: Any, params: Any = None) -> Any:
        _, state = self.mdp.reset(key)
        return self.see(state), state

    def step(self, key: Any, state: Any, action: Any, params: Any = None) -> Any:
        _, state, *rest = self.mdp.step(key, state, action)
        return (self.see(state), state, *rest)


TERMINATING_LOGITS = jnp.array([[0.2, -0.1], [0.4, -0.3], [0.0, 0.0]])


def random_mdp(key: jax.Array, states: int = 3, actions: int = 2) -> ld.environments.TabularMDP:
    """Dirichlet tables, no terminal state."""
    keys = jax.random.split(key, 3)
    return ld.environments.TabularMDP(
        initial=jax.random.dirichlet(keys[0], jnp.ones(states)),
        transition=jax.random.dirichlet(keys[1], jnp.ones(states), (states, actions)),
        reward=jax.random.normal(keys[2], (states, actions)),
        terminal=jnp.zeros(states, bool),
    )


def trajectory(**parts: Any) -> ld.Trajectory:
    """Trajectories, `(*batch, T)`, of which only some parts matter: the named fields of `ld.Trajectory`.

    Of the others the observations, actions and log-probabilities are 0, rewards and discounts 1, every step is valid, and the
    final observation is the last one. The first of the arrays given below decides shape and dtype.
    """
    of_steps = ("rewards", "discounts", "valid", "behavior_log_probs", "actions", "observations")
    shape = next(jnp.shape(parts[name]) for name in of_steps if name in parts)
    dtype = next((parts[name].dtype for name in ("rewards", "discounts", "behavior_log_probs") if name in parts), float)
    ones = jnp.ones(shape, dtype)
    usual = {
        "observations": jnp.zeros(shape, int),
        "actions": jnp.zeros(shape, int),
        "rewards": ones,
        "discounts": ones,
        "valid": jnp.ones(shape, bool),
        "behavior_log_probs": 0 * ones,
    }
    observations = parts.get("observations", usual["observations"])
    last = jax.tree.map(lambda x: jnp.take(x, -1, axis=len(shape) - 1), observations)
    return ld.Trajectory(**usual | {"final_observation": last} | parts)


@partial(jax.jit, static_argnames=("shape", "size", "actions", "dtype"))
def batch(key: jax.Array, shape: tuple[int, ...], size: int = 4, actions: int = 2, dtype=jnp.float64) -> ld.Trajectory:
    """Random observations and actions with every step valid."""
    keys = jax.random.split(key, 3)
    return trajectory(
        rewards=jax.random.normal(keys[2], shape, dtype),
        observations=jax.random.normal(keys[0], (*shape, size), dtype),
        actions=jax.random.randint(keys[1], shape, 0, actions),
        final_observation=jnp.ones((*shape[:-1], size), dtype),
    )


def cast(tree, dtype):
    """Every floating leaf in another dtype."""
    return jax.tree.map(
        lambda x: jnp.asarray(x, dtype) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x, tree
    )


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """The events of programs that are compiled meanwhile."""
    found: list[str] = []

    def note(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
