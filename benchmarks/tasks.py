r"""Four tasks whose gradient is known exactly, for comparing estimators; this file runs nothing.

The observation is `(state, t)`, so that a value function may be the exact one of a finite horizon.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import logderiv as ld
from logderiv.types import Step


@dataclasses.dataclass(frozen=True)
class Task:
    """What to estimate, and its exact answer.

    Attributes:
        name: For tables.
        environment: Observations are `(state, t)`.
        policy: On these observations.
        params: Where the gradient is taken.
        behaviour: Parameters that draw the trajectories of off-policy estimators.
        horizon: `T`.
        discount: Of the objective.
        value: `params -> J`, exact.
        state_value: `observation -> V_t(s)`, exact at `params`.
        fit: `(value_params, observation) -> scalar`, a function of the state that can be learned from zeros.
        value_params: Its first parameters.
        mdp: Where the task is finite, its tables and a policy on states; `None` elsewhere.
    """

    name: str
    environment: Any
    policy: ld.Policy
    params: Any
    behaviour: Any
    horizon: int
    discount: float
    value: Callable[[Any], jax.Array]
    state_value: Callable[[Any], jax.Array]
    fit: Callable[[Any, Any], jax.Array]
    value_params: Any
    mdp: tuple[ld.TabularMDP, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Timed:
    """An environment whose observation is `(observation, t)`."""

    inner: Any

    def reset(self, key: jax.Array, params: Any = None) -> tuple[Any, Any]:
        """A start, at `t = 0`."""
        observation, state = self.inner.reset(key, params)
        time = jnp.int32(0)
        return (observation, time), (state, time)

    def step(self, key: jax.Array, state: Any, action: Any, params: Any = None) -> Step:
        """One transition."""
        inner, time = state
        new = Step(*self.inner.step(key, inner, action, params))
        return new._replace(observation=(new.observation, time + 1), state=(new.state, time + 1))


def tabular(
    name: str, mdp: ld.TabularMDP, policy: Any, params: Any, behaviour: Any, horizon: int, discount: float = 1.0
) -> Task:
    """A finite task: exact numbers by dynamic programming in float64, and a table of values to learn."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), params)
        values = jax.jit(lambda p: ld.exact.state_values(p, policy, mdp, horizon=horizon, discount=discount))(wide)
    table = np.append(np.asarray(values, np.float32), np.zeros((1, mdp.num_states), np.float32), axis=0)
    apply = policy.apply if hasattr(policy, "apply") else policy
    return Task(
        name,
        Timed(mdp),
        ld.Policy(lambda p, observation: apply(p, observation[0])),
        params,
        behaviour,
        horizon,
        discount,
        value=lambda p: ld.exact.value(p, policy, mdp, horizon=horizon, discount=discount),
        state_value=lambda observation: jnp.asarray(table)[observation[1], observation[0]],
        fit=lambda v, observation: jnp.where(mdp.terminal[observation[0]], 0, v[observation[0]]),
        value_params=jnp.zeros(mdp.num_states),
        mdp=(mdp, policy),
    )


def short_corridor() -> Task:
    """Sutton & Barto (2018), example 13.1, with right taken at 0.2 of the time, where the gradient is steep."""
    logits, drawn = jnp.array([0.7, -0.7]), jnp.array([0.5, -0.5])
    return tabular("short corridor", ld.short_corridor(), ld.shared_softmax, logits, drawn, horizon=200)


def five_states() -> Task:
    """A random decision process: 5 states, 3 actions, 20 steps, discount 0.9; Dirichlet(1/2) transitions, normal rewards."""
    rng = np.random.default_rng(0)
    initial, transition = rng.dirichlet(np.ones(5)), rng.dirichlet(np.full(5, 0.5), size=(5, 3))
    mdp = ld.TabularMDP(
        jnp.asarray(initial, jnp.float32),
        jnp.asarray(transition, jnp.float32),
        jnp.asarray(rng.normal(size=(5, 3)), jnp.float32),
        jnp.zeros(5, bool),
    )
    logits = jnp.asarray(0.5 * rng.normal(size=(5, 3)), jnp.float32)
    drawn = logits + jnp.asarray(0.2 * rng.normal(size=(5, 3)), jnp.float32)
    return tabular("five states, T = 20", mdp, ld.tabular_softmax, logits, drawn, horizon=20, discount=0.9)


def random_walk_mdp(steps: int) -> ld.TabularMDP:
    """From 0, up or down by one; rewards add up to the square of the last position."""
    x = np.arange(steps + 1)
    transition = np.zeros((steps + 1, 2, steps + 1))
    down, up = np.maximum(x - 1, 0), np.minimum(x + 1, steps)
    transition[x, 0, down] = transition[x, 1, up] = 1
    reward = np.stack([down**2 - x**2, (x + 1) ** 2 - x**2], axis=1).astype(float)
    terminal = jnp.zeros(steps + 1, bool)
    return ld.TabularMDP(jnp.eye(steps + 1)[0], jnp.asarray(transition), jnp.asarray(reward), terminal)


