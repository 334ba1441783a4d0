r"""Stochastic differential equations by Euler-Maruyama, as an environment and a policy; Girsanov's weights; exact oracles.

$dX = f_\theta(X, t)\, dt + \sigma(X)\, dW$ in steps of `dt` is the chain $X_{k+1} \sim N(X_k + f_\theta(X_k, t_k)\, dt,\ \sigma(X_k)^2 dt)$, $t_k = k\, dt$, whose
density is known. The action of step k *is* $X_{k+1}$. Everything here is exact for the chain; how far the chain is from the
equation is another question, which `dt` answers.

Two drifts $f, g$ with the *same* noise give two densities whose ratio is a finite number, Girsanov's formula for the chain:

$$\log\frac{p_f}{p_g} = \sum_k \frac{(f - g)\,(\Delta X - g\, dt)}{\sigma^2} - \frac{(f - g)^2}{2 \sigma^2}\, dt.$$

Paths drawn with `g` are thereby weighted into paths of `f`: the log-ratios of `logderiv.log_ratios` are these terms, so that every
`importance_*` applies. With another noise the limit $dt \to 0$ has no density, and with no noise there is none at all.

References:
    Maruyama (1955), Rend. Circ. Mat. Palermo 4, 48-90; Girsanov (1960), Theory Probab. Appl. 5, 285-301; Yang & Kushner (1991), SIAM J. Control
    Optim. 29, 1216-1249, for the score of a diffusion.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from logderiv._core.arrays import is_traced
from logderiv.distributions.basic import Normal
from logderiv.likelihood.factors import fill_invalid
from logderiv.types import Step, Trajectory, check_trajectory

Drift = Callable[[Any, jax.Array, jax.Array], jax.Array]
Function = Callable[[jax.Array], jax.Array]


class Position(NamedTuple):
    """One observation: where, `x` of shape `()` or `(D,)`, and when, `time` of shape `()`."""

    x: jax.Array
    time: jax.Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class EulerPolicy:
    r"""One step of an `EulerMaruyama` process: from a `Position` to $N(x + f_\theta(x, t)\, dt, \sigma(x)^2 dt)$.

    Attributes:
        drift: `(params, x, t) -> f`, of the shape of `x`.
        noise: $\sigma$, as in `EulerMaruyama`.
        dt: Step.
    """

    drift: Drift
    noise: Any
    dt: float

    initial_carry = None
    log_factors = None

    def apply(self, params: Any, observation: Position) -> Normal:
        """The distribution of the next position.

        Raises:
            ValueError: The drift has another shape than `x`.
        """
        x, time = observation
        drift = jnp.asarray(self.drift(params, x, time))
        if drift.shape != x.shape:
            raise ValueError(f"drift: expected the shape of x, {x.shape}, received {drift.shape}.")
        return Normal(x + drift * self.dt, self.sigma(x) * math.sqrt(self.dt))

    def sigma(self, x: jax.Array) -> jax.Array:
        r"""$\sigma(x)$, of the shape of `x`."""
        sigma: Any = self.noise(x) if callable(self.noise) else jnp.asarray(self.noise, x.dtype)
        return jnp.broadcast_to(sigma, x.shape)


def last_position(x: jax.Array) -> jax.Array:
    """`x`, or its first component: the default reward at the end."""
    return x.reshape(-1)[0]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class EulerMaruyama:
    r"""A diffusion in steps of `dt`; its return is $F(X_T) + \sum_{k<T} G(X_k)\, dt$ with `T = horizon`.

    An environment (`reset`, `step`) whose member `policy` carries all that is random:
    `ld.rollout(params, keys, process.policy, process)`. The observations are `Position`, the actions next positions. It terminates
    after `horizon` steps; a shorter rollout is reported as truncated_fraction.

    Attributes:
        drift: $f$: `(params, x, t)` to the shape of `x`; define or wrap it once, since processes compare by their fields.
        noise: $\sigma > 0$, which does not depend on the parameters: a number, one number per dimension, or a function of `x` to its shape.
        initial: $X_0$: a number, or `D` numbers.
        dt: Step, positive.
        horizon: Number of steps.
        terminal: $F$: from `x` to a number, paid with the last step.
        running: $G$, or `None`. Rewards are constants to every estimator.

    Raises:
        ValueError: The noise vanishes or is negative (at `initial`, where it is a function: elsewhere log-probabilities become
            NaN); `dt` or `horizon` is not positive; shapes disagree.

    Example:
        >>> import jax, jax.numpy as jnp, logderiv as ld
        >>> well = ld.processes.double_well(dt=0.1, horizon=20)
        >>> params = jnp.array([1.0, 1.0])
        >>> taus = ld.rollout(params, jax.random.split(jax.random.key(0), 5), well.policy, well)
        >>> ld.log_prob(params, well.policy, taus).shape
        (5,)
    """

    drift: Drift
    noise: Any
    initial: Any
    dt: float
    horizon: int
    terminal: Function = last_position
    running: Function | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "initial", _numbers("initial", self.initial))
        if not callable(self.noise):
            object.__setattr__(self, "noise", _numbers("noise", self.noise))
            if np.shape(self.noise) not in ((), np.shape(self.initial)):
                raise ValueError(
                    f"EulerMaruyama.noise: expected one number, or as many as initial, {np.shape(self.initial)}, received {self.noise}."
                )
        if not (0 < self.dt < math.inf and isinstance(self.horizon, int) and self.horizon >= 1):
            raise ValueError(
                f"EulerMaruyama: expected dt > 0 and a whole number horizon >= 1, received {self.dt} and {self.horizon}."
            )
        with jax.ensure_compile_time_eval():
            sigma = self.policy.sigma(jnp.asarray(self.initial, jnp.zeros(()).dtype))
        if not is_traced(sigma) and not np.all((np.asarray(sigma) > 0) & np.isfinite(sigma)):
            raise ValueError(
                f"EulerMaruyama.noise: expected sigma > 0, received {np.asarray(sigma)} at the start; without noise the path has no "
                "density and no score. Leave out what is deterministic."
            )

    @property
    def policy(self) -> EulerPolicy:
        """The random choices."""
        return EulerPolicy(self.drift, self.noise, self.dt)

    def reset(self, key: jax.Array, params: Any = None) -> tuple[Position, tuple[jax.Array, jax.Array]]:
        """The start; `key` is not used."""
        del key, params
        x = jnp.asarray(self.initial, jnp.zeros(()).dtype)
        return Position(x, jnp.zeros((), x.dtype)), (x, jnp.int32(0))

    def step(self, key: jax.Array, state: tuple[jax.Array, jax.Array], action: jax.Array, params: Any = None) -> Step:
        """The action becomes the position; `key` is not used."""
        del key, params
        x, count = state
        count = count + 1
        ended = count >= self.horizon
        reward = jnp.where(ended, self.terminal(action).astype(x.dtype), 0)
        if self.running is not None:
            reward = reward + self.running(x).astype(x.dtype) * self.dt
        new = action.astype(x.dtype)
        return Step(Position(new, self._time(count, x.dtype)), (new, count), reward, ended, jnp.zeros((), bool))

    def log_initial(self, trajectory: Trajectory) -> jax.Array:
        """0: the start is fixed."""
        return jnp.zeros((), trajectory.rewards.dtype)

    def log_factors(self, trajectory: Trajectory) -> jax.Array:
        """0, shape `(T,)`: the actions are the path."""
        return jnp.zeros_like(trajectory.rewards)

    def _time(self, count: Any, dtype: Any) -> jax.Array:
        return jnp.asarray(count).astype(dtype) * self.dt


def double_well_drift(params: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
    r"""$-V'(x)$ of $V(x) = -\tfrac a2 x^2 + \tfrac b4 x^4$, component by component; `params` $= (a, b)$, minima at $\pm\sqrt{a/b}$."""
    del t
    return params[0] * x - params[1] * x**3


