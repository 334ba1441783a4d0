r"""Finite Markov chains with parameters in the start and in the transitions.

A chain is a decision process whose action *is* the next state: `S` states and one more, number `S`, for "not started
yet". So a `MarkovChain` is a `TabularMDP`, and all of `ld.exact` takes it together with `chain.policy`: exact value,
gradient, Hessian and Fisher matrix at any horizon, every path, the exact moments of any estimator.

The score of a path is counts minus expected counts: with $n_{ij}$ transitions from i to j,
$\partial \log P / \partial \theta_{ij} = n_{ij} - p_{ij} \sum_k n_{ik}$ for logits $\theta$.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from logderiv._core.arrays import floating, register_dataclass
from logderiv.distributions.basic import Categorical
from logderiv.environments.tabular import TabularMDP


class MarkovChainParams(NamedTuple):
    """Logits, unconstrained; `-inf` forbids a start or a transition.

    Attributes:
        initial: Of the first state, shape `(S,)`.
        transition: Of the next state, one row for each state, shape `(S, S)`.
    """

    initial: jax.Array
    transition: jax.Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class MarkovChainPolicy:
    r"""The next state given the last: $p_\theta(x_0)$ in state `S`, $p_\theta(x_t|x_{t-1})$ elsewhere.

    Attributes:
        num_states: `S`.
    """

    num_states: int

    initial_carry = None
    log_factors = None

    def apply(self, params: MarkovChainParams, observation: jax.Array) -> Categorical:
        """The law of the next state.

        Raises:
            ValueError: The start or the kernel is not over `S` states.
        """
        expected = {"initial": (self.num_states,), "transition": (self.num_states,) * 2}
        for name, shape in expected.items():
            if jnp.shape(getattr(params, name)) != shape:
                raise ValueError(
                    f"params.{name}: expected logits of shape {shape} for a chain with {self.num_states} states, received "
                    f"{jnp.shape(getattr(params, name))}; start, kernel and reward must agree on the states."
                )
        return Categorical(jnp.concatenate([params.transition, params.initial[None]])[observation])


@dataclasses.dataclass(frozen=True)
class MarkovChain(TabularMDP):
    """A chain as a `TabularMDP`; built by `markov_chain`, which says what the steps are."""

    @property
    def policy(self) -> MarkovChainPolicy:
        """Everything that the chain draws; its parameters are `MarkovChainParams`."""
        return MarkovChainPolicy(self.num_actions)


register_dataclass(MarkovChain, ("initial", "transition", "reward", "terminal"), ("horizon",))


def markov_chain(reward: Any, *, terminal: Any = None, horizon: int | None = None) -> MarkovChain:
    r"""A chain on `S` states with a reward on each state or each transition.

    Step `t` of a rollout draws $x_t$, so `T` steps visit $x_0, \ldots, x_{T-1}$ and the objective is
    $J(\theta) = \mathbb{E} \sum_{t<T} \gamma^t r_t$ with $r_t = r(x_t)$, or $r_t = r(x_{t-1}, x_t)$ and $r_0 = 0$. A path
    ends on entering a terminal state: hitting times are `reward=jnp.ones(S)`.

    Args:
        reward: Of a visit, shape `(S,)`, or of a transition, shape `(S, S)`; negative for a cost.
        terminal: States that end a path, shape `(S,)`, bool; `None` for none.
        horizon: Default number of steps of a rollout.

    Returns:
        A `MarkovChain`; `chain.policy` takes `MarkovChainParams`.

    Raises:
        ValueError: `reward` has another shape, or `terminal` another number of states.

    Example:
        >>> import jax.numpy as jnp, logderiv as ld
        >>> chain = ld.processes.markov_chain(jnp.array([0.0, 1.0]))
        >>> params = ld.processes.MarkovChainParams(jnp.zeros(2), jnp.zeros((2, 2)))
        >>> float(ld.exact.value(params, chain.policy, chain, horizon=6))
        3.0
    """
    reward = floating(reward)
    states = reward.shape[0] if reward.ndim else 0
    if reward.ndim not in (1, 2) or states == 0 or reward.shape[-1] != states:
        raise ValueError(f"reward: expected shape (S,) or (S, S), received {reward.shape}.")
    terminal = jnp.zeros(states, bool) if terminal is None else jnp.asarray(terminal, bool)
    if terminal.shape != (states,):
        raise ValueError(
            f"terminal: expected shape ({states},) as reward has {states} states, received {terminal.shape}."
        )
    if reward.ndim == 1:
        table = jnp.broadcast_to(reward[None], (states + 1, states))
    else:
        table = jnp.concatenate([reward, jnp.zeros((1, states), reward.dtype)])
    moves = jnp.eye(states, states + 1, dtype=reward.dtype)  # action j leads to state j
    return MarkovChain(
        initial=jnp.eye(states + 1, dtype=reward.dtype)[states],
        transition=jnp.broadcast_to(moves[None], (states + 1, states, states + 1)),
        reward=table,
        terminal=jnp.append(terminal, False),
        horizon=horizon,
    )
