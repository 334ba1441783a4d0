r"""Kalman filter, Rauch-Tung-Striebel smoother and backward sampling, on the matrices of a model.

$x_0 \sim N(\mu_0, P_0)$, $x_t = F x_{t-1} + N(0, Q)$, $y_t = H x_t + N(0, R)$, with `n` states and `p` observed components.
Covariances are updated in Joseph's form, which keeps them positive in float32 with a vague start such as $P_0 = 10^7$.
A component that is missing has its row of $H$ set to zero and its row and column of $R$ to those of the identity.

References:
    Durbin & Koopman (2012), Time Series Analysis by State Space Methods, 2nd ed., sections 4.3-4.4, 4.9-4.10; Rauch, Tung &
    Striebel (1965), AIAA J. 3, eqs. 3.27-3.30; Fruhwirth-Schnatter (1994), J. Time Series Anal. 15, section 4 (backward sampling).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve

from logderiv.distributions.multivariate_normal import MultivariateNormal, PartlyObserved, mask_covariance

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """`function` with its float32 products taken in full; some accelerators shorten them, and covariances cancel."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return run


class StateSpaceMatrices(NamedTuple):
    r"""A linear-Gaussian state-space model.

    Attributes:
        initial_mean: $\mu_0$, shape `(n,)`.
        initial_covariance: $P_0$, positive definite, shape `(n, n)`.
        transition: $F$, shape `(n, n)`.
        state_covariance: $Q$, positive definite, shape `(n, n)`.
        design: $H$, shape `(p, n)`.
        observation_covariance: $R$, positive definite, shape `(p, p)`.
    """

    initial_mean: jax.Array
    initial_covariance: jax.Array
    transition: jax.Array
    state_covariance: jax.Array
    design: jax.Array
    observation_covariance: jax.Array


class Gaussians(NamedTuple):
    """A Gaussian for each time: mean `(T, n)` and covariance `(T, n, n)`."""

    mean: jax.Array
    covariance: jax.Array


class Filtered(NamedTuple):
    r"""What the filter knows after each observation.

    Attributes:
        states: Of $x_t$ given $y_{0:t}$.
        increments: $\log p(y_t | y_{0:t-1})$, shape `(T,)`; they sum to the log-likelihood.
    """

    states: Gaussians
    increments: jax.Array


class SmoothedStates(NamedTuple):
    r"""What all observations say.

    Attributes:
        states: Of $x_t$ given $y$.
        cross: $\mathrm{Cov}(x_t, x_{t+1} | y)$ for $t = 0, ..., T - 2$, shape `(T - 1, n, n)`.
    """

    states: Gaussians
    cross: jax.Array


@full_precision
def kalman_filter(model: StateSpaceMatrices, observations: jax.Array, observed: jax.Array) -> Filtered:
    """Filtered states and the increments of the log-likelihood.

    Args:
        model: The matrices.
        observations: Shape `(T, p)`.
        observed: Which components are there, shape `(T, p)`, bool.
    """

    def update(mean: jax.Array, covariance: jax.Array, y: jax.Array, seen: jax.Array) -> tuple[Gaussians, jax.Array]:
        design = jnp.where(seen[:, None], model.design, 0)
        noise = mask_covariance(model.observation_covariance, seen)
        loc, spread = design @ mean, design @ covariance @ design.T + noise
        increment = PartlyObserved(loc, spread, seen).log_prob(y)
        gain = _solve(spread, design @ covariance).T
        keep = jnp.eye(mean.shape[0], dtype=mean.dtype) - gain @ design
        residual = jnp.where(seen, y - loc, 0)
        return Gaussians(mean + gain @ residual, keep @ covariance @ keep.T + gain @ noise @ gain.T), increment

    def step(state: Gaussians, inputs: tuple[jax.Array, jax.Array]) -> tuple[Gaussians, Filtered]:
        predicted = _predict(model, state)
        new, increment = update(*predicted, *inputs)
        return new, Filtered(new, increment)

    observations = observations.astype(model.initial_mean.dtype)
    first = Filtered(*update(model.initial_mean, model.initial_covariance, observations[0], observed[0]))
    rest = lax.scan(step, first.states, (observations[1:], observed[1:]))[1]
    return jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), first, rest)


@full_precision
def kalman_smoother(model: StateSpaceMatrices, filtered: Gaussians) -> SmoothedStates:
    """Smoothed states and the covariances of neighbors, backwards from what the filter gave."""

    def back(later: Gaussians, state: Gaussians) -> tuple[Gaussians, tuple[Gaussians, jax.Array]]:
        gain, rest = _backward_kernel(model, state)
        mean = state.mean + gain @ (later.mean - model.transition @ state.mean)
        now = Gaussians(mean, rest + gain @ later.covariance @ gain.T)
        return now, (now, gain @ later.covariance)

    last = jax.tree.map(lambda x: x[-1], filtered)
    states, cross = lax.scan(back, last, jax.tree.map(lambda x: x[:-1], filtered), reverse=True)[1]
    return SmoothedStates(jax.tree.map(lambda xs, x: jnp.concatenate([xs, x[None]]), states, last), cross)


@full_precision
def sample_posterior(model: StateSpaceMatrices, key: jax.Array, filtered: Gaussians) -> jax.Array:
    """One path from the posterior, shape `(T, n)`, backwards from what the filter gave; `key` is consumed."""

    def draw(key: jax.Array, mean: jax.Array, covariance: jax.Array) -> jax.Array:
        return MultivariateNormal(mean, jnp.linalg.cholesky(covariance)).sample(key)

    def back(carry: tuple[jax.Array, jax.Array], state: Gaussians) -> Any:
        key, later = carry
        key, key_state = jax.random.split(key)
        gain, rest = _backward_kernel(model, state)
        now = draw(key_state, state.mean + gain @ (later - model.transition @ state.mean), rest)
        return (key, now), now

    key, key_last = jax.random.split(key)
    last = draw(key_last, filtered.mean[-1], filtered.covariance[-1])
    states = lax.scan(back, (key, last), jax.tree.map(lambda x: x[:-1], filtered), reverse=True)[1]
    return jnp.concatenate([states, last[None]])


def _predict(model: StateSpaceMatrices, state: Gaussians) -> Gaussians:
    covariance = model.transition @ state.covariance @ model.transition.T + model.state_covariance
    return Gaussians(model.transition @ state.mean, covariance)


def _backward_kernel(model: StateSpaceMatrices, state: Gaussians) -> tuple[jax.Array, jax.Array]:
    r"""$x_t | x_{t+1}, y_{0:t} \sim N(m_t + J (x_{t+1} - F m_t), V)$: gain $J$ and covariance $V$, in Joseph's form."""
    gain = _solve(_predict(model, state).covariance, model.transition @ state.covariance).T
    keep = jnp.eye(gain.shape[0], dtype=gain.dtype) - gain @ model.transition
    return gain, keep @ state.covariance @ keep.T + gain @ model.state_covariance @ gain.T


def _solve(covariance: jax.Array, right: jax.Array) -> jax.Array:
    return cho_solve((jnp.linalg.cholesky(covariance), True), right)
