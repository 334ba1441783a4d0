"""Kalman filter, Rauch-Tung-Striebel smoother and backward sampling, on the matrices of a model.

    x_0 ~ N(μ_0, P_0),   x_t = F x_t-1 + N(0, Q),   y_t = H x_t + N(0, R)

with `n` states and `p` observed components. Covariances are updated in Joseph's form, which keeps the variance of a single
state positive in float32 with a vague start such as P_0 = 10⁷. Of several states float32 loses digits in proportion to
P_0: a local linear trend with R near 1 has its Fisher score to 2 % at P_0 = 10⁶, and NaN at 10⁷; take float64 there, or a P_0 of
at most 10⁴. A component that is missing has its row of H set to zero and its row and column of R to those of the identity.

References:
    Durbin & Koopman (2012), Time Series Analysis by State Space Methods, 2nd ed., sections 4.3-4.4, 4.9-4.10; Rauch, Tung &
    Striebel (1965), AIAA J. 3, eqs. 3.27-3.30; Fruhwirth-Schnatter (1994), J. Time Series Anal. 15, section 4 (backward sampling).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve

from logderiv._core.noise import normal
from logderiv._core.products import exact_products
from logderiv.distributions.multivariate import PartlyObserved, mask_covariance
from logderiv.processes.base import GaussianMoments
from logderiv.processes.state_space.hidden import Filtered, Smoothed, backwards
from logderiv.types import Key


class StateSpaceMatrices(NamedTuple):
    """A linear-Gaussian state-space model.

    Attributes:
        initial_mean: μ_0, shape `(n,)`.
        initial_covariance: P_0, positive definite, shape `(n, n)`.
        transition: F, shape `(n, n)`.
        state_covariance: Q, positive definite, shape `(n, n)`.
        design: H, shape `(p, n)`.
        observation_covariance: R, positive definite, shape `(p, p)`.
    """

    initial_mean: jax.Array
    initial_covariance: jax.Array
    transition: jax.Array
    state_covariance: jax.Array
    design: jax.Array
    observation_covariance: jax.Array


@exact_products()
def kalman_filter(model: StateSpaceMatrices, observations: jax.Array, observed: jax.Array) -> Filtered:
    """Filtered states and the increments of the log-likelihood.

    Args:
        model: The matrices.
        observations: Shape `(T, p)`.
        observed: Which components are there, shape `(T, p)`, bool.

    Returns:
        What is known after each of the `T` observations.
    """

    def step(predicted: GaussianMoments, inputs: tuple[jax.Array, jax.Array]) -> tuple[GaussianMoments, Filtered]:
        (mean, covariance), (y, seen) = predicted, inputs
        design = jnp.where(seen[:, None], model.design, 0)
        noise = mask_covariance(model.observation_covariance, seen)
        loc, spread = design @ mean, design @ covariance @ design.T + noise
        gain = _solve(spread, design @ covariance).T
        keep = jnp.eye(mean.shape[0], dtype=mean.dtype) - gain @ design
        mean = mean + gain @ jnp.where(seen, y - loc, 0)
        updated = GaussianMoments(mean, keep @ covariance @ keep.T + gain @ noise @ gain.T)
        return _predict(model, updated), Filtered(updated, PartlyObserved(loc, spread, seen).log_prob(y))

    start = GaussianMoments(model.initial_mean, model.initial_covariance)
    return lax.scan(step, start, (observations.astype(start.mean.dtype), observed))[1]


@exact_products()
def kalman_smoother(model: StateSpaceMatrices, filtered: GaussianMoments) -> Smoothed:
    """Smoothed states and the covariances of neighbors, backwards from what the filter gave."""

    def step(later: GaussianMoments, state: GaussianMoments) -> tuple[GaussianMoments, jax.Array]:
        gain, rest = _backward_kernel(model, state)
        mean = state.mean + gain @ (later.mean - model.transition @ state.mean)
        return GaussianMoments(mean, rest + gain @ later.covariance @ gain.T), gain @ later.covariance

    return Smoothed(*backwards(step, jax.tree.map(lambda x: x[-1], filtered), filtered))


@exact_products()
def sample_posterior(model: StateSpaceMatrices, key: Key, filtered: GaussianMoments) -> jax.Array:
    """One path from the posterior, shape `(T, n)`, backwards from what the filter gave; `key` is consumed."""

    def step(later: jax.Array, inputs: tuple[GaussianMoments, jax.Array]) -> tuple[jax.Array, None]:
        state, noise = inputs
        gain, rest = _backward_kernel(model, state)
        mean = state.mean + gain @ (later - model.transition @ state.mean)
        return mean + jnp.linalg.cholesky(rest) @ noise, None

    noise = normal(key, filtered.mean.shape, filtered.mean.dtype)
    last = filtered.mean[-1] + jnp.linalg.cholesky(filtered.covariance[-1]) @ noise[-1]
    return backwards(step, last, (filtered, noise))[0]


def _predict(model: StateSpaceMatrices, state: GaussianMoments) -> GaussianMoments:
    covariance = model.transition @ state.covariance @ model.transition.T + model.state_covariance
    return GaussianMoments(model.transition @ state.mean, covariance)


def _backward_kernel(model: StateSpaceMatrices, state: GaussianMoments) -> tuple[jax.Array, jax.Array]:
    """x_t | x_t+1, y_0, ..., y_t ~ N(m_t + J (x_t+1 - F m_t), V): gain J and covariance V, in Joseph's form."""
    gain = _solve(_predict(model, state).covariance, model.transition @ state.covariance).T
    keep = jnp.eye(gain.shape[0], dtype=gain.dtype) - gain @ model.transition
    return gain, keep @ state.covariance @ keep.T + gain @ model.state_covariance @ gain.T


def _solve(covariance: jax.Array, right: jax.Array) -> jax.Array:
    return cho_solve((jnp.linalg.cholesky(covariance), True), right)
