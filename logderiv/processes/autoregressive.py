r"""AR(1): $x_t = \phi x_{t-1} + \sigma \epsilon_t$ with standard normal $\epsilon_t$."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from logderiv.distributions.basic import Normal
from logderiv.processes.base import AutonomousProcess, Previous


class AutoregressiveParams(NamedTuple):
    r"""Natural parameters; a stationary start needs $|\phi| < 1$ and is NaN elsewhere.

    Attributes:
        coefficient: $\phi$, shape `()`.
        log_scale: $\log\sigma$, shape `()`.
    """

    coefficient: jax.Array
    log_scale: jax.Array


class GaussianMoments(NamedTuple):
    """Mean `(T,)` and covariance `(T, T)` of a path."""

    mean: jax.Array
    covariance: jax.Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Autoregressive(AutonomousProcess):
    r"""AR(1) as a process: step `t` draws $x_t$.

    Attributes:
        initial: `None` for a stationary start, $x_0 \sim N(0, \sigma^2 / (1 - \phi^2))$: the exact likelihood. A number for
            a known value $x_{-1}$ before the first, $x_0 \sim N(\phi x_{-1}, \sigma^2)$: the conditional likelihood.
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

    initial: float | None = None
    reward: Callable[[jax.Array], jax.Array] = jnp.square
    horizon: int | None = None

    def first(self) -> Previous:
        """The value before the first, or a start."""
        return Previous(jnp.asarray(self.initial or 0.0, jnp.zeros(()).dtype), jnp.asarray(self.initial is None))

    def law(self, params: AutoregressiveParams, observation: Previous) -> Normal:
        """The law of the next value."""
        phi, scale = params.coefficient, jnp.exp(params.log_scale)
        if self.initial is not None:
            return Normal(phi * observation.state.astype(phi.dtype), scale)
        loc = jnp.where(observation.start, 0, phi * observation.state.astype(phi.dtype))
        return Normal(loc, jnp.where(observation.start, scale / jnp.sqrt(1 - jnp.square(phi)), scale))

    def log_likelihood(self, params: AutoregressiveParams, series: jax.Array) -> jax.Array:
        r"""Log-likelihood of a series `(T,)` in closed form: what `ld.log_prob` must give.

        $-\tfrac T2 \log 2\pi - T\log\sigma - \tfrac{S}{2\sigma^2}$ with $S = \sum_t (x_t - \phi x_{t-1})^2$; a stationary start
        adds $\tfrac12\log(1 - \phi^2)$ and has $(1 - \phi^2) x_0^2$ as the first square.
        """
        phi, log_scale = params
        squares, _ = self._sums(phi, series)
        fixed = 0.5 * jnp.log1p(-jnp.square(phi)) if self.initial is None else 0
        length = series.shape[0]
        return fixed - length * (0.5 * math.log(2 * math.pi) + log_scale) - 0.5 * squares * jnp.exp(-2 * log_scale)

    def score(self, params: AutoregressiveParams, series: jax.Array) -> AutoregressiveParams:
        r"""Its derivative in closed form.

        $\sigma^{-2} \sum_t (x_t - \phi x_{t-1}) x_{t-1}$ and $S / \sigma^2 - T$; a stationary start adds
        $\phi x_0^2 / \sigma^2 - \phi / (1 - \phi^2)$ to the first.
        """
        phi, log_scale = params
        precision = jnp.exp(-2 * log_scale)
        squares, products = self._sums(phi, series)
        fixed = phi / (1 - jnp.square(phi)) if self.initial is None else 0
        return AutoregressiveParams(products * precision - fixed, squares * precision - series.shape[0])

    def fisher_information(self, params: AutoregressiveParams, horizon: int) -> jax.Array:
        r"""Fisher information of `T` values in $(\phi, \log\sigma)$, shape `(2, 2)`.

        $I_{\phi\phi} = \sigma^{-2} \sum_{t=0}^{T-1} \mathbb{E} x_{t-1}^2$, $I_{\phi\sigma} = 0$, $I_{\sigma\sigma} = 2T$; with a
        stationary start $I_{\phi\phi} = (T - 1) / (1 - \phi^2) + 2\phi^2 / (1 - \phi^2)^2$ and
        $I_{\phi\sigma} = 2\phi / (1 - \phi^2)$.
        """
        phi, log_scale = params
        rest = 1 - jnp.square(phi)
        both = jnp.full_like(phi, 2 * horizon)
        if self.initial is None:
            cross = 2 * phi / rest
            return jnp.array([[(horizon - 1) / rest + 2 * jnp.square(phi / rest), cross], [cross, both]])
        mean, covariance = self.moments(params, horizon)
        squares = jnp.square(mean) + jnp.diagonal(covariance)
        before = jnp.square(jnp.asarray(self.initial, phi.dtype)) + jnp.sum(squares[:-1])
        return jnp.diag(jnp.stack([before * jnp.exp(-2 * log_scale), both]))

    def moments(self, params: AutoregressiveParams, horizon: int) -> GaussianMoments:
        r"""Mean and covariance of $x_0, \ldots, x_{T-1}$, from which any expected quadratic follows.

        $\mathrm{Cov}(x_s, x_t) = \phi^{|t-s|} \mathrm{Var}\, x_{\min(s,t)}$, with $\mathrm{Var}\, x_t = \sigma^2 / (1 - \phi^2)$ for a
        stationary start and $\sigma^2 \sum_{k \le t} \phi^{2k}$ for a known one.
        """
        phi, log_scale = params
        powers = jnp.cumprod(jnp.full(horizon, phi))  # phi^1, ..., phi^T
        lags = jnp.concatenate([jnp.ones(1, powers.dtype), powers[:-1]])
        if self.initial is None:
            mean, variance = jnp.zeros_like(powers), jnp.full(horizon, 1 / (1 - jnp.square(phi)))
        else:
            mean, variance = powers * self.initial, jnp.cumsum(jnp.square(lags))
        time = jnp.arange(horizon)
        earlier = jnp.minimum(time[:, None], time[None])
        covariance = lags[jnp.abs(time[:, None] - time[None])] * variance[earlier] * jnp.exp(2 * log_scale)
        return GaussianMoments(mean, covariance)

    def _sums(self, phi: jax.Array, series: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The sum of squares `S`, and minus half of its derivative by `phi`."""
        if series.ndim != 1 or series.shape[0] == 0:
            raise ValueError(
                f"series: expected shape (T,) with T >= 1, received {series.shape}; use jax.vmap for a batch."
            )
        errors = series[1:] - phi * series[:-1]
        squares, products = jnp.sum(jnp.square(errors)), jnp.sum(errors * series[:-1])
        if self.initial is None:
            square = jnp.square(series[0])
            return squares + (1 - jnp.square(phi)) * square, products + phi * square
        error = series[0] - phi * self.initial
        return squares + jnp.square(error), products + error * self.initial
