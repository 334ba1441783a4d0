r"""The probability of a trajectory: its factors, their sum of logarithms and their product.

$P(\tau|\theta) = \rho_0(s_0) \prod_t \pi_\theta(a_t|s_t)\, p(s_{t+1}|s_t,a_t)$. Without `environment` only the factors of the
policy are taken, which is all that depends on $\theta$: the start and the dynamics drop out of every gradient.

Only the direct form multiplies. Everything else sums logarithms, by the cheapest of three routes: counting visits, where
the policy is a table; value and gradient of a trajectory in one pass, where it is memoryless; or factor by factor
(`logderiv.factors`).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from logderiv import distributions
from logderiv._core.arrays import accumulator_dtype, tree_size, widest
from logderiv._core.blocks import map_trajectories, rows_or_default, sum_rows
from logderiv.likelihood.counting import from_visits
from logderiv.likelihood.factors import (
    all_factors,
    environment_log_factors,
    flat_inputs,
    log_factors,
    step_factor,
    with_memory,
)
from logderiv.types import SignedLog, Trajectory, as_policy, check_params, check_trajectory, one_batch_axis


def log_prob(
    params: Any, policy: Any, trajectory: Trajectory, *, environment: Any = None, rows: int | None = None
) -> jax.Array:
    r"""$\log P(\tau|\theta)$: the sum over valid steps of the log-factors.

    The sum is pairwise and taken in float32 at least, so its relative error does not grow with `T`.

    Args:
        params: Parameters of the policy; first, so that `jax.grad(log_prob)` is the score.
        policy: As in `log_factors`.
        trajectory: Leading axes `(*batch, T)`.
        environment: With it, $\log\rho_0$ and the dynamics' log-densities are added; it must know them.
        rows: As in `log_factors`.

    Returns:
        Shape `(*batch,)`; float32 for half-precision policies.

    Raises:
        ValueError, TypeError: As `log_factors`; `environment` is a black box.

    Example:
        >>> import jax, jax.numpy as jnp, logderiv as ld
        >>> tau = ld.rollout(jnp.zeros(2), jax.random.key(0), ld.shared_softmax, ld.short_corridor(), horizon=8)
        >>> steps = int(tau.valid.sum())
        >>> abs(float(log_prob(jnp.zeros(2), ld.shared_softmax, tau)) / steps + 0.693147) < 1e-6
        True
    """
    policy = as_policy(policy)
    check_trajectory(trajectory)
    total = _policy_log_prob(params, policy, trajectory, rows)
    if environment is None:
        return total
    initial, dynamics = environment_log_factors(environment, trajectory)
    fixed = _sum_steps(dynamics) + initial.astype(accumulator_dtype(initial.dtype))
    dtype = widest(total.dtype, fixed.dtype)
    return total.astype(dtype) + fixed.astype(dtype)


def weighted_log_prob(
    params: Any, policy: Any, trajectory: Trajectory, weights: jax.Array, *, rows: int | None = None
) -> jax.Array:
    r"""$\sum_n \sum_t w_{n,t} \log\pi_\theta(a_{n,t}|s_{n,t})$: one number, whose gradient is the weighted sum of scores.

    What every estimator of order one differentiates. A policy with sufficient statistics (a tabular one) has its steps
    counted; any other is evaluated as in `log_factors`.

    Args:
        params: Parameters of the policy.
        policy: As in `log_factors`.
        trajectory: Leading axes `(*batch, T)`.
        weights: Same shape; held, cast to the dtype of the log-factors. Those of invalid steps are not used, and a step of
            weight 0 does not count, even if it is impossible.
        rows: As in `log_factors`.

    Returns:
        A scalar, in float32 at least.

    Raises:
        ValueError, TypeError: As `log_factors`; the weights have another shape.
    """
    policy = as_policy(policy)
    check_trajectory(trajectory)
    valid, weights = trajectory.valid, jnp.asarray(weights)
    if jnp.shape(weights) != valid.shape:
        raise ValueError(
            f"weights: expected the shape of trajectory.valid, {valid.shape}, received {jnp.shape(weights)}; a (N, 1) against "
            "a (N,) would broadcast to (N, N)."
        )
    weights = lax.stop_gradient(jnp.where(valid, weights, jnp.zeros_like(weights)))
    table = _table(params, policy, trajectory, valid.size)
    if table is not None:
        return from_visits(*table, trajectory.actions, weights)
    logs = log_factors(params, policy, trajectory, rows=rows)
    weights = weights.astype(logs.dtype)
    return jnp.sum(_sum_steps(jnp.where(weights == 0, jnp.zeros_like(logs), weights * logs)))


def prob(
    params: Any, policy: Any, trajectory: Trajectory, *, environment: Any = None, rows: int | None = None
) -> jax.Array:
    r"""$P(\tau|\theta)$: the product of the probabilities themselves, multiplied out by `lax.scan`.

    This is the direct form that the log-derivative identity is compared with. It underflows (about 127 fair coins in
    float32), but it is right where a factor is exactly zero, which the logarithm is not.

    Args:
        params: Parameters of the policy.
        policy: As in `log_factors`.
        trajectory: Leading axes `(*batch, T)`.
        environment: As in `log_prob`.
        rows: As in `log_factors`.

    Returns:
        Shape `(*batch,)`, dtype of the factors.

    Gradients: `jax.grad(prob)` differentiates the product itself. Nothing is detached.
    """
    return cumulative_product(all_factors(params, policy, trajectory, environment=environment, rows=rows))[..., -1]


def signed_prob(params: Any, policy: Any, trajectory: Trajectory, *, environment: Any = None) -> SignedLog:
    r"""$P(\tau|\theta)$ as sign and logarithm: right far beyond underflow. Shapes `(*batch,)`."""
    logs = log_prob(params, policy, trajectory, environment=environment)
    return SignedLog(jnp.where(jnp.isneginf(logs), 0.0, 1.0).astype(logs.dtype), logs)


def grad_prob(params: Any, policy: Any, trajectory: Trajectory, *, environment: Any = None) -> Any:
    r"""$\nabla P = P\, \nabla\log P$ of one trajectory as sign and logarithm of the magnitude, leaf by leaf.

    `sign = sign(score)` and `logabs = log P + log|score|`, so the gradient survives where `P` has long been zero in
    floating point. At a factor of exactly zero it is not defined by this form: use `jax.grad(prob)`.

    Args:
        params: Parameters of the policy, floating point.
        policy: As in `log_factors`.
        trajectory: Leading axis `(T,)`; use `jax.vmap` for a batch.
        environment: As in `log_prob`.

    Returns:
        Pytree of `params` with a `SignedLog` in the place of each leaf.

    Raises:
        ValueError: A batch was given.
        TypeError: A parameter is not floating point.
    """
    check_params(params)
    check_single(trajectory)
    logp, score = jax.value_and_grad(log_prob)(params, policy, trajectory, environment=environment)
    return times_exp(score, logp)


def times_exp(score: Any, log_scale: jax.Array) -> Any:
    """`exp(log_scale) * score`, leaf by leaf, as `SignedLog`."""

    def leaf(s: jax.Array) -> SignedLog:
        s = s.astype(accumulator_dtype(s.dtype))
        zero = s == 0
        logabs = log_scale.astype(s.dtype) + jnp.log(jnp.where(zero, 1, jnp.abs(s)))
        return SignedLog(jnp.sign(s), jnp.where(zero, -jnp.inf, logabs))

    return jax.tree.map(leaf, score)


def cumulative_product(factors: jax.Array) -> jax.Array:
    """Products of the first 1, 2, ... factors along the last axis, by `lax.scan`, in the dtype of the factors."""

    def step(product: jax.Array, factor: jax.Array) -> tuple[jax.Array, jax.Array]:
        product = product * factor
        return product, product

    start = jnp.ones(factors.shape[:-1], factors.dtype)
    return jnp.moveaxis(lax.scan(step, start, jnp.moveaxis(factors, -1, 0))[1], 0, -1)


def check_single(trajectory: Trajectory) -> None:
    """Raise unless the trajectory has no batch axes."""
    batch, _ = check_trajectory(trajectory)
    if batch:
        raise ValueError(f"trajectory: expected one trajectory, shape (T,), received batch axes {batch}; use jax.vmap.")


def _policy_log_prob(params: Any, policy: Any, trajectory: Trajectory, rows: int | None) -> jax.Array:
    """Sum over time of the policy's log-factors, by the cheapest route. Shape `(*batch,)`."""
    batch, length = trajectory.valid.shape[:-1], trajectory.valid.shape[-1]
    table = _table(params, policy, trajectory, length)
    if table is not None:
        count = partial(from_visits, table[0])
        for _ in batch:
            count = jax.vmap(count)
        return count(table[1], trajectory.actions, trajectory.valid)
    if _fits_one_pass(params, policy, trajectory, rows):
        return _sum_in_one_pass(params, policy, trajectory, rows)
    if policy.log_factors is None and policy.initial_carry is not None:
        return with_memory(params, policy, trajectory, step_factor(trajectory, logs=True), total=True).reshape(batch)
    return _sum_steps(log_factors(params, policy, trajectory, rows=rows))


