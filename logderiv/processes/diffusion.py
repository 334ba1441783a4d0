"""Stochastic differential equations by Euler-Maruyama, as an environment and a policy; Girsanov's weights; exact oracles.

dX = f(X, t; θ) dt + σ(X) dW in steps of `dt` is the chain

    X_k+1 ~ N(X_k + f(X_k, t_k; θ) dt, σ(X_k)² dt),   t_k = k dt,

whose density is known. The action of step k *is* X_k+1. Everything here is exact for the chain; how far the chain is from
the equation is another question, which `dt` answers.

Two drifts f, g with the *same* noise give two densities whose ratio is a finite number, Girsanov's formula for the chain:

    log(p_f / p_g) = Σ_k (f - g) (ΔX - g dt) / σ² - (f - g)² dt / (2 σ²).

Paths drawn with `g` are thereby weighted into paths of `f`: the log-ratios of `logderiv.importance.log_ratios` are these terms, so that
every importance weighting applies. With another noise the limit dt → 0 has no density, and with no noise there is none at all.

References:
    Maruyama (1955), Rend. Circ. Mat. Palermo 4, 48-90; Girsanov (1960), Theory Probab. Appl. 5, 285-301; Yang & Kushner (1991), SIAM J. Control
    Optim. 29, 1216-1249, for the score of a diffusion.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from logderiv._core import check
from logderiv._core.arrays import as_trajectory, refuse_complex, summable
from logderiv._core.products import precision_of
from logderiv._core.pytrees import pytree
from logderiv.distributions.normal import Normal
from logderiv.likelihood.sequences import per_trajectory
from logderiv.likelihood.steps import fill_invalid
from logderiv.processes.base import Process, first_component, no_reward
from logderiv.types import Params, State, Trajectory

Drift = Callable[[Any, jax.Array, jax.Array], jax.Array]
Function = Callable[[jax.Array], jax.Array]


class Position(NamedTuple):
    """One observation of a diffusion.

    Attributes:
        x: Where. Shape `()` or `(D,)`.
        time: When. Shape `()`.
    """

    x: jax.Array
    time: jax.Array


@pytree(static=("drift", "horizon", "terminal", "running"))
class EulerMaruyama(Process):
    """A diffusion in steps of `dt`; its return is F(X_T) + Σ_k<T G(X_k) dt with `T = horizon`.

    An environment (`reset`, `step`) whose member `policy` carries all that is random:
    `ld.rollout(params, keys, process.policy, process)`. The observations are `Position`, the actions next positions. It terminates
    after `horizon` steps; a shorter rollout is warned of. `initial`, `noise` and `dt` are leaves of the
    pytree: `jax.vmap` maps over them.

    Attributes:
        drift: f: `(params, x, t)` to the shape of `x`; define or wrap it once, since processes compare by their fields.
        noise: σ > 0, which does not depend on the parameters: a number, one number per dimension, or a function of `x` to its shape.
        initial: X_0: a number, or `D` numbers.
        dt: Step, positive.
        horizon: Number of steps.
        terminal: F: from `x` to a number, paid with the last step; by default the first component.
        running: G: from `x` to a number; by default 0. Rewards are constants to every estimator.

    Raises:
        ValueError: The noise vanishes or is negative (at `initial`, where it is a function: elsewhere log-probabilities become
            NaN); `dt` or `horizon` is not positive; shapes disagree.
        TypeError: `dt` is no number.

    Example:
        >>> import jax, jax.numpy as jnp, logderiv as ld
        >>> drift = ld.processes.double_well_drift
        >>> well = ld.processes.EulerMaruyama(drift, noise=0.5, initial=-1.0, dt=0.1, horizon=20)
        >>> params = jnp.array([1.0, 1.0])
        >>> taus = ld.rollout(params, jax.random.split(jax.random.key(0), 5), well.policy, well)
        >>> ld.log_prob(params, well.policy, taus).shape
        (5,)
    """

    drift: Drift
    noise: Any
    initial: Any
    dt: Any
    horizon: int
    terminal: Function = first_component
    running: Function = no_reward

    def __post_init__(self) -> None:
        check.positive(finite=True, dt=self.dt)
        for name in ("initial", "noise"):
            object.__setattr__(self, name, _setting(name, getattr(self, name)))
        with jax.ensure_compile_time_eval():
            start, _ = self.first()
            if not callable(self.noise) and np.ndim(self.noise):
                check.shape(start.shape, noise=jnp.asarray(self.noise), hint="one number, or as many as initial")
            sigma = self.sigma(start)
        hint = "at the start; without noise the path has no density and no score: leave out what is deterministic"
        check.positive(finite=True, hint=hint, noise=sigma)

    def first(self) -> tuple[jax.Array, jax.Array]:
        return jnp.asarray(self.initial, jnp.zeros(()).dtype), jnp.int32(0)

    def observe(self, state: tuple[jax.Array, jax.Array]) -> Position:
        x, count = state
        return Position(x, count.astype(x.dtype) * self._dt(x.dtype))

    def transition(self, params: Params, observation: Position) -> Normal:
        """The distribution of the next position, N(x + f(x, t; θ) dt, σ(x)² dt).

        Args:
            params: Parameters of the drift.
            observation: Where the path is, and when.

        Returns:
            A Normal of the shape of `x`.

        Raises:
            ValueError: The drift has another shape than `x`.
        """
        x, time = observation
        drift, dt = summable(self.drift(params, x, time), "drift").astype(x.dtype), self._dt(x.dtype)
        check.shape(x.shape, drift=drift, hint="that of x")
        return Normal(x + drift * dt, self.sigma(x) * jnp.sqrt(dt))

    def advance(self, state: State, action: jax.Array) -> tuple[State, jax.Array, jax.Array]:
        x, count = state
        ended = count + 1 >= self.horizon
        action = summable(action, "action")
        paid = jnp.where(ended, summable(self.terminal(action), "terminal").astype(x.dtype), 0)
        reward = paid + summable(self.running(x), "running").astype(x.dtype) * self._dt(x.dtype)
        return (action.astype(x.dtype), count + 1), reward, ended

    def sigma(self, x: jax.Array) -> jax.Array:
        """The noise at a position.

        Args:
            x: Position, shape `()` or `(D,)`.

        Returns:
            σ(x), of the shape of `x`.
        """
        x = summable(x, "x")
        sigma = summable(self.noise(x) if callable(self.noise) else self.noise, "noise")
        return jnp.broadcast_to(sigma.astype(x.dtype), x.shape)

    def _dt(self, dtype: Any) -> jax.Array:
        return jnp.asarray(self.dt, dtype)


def double_well_drift(params: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
    """-V'(x) of the double well V(x) = -a x² / 2 + b x⁴ / 4, component by component; its minima are at ±√(a / b).

    Args:
        params: (a, b), shape `(2,)`.
        x: Position, shape `()` or `(D,)`.
        t: Time; not used.

    Returns:
        a x - b x³, of the shape of `x`.
    """
    del t
    params, x = summable(params, "params"), summable(x, "x")
    return params[0] * x - params[1] * x**3


def ornstein_uhlenbeck_drift(params: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
    """κ (m - x), component by component.

    Args:
        params: (κ, m), shape `(2,)`.
        x: Position, shape `()` or `(D,)`.
        t: Time; not used.

    Returns:
        Of the shape of `x`.
    """
    del t
    params, x = summable(params, "params"), summable(x, "x")
    return params[0] * (params[1] - x)


def ornstein_uhlenbeck_moments(params: jax.Array, process: EulerMaruyama) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of X_T of an Ornstein-Uhlenbeck chain, exactly: it is Gaussian.

        m + qᵀ (x_0 - m)   and   σ² dt Σ_k<T q²ᵏ,   q = 1 - κ dt.

    Args:
        params: (κ, m), shape `(2,)`.
        process: With `ornstein_uhlenbeck_drift` and constant noise.

    Returns:
        Mean and variance, each of the shape of `initial`.

    Raises:
        ValueError: Another drift, or noise that depends on `x`.

    Gradients: flow through `params` and the settings of the process, at any order.
    """
    if process.drift is not ornstein_uhlenbeck_drift or callable(process.noise):
        raise ValueError("process: expected an EulerMaruyama process with ornstein_uhlenbeck_drift and constant noise.")
    params = summable(params, "params")
    start = jnp.asarray(process.initial, params.dtype)
    decay = 1 - params[0] * process.dt
    mean = params[1] + decay**process.horizon * (start - params[1])
    powers = lax.scan(lambda power, _: (power * decay**2, power), jnp.ones_like(decay), length=process.horizon)[1]
    return mean, process.sigma(start) ** 2 * process.dt * jnp.sum(powers)


