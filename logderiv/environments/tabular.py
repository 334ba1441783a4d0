"""Finite Markov decision processes with known densities, and small named ones."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core.arrays import is_traced, register_dataclass
from logderiv.types import Step, Trajectory, next_observations


@dataclasses.dataclass(frozen=True)
class TabularMDP:
    r"""A finite decision process $\rho_0(s)$, $p(s'|s,a)$, $r(s,a)$; observations are the states.

    The arrays are pytree leaves: a process can be differentiated, batched by `jax.vmap` and passed through `jax.jit`.
    An episode ends on entering a terminal state; what the tables say about leaving one is never used.

    Attributes:
        initial: $\rho_0$, shape `(S,)`; no mass on terminal states.
        transition: $p(s'|s,a)$, shape `(S, A, S)`.
        reward: $r(s,a)$, shape `(S, A)`.
        terminal: Shape `(S,)`, bool.
        horizon: Default number of steps of a rollout, static.

    Raises:
        ValueError: Shapes disagree, or a distribution does not sum to one.
    """

    initial: jax.Array
    transition: jax.Array
    reward: jax.Array
    terminal: jax.Array
    horizon: int | None = None

    def __post_init__(self) -> None:
        for name in ("initial", "transition", "reward", "terminal"):
            object.__setattr__(self, name, jnp.asarray(getattr(self, name)))
        object.__setattr__(self, "terminal", self.terminal.astype(bool))
        if self.reward.ndim != 2:
            raise ValueError(f"TabularMDP.reward: expected shape (S, A), received {self.reward.shape}.")
        states, actions = self.reward.shape
        expected = {"initial": (states,), "transition": (states, actions, states), "terminal": (states,)}
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"TabularMDP.{name}: expected shape {shape} for S = {states}, A = {actions} (from reward), "
                    f"received {getattr(self, name).shape}."
                )
        if not is_traced(self.initial, self.transition, self.terminal):
            _check_probabilities(np.asarray(self.initial), np.asarray(self.transition), np.asarray(self.terminal))

    @property
    def num_states(self) -> int:
        """`S`."""
        return self.reward.shape[0]

    @property
    def num_actions(self) -> int:
        """`A`."""
        return self.reward.shape[1]

    def reset(self, key: jax.Array, params: Any = None) -> tuple[jax.Array, jax.Array]:
        """Draw a start; `key` is consumed."""
        del params  # the tables are the parameters
        state = jax.random.categorical(key, jnp.log(self.initial)).astype(jnp.int32)
        return state, state

    def step(self, key: jax.Array, state: jax.Array, action: jax.Array, params: Any = None) -> Step:
        """Draw the next state; `key` is consumed. Never truncates."""
        del params
        new = jax.random.categorical(key, jnp.log(self.transition[state, action])).astype(jnp.int32)
        return Step(new, new, self.reward[state, action], self.terminal[new], jnp.zeros((), bool))

    def log_initial(self, trajectory: Trajectory) -> jax.Array:
        r"""$\log\rho_0(s_0)$ of one trajectory, shape `()`."""
        return jnp.log(self.initial[trajectory.observations[0]])

    def log_factors(self, trajectory: Trajectory) -> jax.Array:
        r"""$\log p(s_{t+1}|s_t,a_t)$ of one trajectory, shape `(T,)`."""
        return jnp.log(self.transition[trajectory.observations, trajectory.actions, next_observations(trajectory)])


register_dataclass(TabularMDP, ("initial", "transition", "reward", "terminal"), ("horizon",))


def short_corridor(*, horizon: int = 1000, dtype: Any = None) -> TabularMDP:
    r"""The short corridor with switched actions: actions 0 = left, 1 = right, reward -1 on every step, the last included.

    States 0, 1, 2 and the goal 3. Right moves right, except in state 1, where the two actions are swapped; left in
    state 0 stays. All states are meant to look alike: use `logderiv.shared_softmax`. With probability $p$ of right,
    $J = (2p - 4) / (p (1 - p))$, best at $p = 2 - \sqrt{2}$ with $J = -(6 + 4\sqrt{2}) \approx -11.66$.

    References:
        Sutton & Barto (2018), Reinforcement Learning, 2nd ed., example 13.1. A widely copied version pays 0 on the last
        step, so that its returns are $J + 1$.
    """
    left_right = [[0, 1], [2, 0], [1, 3], [3, 3]]
    transition = jax.nn.one_hot(jnp.array(left_right), 4, dtype=dtype or jnp.zeros(()).dtype)
    return TabularMDP(
        initial=jnp.array([1, 0, 0, 0], transition.dtype),
        transition=transition,
        reward=-jnp.ones((4, 2), transition.dtype),
        terminal=jnp.array([False, False, False, True]),
        horizon=horizon,
    )


def _check_probabilities(initial: np.ndarray, transition: np.ndarray, terminal: np.ndarray) -> None:
    live = transition[~terminal]
    tolerance = 100 * float(np.finfo(initial.dtype).eps) if np.issubdtype(initial.dtype, np.floating) else 0.0
    for name, table in (("initial", initial[None]), ("transition", live)):
        worst = np.max(np.abs(table.sum(-1) - 1), initial=0.0)
        if not (worst <= tolerance and np.all(table >= 0)):
            raise ValueError(
                f"TabularMDP.{name}: expected probabilities that sum to 1, received sums off by {worst:.3g}."
            )
    if initial[terminal].any():
        raise ValueError("TabularMDP.initial: expected no mass on terminal states; an episode takes at least one step.")
