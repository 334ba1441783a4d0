"""Small worlds and batches that several tests share."""

from functools import partial

import jax
import jax.numpy as jnp

import logderiv as ld

rollout = jax.jit(ld.rollout, static_argnames="horizon")  # one program instead of a hundred small ones


def two_states() -> ld.TabularMDP:
    """Two states, two actions, no end; every number given by hand."""
    return ld.TabularMDP(
        initial=jnp.array([0.6, 0.4]),
        transition=jnp.array([[[0.7, 0.3], [0.2, 0.8]], [[0.5, 0.5], [0.9, 0.1]]]),
        reward=jnp.array([[1.0, -0.5], [0.25, 2.0]]),
        terminal=jnp.array([False, False]),
    )


TWO_STATES_LOGITS = jnp.array([[0.2, -0.1], [0.4, 0.3]])


def terminating() -> ld.TabularMDP:
    """Two live states and a goal that either action may reach; episodes have random length."""
    return ld.TabularMDP(
        initial=jnp.array([0.7, 0.3, 0.0]),
        transition=jnp.array(
            [
                [[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]],
                [[0.4, 0.6, 0.0], [0.2, 0.3, 0.5]],
                [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]],
            ]
        ),
        reward=jnp.array([[1.0, -0.5], [0.25, 2.0], [0.0, 0.0]]),
        terminal=jnp.array([False, False, True]),
    )


TERMINATING_LOGITS = jnp.array([[0.2, -0.1], [0.4, -0.3], [0.0, 0.0]])


def random_mdp(key: jax.Array, states: int = 3, actions: int = 2) -> ld.TabularMDP:
    """Dirichlet tables, no terminal state."""
    keys = jax.random.split(key, 3)
    return ld.TabularMDP(
        initial=jax.random.dirichlet(keys[0], jnp.ones(states)),
        transition=jax.random.dirichlet(keys[1], jnp.ones(states), (states, actions)),
        reward=jax.random.normal(keys[2], (states, actions)),
        terminal=jnp.zeros(states, bool),
    )


@partial(jax.jit, static_argnames=("shape", "size", "actions", "dtype"))
def batch(key: jax.Array, shape: tuple[int, ...], size: int = 4, actions: int = 2, dtype=jnp.float64) -> ld.Trajectory:
    """Random observations and actions with every step valid."""
    keys = jax.random.split(key, 3)
    ones = jnp.ones(shape, dtype)
    return ld.Trajectory(
        observations=jax.random.normal(keys[0], (*shape, size), dtype),
        actions=jax.random.randint(keys[1], shape, 0, actions),
        rewards=jax.random.normal(keys[2], shape, dtype),
        discounts=ones,
        valid=jnp.ones(shape, bool),
        behavior_log_probs=0 * ones,
        final_observation=jnp.ones((*shape[:-1], size), dtype),
    )


def cast(tree, dtype):
    """Every floating leaf in another dtype."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)