def walk(p: jax.Array, x: jax.Array) -> ld.Bernoulli:
    """Up with probability exp(-x / p): certain at 0."""
    log_up = -jnp.where(x == 0, 1, x).astype(p.dtype) / p
    return ld.Bernoulli(jnp.where(x == 0, jnp.inf, log_up - jnp.log(-jnp.expm1(log_up))))


def random_walk() -> Task:
    """Arya et al. (2022), arXiv:2210.08572, section 5: the square of the last position after n = 50 steps, at p = 100."""
    return tabular("random walk, n = 50", random_walk_mdp(50), walk, jnp.array(100.0), jnp.array(90.0), horizon=50)


@dataclasses.dataclass(frozen=True)
class LinearQuadratic:
    """$x' = a x + b u + c w$ with normal noise, reward $-(q x^2 + r u^2)$; starts at `x = 1`."""

    a: float = 0.9
    b: float = 0.5
    c: float = 0.3
    q: float = 1.0
    r: float = 0.1

    def reset(self, key: jax.Array, params: Any = None) -> tuple[jax.Array, jax.Array]:
        """Always 1."""
        del key, params
        return jnp.ones(()), jnp.ones(())

    def step(self, key: jax.Array, state: jax.Array, action: jax.Array, params: Any = None) -> Step:
        """One transition; never ends."""
        del params
        new = self.a * state + self.b * action + self.c * jax.random.normal(key)
        reward = -(self.q * state**2 + self.r * action**2)
        return Step(new, new, reward, jnp.zeros((), bool), jnp.zeros((), bool))

    def quadratics(self, params: Any, horizon: int, discount: float) -> tuple[jax.Array, jax.Array]:
        r"""$V_t(x) = -(P_t x^2 + C_t)$ of the policy $u \sim N(k x, \sigma^2)$: `P` and `C`, each `(T + 1,)`."""
        gain, variance = params["gain"], jnp.exp(2 * params["log_std"])
        decay = (self.a + self.b * gain) ** 2

        def back(carry: Any, _: None) -> tuple[Any, Any]:
            p, rest = carry
            rest = self.r * variance + discount * (rest + p * (self.b**2 * variance + self.c**2))
            p = self.q + self.r * gain**2 + discount * p * decay
            return (p, rest), (p, rest)

        end = (jnp.zeros_like(gain), jnp.zeros_like(gain))
        tables = jax.lax.scan(back, end, None, length=horizon, reverse=True)[1]
        return jax.tree.map(lambda x: jnp.append(x, jnp.zeros(1, x.dtype)), tables)


def linear_quadratic() -> Task:
    """One dimension, 20 steps, a noisy linear policy with a learnable gain and spread."""
    world, horizon, discount = LinearQuadratic(), 20, 0.95
    params = {"gain": jnp.array(-0.4), "log_std": jnp.array(-0.7)}
    drawn = {"gain": jnp.array(-0.5), "log_std": jnp.array(-0.6)}

    def value(params: Any) -> jax.Array:
        p, rest = world.quadratics(params, horizon, discount)
        return -(p[0] + rest[0])

    def state_value(observation: Any) -> jax.Array:
        p, rest = world.quadratics(params, horizon, discount)
        return -(p[observation[1]] * observation[0] ** 2 + rest[observation[1]])

    def policy(params: Any, observation: Any) -> ld.Normal:
        return ld.Normal(params["gain"] * observation[0], jnp.exp(params["log_std"]))

    def fit(v: jax.Array, observation: Any) -> jax.Array:
        return v[0] + v[1] * observation[0] ** 2

    return Task(
        "linear-quadratic, T = 20",
        Timed(world),
        ld.Policy(policy),
        params,
        drawn,
        horizon,
        discount,
        value,
        state_value,
        fit,
        jnp.zeros(2),
    )


def pathwise(task: Task, params: Any, key: jax.Array) -> Any:
    """Gradient of one return of the linear-quadratic task through its own dynamics, the noise held: what a score cannot use."""
    world: LinearQuadratic = task.environment.inner

    def discounted_return(params: Any) -> jax.Array:
        noise = jax.random.normal(key, (task.horizon, 2))

        def step(x: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            power, (e, w) = inputs
            u = params["gain"] * x + jnp.exp(params["log_std"]) * e
            return world.a * x + world.b * u + world.c * w, -power * (world.q * x**2 + world.r * u**2)

        powers = task.discount ** jnp.arange(task.horizon, dtype=noise.dtype)
        return jnp.sum(jax.lax.scan(step, jnp.ones(()), (powers, noise))[1])

    return jax.grad(discounted_return)(params)


def all_tasks() -> tuple[Task, ...]:
    """The four, in the order of the tables."""
    return short_corridor(), five_states(), random_walk(), linear_quadratic()
