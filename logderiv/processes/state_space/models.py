r"""Linear-Gaussian state-space models: their likelihood by the Kalman filter, its score by Fisher's identity.

A model turns its parameters into matrices (`matrices`); everything else follows. `LinearGaussian` has them all as
parameters, `LocalLevel` is the random walk plus noise. One of your own is a subclass with one method:

    class Damped(ld.processes.StateSpaceModel):
        def matrices(self, params): return ld.processes.StateSpaceMatrices(...)
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve

from logderiv._core.arrays import register_dataclass
from logderiv.distributions.multivariate_normal import (
    MultivariateNormal,
    PartlyObserved,
    covariance_from,
    mask_covariance,
)
from logderiv.processes.base import Previous, no_reward
from logderiv.processes.state_space.hidden import EmittingLaw, HiddenProcess
from logderiv.processes.state_space.kalman import (
    Filtered,
    SmoothedStates,
    StateSpaceMatrices,
    full_precision,
    kalman_filter,
    kalman_smoother,
    sample_posterior,
)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class StateSpaceModel(HiddenProcess):
    """Base of linear-Gaussian state-space models as processes: step `t` draws `(x_t, y_t)`, shapes `(n,)` and `(p,)`.

    Attributes:
        num_states: `n`.
        num_observed: `p`.
        reward: Function of `(x_t, y_t)`.
        horizon: Default number of steps of a rollout.
    """

    num_states: int = 1
    num_observed: int = 1
    reward: Callable[[Any], jax.Array] = no_reward
    horizon: int | None = None

    def matrices(self, params: Any) -> StateSpaceMatrices:
        """The matrices at `params`; differentiable."""
        raise NotImplementedError

    def first(self) -> Previous:
        """No state yet."""
        return Previous(jnp.zeros(self.num_states), jnp.ones((), bool), jnp.ones(self.num_observed, bool))

    def law(self, params: Any, observation: Previous) -> EmittingLaw:
        """The law of the next state and its emission."""
        model = self._matrices(params)
        previous = observation.state.astype(model.transition.dtype)
        loc = jnp.where(observation.start, model.initial_mean, model.transition @ previous)
        covariance = jnp.where(observation.start, model.initial_covariance, model.state_covariance)

        def emission(state: jax.Array) -> PartlyObserved:
            return PartlyObserved(model.design @ state, model.observation_covariance, observation.observed)

        return EmittingLaw(MultivariateNormal(loc, jnp.linalg.cholesky(covariance)), emission, observation.observed)

    def filter(self, params: Any, observations: jax.Array, *, observed: Any = None) -> Filtered:
        """The Kalman filter; arguments as `log_likelihood`."""
        return kalman_filter(self._matrices(params), *self.fill(observations, observed))

    def log_likelihood(self, params: Any, observations: jax.Array, *, observed: Any = None) -> jax.Array:
        r"""$\log p_\theta(y)$ by the Kalman filter, every observation counted.

        Args:
            params: Parameters.
            observations: Shape `(T, p)`, or `(T,)` where `p` is 1.
            observed: False where an observation, or a component of it, is missing; shape `(T,)` or `(T, p)`.

        Returns:
            A scalar.

        Raises:
            ValueError: Shapes disagree.
        """
        return jnp.sum(self.filter(params, observations, observed=observed).increments)

    def smooth(self, params: Any, observations: jax.Array, *, observed: Any = None) -> SmoothedStates:
        """Posterior means and covariances of states and of neighbors; arguments as `log_likelihood`."""
        filtered = self.filter(params, observations, observed=observed)
        return kalman_smoother(self._matrices(params), filtered.states)

    def sample_states(self, params: Any, key: jax.Array, observations: jax.Array, *, observed: Any = None) -> jax.Array:
        """One path from the posterior, shape `(T, n)`; `key` is consumed."""
        filtered = self.filter(params, observations, observed=observed)
        return sample_posterior(self._matrices(params), key, filtered.states)

    @full_precision
    def expected_log_joint(
        self, params: Any, posterior: SmoothedStates, observations: jax.Array, *, observed: Any = None
    ) -> jax.Array:
        r"""Expected complete-data log-density, in closed form from the smoothed moments.

        With $S = \mathbb{E}[r r^\top | y]$ summed over the `k` residuals of one kind (start, transitions, emissions) and their
        covariance $C$, each contributes $-\tfrac12 (\mathrm{tr}(C^{-1} S) + k \log\det 2\pi C)$.
        """
        model = self._matrices(params)
        observations, seen = self.fill(observations, observed)
        means, covariances = posterior.states
        observations = observations.astype(means.dtype)
        transition, design = model.transition, model.design

        start = _outer(means[0] - model.initial_mean) + covariances[0]
        moved = transition @ posterior.cross  # Cov(F x_t, x_{t+1})
        moves = jax.vmap(_outer)(means[1:] - means[:-1] @ transition.T)
        moves += covariances[1:] - moved - jnp.swapaxes(moved, 1, 2) + transition @ covariances[:-1] @ transition.T
        length = means.shape[0]

        def emission(y: jax.Array, mean: jax.Array, covariance: jax.Array, seen: jax.Array) -> jax.Array:
            here = jnp.where(seen[:, None], design, 0)
            square = _outer(jnp.where(seen, y - here @ mean, 0)) + here @ covariance @ here.T
            masked = mask_covariance(model.observation_covariance, seen)
            return _expected_log_density(masked, square, jnp.ones((), y.dtype), jnp.sum(seen, dtype=y.dtype))

        one, count = jnp.ones((), means.dtype), jnp.asarray(length - 1, means.dtype)
        size = jnp.asarray(self.num_states, means.dtype)
        return (
            _expected_log_density(model.initial_covariance, start, one, size)
            + _expected_log_density(model.state_covariance, jnp.sum(moves, axis=0), count, count * size)
            + jnp.sum(jax.vmap(emission)(observations, means, covariances, seen))
        )

    def fill(self, observations: jax.Array, observed: Any) -> tuple[jax.Array, jax.Array]:
        """Observations `(T, p)` with zeros where they are missing, and the mask `(T, p)`."""
        y = jnp.asarray(observations)
        y = y[:, None] if y.ndim == 1 and self.num_observed == 1 else y
        if y.ndim != 2 or y.shape[1] != self.num_observed or y.shape[0] == 0:
            raise ValueError(
                f"observations: expected shape (T, {self.num_observed}) with T >= 1, received {jnp.shape(observations)}; "
                "use jax.vmap for a batch."
            )
        if observed is None:
            return y, jnp.ones(y.shape, bool)
        seen = jnp.asarray(observed, bool)
        if seen.shape not in (y.shape, y.shape[:1]):
            raise ValueError(f"observed: expected shape {y.shape[:1]} or {y.shape}, received {seen.shape}.")
        seen = jnp.broadcast_to(seen.reshape(y.shape[0], -1), y.shape)
        return jnp.where(seen, y, 0), seen

    def _matrices(self, params: Any) -> StateSpaceMatrices:
        model = self.matrices(params)
        n, p = self.num_states, self.num_observed
        shapes = {"initial_mean": (n,), "design": (p, n), "observation_covariance": (p, p)}
        shapes |= dict.fromkeys(("initial_covariance", "transition", "state_covariance"), (n, n))
        for name, shape in shapes.items():
            if jnp.shape(getattr(model, name)) != shape:
                raise ValueError(
                    f"{name}: expected shape {shape} for num_states = {n}, num_observed = {p}, received "
                    f"{jnp.shape(getattr(model, name))}; start, transition and design must agree."
                )
        return model


class LinearGaussianParams(NamedTuple):
    """Parameters of `LinearGaussian`, unconstrained: covariances by their log-Cholesky matrices, see `covariance_from`.

    Attributes:
        initial_mean: Shape `(n,)`.
        initial_log_cholesky: Shape `(n, n)`.
        transition: Shape `(n, n)`.
        state_log_cholesky: Shape `(n, n)`.
        design: Shape `(p, n)`.
        observation_log_cholesky: Shape `(p, p)`.
    """

    initial_mean: jax.Array
    initial_log_cholesky: jax.Array
    transition: jax.Array
    state_log_cholesky: jax.Array
    design: jax.Array
    observation_log_cholesky: jax.Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LinearGaussian(StateSpaceModel):
    """The model with every matrix a parameter: `LinearGaussianParams`."""

    def matrices(self, params: LinearGaussianParams) -> StateSpaceMatrices:
        """Covariances from their log-Cholesky matrices, the rest as it is."""
        return StateSpaceMatrices(
            params.initial_mean,
            covariance_from(params.initial_log_cholesky),
            params.transition,
            covariance_from(params.state_log_cholesky),
            params.design,
            covariance_from(params.observation_log_cholesky),
        )


class LocalLevelParams(NamedTuple):
    r"""Logarithms of the two variances, shapes `()`.

    Attributes:
        log_observation_variance: $\log\sigma_\epsilon^2$.
        log_level_variance: $\log\sigma_\eta^2$.
    """

    log_observation_variance: jax.Array
    log_level_variance: jax.Array


@dataclasses.dataclass(frozen=True)
class LocalLevel(StateSpaceModel):
    r"""Random walk plus noise: $y_t = \mu_t + N(0, \sigma_\epsilon^2)$, $\mu_t = \mu_{t-1} + N(0, \sigma_\eta^2)$.

    `params` are `LocalLevelParams`. The prior of the first level is known; its two numbers are pytree leaves.

    Attributes:
        initial_mean: Mean of $\mu_0$.
        initial_variance: Its variance; large for a vague start.

    References:
        Durbin & Koopman (2012), Time Series Analysis by State Space Methods, 2nd ed., eq. 2.3.
    """

    initial_mean: Any = 0.0
    initial_variance: Any = 1e7

    def matrices(self, params: LocalLevelParams) -> StateSpaceMatrices:
        """One state, one observation."""
        noise, level = (jnp.exp(x).reshape(1, 1) for x in params)
        mean = jnp.full((1,), self.initial_mean, noise.dtype)
        variance = jnp.full((1, 1), self.initial_variance, noise.dtype)
        one = jnp.ones_like(noise)
        return StateSpaceMatrices(mean, variance, one, level, one, noise)


register_dataclass(
    LocalLevel, ("initial_mean", "initial_variance"), ("num_states", "num_observed", "reward", "horizon")
)


def _outer(x: jax.Array) -> jax.Array:
    return x[:, None] * x[None]


def _expected_log_density(covariance: jax.Array, squares: jax.Array, count: jax.Array, size: jax.Array) -> jax.Array:
    """Of `count` residuals with `size` observed components in all and the sum of expected outer products `squares`."""
    scale = jnp.linalg.cholesky(covariance)
    logs = 2 * count * jnp.sum(jnp.log(jnp.diagonal(scale))) + size * jnp.asarray(math.log(2 * math.pi), size.dtype)
    return -0.5 * (jnp.trace(cho_solve((scale, True), squares)) + logs)