def transfer_value(
    params: Params, process: EulerMaruyama, *, low: float, high: float, num_points: int | None = None
) -> jax.Array:
    """The expected return of a one-dimensional chain by its transfer operator, on a grid from `low` to `high`.

        v_k(x) = G(x) dt + ∫ N(y; x + f dt, σ² dt) v_k+1(y) dy   backwards from v_T = F,

    the integrals by the trapezoidal rule. For smooth rewards its error falls like exp(-2 π² s² / h²) in the spacing h against
    the width s = σ √dt: to rounding at h < 0.7 s. The probability that the path leaves the interval is lost, so choose it wide.

    Args:
        params: Parameters of the drift.
        process: In one dimension: `initial` a number.
        low: Left end.
        high: Right end.
        num_points: Of the grid; `None` for a spacing of half the width at the start, right for constant noise.

    Returns:
        Shape `()`. Use float64.

    Raises:
        ValueError: More than one dimension, or the start outside the interval.
        jax.errors.ConcretizationTypeError: No `num_points` where the process is traced: the default depends on it.

    Gradients: flow through `params`, at any order.
    """
    check.finite(low=low, high=high)
    num_points = check.whole(or_none=True, at_least=2, num_points=num_points)
    with jax.ensure_compile_time_eval():
        start, count = process.first()
        check.shape((), initial=start, hint="the chain has one dimension")
        inside = {"initial - low": start - low, "high - initial": high - start}
        check.positive(finite=True, hint="the start lies between low and high", **inside)
        width = process.sigma(start) * process.dt**0.5
    if num_points is None:
        num_points = math.ceil(2 * (high - low) / float(width)) + 1
    grid = jnp.linspace(low, high, num_points, dtype=start.dtype)
    weights = jnp.full(num_points, (high - low) / (num_points - 1), grid.dtype).at[jnp.array([0, -1])].multiply(0.5)

    def expected(x: jax.Array, count: jax.Array, values: jax.Array) -> jax.Array:
        step = process.transition(params, process.observe((x, count)))
        density = jnp.exp(jax.vmap(step.log_prob)(grid))
        later = jnp.dot(density, weights * values, precision=precision_of())
        return summable(process.running(x)).astype(x.dtype) * process.dt + later

    def back(values: jax.Array, count: jax.Array) -> tuple[jax.Array, None]:
        return jax.vmap(expected, (0, None, None))(grid, count, values), None

    end = summable(jax.vmap(process.terminal)(grid), "terminal").astype(grid.dtype)
    values, _ = lax.scan(back, end, jnp.arange(process.horizon - 1, 0, -1))
    return expected(start, count, values)


