"""Value and gradient of a policy in a finite decision process by dynamic programming."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from logderiv.distributions import prob
from logderiv.environments.tabular import TabularMDP
from logderiv.types import as_policy, check_params


def policy_table(params: Any, policy: Any, mdp: TabularMDP) -> jax.Array:
    r"""$\pi_\theta(a|s)$ for every state and action, shape `(S, A)`.

    Raises:
        ValueError: The policy has memory, or is a whole-sequence model: its choices are no function of the state.
    """
    policy = as_policy(policy)
    if policy.initial_carry is not None or policy.log_factors is not None:
        raise ValueError(
            "policy: dynamic programming needs a policy of the state alone; received one with memory. "
            "Enumerate trajectories instead: logderiv.exact.enumerate_trajectories."
        )
    states, actions = jnp.arange(mdp.num_states), jnp.arange(mdp.num_actions)
    return jax.vmap(lambda s: jax.vmap(lambda a: prob(policy.apply(params, s), a))(actions))(states)


def value(params: Any, policy: Any, mdp: TabularMDP, *, horizon: int, discount: float = 1.0) -> jax.Array:
    r"""$J(\theta) = \mathbb{E} \sum_{t<T} \gamma^t r_t$, exactly.

    $V_k(s) = \sum_a \pi(a|s) (r(s,a) + \gamma \sum_{s'} p(s'|s,a) V_{k-1}(s'))$, zero on terminal states and for $k = 0$. $O(T S^2 A)$.

    Args:
        params: Parameters of the policy.
        policy: A memoryless policy on states.
        mdp: The decision process.
        horizon: `T`.
        discount: $\gamma$.

    Returns:
        A scalar. Differentiable in `params` and `mdp`, at any order.

    References:
        Sutton & Barto (2018), Reinforcement Learning, 2nd ed., eq. 4.5.
    """
    table = policy_table(params, policy, mdp)
    reward = mdp.reward.astype(table.dtype)
    transition = mdp.transition.astype(table.dtype)

    def backup(values: jax.Array, _: None) -> tuple[jax.Array, None]:
        values = jnp.sum(table * (reward + discount * transition @ values), axis=-1)
        return jnp.where(mdp.terminal, 0, values), None

    values, _ = lax.scan(backup, jnp.zeros(mdp.num_states, table.dtype), None, length=horizon)
    return mdp.initial.astype(table.dtype) @ values


def gradient(params: Any, policy: Any, mdp: TabularMDP, *, horizon: int, discount: float = 1.0) -> Any:
    r"""$\nabla J(\theta)$ of `value`, exactly; pytree of `params`."""
    check_params(params)
    return jax.grad(value)(params, policy, mdp, horizon=horizon, discount=discount)
