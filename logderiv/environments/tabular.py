"""Finite Markov decision processes with known densities, and small named ones."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core import check
from logderiv._core.arrays import chances_of, integers, summable
from logderiv._core.products import precision_of
from logderiv._core.pytrees import pytree
from logderiv.distributions.basic import Categorical
from logderiv.environments._spaces import ActionSpace
from logderiv.environments.rewards import RewardLaw, possible, sums_to_one
from logderiv.types import Environment, Step, Trajectory, next_observations


@pytree(static=("horizon",))
class TabularMDP(Environment):
    """A finite decision process ρ_0(s), p(s'|s,a) and its rewards; observations are the states.

    The reward is one of three: r(s,a); r(s,a,s'), paid on arrival; or a `RewardLaw`, drawn anew at each step. Entered as its mean, a
    random reward keeps every value and gradient, and changes every covariance.

    The arrays are pytree leaves: a process can be differentiated, batched by `jax.vmap` and passed through `jax.jit`. Tables may be
    given as anything with numbers in it, and are kept in float32 at least.
    An episode ends on entering a terminal state; what the tables say about leaving one is never used.

    Attributes:
        initial: ρ_0, shape `(S,)`; no mass on terminal states.
        transition: p(s'|s,a), shape `(S, A, S)`.
        reward: r(s,a), shape `(S, A)`; r(s,a,s'), shape `(S, A, S)`; or a `RewardLaw`.
        terminal: Shape `(S,)`, bool.
        horizon: Default number of steps of a rollout, static.

    Raises:
        ValueError: Shapes disagree, or a distribution does not sum to one.
        TypeError: A table is not of real numbers.
    """

    initial: jax.Array
    transition: jax.Array
    reward: Any
    terminal: jax.Array
    horizon: int | None = None

    def __post_init__(self) -> None:
        given = self.initial, self.transition
        names = ("initial", "transition", "terminal")
        for name in names if isinstance(self.reward, RewardLaw) else (*names, "reward"):
            object.__setattr__(self, name, summable(getattr(self, name), f"TabularMDP.{name}"))
        object.__setattr__(self, "terminal", self.terminal != 0)
        steps = self._steps
        if len(steps) not in (2, 3) or steps[2:] not in ((), steps[:1]):
            raise ValueError(
                f"TabularMDP.reward: expected shape (S, A), or (S, A, S) where it is paid on arrival, received {steps}."
            )
        states, actions = steps[:2]
        hint = f"S = {states}, A = {actions} (from reward)"
        shapes = {"initial": (states,), "terminal": (states,), "transition": (states, actions, states)}
        check.fields("TabularMDP.", self, hint=hint, **shapes)
        if not check.is_traced(self.initial, self.transition, self.terminal):
            for name, table in zip(("initial", "transition"), given, strict=True):
                live = None if name == "initial" else ~np.asarray(self.terminal)
                made = sums_to_one(f"TabularMDP.{name}", getattr(self, name), table, live)
                object.__setattr__(self, name, made)
            if np.any(np.asarray(self.initial)[np.asarray(self.terminal)]):
                raise ValueError(
                    "TabularMDP.initial: expected no mass on terminal states; an episode takes at least one step."
                )

    @property
    def action_space(self) -> ActionSpace:
        """`0 .. A - 1`; a policy over more is refused where it is traced."""
        return ActionSpace((), True, self.num_actions, f"Discrete({self.num_actions})")

    @property
    def num_states(self) -> int:
        """`S`."""
        return self._steps[0]

    @property
    def num_actions(self) -> int:
        """`A`."""
        return self._steps[1]

    @property
    def _steps(self) -> tuple[int, ...]:
        """The axes of the reward: `(S, A)` or `(S, A, S)`."""
        law = isinstance(self.reward, RewardLaw)
        return self.reward.probabilities.shape[:-1] if law else self.reward.shape

    def reward_moment(self, power: int) -> jax.Array:
        """E[r^n | s, a] or, where the reward is paid on arrival, E[r^n | s, a, s'].

        Args:
            power: n.

        Returns:
            Shape `(S, A)` or `(S, A, S)`.

        Gradients: flow to the reward.
        """
        return self.reward.moment(power) if isinstance(self.reward, RewardLaw) else self.reward**power

    def expected_reward(self) -> jax.Array:
        """r(s,a) = Σ_s' p(s'|s,a) E[r | s, a, s']: all that a value depends on; covariances depend on the law of the reward.

        Returns:
            Shape `(S, A)`; what it says about terminal states is never used.

        Gradients: flow to the reward and, where that is paid on arrival, to the transition.
        """
        mean = self.reward_moment(1)
        if mean.ndim == 2:
            return mean
        dtype = jnp.promote_types(mean.dtype, self.transition.dtype)
        live = ~self.terminal[:, None, None]
        transition, mean = (jnp.where(live, x, 0).astype(dtype) for x in (self.transition, mean))
        return jnp.einsum("sap,sap->sa", transition, possible(transition, mean), precision=precision_of())

    def reset(self, key: jax.Array, params: Any = None) -> tuple[jax.Array, jax.Array]:
        del params  # the tables are the parameters
        state = Categorical(jnp.log(self.initial)).sample(key)
        return state, state

    def step(self, key: jax.Array, state: jax.Array, action: jax.Array, params: Any = None) -> Step:
        del params
        action = integers(action, "action")
        key, of_reward = jax.random.split(key) if isinstance(self.reward, RewardLaw) else (key, key)
        new = Categorical(jnp.log(self.transition[state, action])).sample(key)
        return Step(new, new, self._paid(of_reward, state, action, new), self.terminal[new], jnp.zeros((), bool))

    def _paid(self, key: jax.Array, *step: jax.Array) -> jax.Array:
        return (
            self.reward.sample(key, *step)
            if isinstance(self.reward, RewardLaw)
            else self.reward[step[: self.reward.ndim]]
        )

    def log_initial(self, trajectory: Trajectory) -> jax.Array:
        """Logarithm of ρ_0(s_0).

        Args:
            trajectory: One trajectory.

        Returns:
            The logarithm, shape `()`; `-inf` of a state where none starts, or that is none; 0 without a valid step.

        Raises:
            TypeError: Observations are no whole numbers.

        Gradients: flow to ρ_0.
        """
        states = integers(trajectory.observations, "trajectory.observations")
        return _logs(trajectory.valid[0], chances_of(self.initial, states[0]))

    def log_factors(self, trajectory: Trajectory) -> jax.Array:
        """Logarithm of p(s_{t+1}|s_t,a_t), or of p(s_{t+1}, r_t|s_t,a_t) where the reward has a law.

        A reward that is a table has no factor: it is not compared with what was paid.

        Args:
            trajectory: One trajectory.

        Returns:
            The logarithms, shape `(T,)`; `-inf` of a step, or a reward, that the tables exclude or do not know; 0 of an invalid one.

        Raises:
            TypeError: Observations, actions or the final observation are no whole numbers.

        Gradients: flow to the transition and to the probabilities of the law, of valid steps alone.
        """
        trajectory = _whole(trajectory)
        step = trajectory.observations, trajectory.actions, next_observations(trajectory)
        logs = _logs(trajectory.valid, chances_of(self.transition, *step))
        if isinstance(self.reward, RewardLaw):
            paid = _logs(trajectory.valid, self.reward.prob(trajectory.rewards, *step))
            dtype = jnp.promote_types(logs.dtype, paid.dtype)
            return logs.astype(dtype) + paid.astype(dtype)
        return logs


def _whole(trajectory: Trajectory) -> Trajectory:
    """The trajectory with states and actions in whole numbers; a field that is not is named."""
    found = {name: getattr(trajectory, name) for name in ("observations", "actions", "final_observation")}
    return trajectory._replace(**{k: integers(x, f"trajectory.{k}") for k, x in found.items() if x is not None})


def _logs(valid: jax.Array, chances: jax.Array) -> jax.Array:
    """Logarithms, 0 of an invalid step, which is often an impossible one: log 0 that is masked later has NaN as its derivative."""
    return jnp.log(jnp.where(valid, chances, 1))


def short_corridor(*, horizon: int | None = 1000, dtype: Any = None) -> TabularMDP:
    """The short corridor with switched actions: actions 0 = left, 1 = right, reward -1 on every step, the last included.

    States 0, 1, 2 and the goal 3. Right moves right, except in state 1, where the two actions are swapped; left in
    state 0 stays. All states are meant to look alike: use `logderiv.shared_softmax`. With probability p of right,
    J = (2p - 4) / (p (1 - p)), best at p = 2 - √2 with J = -(6 + 4√2) ≈ -11.66.

    Args:
        horizon: Default number of steps of a rollout; `None` for none.
        dtype: Of the tables; `None` for the default floating dtype.

    Returns:
        A `TabularMDP`.

    References:
        Sutton & Barto (2018), Reinforcement Learning, 2nd ed., example 13.1. A widely copied version pays 0 on the last
        step, so that its returns are J + 1.
    """
    dtype = jnp.zeros((), dtype).dtype
    start, goal = jax.nn.one_hot(0, 4, dtype=dtype), jnp.arange(4) == 3
    transition = jax.nn.one_hot(jnp.array([[0, 1], [2, 0], [1, 3], [3, 3]]), 4, dtype=dtype)
    return TabularMDP(start, transition, -jnp.ones((4, 2), dtype), goal, horizon)
