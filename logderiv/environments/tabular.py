"""Finite Markov decision processes with known densities, and small named ones."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core import check
from logderiv._core.arrays import integers, summable
from logderiv._core.pytrees import pytree
from logderiv.distributions.basic import Categorical
from logderiv.types import Environment, Step, Trajectory, next_observations


@pytree(static=("horizon",))
class TabularMDP(Environment):
    """A finite decision process ρ_0(s), p(s'|s,a), r(s,a); observations are the states.

    The arrays are pytree leaves: a process can be differentiated, batched by `jax.vmap` and passed through `jax.jit`. Tables may be
    given as anything with numbers in it, and are kept in float32 at least.
    An episode ends on entering a terminal state; what the tables say about leaving one is never used.

    Attributes:
        initial: ρ_0, shape `(S,)`; no mass on terminal states.
        transition: p(s'|s,a), shape `(S, A, S)`.
        reward: r(s,a), shape `(S, A)`.
        terminal: Shape `(S,)`, bool.
        horizon: Default number of steps of a rollout, static.

    Raises:
        ValueError: Shapes disagree, or a distribution does not sum to one.
        TypeError: A table is not of real numbers.
    """

    initial: jax.Array
    transition: jax.Array
    reward: jax.Array
    terminal: jax.Array
    horizon: int | None = None

    def __post_init__(self) -> None:
        given = self.initial, self.transition
        for name in ("initial", "transition", "reward", "terminal"):
            object.__setattr__(self, name, summable(getattr(self, name), f"TabularMDP.{name}"))
        object.__setattr__(self, "terminal", self.terminal != 0)
        if self.reward.ndim != 2:
            raise ValueError(f"TabularMDP.reward: expected shape (S, A), received {self.reward.shape}.")
        states, actions = self.reward.shape
        hint = f"S = {states}, A = {actions} (from reward)"
        shapes = {"initial": (states,), "terminal": (states,), "transition": (states, actions, states)}
        check.fields("TabularMDP.", self, hint=hint, **shapes)
        if not check.is_traced(self.initial, self.transition, self.terminal):
            for name, table in zip(("initial", "transition"), given, strict=True):
                object.__setattr__(self, name, self._probabilities(name, table))
            if np.any(np.asarray(self.initial)[np.asarray(self.terminal)]):
                raise ValueError(
                    "TabularMDP.initial: expected no mass on terminal states; an episode takes at least one step."
                )

    def _probabilities(self, name: str, given: Any) -> jax.Array:
        """A table whose rows sum to 1, to the resolution in which it was given; exactly so, if that was half precision."""
        table = np.asarray(getattr(self, name))
        rows = table if table.ndim == 1 else table[~np.asarray(self.terminal)]
        dtype = jnp.dtype(getattr(given, "dtype", table.dtype))
        half = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4
        worst = np.max(np.abs(rows.sum(-1) - 1), initial=0.0)
        allowed = 100 * jnp.finfo(table.dtype).eps + (jnp.finfo(dtype).eps if half else 0)
        if not (worst <= allowed and np.all(rows >= 0)):
            raise ValueError(f"TabularMDP.{name}: expected probabilities that sum to 1, off by {worst:.3g}.")
        sums = table.sum(-1, keepdims=True)
        return jnp.asarray(table / np.where(sums > 0, sums, 1)) if half else getattr(self, name)

    @property
    def num_states(self) -> int:
        """`S`."""
        return self.reward.shape[0]

    @property
    def num_actions(self) -> int:
        """`A`."""
        return self.reward.shape[1]

    def reset(self, key: jax.Array, params: Any = None) -> tuple[jax.Array, jax.Array]:
        del params  # the tables are the parameters
        state = Categorical(jnp.log(self.initial)).sample(key)
        return state, state

    def step(self, key: jax.Array, state: jax.Array, action: jax.Array, params: Any = None) -> Step:
        del params
        action = integers(action, "action")
        new = Categorical(jnp.log(self.transition[state, action])).sample(key)
        return Step(new, new, self.reward[state, action], self.terminal[new], jnp.zeros((), bool))

    def log_initial(self, trajectory: Trajectory) -> jax.Array:
        """Logarithm of ρ_0(s_0).

        Args:
            trajectory: One trajectory.

        Returns:
            The logarithm, shape `()`; `-inf` of a state where none starts.
        """
        return jnp.log(self.initial[trajectory.observations[0]])

    def log_factors(self, trajectory: Trajectory) -> jax.Array:
        """Logarithm of p(s_{t+1}|s_t,a_t).

        Args:
            trajectory: One trajectory.

        Returns:
            The logarithms, shape `(T,)`; `-inf` of a step that the tables exclude.
        """
        return jnp.log(self.transition[trajectory.observations, trajectory.actions, next_observations(trajectory)])


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
