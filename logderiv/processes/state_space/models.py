"""Linear-Gaussian state-space models: their likelihood by the Kalman filter, its score by Fisher's identity.

A model turns its parameters into matrices (`matrices`); everything else follows. `LinearGaussian` has them all as
parameters, `LocalLevel` is the random walk plus noise. One of your own is a subclass with one method:

    class Damped(ld.processes.StateSpaceModel):
        def matrices(self, params): return ld.processes.StateSpaceMatrices(...)

Register it, `jax.tree_util.register_static(Damped)`, where it is to pass through `jax.jit` as an argument.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve
from jax.tree_util import Partial

from logderiv._core import check
from logderiv._core.arrays import HALF_LOG_2PI, expand, numbers, summable
from logderiv._core.products import exact_products, precision_of
from logderiv._core.pytrees import pytree
from logderiv.distributions import MultivariateNormal, PartlyObserved, covariance_from
from logderiv.distributions.multivariate import mask_covariance
from logderiv.processes.base import GaussianMoments, Previous, no_reward
from logderiv.processes.state_space import kalman
from logderiv.processes.state_space.hidden import Emitting, Filtered, HiddenProcess, Smoothed
from logderiv.processes.state_space.kalman import StateSpaceMatrices
from logderiv.types import Key

_STRUCTURE = ("num_states", "num_observed", "reward", "horizon")


@pytree(static=_STRUCTURE)
class StateSpaceModel(HiddenProcess):
    """Base of linear-Gaussian state-space models as processes: step `t` draws `(x_t, y_t)`, shapes `(n,)` and `(p,)`.

    A series has shape `(T, p)`, or `(T,)` where `p` is 1, its mask `(T,)` or, by components, `(T, p)`. In `expected_log_joint`,
    with S = E[r rᵀ | y] summed over the k residuals r of one kind (start, transitions, emissions) and their covariance C, each
    kind contributes -(tr(C⁻¹ S) + k log det(2π C)) / 2.

    Attributes:
        num_states: `n`.
        num_observed: `p`.
        reward: Function of `(x_t, y_t)`.
        horizon: Default number of steps of a rollout.
    """

    _: dataclasses.KW_ONLY
    num_states: int = 1
    num_observed: int = 1
    reward: Callable[[Any], jax.Array] = no_reward
    horizon: int | None = None

    def matrices(self, params: Any) -> StateSpaceMatrices:
        """The matrices of the model, which a subclass defines.

        Args:
            params: Parameters.

        Returns:
            The matrices at `params`, differentiable in them; shapes follow from `num_states` and `num_observed`.
        """
        raise NotImplementedError

    def first(self) -> Previous:
        return Previous(jnp.zeros(self.num_states), jnp.ones((), bool), jnp.ones(self.num_observed, bool))

    def transition(self, params: Any, observation: Previous) -> Emitting:
        model, observed = self._matrices(params), observation.observed
        previous = observation.state.astype(model.transition.dtype)
        moved = jnp.matmul(model.transition, previous, precision=precision_of())
        loc = jnp.where(observation.start, model.initial_mean, moved)
        covariance = jnp.where(observation.start, model.initial_covariance, model.state_covariance)
        state = MultivariateNormal(loc, jnp.linalg.cholesky(covariance))
        return Emitting(state, Partial(_emission, model.design, model.observation_covariance, observed), observed)

    def _filter(self, params: Any, observations: jax.Array, observed: jax.Array) -> Filtered:
        return kalman.kalman_filter(self._matrices(params), observations, observed)

    def _smooth(self, params: Any, filtered: GaussianMoments) -> Smoothed:
        return kalman.kalman_smoother(self._matrices(params), filtered)

    def _sample(self, params: Any, key: Key, filtered: GaussianMoments) -> jax.Array:
        return kalman.sample_posterior(self._matrices(params), key, filtered)

    def _expected(self, params: Any, posterior: Smoothed, observations: jax.Array, seen: jax.Array) -> jax.Array:
        return _expected_log_joint(self._matrices(params), posterior, observations, seen)

    def fill(self, observations: jax.Array, observed: Any) -> tuple[jax.Array, jax.Array]:
        """Observations with zeros where they are missing, and the mask.

        Args:
            observations: Shape `(T, p)`, or `(T,)` where `p` is 1.
            observed: False where an observation, or a component of it, is missing; shape `(T,)` or `(T, p)`; `None` for none
                missing.

        Returns:
            Observations and mask, both `(T, p)`.

        Raises:
            ValueError: Shapes disagree.
        """
        y = summable(observations, "observations")
        y = y[:, None] if y.ndim == 1 and self.num_observed == 1 else y
        check.shape((check.rows("observations", y), self.num_observed), observations=y, hint="use jax.vmap for a batch")
        seen = jnp.ones(y.shape, bool) if observed is None else summable(observed, "observed") != 0
        if seen.shape not in (y.shape, y.shape[:1]):
            raise ValueError(f"observed: expected shape {y.shape[:1]} or {y.shape}, received {seen.shape}.")
        seen = jnp.broadcast_to(expand(seen, y), y.shape)
        return jnp.where(seen, y, 0), seen

    def _matrices(self, params: Any) -> StateSpaceMatrices:
        model, n, p = numbers(self.matrices(params), "matrices"), self.num_states, self.num_observed
        hint = f"num_states = {n}, num_observed = {p}; start, transition and design must agree"
        check.fields("", model, hint=hint, initial_mean=(n,), initial_covariance=(n, n), transition=(n, n))
        check.fields("", model, hint=hint, state_covariance=(n, n), design=(p, n), observation_covariance=(p, p))
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


@pytree(static=_STRUCTURE)
class LinearGaussian(StateSpaceModel):
    """The model with every matrix a parameter: `LinearGaussianParams`, covariances by their log-Cholesky matrices.

    Attributes:
        num_states: `n`.
        num_observed: `p`.
        reward: Function of `(x_t, y_t)`.
        horizon: Default number of steps of a rollout.
    """

    def matrices(self, params: LinearGaussianParams) -> StateSpaceMatrices:
        mean, start, transition, state, design, noise = numbers(params)
        start, state, noise = map(covariance_from, (start, state, noise))
        return StateSpaceMatrices(mean, start, transition, state, design, noise)


class LocalLevelParams(NamedTuple):
    """Logarithms of the two variances, shapes `()`.

    Attributes:
        log_observation_variance: log σ_ε².
        log_level_variance: log σ_η².
    """

    log_observation_variance: jax.Array
    log_level_variance: jax.Array


@pytree(static=_STRUCTURE)
class LocalLevel(StateSpaceModel):
    """Random walk plus noise: y_t = μ_t + N(0, σ_ε²), μ_t = μ_t-1 + N(0, σ_η²).

    `params` are `LocalLevelParams`. The prior of the first level is known; its two numbers are pytree leaves.

    Attributes:
        initial_mean: Mean of μ_0.
        initial_variance: Its variance; large for a vague start.
        num_states: 1.
        num_observed: 1.
        reward: Function of `(x_t, y_t)`.
        horizon: Default number of steps of a rollout.

    Raises:
        ValueError: `initial_mean` is not finite, or `initial_variance` not positive and finite.

    References:
        Durbin & Koopman (2012), Time Series Analysis by State Space Methods, 2nd ed., eq. 2.3.
    """

    initial_mean: Any = 0.0
    initial_variance: Any = 1e7

    def __post_init__(self) -> None:
        check.finite(initial_mean=self.initial_mean)
        check.positive(finite=True, initial_variance=self.initial_variance)

    def matrices(self, params: LocalLevelParams) -> StateSpaceMatrices:
        noise, level = (jnp.exp(x).reshape(1, 1) for x in numbers(params))
        known = numbers((self.initial_mean, self.initial_variance), "prior")
        mean, variance = jnp.full_like(noise[0], known[0]), jnp.full_like(noise, known[1])
        one = jnp.ones_like(noise)
        return StateSpaceMatrices(mean, variance, one, level, one, noise)


def _emission(design: jax.Array, covariance: jax.Array, observed: jax.Array, state: jax.Array) -> PartlyObserved:
    return PartlyObserved(jnp.matmul(design, state, precision=precision_of()), covariance, observed)


@exact_products()
def _expected_log_joint(
    model: StateSpaceMatrices, posterior: Smoothed, observations: jax.Array, seen: jax.Array
) -> jax.Array:
    means, covariances = posterior.states
    length, size = means.shape
    start = means[0] - model.initial_mean
    moves = means[1:] - means[:-1] @ model.transition.T
    moved = model.transition @ posterior.pairs  # Cov(F x_t, x_{t+1})
    spread = model.transition @ covariances[:-1] @ model.transition.T
    spread += covariances[1:] - moved - jnp.swapaxes(moved, 1, 2)

    def emission(y: jax.Array, mean: jax.Array, covariance: jax.Array, seen: jax.Array) -> jax.Array:
        design = jnp.where(seen[:, None], model.design, 0)
        residual = jnp.where(seen, y - design @ mean, 0)
        noise = mask_covariance(model.observation_covariance, seen)
        squares = jnp.outer(residual, residual) + design @ covariance @ design.T
        return _expected_log_density(noise, squares, 1, jnp.sum(seen, dtype=y.dtype))

    emitted = jax.vmap(emission)(observations.astype(means.dtype), means, covariances, seen)
    squares = moves.T @ moves + jnp.sum(spread, axis=0)
    return (
        _expected_log_density(model.initial_covariance, jnp.outer(start, start) + covariances[0], 1, size)
        + _expected_log_density(model.state_covariance, squares, length - 1, (length - 1) * size)
        + jnp.sum(emitted)
    )


def _expected_log_density(covariance: jax.Array, squares: jax.Array, count: int, size: int | jax.Array) -> jax.Array:
    """Of `count` residuals with `size` observed components in all and the sum of expected outer products `squares`."""
    scale = jnp.linalg.cholesky(covariance)
    logs = 2 * count * jnp.sum(jnp.log(jnp.diagonal(scale))) + 2 * HALF_LOG_2PI * size
    return -0.5 * (jnp.trace(cho_solve((scale, True), squares)) + logs)
