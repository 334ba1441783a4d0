"""Finite Markov chains with parameters in the start and in the transitions, and a random walk.

A chain is a decision process whose action *is* the next state: `S` states and one more, number `S`, for "not started
yet". So a `MarkovChain` is a `TabularMDP`, and all of `ld.exact` takes it together with `chain.policy`: exact value,
gradient, Hessian and Fisher matrix at any horizon, every path, the exact moments of any estimator.

The score of a path is counts minus expected counts: with n_ij transitions from i to j and logits θ,

    ∂ log P / ∂θ_ij = n_ij - p_ij Σ_k n_ik.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core import check
from logderiv._core.arrays import integers, numbers, row_of, summable
from logderiv._core.pytrees import pytree
from logderiv.distributions.basic import Bernoulli, Categorical
from logderiv.environments.tabular import TabularMDP
from logderiv.types import FunctionPolicy, Key, Policy, Step


class MarkovChainParams(NamedTuple):
    """Logits, unconstrained; `-inf` forbids a start or a transition.

    Attributes:
        initial: Of the first state, shape `(S,)`.
        transition: Of the next state, one row for each state, shape `(S, S)`.
    """

    initial: jax.Array
    transition: jax.Array


@pytree(static=("num_states",))
class MarkovChainPolicy(Policy):
    """The next state given the last: p(x_0) in state `S`, p(x_t | x_t-1) elsewhere; `params` are `MarkovChainParams`.

    Attributes:
        num_states: `S`.
    """

    num_states: int

    def apply(self, params: MarkovChainParams, observation: jax.Array) -> Categorical:
        """The distribution of the next state.

        Args:
            params: Logits of the start and of the kernel.
            observation: The last state, or `S`.

        Returns:
            A distribution over `S` states; its logits are NaN in a state outside `0 .. S`.

        Raises:
            ValueError: The start or the kernel is not over `S` states.
            TypeError: The state is no whole number.
        """
        states, params = self.num_states, numbers(params)
        hint = f"logits for a chain with {states} states; start, kernel and reward must agree on them"
        check.fields("params.", params, hint=hint, initial=(states,), transition=(states, states))
        return Categorical(row_of(jnp.concatenate([params.transition, params.initial[None]]), observation))


@pytree(static=("horizon",))
class MarkovChain(TabularMDP):
    """A chain on `S` states with a reward on each state or each transition, as a `TabularMDP`.

    Step `t` of a rollout draws x_t, so `T` steps visit x_0, ..., x_T-1 and the objective is

        J(θ) = E Σ_t<T γᵗ r_t,   r_t = r(x_t), or r_t = r(x_t-1, x_t) and r_0 = 0.

    A path ends on entering a terminal state: hitting times are `reward=jnp.ones(S)`.

    Args:
        reward: Of a visit, shape `(S,)`, or of a transition, shape `(S, S)`; negative for a cost. Then a table `(S + 1, S)`.
        terminal: States that end a path, shape `(S,)`, bool; `None` for none. Then of all `S + 1` states.
        horizon: Default number of steps of a rollout.

    Attributes:
        initial: All mass on state `S`, not started yet, shape `(S + 1,)`.
        transition: Action j leads to state j, shape `(S + 1, S, S + 1)`.

    Raises:
        ValueError: `reward` has another shape, or `terminal` another number of states.
        TypeError: One of them is not of real numbers.

    Example:
        >>> import jax.numpy as jnp, logderiv as ld
        >>> chain = ld.processes.MarkovChain(jnp.array([0.0, 1.0]))
        >>> params = ld.processes.MarkovChainParams(jnp.zeros(2), jnp.zeros((2, 2)))
        >>> float(ld.exact.value(params, chain.policy, chain, horizon=6))
        3.0
    """

    def __init__(self, reward: Any, *, terminal: Any = None, horizon: int | None = None) -> None:
        reward = summable(reward, "reward")
        states = reward.shape[0] if reward.ndim else 0
        if reward.ndim not in (1, 2) or states == 0 or reward.shape[-1] != states:
            raise ValueError(f"reward: expected shape (S,) or (S, S), received {reward.shape}.")
        terminal = jnp.zeros(states, bool) if terminal is None else summable(terminal, "terminal") != 0
        check.shape((states,), terminal=terminal, hint=f"reward has {states} states")
        start = reward if reward.ndim == 1 else jnp.zeros(states, reward.dtype)
        table = jnp.concatenate([jnp.broadcast_to(reward, (states, states)), start[None]])
        moves = jnp.broadcast_to(jnp.eye(states, states + 1, dtype=reward.dtype), (states + 1, states, states + 1))
        initial = jnp.eye(states + 1, dtype=reward.dtype)[states]
        super().__init__(initial, moves, table, jnp.append(terminal, False), horizon)

    @property
    def policy(self) -> MarkovChainPolicy:
        """Everything that the chain draws; its parameters are `MarkovChainParams`."""
        return MarkovChainPolicy(self.num_actions)


def up_or_down(params: jax.Array, observation: jax.Array) -> Bernoulli:
    """1, up, with probability exp(-x / p), certain at 0; else 0, down.

    Args:
        params: p, a positive scalar.
        observation: The position x.

    Returns:
        The distribution of the next step.
    """
    params, observation = summable(params, "params"), integers(observation, "observation")
    at_zero = observation == 0
    log_up = -jnp.where(at_zero, 1, observation).astype(params.dtype) / params
    return Bernoulli(jnp.where(at_zero, jnp.inf, log_up - jnp.log(-jnp.expm1(log_up))))


@pytree(static=("horizon",))
class RandomWalk(TabularMDP):
    """The walk of `steps` steps from 0, a `TabularMDP` on the positions 0, ..., n with actions 0 = down and 1 = up.

    A discrete program whose derivative needs a score, small enough to be exact: a step of +1 has probability exp(-x / p). Rewards add up to the square of the last position. `policy` takes the decay length `p`, a scalar, as its parameter.
    At `steps = 50`, `p = 100`: E[X²] = 1130.398830 and its derivative 7.558188.

    Args:
        steps: `n`; the default horizon. After more the walk would leave its table.

    Attributes:
        initial: All mass on 0, shape `(n + 1,)`.
        transition: One position up or down, shape `(n + 1, 2, n + 1)`.
        reward: Change of the squared position, shape `(n + 1, 2)`.
        terminal: No position ends the walk, shape `(n + 1,)`.
        horizon: `n`.

    Raises:
        ValueError: `steps` is below 1.

    Example:
        >>> import jax.numpy as jnp, logderiv as ld
        >>> walk = RandomWalk(2)  # up for certain, then up to 2 with probability exp(-1 / p), or back to 0
        >>> float(ld.exact.value(jnp.array(1e6), walk.policy, walk, horizon=2)) > 3.999
        True

    References:
        Arya, Schauer, Schafer & Rackauckas (2022), arXiv:2210.08572, section 5, and the tutorial `random_walk` of StochasticAD.jl.
    """

    policy = FunctionPolicy(up_or_down)

    def __init__(self, steps: int = 50) -> None:
        steps = check.whole(steps=steps)
        x = np.arange(steps + 1)
        transition = np.zeros((steps + 1, 2, steps + 1))
        down, up = np.maximum(x - 1, 0), np.minimum(x + 1, steps)
        transition[x, 0, down] = transition[x, 1, up] = 1
        reward = np.stack([down**2 - x**2, (x + 1) ** 2 - x**2], axis=1).astype(float)
        initial, terminal = jnp.zeros(steps + 1).at[0].set(1), jnp.zeros(steps + 1, bool)
        super().__init__(initial, jnp.asarray(transition), jnp.asarray(reward), terminal, steps)

    def step(self, key: Key, state: jax.Array, action: jax.Array, params: Any = None) -> Step:
        """One position up or down: the table's transition without a draw.

        Args:
            key: Not used.
            state: The position.
            action: 1 is up, 0 is down.
            params: Not used.

        Returns:
            The `Step` to the next position.
        """
        del key, params
        state, action = integers(state, "state"), integers(action, "action")
        new = jnp.clip(state + 2 * action.astype(state.dtype) - 1, 0, self.num_states - 1)
        return Step(new, new, self.reward[state, action], self.terminal[new], jnp.zeros((), bool))
