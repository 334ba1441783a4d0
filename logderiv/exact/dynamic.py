"""Value of a policy in a finite decision process, and its derivatives, exactly."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from logderiv import distributions
from logderiv._core.arrays import check_whole
from logderiv.environments.tabular import TabularMDP
from logderiv.exact.enumeration import expected_return
from logderiv.types import as_policy, check_params

Method = Literal["dynamic", "enumeration"]


def value(
    params: Any,
    policy: Any,
    mdp: TabularMDP,
    *,
    horizon: int,
    discount: float = 1.0,
    method: Method | None = None,
) -> jax.Array:
    r"""$J(\theta) = \mathbb{E} \sum_{t<T} \gamma^t r_t$, exactly.

    `"dynamic"`: $\rho_0^\top V_0$ of `state_values`, $O(T S^2 A)$, for a policy of the state alone. `"enumeration"`: the sum
    over every trajectory, for any policy.

    Args:
        params: Parameters of the policy.
        policy: A policy on states.
        mdp: The decision process; concrete for `"enumeration"`.
        horizon: `T`.
        discount: $\gamma$ in [0, 1].
        method: `None` takes dynamic programming unless the policy has memory.

    Returns:
        A scalar. Differentiable in `params` at any order; by dynamic programming also in `mdp`.

    Raises:
        ValueError: Dynamic programming with memory; too many trajectories to enumerate; `horizon` or `discount` out of
            range; the policy does not choose between the actions of `mdp`.
    """
    if method not in (None, "dynamic", "enumeration"):
        raise ValueError(f"method: expected 'dynamic', 'enumeration' or None, received {method!r}.")
    if method == "enumeration" or (method is None and has_memory(policy)):
        check_discount(discount)
        return expected_return(params, policy, mdp, horizon=horizon, discount=discount)
    values = state_values(params, policy, mdp, horizon=horizon, discount=discount)[0]
    return mdp.initial.astype(values.dtype) @ values


def gradient(
    params: Any,
    policy: Any,
    mdp: TabularMDP,
    *,
    horizon: int,
    discount: float = 1.0,
    method: Method | None = None,
) -> Any:
    r"""$\nabla J(\theta)$ of `value`, exactly; pytree of `params`."""
    check_params(params)
    return jax.grad(value)(params, policy, mdp, horizon=horizon, discount=discount, method=method)


def hessian(
    params: Any,
    policy: Any,
    mdp: TabularMDP,
    *,
    horizon: int,
    discount: float = 1.0,
    method: Method | None = None,
) -> Any:
    r"""$\nabla^2 J(\theta)$ of `value`, exactly; a pytree of `params` within each leaf of `params`, as `jax.hessian`."""
    check_params(params)
    return jax.hessian(value)(params, policy, mdp, horizon=horizon, discount=discount, method=method)


def state_values(params: Any, policy: Any, mdp: TabularMDP, *, horizon: int, discount: float = 1.0) -> jax.Array:
    r"""$V_t(s)$: expected reward from step `t` on in state `s`, discounted from there.

    $V_t(s) = \sum_a \pi(a|s) (r(s,a) + \gamma \sum_{s'} p(s'|s,a) V_{t+1}(s'))$, zero on terminal states and for $t = T$.

    Args:
        params: Parameters of the policy.
        policy: A policy of the state alone.
        mdp: The decision process.
        horizon: `T`.
        discount: $\gamma$ in [0, 1].

    Returns:
        Shape `(T, S)`.

    Raises:
        ValueError: As `value`.

    References:
        Sutton & Barto (2018), Reinforcement Learning, 2nd ed., eq. 4.5.
    """
    check_whole(horizon=horizon)
    check_discount(discount)
    table = choices(params, policy, mdp, distributions.prob)
    transition, reward = live_tables(mdp, table.dtype)

    def backup(values: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        values = jnp.sum(table * (reward + discount * transition @ values), axis=-1)
        values = jnp.where(mdp.terminal, 0, values)
        return values, values

    return lax.scan(backup, jnp.zeros(mdp.num_states, table.dtype), None, length=horizon, reverse=True)[1]


def occupancy(params: Any, policy: Any, mdp: TabularMDP, *, horizon: int) -> jax.Array:
    r"""$P(s_t = s,\ \text{step } t \text{ is taken})$, shape `(T, S)`; 0 on terminal states."""
    check_whole(horizon=horizon)
    table = choices(params, policy, mdp, distributions.prob)
    transition, _ = live_tables(mdp, table.dtype)

    def advance(weights: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        return jnp.einsum("s,sa,sap->p", weights, table, transition), jnp.where(mdp.terminal, 0, weights)

    return lax.scan(advance, mdp.initial.astype(table.dtype), None, length=horizon)[1]


def policy_table(params: Any, policy: Any, mdp: TabularMDP) -> jax.Array:
    r"""$\pi_\theta(a|s)$ for every state and action, shape `(S, A)`.

    Raises:
        ValueError: The policy has memory, or is a whole-sequence model: its choices are no function of the state; or it
            does not choose between the actions of `mdp`.
    """
    return _tabulate(params, policy, mdp, distributions.prob, jnp.arange(mdp.num_states, dtype=jnp.int32))


def choices(params: Any, policy: Any, mdp: TabularMDP, function: Callable[[Any, Any], jax.Array]) -> jax.Array:
    """`function(distribution, action)` in every state, shape `(S, A)`; never in a terminal one.

    Nothing is ever chosen in a terminal state and a policy need not be defined there: the first live state takes its
    place, so that no NaN can reach a derivative.
    """
    states = jnp.arange(mdp.num_states, dtype=jnp.int32)
    states = jnp.where(mdp.terminal, jnp.argmin(mdp.terminal).astype(jnp.int32), states)
    return _tabulate(params, policy, mdp, function, states)


def live_tables(mdp: TabularMDP, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Transition `(S, A, S)` and reward `(S, A)`, zero where they leave a terminal state."""
    ended = mdp.terminal[:, None]
    return (
        jnp.where(ended[..., None], 0, mdp.transition.astype(dtype)),
        jnp.where(ended, 0, mdp.reward.astype(dtype)),
    )


def has_memory(policy: Any) -> bool:
    """Whether the policy's choices are no function of the state alone."""
    policy = as_policy(policy)
    return policy.initial_carry is not None or policy.log_factors is not None


def check_discount(discount: Any) -> None:
    """Raise unless `discount` is in [0, 1]."""
    if isinstance(discount, int | float) and not 0.0 <= discount <= 1.0:
        raise ValueError(f"discount: expected a number in [0, 1], received {discount}.")


def _tabulate(params: Any, policy: Any, mdp: TabularMDP, function: Callable, states: jax.Array) -> jax.Array:
    policy = as_policy(policy)
    if has_memory(policy):
        raise ValueError(
            "policy: dynamic programming needs a policy of the state alone; received one with memory. "
            "Enumerate trajectories instead: method='enumeration', or logderiv.exact.enumerate_trajectories."
        )

    def entry(state: jax.Array, action: jax.Array) -> jax.Array:
        distribution = policy.apply(params, state)
        categories = distributions.num_categories(distribution, action)
        if categories not in (None, mdp.num_actions):
            raise ValueError(
                f"policy: expected a choice between the {mdp.num_actions} actions of the decision process, received a "
                f"distribution over {categories}."
            )
        return function(distribution, action)

    over_actions = jax.vmap(entry, (None, 0))
    return jax.vmap(over_actions, (0, None))(states, jnp.arange(mdp.num_actions, dtype=jnp.int32))
