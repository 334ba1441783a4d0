"""Where the noise of an estimate comes from: which trajectory, which group of them, which time step.

The samples that `logderiv.diagnostics.statistics` takes. Nothing here holds more gradients at once than it is asked to.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from logderiv._core import check
from logderiv._core.arrays import as_trajectory, check_leading_axes, check_params, one_axis, summable, wide
from logderiv._core.blocks import sum_results
from logderiv._core.pytrees import jit
from logderiv.diagnostics.statistics import Summary, lifted
from logderiv.estimators import Estimator
from logderiv.estimators.surrogates import Score
from logderiv.likelihood.probability import log_factors
from logderiv.types import Params, State, Trajectory, num_trajectories


def per_trajectory_gradients(
    params: Params,
    policy: Any,
    trajectories: Trajectory,
    estimator: Estimator,
    *,
    state: State = None,
    num_groups: int | None = None,
    block_size: int | None = None,
) -> Any:
    """Each trajectory's own contribution to an estimate, or that of each group of them; their mean *is* the estimate.

    The weights are computed once, on the whole batch; then each trajectory's term of the objective is differentiated,
    `block_size` at a time. The result holds `N * D` numbers: where those are too many, use `gradient_moments`, or equal groups.
    Baselines made of the batch (leave-one-out) tie the contributions together a little: the standard error from them is 3 to
    5 % low at `N` = 2 and right for larger batches.

    `num_groups=16` is the cheap choice for every diagnostic here: the cost of one gradient, the memory of a few. Each sample is
    then a mean over `N / num_groups` trajectories, so variances are that much smaller than one trajectory's (pass `group_size`
    where it is asked for); the standard error is that of the estimate.

    Args:
        params: Parameters of the policy.
        policy: The policy that drew the trajectories.
        trajectories: Leading axes `(N, T)`.
        estimator: One whose objective is a mean over trajectories of terms that depend only on the own trajectory and
            its weights.
        state: State of the estimator; `None` for its first.
        num_groups: A divisor of `N`, for the contributions of so many equal groups; `None` for those of each trajectory.
        block_size: Terms differentiated side by side: memory for so many gradients. `None` takes 16 trajectories, and fewer
            where that would be more than 65536 numbers (large gradients are faster one at a time), or one group.

    Returns:
        Samples: pytree of `params` with a leading axis `N`, or `num_groups`; float32 at least.

    Raises:
        ValueError: `num_groups` does not divide `N`; the weights have no leading axis `N`; there are fewer trajectories than
            the estimator needs; or, outside `jax.jit`, the contributions do not average to the estimate, because the objective
            is not such a mean.
        TypeError: A parameter is not floating point.

    Gradients: the weights are detached.
    """
    params, trajectories, num, block = _checked(params, policy, trajectories, estimator, block_size)
    groups = num if num_groups is None else check.whole(num_groups=num_groups)
    if num % groups:
        raise ValueError(f"num_groups: expected a divisor of the N = {num} trajectories, received {num_groups}.")
    block = 1 if num_groups is not None and block_size is None else block
    samples, differ = _samples(params, policy, trajectories, estimator, state, groups=groups, block=block)
    _refuse(differ)
    return samples


def gradient_moments(
    params: Params,
    policy: Any,
    trajectories: Trajectory,
    estimator: Estimator,
    *,
    state: State = None,
    block_size: int | None = None,
) -> Summary:
    """Mean and variance of the per-trajectory gradients gₙ, streamed: never more than `block_size` of them at once.

    The mean is the gradient g of the whole batch, and the variance 1/(N-1) Σₙ (gₙ - g)².

    Args:
        params: Parameters of the policy.
        policy: The policy that drew the trajectories.
        trajectories: Leading axes `(N, T)`, at least two trajectories.
        estimator: One whose objective is a mean over trajectories of terms that depend only on the own trajectory and
            its weights.
        state: State of the estimator; `None` for its first.
        block_size: Trajectories differentiated side by side: memory for so many gradients. `None` takes 16, and fewer where
            that would be more than 65536 numbers.

    Returns:
        A `Summary` of `N` samples.

    Raises:
        ValueError: The weights have no leading axis `N`; there are fewer trajectories than two, or than the estimator needs; or,
            outside `jax.jit`, the contributions do not average to the estimate.
        TypeError: A parameter is not floating point.

    Gradients: the weights are detached.
    """
    params, trajectories, num, block = _checked(params, policy, trajectories, estimator, block_size)
    check.rows("trajectories", trajectories.valid, at_least=2)
    found, differ = _summary(params, policy, trajectories, estimator, state, block=block)
    _refuse(differ)
    return found._replace(num_samples=num)


def variance_by_step(
    params: Params, policy: Any, trajectories: Trajectory, weights: jax.Array, *, block_size: int | None = None
) -> jax.Array:
    """How much of the covariance trace each time step causes.

    With gₙ = Σ_t gₙ,t and gₙ,t = wₙ,t ∇ log π(aₙ,t), the entry of step t is

        tr Cov(g_t, g) = 1/(N-1) Σₙ ⟨gₙ,t, gₙ - g⟩, where g is the mean of the gₙ.

    The entries add up to the `trace` of a `Summary` of the per-trajectory gradients; divide by their sum for shares. One is
    negative where a step cancels the noise of others. A forward derivative along gₙ - g gives all steps of a trajectory at once,
    so no `(N, T, D)` is ever formed.

    Args:
        params: Parameters of the policy.
        policy: The policy.
        trajectories: Leading axes `(N, T)`.
        weights: What multiplies the scores, from `estimator.advantages`. Shape `(N, T)`.
        block_size: Trajectories differentiated side by side: memory for so many gradients. `None` takes 16, and fewer where
            that would be more than 65536 numbers.

    Returns:
        Shape `(T,)`.

    Raises:
        ValueError: `weights` has another shape, or there are fewer than two trajectories.
        TypeError: A parameter is not floating point.
    """
    params, trajectories, _, block = _checked(params, policy, trajectories, None, block_size)
    weights = summable(weights, "weights")
    check.shape(
        trajectories.valid.shape,
        hint="one per step, shape (N, T); an estimator whose weights are something else has no such decomposition",
        weights=weights,
    )
    check.rows("trajectories", trajectories.valid, at_least=2)
    return _by_step(params, policy, trajectories, weights, block=block)


def _checked(
    params: Params, policy: Any, trajectories: Trajectory, estimator: Estimator | None, block_size: int | None
) -> tuple[Params, Trajectory, int, int]:
    """Parameters and trajectories, the number of these, and that of those side by side; actions that have values are checked as well."""
    check_params(params)
    params = wide(params)
    trajectories = as_trajectory(trajectories, prefix=estimator is not None)
    num = one_axis(trajectories)
    if estimator is not None:
        expected = "one of logderiv.estimators, or of your own"
        check.made("estimator", estimator, hasattr(estimator, "structure"), expected)
        estimator.structure.check(num)
    if block_size is None:
        block_size = min(16, max(1, 65536 // optax.tree.size(params)))
    block = check.whole(block_size=block_size)
    jax.eval_shape(lambda p: log_factors(p, policy, trajectories), params)
    return params, trajectories, num, min(block, num)


def _refuse(differ: jax.Array) -> None:
    if not check.is_traced(differ) and differ:
        raise ValueError(
            "estimator: the contributions average to another gradient than the whole batch's: its objective is not a mean over "
            "trajectories, as with a division by the number of valid steps. Replicate whole estimates instead."
        )


def _beyond_rounding(errors: Any, samples: Any) -> jax.Array:
    """Whether an error of their mean exceeds the rounding of a sum: 10³ ε of the largest of its leaf, and 10 ε of the largest of all.

    Added up one after another, n terms part from their sum by about √n ε/2 Σ|x|: 10³ ε for n = 4·10⁶ steps. The second part is for a
    leaf whose own terms are rounding, such as a shift of all logits.
    """
    sizes = jax.tree.map(lambda x: jnp.max(jnp.abs(x), initial=0), samples)
    largest = jnp.max(jnp.stack(jax.tree.leaves(lifted(sizes=sizes))))

    def leaf(error: jax.Array, size: jax.Array) -> jax.Array:
        tolerance = jnp.finfo(error.dtype).eps * (1000 * size + 10 * largest.astype(error.dtype))
        return jnp.any(jnp.abs(error) > tolerance)

    return jnp.any(jnp.stack(jax.tree.leaves(jax.tree.map(leaf, errors, sizes))))


def _rows_and_gradient(
    params: Params, policy: Any, trajectories: Trajectory, estimator: Estimator, state: State
) -> tuple[Any, Callable[[Any], Params]]:
    """What the terms of the objective are made of, trajectories and detached weights, and the gradient of some of them."""
    num = num_trajectories(trajectories)
    weights, _ = estimator.advantages(params, estimator.init(params) if state is None else state, policy, trajectories)
    hint = "this estimator's terms are not per trajectory: replicate whole estimates, by jax.vmap over batches"
    check_leading_axes((num,), hint=hint, weights=weights)
    rows = trajectories, lax.stop_gradient(weights)
    return rows, lambda rows: jax.grad(estimator.objective)(params, policy, *rows)


def _in_groups(rows: Any, size: int) -> Any:
    """Rows in groups of `size`, an axis in front."""
    return jax.tree.map(lambda x: x.reshape((-1, size, *x.shape[1:])), rows)


@jit
def _samples(
    params: Params, policy: Any, taus: Trajectory, estimator: Estimator, state: State, *, groups: int, block: int
) -> tuple[Params, jax.Array]:
    """The gradient of each group's term, and whether their mean is another gradient than that of the whole."""
    rows, gradient = _rows_and_gradient(params, policy, taus, estimator, state)
    grouped = _in_groups(rows, num_trajectories(taus) // groups)
    samples = lax.map(gradient, grouped, batch_size=None if block == 1 else block)

    errors = jax.tree.map(lambda x, whole: jnp.mean(x, axis=0) - whole, samples, gradient(rows))
    return samples, _beyond_rounding(errors, samples)


@jit
def _summary(
    params: Params, policy: Any, taus: Trajectory, estimator: Estimator, state: State, *, block: int
) -> tuple[Summary, jax.Array]:
    """The moments of all terms, and whether their mean is another gradient than that of the whole."""
    rows, gradient = _rows_and_gradient(params, policy, taus, estimator, state)
    num, mean = num_trajectories(taus), gradient(rows)

    def powers(row: Any) -> tuple[Params, Params]:
        deviations = jax.tree.map(jnp.subtract, gradient(jax.tree.map(lambda x: x[None], row)), mean)
        return deviations, jax.tree.map(jnp.square, deviations)

    sums, squares = sum_results(powers, rows, block)
    variance = jax.tree.map(lambda s: s / (num - 1), squares)
    sizes = jax.tree.map(lambda m, v: jnp.abs(m) + jnp.sqrt(v), mean, variance)
    return Summary(mean, variance, num), _beyond_rounding(jax.tree.map(lambda s: s / num, sums), sizes)


@jit
def _by_step(params: Params, policy: Any, trajectories: Trajectory, weights: jax.Array, *, block: int) -> jax.Array:
    def surrogate(params: Params, trajectories: Trajectory, weights: jax.Array) -> jax.Array:
        return Score()(log_factors(params, policy, trajectories), weights)

    weights = jnp.where(trajectories.valid, weights, 0)
    center = jax.grad(surrogate)(params, trajectories, weights)

    def contributions(row: tuple[Trajectory, jax.Array]) -> jax.Array:
        tau, weight = row
        deviation = jax.tree.map(jnp.subtract, jax.grad(surrogate)(params, tau, weight), center)
        _, along = jax.jvp(lambda p: log_factors(p, policy, tau), (params,), (deviation,))
        return weight.astype(along.dtype) * along

    parts = lax.map(contributions, (trajectories, weights), batch_size=block)
    return jnp.sum(parts, axis=0) / (num_trajectories(trajectories) - 1)