def double_well(
    *, noise: Any = 0.5, initial: Any = -1.0, dt: float = 0.05, horizon: int = 100, **options: Any
) -> EulerMaruyama:
    """`EulerMaruyama` with `double_well_drift`; `**options` are `terminal` and `running`."""
    return EulerMaruyama(double_well_drift, noise, initial, dt, horizon, **options)


def ornstein_uhlenbeck_drift(params: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
    r"""$\kappa (m - x)$, component by component; `params` $= (\kappa, m)$."""
    del t
    return params[0] * (params[1] - x)


def ornstein_uhlenbeck(
    *, noise: Any = 0.5, initial: Any = 0.0, dt: float = 0.05, horizon: int = 100, **options: Any
) -> EulerMaruyama:
    """`EulerMaruyama` with `ornstein_uhlenbeck_drift`; `**options` are `terminal` and `running`."""
    return EulerMaruyama(ornstein_uhlenbeck_drift, noise, initial, dt, horizon, **options)


def ornstein_uhlenbeck_moments(params: jax.Array, process: EulerMaruyama) -> tuple[jax.Array, jax.Array]:
    r"""Mean and variance of $X_T$ of an `ornstein_uhlenbeck` chain, exactly: it is Gaussian.

    $m + q^T (x_0 - m)$ and $\sigma^2 dt \sum_{k<T} q^{2k}$ with $q = 1 - \kappa\, dt$; shapes of `initial`.

    Args:
        params: $(\kappa, m)$.
        process: With constant noise.

    Returns:
        Differentiable in `params` at any order.

    Raises:
        ValueError: Another drift, or noise that depends on `x`.
    """
    if process.drift is not ornstein_uhlenbeck_drift or callable(process.noise):
        raise ValueError("ornstein_uhlenbeck_moments: expected an ornstein_uhlenbeck process with constant noise.")
    start = jnp.asarray(process.initial, params.dtype)
    decay = 1 - params[0] * process.dt
    mean = params[1] + decay**process.horizon * (start - params[1])
    powers = lax.scan(lambda power, _: (power * decay**2, power), jnp.ones_like(decay), length=process.horizon)[1]
    return mean, process.policy.sigma(start) ** 2 * process.dt * jnp.sum(powers)


def transfer_value(
    params: Any, process: EulerMaruyama, *, low: float, high: float, num_points: int | None = None
) -> jax.Array:
    r"""The expected return of a one-dimensional chain by its transfer operator, on a grid from `low` to `high`.

    $v_k(x) = G(x)\, dt + \int N(y;\, x + f\, dt,\, \sigma^2 dt)\, v_{k+1}(y)\, dy$ backwards from $v_T = F$, the integrals by the trapezoidal rule. For
    smooth rewards its error falls like $\exp(-2 \pi^2 s^2 / h^2)$ in the spacing `h` against the width $s = \sigma \sqrt{dt}$: to rounding at $h < 0.7 s$.
    The probability that the path leaves the interval is lost, so choose it wide.

    Args:
        params: Parameters of the drift.
        process: In one dimension: `initial` a number.
        low: Left end.
        high: Right end.
        num_points: Of the grid; `None` for a spacing of half the width at the start, right for constant noise.

    Returns:
        A scalar, differentiable in `params` at any order. Use float64.

    Raises:
        ValueError: More than one dimension, or the start outside the interval.
    """
    if np.ndim(process.initial) != 0 or not low < process.initial < high:
        raise ValueError(
            f"transfer_value: expected a number as initial, between low and high, received {process.initial}, {low}, {high}."
        )
    dtype = jnp.zeros(()).dtype
    start = jnp.asarray(process.initial, dtype)
    if num_points is None:
        with jax.ensure_compile_time_eval():
            width = float(process.policy.sigma(start)) * math.sqrt(process.dt)
        num_points = math.ceil(2 * (high - low) / width) + 1
    grid = jnp.linspace(low, high, num_points, dtype=dtype)
    weights = jnp.full(num_points, (high - low) / (num_points - 1), dtype).at[jnp.array([0, -1])].multiply(0.5)
    running = process.running or jnp.zeros_like

    def expected(x: jax.Array, count: Any, values: jax.Array) -> jax.Array:
        step = process.policy.apply(params, Position(x, process._time(count, dtype)))
        density = jnp.exp(jax.vmap(step.log_prob)(grid))
        return running(x) * process.dt + density @ (weights * values)

    def back(values: jax.Array, count: jax.Array) -> tuple[jax.Array, None]:
        return jax.vmap(expected, (0, None, None))(grid, count, values), None

    values = jax.vmap(process.terminal)(grid)
    values, _ = lax.scan(back, values, jnp.arange(process.horizon - 1, 0, -1))
    return expected(start, 0, values)


def girsanov_log_ratios(
    params: Any,
    process: EulerMaruyama,
    trajectories: Trajectory,
    *,
    reference_params: Any,
    reference: EulerMaruyama | None = None,
) -> jax.Array:
    r"""Girsanov's log-weights per step of paths drawn from `reference`; 0 on invalid steps.

    $\log p_f - \log p_g = ((f - g)(\Delta X - g\, dt) - \tfrac12 (f - g)^2 dt) / \sigma^2$, summed over dimensions: what `logderiv.log_ratios` finds from the two
    densities, without their normalizers and without cancellation.

    Args:
        params: Parameters of `process`.
        process: With the drift $f$ that is weighted to.
        trajectories: Drawn from `reference`; leading axes `(*batch, T)`.
        reference_params: Parameters of `reference`.
        reference: With the drift $g$; `None` for that of `process`.

    Returns:
        Shape `(*batch, T)`. The weight of a path is the exponential of the sum over steps.

    Raises:
        ValueError: The two differ in noise or step: their paths then have no finite weight as `dt` goes to 0.

    Gradients: flow through both parameters. Nothing is detached.
    """
    reference = process if reference is None else reference
    if process.noise != reference.noise or process.dt != reference.dt:
        raise ValueError(
            f"girsanov_log_ratios: expected two drifts with the same noise and dt, received noise {process.noise} and "
            f"{reference.noise}, dt {process.dt} and {reference.dt}."
        )
    batch, _ = check_trajectory(trajectories)

    def one(observation: Position, action: jax.Array) -> jax.Array:
        x, time = observation
        f, g = process.drift(params, x, time), reference.drift(reference_params, x, time)
        scale = reference.policy.sigma(x)
        innovation = action - x - g * process.dt
        return jnp.sum(((f - g) * innovation - (f - g) ** 2 * (0.5 * process.dt)) / scale**2)

    for _ in range(len(batch) + 1):
        one = jax.vmap(one)
    safe = fill_invalid(trajectories)
    terms = one(safe.observations, safe.actions)
    return jnp.where(trajectories.valid, terms, jnp.zeros((), terms.dtype))


def _numbers(name: str, value: Any) -> Any:
    """A float, or a tuple of floats, which compare and hash."""
    array = np.asarray(value, float)
    if array.ndim > 1 or array.size == 0:
        raise ValueError(f"EulerMaruyama.{name}: expected a number or D numbers, received {value!r}.")
    return float(array) if array.ndim == 0 else tuple(float(x) for x in array)
