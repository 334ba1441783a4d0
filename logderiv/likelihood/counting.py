"""Sufficient statistics of tabular policies: how often each action was taken in each state."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from logderiv._core import check
from logderiv._core.arrays import accumulator_dtype, integers, nan_unless, summable
from logderiv.distributions.basic import log_softmax


def visit_counts(states: jax.Array, actions: jax.Array, weights: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """N(s, a) = Σ_t w_t 1[s_t = s, a_t = a]: all that a tabular policy's likelihood depends on.

    With boolean or integer weights, such as `trajectory.valid`, these are whole numbers and exact; floating weights are
    added up in float32 at least and in groups of steps, so that float32 stays exact to about 1e-6 at 10^7 steps.

    Args:
        states: Integers in `0 .. S - 1`, of any width and shape. Others are dropped.
        actions: Integers in `0 .. A - 1`, same shape. Others are dropped.
        weights: Same shape; 0 or False for steps that do not count.
        shape: `(S, A)`.

    Returns:
        Shape `(S, A)`: int32 for boolean and integer weights, else the dtype of `weights`, float32 at least.

    Raises:
        ValueError: The three shapes differ.
        TypeError: States or actions are no integers, or weights no real numbers.

    Example:
        >>> states, actions = jnp.array([0, 1, 1, 1]), jnp.array([0, 1, 0, 1])
        >>> visit_counts(states, actions, jnp.array([True, True, True, True]), (2, 2)).tolist()
        [[1, 0], [1, 2]]
    """
    states, actions, weights = integers(states, "states"), integers(actions, "actions"), jnp.asarray(weights)
    check.shape(states.shape, hint="states, actions and weights are of one shape", actions=actions, weights=weights)
    shape = tuple(check.whole(**{f"shape[{i}]": size}) for i, size in enumerate(shape))
    size, whole = math.prod(shape), not jnp.issubdtype(weights.dtype, jnp.inexact)
    inside = (states >= 0) & (states < shape[0]) & (actions >= 0) & (actions < shape[1])
    place = states.astype(jnp.int32) * shape[1] + actions.astype(jnp.int32)  # one index, which is faster than two
    place = jnp.where(inside, place, size).ravel()
    weights = (weights.astype(jnp.int32) if whole else summable(weights, "weights")).ravel()
    if whole:
        return jnp.zeros(size, jnp.int32).at[place].add(weights, mode="drop").reshape(shape)
    groups = max(1, math.isqrt(weights.size // max(1, size)))
    group = jnp.arange(weights.size) // max(1, -(-weights.size // groups))
    counts = jnp.zeros((groups, size), weights.dtype).at[group, place].add(weights, mode="drop")
    return jnp.sum(counts, axis=0).reshape(shape)


def from_visits(logits: jax.Array, states: jax.Array, actions: jax.Array, weights: jax.Array) -> jax.Array:
    """Σ_t w_t log π(a_t|s_t) = Σ_{s,a} N(s, a) log softmax(θ_s)_a, with N the `visit_counts`.

    One pass over the steps counts them; value and derivatives are then those of `S A` numbers.

    Args:
        logits: θ, shape `(S, A)`.
        states: Any shape; one out of range, on a step that counts, makes the value NaN.
        actions: Same shape; one out of range, on a step that counts, makes the value `-inf`, `+inf` where its weight
            is negative, and leaves the derivatives of the other steps.
        weights: Same shape; detached. 0 or False for steps that do not count, whatever their state and action.

    Returns:
        A scalar, in float32 at least.
    """
    states, actions, counted = integers(states, "states"), integers(actions, "actions"), weights.astype(bool)
    counts = visit_counts(states, actions, lax.stop_gradient(weights), logits.shape)
    logs = log_softmax(logits.astype(accumulator_dtype(logits.dtype)))
    terms = counts.astype(logs.dtype) * logs
    total = jnp.sum(jnp.where(counts == 0, jnp.zeros_like(terms), terms))  # a masked action never taken: 0 * -inf

    def outside(x: jax.Array, size: int) -> jax.Array:
        return counted & ((x < 0) | (x >= size))

    infinite = jnp.copysign(jnp.inf, -lax.stop_gradient(weights).astype(logs.dtype))
    # Added, so that the other steps keep their derivatives.
    total += jnp.sum(jnp.where(outside(actions, logits.shape[1]), infinite, 0))
    return nan_unless(~jnp.any(outside(states, logits.shape[0])), total)
