r"""Where the noise of an estimate comes from: which trajectory, which group of them, which time step.

The samples that `logderiv.diagnostics.statistics` takes. Nothing here holds more gradients at once than it is asked to.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from logderiv._core.arrays import is_traced, tree_size
from logderiv.diagnostics.statistics import num_samples
from logderiv.estimators import Estimator, num_trajectories
from logderiv.estimators.surrogates import score_surrogate
from logderiv.likelihood.factors import log_factors
from logderiv.types import Trajectory, check_params


class Moments(NamedTuple):
    """Mean and variance of per-trajectory gradients.

    Attributes:
        mean: Pytree of `params`.
        variance: Of one sample, with divisor `N - 1`; pytree of `params`.
        num_samples: `N`.
    """

    mean: Any
    variance: Any
    num_samples: int

    @property
    def sem(self) -> Any:
        """Standard error of `mean`; pytree of `params`."""
        return jax.tree.map(lambda v: jnp.sqrt(v / jnp.asarray(self.num_samples, v.dtype)), self.variance)


def per_trajectory_gradients(
    estimator: Estimator,
    params: Any,
    state: Any,
    policy: Any,
    trajectories: Trajectory,
    *,
    batch_size: int | None = None,
) -> Any:
    """Each trajectory's own contribution to an estimate; their mean *is* the estimate.

    The weights are computed once, on the whole batch; then each trajectory's term of the objective is differentiated,
    `batch_size` at a time. The result holds `N * D` numbers: where those are too many, use `gradient_moments` or
    `group_gradients`. Baselines made of the batch (leave-one-out) tie the contributions together a little: the standard
    error from them is 3 to 5 % low at `N` = 2 and right for larger batches.

    Args:
        estimator: One whose objective is a mean over trajectories of terms that depend only on the own trajectory and
            its weights.
        params: Parameters of the policy.
        state: State of the estimator.
        policy: The policy that drew the trajectories.
        trajectories: Leading axes `(N, T)`.
        batch_size: Trajectories differentiated side by side: memory for so many gradients. `None` takes 16, and fewer where
            that would be more than 65536 numbers: large gradients are faster one at a time.

    Returns:
        Samples: pytree of `params` with a leading axis `N`.

    Raises:
        ValueError: The weights have no leading axis `N`; or, outside `jax.jit`, the contributions do not average to the
            estimate, because the objective is not such a mean.
    """
    return _gradients(estimator, params, state, policy, trajectories, None, _side_by_side(params, batch_size))


def group_gradients(
    estimator: Estimator,
    params: Any,
    state: Any,
    policy: Any,
    trajectories: Trajectory,
    *,
    num_groups: int = 16,
) -> Any:
    """Contributions of `num_groups` equal groups of trajectories: the cost of one gradient, the memory of a few.

    The cheap default for every diagnostic here. Each sample is a mean over `N / num_groups` trajectories, so variances
    are that much smaller than one trajectory's (pass `group_size` where it is asked for); `sem` is that of the estimate.

    Args:
        estimator: As in `per_trajectory_gradients`.
        params: Parameters of the policy.
        state: State of the estimator.
        policy: The policy that drew the trajectories.
        trajectories: Leading axes `(N, T)`.
        num_groups: A divisor of `N`.

    Returns:
        Samples: pytree of `params` with a leading axis `num_groups`.

    Raises:
        ValueError: `num_groups` does not divide `N`; or as `per_trajectory_gradients`.
    """
    return _gradients(estimator, params, state, policy, trajectories, num_groups, 1)


def gradient_moments(
    estimator: Estimator,
    params: Any,
    state: Any,
    policy: Any,
    trajectories: Trajectory,
    *,
    batch_size: int | None = None,
) -> Moments:
    """Mean and variance of the per-trajectory gradients, streamed: never more than `batch_size` of them at once.

    Arguments and errors as in `per_trajectory_gradients`.

    References:
        Chan, Golub & LeVeque (1983), The American Statistician 37, eqs. 2.1 for the merging of moments.
    """
    num = num_trajectories(trajectories)
    num_samples(trajectories.valid)
    gradient, rows = _terms(estimator, params, state, policy, trajectories, num)
    size = min(_side_by_side(params, batch_size), num)
    whole = num - num % size

    def moments(rows: Any) -> Any:
        grads = jax.vmap(gradient)(rows)
        center = jax.tree.map(lambda g: jnp.mean(g, axis=0), grads)
        return center, jax.tree.map(lambda g, c: jnp.sum(jnp.square(g - c[None]), axis=0), grads, center)

    def merge(old: Any, new: Any, count: Any, added: int) -> Any:
        def leaf(m: jax.Array, s: jax.Array, m_new: jax.Array, s_new: jax.Array) -> tuple[jax.Array, jax.Array]:
            before = count.astype(m.dtype)
            share, shift = added / (before + added), m_new - m
            return m + share * shift, s + s_new + before * share * jnp.square(shift)

        pairs = jax.tree.map(leaf, old[0], old[1], new[0], new[1])
        return jax.tree.transpose(jax.tree.structure(params), jax.tree.structure((0, 0)), pairs)

    def step(carry: Any, rows: Any) -> tuple[Any, None]:
        count, old = carry
        return (count + size, merge(old, moments(rows), count, size)), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    chunks = jax.tree.map(lambda x: x[:whole].reshape((-1, size, *x.shape[1:])), rows)
    (count, total), _ = lax.scan(step, (jnp.zeros((), jnp.int32), (zeros, zeros)), chunks)
    if whole < num:
        total = merge(total, moments(jax.tree.map(lambda x: x[whole:], rows)), count, num - whole)
    return Moments(total[0], jax.tree.map(lambda s: s / (num - 1), total[1]), num)


def variance_by_step(
    params: Any, policy: Any, trajectories: Trajectory, weights: jax.Array, *, batch_size: int | None = None
) -> jax.Array:
    r"""How much of the covariance trace each time step causes.

    With $g_n = \sum_t g_{n,t}$ and $g_{n,t} = w_{n,t} \nabla\ell_{n,t}$, the entry of step `t` is
    $\mathrm{tr}\,\mathrm{Cov}(g_t, g) = \tfrac{1}{N-1} \sum_n \langle g_{n,t}, g_n - \bar g \rangle$. The entries add up to `covariance_trace` of the
    per-trajectory gradients; divide by their sum for shares. One is negative where a step cancels the noise of others.
    A forward derivative along $g_n - \bar g$ gives all steps of a trajectory at once, so no `(N, T, D)` is ever formed.

    Args:
        params: Parameters of the policy.
        policy: The policy.
        trajectories: Leading axes `(N, T)`.
        weights: What multiplies the scores, from `estimator.weigh`. Shape `(N, T)`.
        batch_size: As in `per_trajectory_gradients`.

    Returns:
        Shape `(T,)`.

    Raises:
        ValueError: `weights` has another shape, or there are fewer than two trajectories.
    """
    check_params(params)
    num = num_trajectories(trajectories)
    if jnp.shape(weights) != trajectories.valid.shape:
        raise ValueError(
            f"weights: expected one per step, shape (N, T) = {trajectories.valid.shape}, received {jnp.shape(weights)}; "
            "an estimator whose weights are something else has no such decomposition."
        )
    num_samples(trajectories.valid)
    weights = jnp.where(trajectories.valid, weights, 0)

    def surrogate(params: Any, trajectories: Trajectory, weights: jax.Array) -> jax.Array:
        return score_surrogate(log_factors(params, policy, trajectories), weights)

    center = jax.grad(surrogate)(params, trajectories, weights)

    def contributions(row: tuple[Trajectory, jax.Array]) -> jax.Array:
        tau, weight = row
        deviation = jax.tree.map(jnp.subtract, jax.grad(surrogate)(params, tau, weight), center)
        _, along = jax.jvp(lambda p: log_factors(p, policy, tau), (params,), (deviation,))
        return weight.astype(along.dtype) * along

    return jnp.sum(
        lax.map(contributions, (trajectories, weights), batch_size=_side_by_side(params, batch_size)), axis=0
    ) / (num - 1)


def _gradients(
    estimator: Any,
    params: Any,
    state: Any,
    policy: Any,
    taus: Trajectory,
    num_groups: int | None,
    batch_size: int,
) -> Any:
    num_groups = num_trajectories(taus) if num_groups is None else num_groups
    gradient, rows = _terms(estimator, params, state, policy, taus, num_groups)
    samples = lax.map(gradient, rows, batch_size=None if batch_size == 1 else batch_size)
    if not is_traced(*jax.tree.leaves(samples)):
        _check_mean(samples, gradient(jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), rows)))
    return samples


def _side_by_side(params: Any, batch_size: int | None) -> int:
    if batch_size is None:
        return min(16, max(1, 65536 // tree_size(params)))
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1 trajectory, received {batch_size}.")
    return batch_size


def _terms(
    estimator: Any, params: Any, state: Any, policy: Any, trajectories: Trajectory, num_groups: int
) -> tuple[Callable[[Any], Any], Any]:
    """The gradient of one group's term, and the groups: trajectories and weights with leading axes `(groups, N / groups)`."""
    check_params(params)
    num = num_trajectories(trajectories)
    estimator.bias.check(num)
    if num_groups < 1 or num % num_groups:
        raise ValueError(f"num_groups: expected a divisor of the N = {num} trajectories, received {num_groups}.")
    weights, _ = estimator.weigh(params, state, policy, trajectories)
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        if jnp.shape(leaf)[:1] != (num,):
            raise ValueError(
                f"weights{jax.tree_util.keystr(path)}: expected a leading axis of N = {num} trajectories, received shape "
                f"{jnp.shape(leaf)}; this estimator's terms are not per trajectory. Replicate whole estimates instead: "
                "jax.vmap over batches of estimator.estimate."
            )
    rows = jax.tree.map(
        lambda x: x.reshape((num_groups, num // num_groups, *x.shape[1:])),
        (trajectories, lax.stop_gradient(weights)),
    )
    return lambda row: jax.grad(estimator.objective)(params, policy, *row), rows


def _check_mean(samples: Any, whole: Any) -> None:
    for (path, leaf), grad in zip(jax.tree_util.tree_leaves_with_path(samples), jax.tree.leaves(whole), strict=True):
        values = np.asarray(leaf, np.float64)
        gap = np.abs(values.mean(axis=0) - np.asarray(grad, np.float64))
        tolerance = 10 * np.sqrt(float(jnp.finfo(leaf.dtype).eps)) * np.max(np.abs(values), initial=0.0)
        if (gap > tolerance).any():
            raise ValueError(
                f"estimator: the contributions average to another gradient than the whole batch's (leaf "
                f"{jax.tree_util.keystr(path) or 'params'}, off by {gap.max():.3g}): its objective is not a mean over "
                "trajectories, as with a division by the number of valid steps. Replicate whole estimates instead."
            )
