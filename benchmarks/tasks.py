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
        behavior: Parameters that draw the trajectories of off-policy estimators.
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
    policy: ld.FunctionPolicy
    params: Any
    behavior: Any
    horizon: int
    discount: float
    value: Callable[[Any], jax.Array]
    state_value: Callable[[Any], jax.Array]
    fit: Callable[[Any, Any], jax.Array]
    value_params: Any
    mdp: tuple[ld.environments.TabularMDP, Any] | None = None


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


def tabular(name: str, mdp: Any, policy: Any, params: Any, behavior: Any, horizon: int, discount: float = 1.0) -> Task:
    """A finite task: exact numbers by dynamic programming in float64, and a table of values to learn."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), params)
        values = jax.jit(lambda p: ld.exact.state_values(p, policy, mdp, horizon=horizon, discount=discount))(wide)
    table = np.append(np.asarray(values, np.float32), np.zeros((1, mdp.num_states), np.float32), axis=0)
    apply = policy.apply if hasattr(policy, "apply") else policy
    return Task(
        name,
        Timed(mdp),
        ld.FunctionPolicy(lambda p, observation: apply(p, observation[0])),
        params,
        behavior,
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
    return tabular("short corridor", ld.environments.short_corridor(), ld.shared_softmax, logits, drawn, horizon=200)


def five_states() -> Task:
    """A random decision process: 5 states, 3 actions, 20 steps, discount 0.9; Dirichlet(1/2) transitions, normal rewards."""
    rng = np.random.default_rng(0)
    initial, transition = rng.dirichlet(np.ones(5)), rng.dirichlet(np.full(5, 0.5), size=(5, 3))
    reward, logits, shift = (jnp.asarray(scale * rng.normal(size=(5, 3)), jnp.float32) for scale in (1, 0.5, 0.2))
    tables = (jnp.asarray(initial, jnp.float32), jnp.asarray(transition, jnp.float32), reward, jnp.zeros(5, bool))
    mdp, drawn = ld.environments.TabularMDP(*tables), logits + shift
    return tabular("five states, T = 20", mdp, ld.tabular_softmax, logits, drawn, horizon=20, discount=0.9)


def random_walk() -> Task:
    """Arya et al. (2022), arXiv:2210.08572, section 5: the square of the last position after n = 50 steps, at p = 100."""
    walk = ld.processes.RandomWalk(50)
    return tabular("random walk, n = 50", walk, walk.policy, jnp.array(100.0), jnp.array(90.0), horizon=50)


def linear_quadratic() -> Task:
    """One dimension, 20 steps, a noisy linear policy with a learnable gain and spread."""
    horizon, discount = 20, 0.95
    numbers = {"transition": 0.9, "control": 0.5, "noise": 0.3, "state_cost": 1.0, "control_cost": 0.1}
    matrices: dict[str, Any] = {name: jnp.array([[x]]) for name, x in numbers.items()}
    world = ld.processes.LinearQuadratic(**matrices, initial_mean=jnp.ones(1))
    params = ld.processes.LinearPolicyParams(gain=jnp.array([[-0.4]]), log_std=jnp.array([-0.7]))
    drawn = ld.processes.LinearPolicyParams(gain=jnp.array([[-0.5]]), log_std=jnp.array([-0.6]))

    def state_value(observation: Any) -> jax.Array:
        state, time = observation
        return world.quadratics(params, horizon=horizon, discount=discount).at(time, state)

    return Task(
        "linear-quadratic, T = 20",
        Timed(world),
        ld.FunctionPolicy(lambda params, observation: world.policy.apply(params, observation[0])),
        params,
        drawn,
        horizon,
        discount,
        value=lambda params: world.value(params, horizon=horizon, discount=discount),
        state_value=state_value,
        fit=lambda v, observation: v[0] + v[1] * jnp.sum(observation[0] ** 2),
        value_params=jnp.zeros(2),
    )


def pathwise(task: Task, params: Any, key: jax.Array) -> Any:
    """Gradient of one return of the linear-quadratic task through its own dynamics, the noise given: what a score cannot use."""
    world: ld.processes.LinearQuadratic = task.environment.inner

    def discounted_return(params: Any) -> jax.Array:
        noise = jax.random.normal(key, (task.horizon, 2, 1))

        def step(x: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            power, (e, w) = inputs
            u = params.gain @ x + jnp.exp(params.log_std) * e
            reward = -(x @ world.state_cost @ x + u @ world.control_cost @ u)
            return world.transition @ x + world.control @ u + world.noise @ w, power * reward

        powers = task.discount ** jnp.arange(task.horizon, dtype=noise.dtype)
        return jnp.sum(jax.lax.scan(step, world.initial_mean, (powers, noise))[1])

    return jax.grad(discounted_return)(params)


def all_tasks() -> tuple[Task, ...]:
    """The four, in the order of the tables."""
    return short_corridor(), five_states(), random_walk(), linear_quadratic()
