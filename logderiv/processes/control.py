"""Linear-Gaussian control with a quadratic cost (LQG with a fully seen state), and its exact value.

    x_t+1 = A x_t + B u_t + C w_t,   u_t = K x_t + exp(log_std) ⊙ e_t,   r_t = -(x_tᵀ Q x_t + u_tᵀ R u_t)

with standard normal w_t and e_t, and the start x_0 ~ N(μ, C_0 C_0ᵀ).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from logderiv._core import check
from logderiv._core.arrays import integers, numbers, summable
from logderiv._core.products import exact_products, precision_of
from logderiv._core.pytrees import jit, pytree
from logderiv.distributions import MultivariateNormal, Normal
from logderiv.types import FunctionPolicy, Key, Step, Trajectory, next_observations


class LinearPolicyParams(NamedTuple):
    """Parameters of u ~ N(K x, diag(σ²)), unconstrained.

    Attributes:
        gain: K, shape `(m, n)`.
        log_std: log σ, shape `(m,)`.
    """

    gain: jax.Array
    log_std: jax.Array


def linear_control(params: LinearPolicyParams, observation: jax.Array) -> Normal:
    """U ~ N(K x, diag(σ²)).

    Args:
        params: K and log σ.
        observation: The state x, shape `(n,)`.

    Returns:
        The distribution of the control in one state.

    Raises:
        ValueError: The gain does not take the state to the control.
    """
    params, observation = numbers(params), summable(observation, "observation")
    shape = (*params.log_std.shape, *observation.shape)
    check.fields("params.", params, hint="(m, n) from log_std and the state", gain=shape)
    loc = jnp.matmul(params.gain, observation.astype(params.gain.dtype), precision=precision_of())
    return Normal(loc, jnp.exp(params.log_std))


class QuadraticValues(NamedTuple):
    """V_t(x) = -(xᵀ P_t x + c_t) for t = 0, ..., T.

    Attributes:
        matrix: P_t, shape `(T + 1, n, n)`; 0 at `T`.
        constant: c_t, shape `(T + 1,)`; 0 at `T`.
    """

    matrix: jax.Array
    constant: jax.Array

    @exact_products()
    def at(self, time: jax.Array, state: jax.Array) -> jax.Array:
        """The value of one state.

        Args:
            time: t, a whole number in 0, ..., T.
            state: x, shape `(n,)`.

        Returns:
            V_t(x), shape `()`.
        """
        state, time = summable(state, "state"), integers(time, "time")
        return -(state @ self.matrix[time] @ state + self.constant[time])


@pytree(static=("horizon",))
class LinearQuadratic:
    """The system and its cost, `n` states, `m` controls; its own noise is part of the environment, its control of `policy`.

    Attributes:
        transition: A, shape `(n, n)`.
        control: B, shape `(n, m)`.
        noise: C, shape `(n, n)`, lower triangular. A zero on its diagonal can be drawn but has no density.
        state_cost: Q, shape `(n, n)`, symmetric.
        control_cost: R, shape `(m, m)`, symmetric.
        initial_mean: μ, shape `(n,)`.
        initial_noise: C_0, shape `(n, n)`, lower triangular; `None` for a start that is known.
        horizon: Default number of steps of a rollout, static.

    Raises:
        ValueError: Shapes disagree.
        TypeError: An array is not of real numbers.
    """

    transition: jax.Array
    control: jax.Array
    noise: jax.Array
    state_cost: jax.Array
    control_cost: jax.Array
    initial_mean: jax.Array
    initial_noise: jax.Array | None = None
    horizon: int | None = None

    policy = FunctionPolicy(linear_control)

    def __post_init__(self) -> None:
        control = summable(self.control, "LinearQuadratic.control")
        if control.ndim != 2:
            raise ValueError(f"LinearQuadratic.control: expected shape (n, m), received {control.shape}.")
        n, m = control.shape
        shapes = {name: (n, n) for name in ("transition", "noise", "state_cost", "initial_noise")}
        shapes |= {"control": (n, m), "control_cost": (m, m), "initial_mean": (n,)}
        for name, shape in shapes.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, summable(getattr(self, name), f"LinearQuadratic.{name}"))
                check.fields("", self, hint=f"n = {n}, m = {m} (from control)", **{name: shape})

    def reset(self, key: Key, params: Any = None) -> tuple[jax.Array, jax.Array]:
        """Draw a start.

        Args:
            key: Consumed; not used where the start is known.
            params: Not used.

        Returns:
            x_0, as observation and as state.
        """
        del params
        start, noise = self.initial_mean, self.initial_noise
        start = start if noise is None else MultivariateNormal(start, noise).sample(key)
        return start, start

    def step(self, key: Key, state: jax.Array, action: jax.Array, params: Any = None) -> Step:
        """One transition; never ends.

        Args:
            key: Consumed.
            state: x_t, shape `(n,)`.
            action: u_t, shape `(m,)`.
            params: Not used.

        Returns:
            The `Step` to x_t+1 with reward -(x_tᵀ Q x_t + u_tᵀ R u_t).
        """
        del params
        state = summable(state, "state")
        action = summable(action, "action").astype(state.dtype)
        new = self._next(state, action).sample(key)
        with exact_products():
            reward = -(state @ self.state_cost @ state + action @ self.control_cost @ action)
        return Step(new, new, reward, jnp.zeros((), bool), jnp.zeros((), bool))

    def log_initial(self, trajectory: Trajectory) -> jax.Array:
        """Log-density of the start x_0 of one trajectory.

        Args:
            trajectory: Leading axis `(T,)`.

        Returns:
            Shape `()`; 0 for a known start.
        """
        if self.initial_noise is None:
            return jnp.zeros((), self.initial_mean.dtype)
        return MultivariateNormal(self.initial_mean, self.initial_noise).log_prob(trajectory.observations[0])

    def log_factors(self, trajectory: Trajectory) -> jax.Array:
        """Log p(x_t+1 | x_t, u_t) of one trajectory.

        Args:
            trajectory: Leading axis `(T,)`.

        Returns:
            Shape `(T,)`.
        """
        steps = trajectory.observations, trajectory.actions, next_observations(trajectory)
        return jax.vmap(lambda state, action, new: self._next(state, action).log_prob(new))(*steps)

    def quadratics(self, params: LinearPolicyParams, *, horizon: int, discount: float = 1.0) -> QuadraticValues:
        """The value of the policy in every state, by the Riccati-like recursion of a policy that is given.

        With M = A + B K and Σ = diag(σ²):

            P_t = Q + Kᵀ R K + γ Mᵀ P_t+1 M
            c_t = tr(R Σ) + γ (c_t+1 + tr(P_t+1 (B Σ Bᵀ + C Cᵀ)))

        and both are 0 at `T`.

        Args:
            params: Parameters of `policy`.
            horizon: `T`.
            discount: γ in [0, 1].

        Returns:
            The matrices and constants of t = 0, ..., T.

        Raises:
            ValueError: `horizon` or `discount` is out of range.
            TypeError: A parameter or `discount` is no real number.

        Gradients: flow through `params` and the arrays of the system, at any order.

        References:
            Bertsekas (2017), Dynamic Programming and Optimal Control, 4th ed., vol. I, section 3.1.
        """
        check.fraction(discount=discount)
        return self._quadratics(numbers(params), check.whole(horizon=horizon), discount)

    @jit
    @exact_products()
    def _quadratics(self, params: LinearPolicyParams, horizon: int, discount: Any) -> QuadraticValues:
        gain, covariance = params.gain, jnp.diag(jnp.exp(2 * params.log_std))
        discount = jnp.asarray(discount, gain.dtype)
        system = jax.tree.map(lambda x: x.astype(gain.dtype), self)
        closed = system.transition + system.control @ gain
        spread = system.control @ covariance @ system.control.T + system.noise @ system.noise.T
        cost = system.state_cost + gain.T @ system.control_cost @ gain
        exploring = jnp.trace(system.control_cost @ covariance)

        def back(later: QuadraticValues, _: None) -> tuple[QuadraticValues, QuadraticValues]:
            matrix = cost + discount * closed.T @ later.matrix @ closed
            constant = exploring + discount * (later.constant + jnp.trace(later.matrix @ spread))
            return (now := QuadraticValues(matrix, constant)), now

        end = QuadraticValues(jnp.zeros_like(cost), jnp.zeros_like(exploring))
        values = lax.scan(back, end, None, length=horizon, reverse=True)[1]
        return jax.tree.map(lambda x, last: jnp.concatenate([x, last[None]]), values, end)

    def value(self, params: LinearPolicyParams, *, horizon: int, discount: float = 1.0) -> jax.Array:
        """J(θ) = E Σ_t<T γᵗ r_t, exactly; `jax.grad` of it is the exact gradient.

        Args:
            params: Parameters of `policy`.
            horizon: `T`.
            discount: γ in [0, 1].

        Returns:
            Shape `()`.

        Raises:
            ValueError: `horizon` or `discount` is out of range.

        Gradients: flow through `params` and the arrays of the system, at any order.
        """
        values = self.quadratics(params, horizon=horizon, discount=discount)
        mean = values.at(jnp.int32(0), self.initial_mean.astype(values.matrix.dtype))
        if self.initial_noise is None:
            return mean
        noise = self.initial_noise.astype(mean.dtype)
        with exact_products():
            return mean - jnp.trace(values.matrix[0] @ noise @ noise.T)

    def _next(self, state: jax.Array, action: jax.Array) -> MultivariateNormal:
        """The distribution of x_t+1."""
        with exact_products():
            loc = self.transition @ state + self.control @ action.astype(state.dtype)
        return MultivariateNormal(loc, self.noise)
