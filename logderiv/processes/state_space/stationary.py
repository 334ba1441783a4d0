"""The stationary law of a finite chain, exactly and in logarithms."""

import jax
import jax.numpy as jnp
from jax import lax

from logderiv._core.arrays import nan_unless
from logderiv.processes.state_space.hidden import normalized


def stationary_log_probs(kernel: jax.Array) -> jax.Array:
    """Logarithm of the law π with π P = π, by eliminating one state after the other.

    The chain that is watched only in the states below n has the kernel

        P_ij + P_in P_nj / s_n,   s_n = Σ_j<n P_nj   (i, j < n),

    and from it follows π_n = Σ_i<n π_i P_in / s_n. Nothing is subtracted, so that each π_i has all its digits, however small.

    Args:
        kernel: Logarithms of P, shape `(S, S)`, rows that sum to 1; `-inf` forbids a transition.

    Returns:
        log π, shape `(S,)`; NaN where the chain is reducible: then some states are transient, or there are several laws.

    Gradients: flow through `kernel`, at any order.

    References:
        Grassmann, Taksar & Heyman (1985), Operations Research 33; from memory.
    """
    size = kernel.shape[0]
    states = jnp.arange(size)

    def eliminate(logs: jax.Array, n: jax.Array) -> tuple[jax.Array, jax.Array]:
        below = states < n
        row, column = jnp.where(below, logs[n], -jnp.inf), jnp.where(below, logs[:, n], -jnp.inf)
        column = column - normalized(row)[1]
        return normalized(jnp.stack([logs, column[:, None] + row[None]]))[1], column

    def extend(logs: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        n, column = inputs
        return jnp.where(states == n, normalized(logs + column)[1], logs), None

    irreducible = _irreducible(kernel)
    columns = lax.scan(eliminate, nan_unless(irreducible, kernel), states[1:], reverse=True)[1]
    start = jnp.where(states == 0, 0, -jnp.inf).astype(kernel.dtype)
    logs = lax.scan(extend, start, (states[1:], columns))[0]
    return normalized(logs)[0]


def _irreducible(kernel: jax.Array) -> jax.Array:
    """Whether every state is reached from every other one."""
    reached = (kernel > -jnp.inf) | jnp.eye(kernel.shape[0], dtype=bool)
    for _ in range(max(kernel.shape[0] - 1, 0).bit_length()):  # paths of up to twice as many steps each time
        reached = jnp.any(reached[:, :, None] & reached[None], axis=1)
    return jnp.all(reached)
