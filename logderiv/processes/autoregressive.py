"""AR(1): x_t = φ x_t-1 + σ ε_t with standard normal ε_t."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from logderiv._core import check
from logderiv._core.arrays import HALF_LOG_2PI, numbers, summable, widest
from logderiv._core.pytrees import pytree
from logderiv.distributions.normal import Normal
from logderiv.processes.base import GaussianMoments, Previous, Process


class AutoregressiveParams(NamedTuple):
    """Natural parameters; a stationary start needs |φ| < 1 and is NaN elsewhere.

    Attributes:
        coefficient: φ, shape `()`.
        log_scale: log σ, shape `()`.
    """

    coefficient: jax.Array
    log_scale: jax.Array


@pytree(static=("reward", "horizon"))
class Autoregressive(Process):
    """AR(1) as a process: step `t` draws x_t.

    Attributes:
        initial: `None` for a stationary start, x_0 ~ N(0, σ² / (1 - φ²)): the exact likelihood. A number for a known value
            x_-1 before the first, x_0 ~ N(φ x_-1, σ²): the conditional likelihood.
        reward: Function of the value drawn.
        horizon: Default number of steps of a rollout.

    Example:
        >>> import jax, jax.numpy as jnp, logderiv as ld
        >>> process = ld.processes.Autoregressive()
        >>> params = ld.processes.AutoregressiveParams(jnp.array(0.5), jnp.array(0.0))
        >>> tau = process.trajectory(jnp.array([1.0, -1.0, 2.0]))
        >>> bool(jnp.allclose(ld.log_prob(params, process.policy, tau), process.log_likelihood(params, tau.actions)))
        True

    References:
        Hamilton (1994), Time Series Analysis, section 5.2: the exact and the conditional likelihood.
    """

    initial: Any = None
    reward: Callable[[jax.Array], jax.Array] = jnp.square
    horizon: int | None = None

    def first(self) -> Previous:
        stationary = self.initial is None
        before = summable(0.0 if stationary else self.initial, "initial")
        return Previous(before.astype(float), jnp.asarray(stationary))

    def transition(self, params: AutoregressiveParams, observation: Previous) -> Normal:
        params = numbers(params)
        phi, scale = params.coefficient, jnp.exp(params.log_scale)
        _, precision = self._before(phi)
        loc = phi * observation.state.astype(phi.dtype)
        return Normal(loc, jnp.where(observation.start, scale / jnp.sqrt(precision), scale))

    def advance(self, state: Previous, action: jax.Array) -> tuple[Previous, jax.Array, bool]:
        return state.then(action), self.reward(summable(action, "action")), False

    def log_likelihood(self, params: AutoregressiveParams, series: jax.Array) -> jax.Array:
        """Log-likelihood of a series in closed form: what `ld.log_prob` must give.

            -T log(2π) / 2 - T log σ - S / (2 σ²),   S = Σ_t (x_t - φ x_t-1)²;

        a stationary start adds log(1 - φ²) / 2 and has (1 - φ²) x_0² as the first square.

        Args:
            params: φ and log σ.
            series: x_0, ..., x_T-1, shape `(T,)`; `jax.vmap` for a batch.

        Returns:
            Shape `()`; NaN where a stationary start has |φ| ≥ 1.

        Raises:
            ValueError: `series` has another number of axes than one, or no value.
        """
        (phi, log_scale), series = numbers(params), summable(series, "series")
        if series.ndim != 1 or series.shape[0] == 0:
            raise ValueError(f"series: expected shape (T,), T >= 1, received {series.shape}; use jax.vmap for a batch.")
        series = series.astype(widest(series.dtype, phi.dtype))
        before, precision = self._before(phi)
        errors = series - phi * jnp.concatenate([before[None].astype(series.dtype), series[:-1]])
        squares = jnp.sum(jnp.square(errors).at[0].multiply(precision)) * jnp.exp(-2 * log_scale)
        return 0.5 * (jnp.log(precision) - squares) - series.shape[0] * (HALF_LOG_2PI + log_scale)

    def fisher_information(self, params: AutoregressiveParams, horizon: int) -> jax.Array:
        """Fisher information of `T` values in (φ, log σ).

        I_φφ = Σ_t<T E[x_t-1²] / σ², I_φσ = 0, I_σσ = 2 T; with a stationary start I_φφ = (T - 1) / (1 - φ²) + 2 φ² / (1 - φ²)²
        and I_φσ = 2 φ / (1 - φ²).

        Args:
            params: φ and log σ.
            horizon: `T`.

        Returns:
            Shape `(2, 2)`.

        Raises:
            ValueError: `horizon` is no whole number from 1.
        """
        params = numbers(params)
        phi, precision = params.coefficient, jnp.exp(-2 * params.log_scale)
        horizon = check.whole(horizon=horizon)
        mean, covariance = self.moments(params, horizon)
        squares = jnp.square(self._before(phi)[0]) + jnp.sum((jnp.square(mean) + jnp.diagonal(covariance))[:-1])
        slope = jax.grad(lambda phi: -0.5 * jnp.log(self._before(phi)[1]))(phi)  # of the logarithm of the first scale
        return jnp.array([[precision * squares + 2 * slope**2, 2 * slope], [2 * slope, 2 * horizon]], phi.dtype)

    def moments(self, params: AutoregressiveParams, horizon: int) -> GaussianMoments:
        """Mean and covariance of x_0, ..., x_T-1, from which any expected quadratic follows.

        Cov(x_s, x_t) = φ^|t-s| Var(x_min(s,t)), with Var(x_t) = σ² / (1 - φ²) for a stationary start and σ² Σ_k≤t φ²ᵏ for a
        known one.

        Args:
            params: φ and log σ.
            horizon: `T`.

        Returns:
            Mean `(T,)` and covariance `(T, T)`.

        Raises:
            ValueError: `horizon` is no whole number from 1.
        """
        phi, log_scale = numbers(params)
        before, precision = self._before(phi)
        horizon = check.whole(horizon=horizon)
        powers = jnp.cumprod(jnp.full(horizon, phi))  # phi^1, ..., phi^T
        lags = jnp.concatenate([jnp.ones(1, powers.dtype), powers[:-1]])
        variance = jnp.cumsum(jnp.square(lags)) + jnp.square(lags) * (1 / precision - 1)
        s, t = jnp.arange(horizon)[:, None], jnp.arange(horizon)[None]
        covariance = lags[jnp.abs(s - t)] * variance[jnp.minimum(s, t)] * jnp.exp(2 * log_scale)
        return GaussianMoments(powers * before, covariance)

    def _before(self, phi: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What stands before the first value, 0 at a stationary start, and the first precision relative to that of a step."""
        if self.initial is None:
            return jnp.zeros_like(phi), 1 - jnp.square(phi)
        return summable(self.initial, "initial").astype(phi.dtype), jnp.ones_like(phi)