def girsanov_log_ratios(
    params: Params, process: EulerMaruyama, trajectories: Trajectory, *, reference_params: Params, reference: Any = None
) -> jax.Array:
    """Girsanov's log-weights per step of paths drawn from `reference`; 0 on invalid steps.

        log p_f - log p_g = ((f - g) (ΔX - g dt) - (f - g)² dt / 2) / σ²,

    summed over dimensions: what `logderiv.importance.log_ratios` finds from the two densities, without their normalizers and without
    cancellation.

    Args:
        params: Parameters of `process`.
        process: With the drift f that is weighted to.
        trajectories: Drawn from `reference`; leading axes `(*batch, T)`.
        reference_params: Parameters of `reference`.
        reference: With the drift g; `None` for that of `process`.

    Returns:
        Shape `(*batch, T)`. The weight of a path is the exponential of the sum over steps.

    Raises:
        ValueError: The two differ in noise or step: their paths then have no finite weight as `dt` goes to 0; or fields of the
            trajectories differ in their leading axes.
        TypeError: `trajectories.valid` is not boolean.

    Gradients: flow through both parameters. Nothing is detached.
    """
    reference = process if reference is None else reference
    ours, theirs = (process.noise, process.dt), (reference.noise, reference.dt)
    if not check.is_traced(*jax.tree.leaves((ours, theirs))) and jax.tree.flatten(ours) != jax.tree.flatten(theirs):
        raise ValueError(f"reference: expected the same noise and dt as process, {ours}, received {theirs}.")
    trajectories = as_trajectory(trajectories)

    def one(observation: Position, action: jax.Array) -> jax.Array:
        x, time = observation
        f, g = process.drift(params, x, time), reference.drift(reference_params, x, time)
        innovation = action - x - g * process.dt
        return jnp.sum(((f - g) * innovation - (f - g) ** 2 * (0.5 * process.dt)) / reference.sigma(x) ** 2)

    safe = fill_invalid(trajectories)
    terms = per_trajectory(one, trajectories.valid.ndim)(safe.observations, safe.actions)
    return jnp.where(trajectories.valid, terms, jnp.zeros((), terms.dtype))


def _setting(name: str, value: Any) -> Any:
    """A float, or a tuple of floats, which compare and hash; what is traced as it is; a function as a pytree without leaves."""
    if callable(value):
        return value if isinstance(value, Partial) else Partial(value)
    traced = check.is_traced(*jax.tree.leaves(value))
    refuse_complex(**{f"EulerMaruyama.{name}": value})
    array = summable(value) if traced else np.asarray(value, float)
    if array.ndim > 1 or array.size == 0:
        raise ValueError(f"EulerMaruyama.{name}: expected a number or D numbers, received {value!r}.")
    return array if traced else tuple(array.tolist()) if array.ndim else float(array)
