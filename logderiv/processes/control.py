r"""Linear-Gaussian control with a quadratic cost (LQG with a fully seen state), and its exact value.

$x_{t+1} = A x_t + B u_t + C w_t$, $u_t = K x_t + \exp(\text{log\_std}) \odot e_t$, reward $-(x_t^\top Q x_t + u_t^\top R u_t)$, standard
normal $w_t$ and $e_t$, start $x_0 \sim N(\mu, C_0 C_0^\top)$.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from logderiv._core.arrays import register_dataclass
from logderiv.distributions.basic import Normal
from logderiv.distributions.multivariate_normal import MultivariateNormal
from logderiv.types import Step, Trajectory, next_observations


class LinearPolicyParams(NamedTuple):
    r"""Parameters of $u \sim N(K x, \mathrm{diag}(\sigma^2))$, unconstrained.

    Attributes:
        gain: $K$, shape `(m, n)`.
        log_std: $\log\sigma$, shape `(m,)`.
    """

    gain: jax.Array
    log_std: jax.Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LinearGaussianPolicy:
    r"""$u \sim N(K x, \mathrm{diag}(\sigma^2))$."""

    initial_carry = None
    log_factors = None

    def apply(self, params: LinearPolicyParams, observation: jax.Array) -> Normal:
        """The law of the control in one state.

        Raises:
            ValueError: The gain does not take the state to the control.
        """
        shape = (*params.log_std.shape, *observation.shape)
        if params.gain.shape != shape or len(shape) != 2:
            raise ValueError(
                f"params.gain: expected shape (m, n) = {shape} from log_std and the state, received {params.gain.shape}."
            )
        return Normal(params.gain @ observation.astype(params.gain.dtype), jnp.exp(params.log_std))


class QuadraticValues(NamedTuple):
    r"""$V_t(x) = -(x^\top P_t x + c_t)$ for $t = 0, \ldots, T$.

    Attributes:
        matrix: $P_t$, shape `(T + 1, n, n)`; 0 at `T`.
        constant: $c_t$, shape `(T + 1,)`; 0 at `T`.
    """

    matrix: jax.Array
    constant: jax.Array

    def at(self, time: jax.Array, state: jax.Array) -> jax.Array:
        """$V_t(x)$, a scalar."""
        return -(state @ self.matrix[time] @ state + self.constant[time])


@dataclasses.dataclass(frozen=True)
class LinearQuadratic:
    """The system and its cost; arrays are pytree leaves, `n` states, `m` controls.

    Attributes:
        transition: `A`, shape `(n, n)`.
        control: `B`, shape `(n, m)`.
        noise: `C`, shape `(n, n)`, lower triangular. A zero on its diagonal can be drawn but has no density.
        state_cost: `Q`, shape `(n, n)`, symmetric.
        control_cost: `R`, shape `(m, m)`, symmetric.
        initial_mean: Shape `(n,)`.
        initial_noise: `C_0`, shape `(n, n)`, lower triangular; `None` for a start that is known.
        horizon: Default number of steps of a rollout, static.

    Raises:
        ValueError: Shapes disagree.
    """

    transition: jax.Array
    control: jax.Array
    noise: jax.Array
    state_cost: jax.Array
    control_cost: jax.Array
    initial_mean: jax.Array
    initial_noise: jax.Array | None = None
    horizon: int | None = None

    def __post_init__(self) -> None:
        for name in ("transition", "control", "noise", "state_cost", "control_cost", "initial_mean", "initial_noise"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, jnp.asarray(getattr(self, name)))
        if self.control.ndim != 2:
            raise ValueError(f"LinearQuadratic.control: expected shape (n, m), received {self.control.shape}.")
        n, m = self.control.shape
        expected = {"transition": (n, n), "noise": (n, n), "state_cost": (n, n), "control_cost": (m, m)}
        expected |= {"initial_mean": (n,)} | ({} if self.initial_noise is None else {"initial_noise": (n, n)})
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"LinearQuadratic.{name}: expected shape {shape} for n = {n}, m = {m} (from control), received "
                    f"{getattr(self, name).shape}."
                )

    policy = LinearGaussianPolicy()

    def reset(self, key: jax.Array, params: Any = None) -> tuple[jax.Array, jax.Array]:
        """Draw a start; `key` is consumed."""
        del params
        start = self.initial_mean
        if self.initial_noise is not None:
            start = MultivariateNormal(start, self.initial_noise).sample(key)
        return start, start

    def step(self, key: jax.Array, state: jax.Array, action: jax.Array, params: Any = None) -> Step:
        """One transition, `key` is consumed; never ends."""
        del params
        action = action.astype(state.dtype)
        new = MultivariateNormal(self.transition @ state + self.control @ action, self.noise).sample(key)
        reward = -(state @ self.state_cost @ state + action @ self.control_cost @ action)
        return Step(new, new, reward, jnp.zeros((), bool), jnp.zeros((), bool))

    def log_initial(self, trajectory: Trajectory) -> jax.Array:
        r"""$\log\rho_0(x_0)$ of one trajectory; 0 for a known start."""
        if self.initial_noise is None:
            return jnp.zeros((), self.initial_mean.dtype)
        return MultivariateNormal(self.initial_mean, self.initial_noise).log_prob(trajectory.observations[0])

    def log_factors(self, trajectory: Trajectory) -> jax.Array:
        r"""$\log p(x_{t+1}|x_t,u_t)$ of one trajectory, shape `(T,)`."""

        def one(state: jax.Array, action: jax.Array, new: jax.Array) -> jax.Array:
            loc = self.transition @ state + self.control @ action.astype(state.dtype)
            return MultivariateNormal(loc, self.noise).log_prob(new)

        return jax.vmap(one)(trajectory.observations, trajectory.actions, next_observations(trajectory))

    def quadratics(self, params: LinearPolicyParams, *, horizon: int, discount: float = 1.0) -> QuadraticValues:
        r"""The value of the policy in every state, by the Riccati-like recursion of a policy that is given.

        With $M = A + B K$ and $\Sigma = \mathrm{diag}(\sigma^2)$: $P_t = Q + K^\top R K + \gamma M^\top P_{t+1} M$ and
        $c_t = \mathrm{tr}(R \Sigma) + \gamma (c_{t+1} + \mathrm{tr}(P_{t+1} (B \Sigma B^\top + C C^\top)))$, both 0 at `T`.

        Args:
            params: Parameters of `policy`.
            horizon: `T`.
            discount: $\gamma$.

        References:
            Bertsekas (2017), Dynamic Programming and Optimal Control, 4th ed., vol. I, section 3.1.
        """
        gain, covariance = params.gain, jnp.diag(jnp.exp(2 * params.log_std))
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
        r"""$J(\theta) = \mathbb{E} \sum_{t<T} \gamma^t r_t$, exactly; `jax.grad` of it is the exact gradient."""
        values = self.quadratics(params, horizon=horizon, discount=discount)
        dtype = values.matrix.dtype
        mean = values.at(jnp.int32(0), self.initial_mean.astype(dtype))
        if self.initial_noise is None:
            return mean
        noise = self.initial_noise.astype(dtype)
        return mean - jnp.trace(values.matrix[0] @ noise @ noise.T)


register_dataclass(
    LinearQuadratic,
    ("transition", "control", "noise", "state_cost", "control_cost", "initial_mean", "initial_noise"),
    ("horizon",),
)