def _sum_in_one_pass(params: Any, policy: Any, trajectory: Trajectory, rows: int | None) -> jax.Array:
    """Sum over time of the log-factors of a memoryless policy, shape `(*batch,)`; its gradient costs no second pass."""
    factor = step_factor(trajectory, logs=True)

    def one(tau: Trajectory) -> jax.Array:
        return sum_rows(
            lambda p, x: factor(policy.apply(p, x[0]), x[1]), params, flat_inputs(tau), tau.valid[None], rows=rows
        )

    return map_trajectories(one, one_batch_axis(trajectory)).reshape(trajectory.valid.shape[:-1])


def _table(params: Any, policy: Any, trajectory: Trajectory, num_steps: int) -> tuple[jax.Array, jax.Array] | None:
    """Logits and states of a tabular policy where counting pays: no more logits than there are steps to count."""
    actions = jnp.asarray(trajectory.actions) if hasattr(policy, "table") else None
    if actions is None or actions.shape != trajectory.valid.shape or not jnp.issubdtype(actions.dtype, jnp.integer):
        return None
    table = policy.table(params, trajectory.observations, actions)
    if table is None or table[0].ndim != 2 or table[0].size > num_steps:  # taken step by step the former is an error
        return None
    distributions.check_range(
        distributions.Categorical(table[0][0]), jnp.zeros((), actions.dtype), actions, trajectory.valid
    )
    return table


def _fits_one_pass(params: Any, policy: Any, trajectory: Trajectory, rows: int | None) -> bool:
    """Whether a pass over a trajectory at a time, which holds a gradient for each of them, is the cheaper one.

    Not where trajectories do not fill a block, nor where a gradient is larger than the trajectory it belongs to.
    """
    if policy.initial_carry is not None or policy.log_factors is not None:
        return False
    num, length = trajectory.valid.size // trajectory.valid.shape[-1], trajectory.valid.shape[-1]
    held = tree_size((trajectory.observations, trajectory.actions))
    return num == 1 or (length > rows_or_default(rows) and num * tree_size(params) <= held)


def _sum_steps(logs: jax.Array) -> jax.Array:
    return jnp.sum(logs, axis=-1, dtype=accumulator_dtype(logs.dtype))
