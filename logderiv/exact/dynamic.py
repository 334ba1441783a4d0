"""Value of a policy in a finite environment, and its derivatives, exactly."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from logderiv import distributions
from logderiv._core import check
from logderiv._core.arrays import check_params, refuse_complex, summable, wide
from logderiv._core.products import precision_of
from logderiv._core.pytrees import jit
from logderiv.environments.tabular import TabularMDP
from logderiv.exact.enumeration import Listing, list_trajectories, returns
from logderiv.likelihood.probability import prob
from logderiv.policies import as_policy
from logderiv.types import Params

_LONGEST = 2**24  # steps of a recursion

Method: TypeAlias = Literal["dynamic", "enumeration"] | None


def value(
    params: Params, policy: Any, environment: Any, *, horizon: int, discount: Any = 1.0, method: Method = None
) -> jax.Array:
    """J(θ) = E[sum_{t<T} γ^t r_t], exactly.

    `"dynamic"`: the mean over starts of `state_values`, O(T S² A), for tables and a policy of the state alone.
    `"enumeration"`: sum_τ P(τ|θ) R(τ) over every trajectory, each product P multiplied out, for any policy.

    Args:
        params: Parameters of the policy.
        policy: A policy on the environment's observations.
        environment: A `TabularMDP`, or what `enumerate_trajectories` takes; concrete for `"enumeration"`.
        horizon: `T`, at most 2^24.
        discount: γ in [0, 1].
        method: `None` takes dynamic programming for tables, unless the policy has memory.

    Returns:
        A scalar.

    Raises:
        ValueError: Dynamic programming with memory; too many trajectories to enumerate; `horizon` or `discount` out of
            range; the policy does not choose between the actions of the environment.
        TypeError: Dynamic programming without tables; the environment cannot be enumerated, or is traced.

    Gradients: flow to `params` and `discount`, at any order; by dynamic programming also to the tables.
    """
    refuse_complex(params=params)
    return _exactly(0, params, policy, environment, horizon, discount, method)


def gradient(
    params: Params, policy: Any, environment: Any, *, horizon: int, discount: Any = 1.0, method: Method = None
) -> Any:
    """∇J(θ) of `value`, exactly.

    Args:
        params: Parameters of the policy, floating point.
        policy: A policy on the environment's observations.
        environment: A `TabularMDP`, or what `enumerate_trajectories` takes; concrete for `"enumeration"`.
        horizon: `T`, at most 2^24.
        discount: γ in [0, 1].
        method: `"dynamic"` or `"enumeration"`, as `value` describes them; `None` takes dynamic programming for tables, unless the
            policy has memory.

    Returns:
        A pytree of `params`.

    Raises:
        ValueError: Dynamic programming with memory; too many trajectories to enumerate; `horizon` or `discount` out of
            range; the policy does not choose between the actions of the environment.
        TypeError: Dynamic programming without tables; the environment cannot be enumerated, or is traced; a parameter is not
            floating point.
    """
    check_params(params)
    return _exactly(1, params, policy, environment, horizon, discount, method)


def hessian(
    params: Params, policy: Any, environment: Any, *, horizon: int, discount: Any = 1.0, method: Method = None
) -> Any:
    """∇²J(θ) of `value`, exactly.

    Args:
        params: Parameters of the policy, floating point.
        policy: A policy on the environment's observations.
        environment: A `TabularMDP`, or what `enumerate_trajectories` takes; concrete for `"enumeration"`.
        horizon: `T`, at most 2^24.
        discount: γ in [0, 1].
        method: `"dynamic"` or `"enumeration"`, as `value` describes them; `None` takes dynamic programming for tables, unless the
            policy has memory.

    Returns:
        A pytree of `params` within each leaf of `params`, like that of `jax.hessian`.

    Raises:
        ValueError: Dynamic programming with memory; too many trajectories to enumerate; `horizon` or `discount` out of
            range; the policy does not choose between the actions of the environment.
        TypeError: Dynamic programming without tables; the environment cannot be enumerated, or is traced; a parameter is not
            floating point.
    """
    check_params(params)
    return _exactly(2, params, policy, environment, horizon, discount, method)


def state_values(params: Params, policy: Any, mdp: TabularMDP, *, horizon: int, discount: Any = 1.0) -> jax.Array:
    """V_t(s): expected reward from step `t` on in state `s`, discounted from there.

        V_t(s) = sum_a π(a|s) (r(s,a) + γ sum_s' p(s'|s,a) V_{t+1}(s')),

    zero on terminal states and for t = T.

    Args:
        params: Parameters of the policy.
        policy: A policy of the state alone.
        mdp: The decision process.
        horizon: `T`, at most 2^24.
        discount: γ in [0, 1].

    Returns:
        Shape `(T, S)`.

    Raises:
        ValueError: The policy has memory, or does not choose between the actions of `mdp`; `horizon` or `discount` out of range.

    Gradients: flow to `params`, `mdp` and `discount`.

    References:
        Sutton & Barto (2018), Reinforcement Learning, 2nd ed., eq. 4.5.
    """
    horizon = check.whole(at_most=_LONGEST, horizon=horizon)
    check.fraction(discount=discount)
    return _state_values(params, policy, mdp, horizon, discount)


@jit
def _state_values(params: Params, policy: Any, mdp: TabularMDP, horizon: int, discount: Any) -> jax.Array:
    table = choices(params, policy, mdp, distributions.prob)
    transition, reward = live_tables(mdp, table.dtype)
    discount = jnp.asarray(discount, table.dtype)

    def backup(values: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        later = jnp.matmul(discount * transition, values, precision=precision_of())
        values = jnp.where(mdp.terminal, 0, jnp.sum(table * (reward + later), axis=-1))
        return values, values

    return lax.scan(backup, jnp.zeros(mdp.num_states, table.dtype), None, length=horizon, reverse=True)[1]


def occupancy(params: Params, policy: Any, mdp: TabularMDP, *, horizon: int) -> jax.Array:
    """P(s_t = s, step t is taken) for every step and state.

    Args:
        params: Parameters of the policy.
        policy: A policy of the state alone.
        mdp: The decision process.
        horizon: `T`, at most 2^24.

    Returns:
        Shape `(T, S)`; 0 on terminal states.

    Raises:
        ValueError: The policy has memory, or does not choose between the actions of `mdp`; `horizon` below 1.

    Gradients: flow to `params` and `mdp`.
    """
    return _occupancy(params, policy, mdp, check.whole(at_most=_LONGEST, horizon=horizon))


@jit
def _occupancy(params: Params, policy: Any, mdp: TabularMDP, horizon: int) -> jax.Array:
    table = choices(params, policy, mdp, distributions.prob)
    transition, _ = live_tables(mdp, table.dtype)

    def advance(weights: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        reached = jnp.einsum("s,sa,sap->p", weights, table, transition, precision=precision_of())
        return reached, jnp.where(mdp.terminal, 0, weights)

    return lax.scan(advance, mdp.initial.astype(table.dtype), None, length=horizon)[1]


@jit
def policy_table(params: Params, policy: Any, mdp: TabularMDP) -> jax.Array:
    """π_θ(a|s) for every state and action.

    Args:
        params: Parameters of the policy.
        policy: A policy of the state alone.
        mdp: The decision process, for the numbers of its states and actions.

    Returns:
        Shape `(S, A)`.

    Raises:
        ValueError: The policy has memory, or is a whole-sequence model: its choices are no function of the state; or it
            does not choose between the actions of `mdp`.

    Gradients: flow to `params`.
    """
    return _tabulate(params, policy, mdp, distributions.prob, jnp.arange(mdp.num_states, dtype=jnp.int32))


def problem(policy: Any, environment: Any, horizon: int, discount: Any, method: Method = None) -> TabularMDP | Listing:
    """What a value is computed from: the tables themselves, for dynamic programming, or every trajectory."""
    check.whole(at_most=_LONGEST, horizon=horizon)
    check.fraction(discount=discount)
    check.one_of(("dynamic", "enumeration", None), method=method)
    tables = isinstance(environment, TabularMDP)
    if method == "dynamic" and not tables:
        raise TypeError(
            f"environment: dynamic programming needs a TabularMDP, received {type(environment).__name__}; use 'enumeration'."
        )
    if method == "enumeration" or not tables or (method is None and has_memory(policy)):
        return list_trajectories(environment, horizon)
    return environment


def evaluate(params: Params, policy: Any, problem: TabularMDP | Listing, horizon: int, discount: Any) -> jax.Array:
    """J(θ) from what `problem` returned."""
    if isinstance(problem, Listing):
        probabilities = prob(params, policy, problem.trajectories)
        rewards = returns(problem.trajectories, discount).astype(probabilities.dtype)
        return jnp.dot(probabilities * problem.weights.astype(probabilities.dtype), rewards, precision=precision_of())
    values = _state_values(params, policy, problem, horizon, discount)[0]
    return jnp.dot(problem.initial.astype(values.dtype), values, precision=precision_of())


def _exactly(
    order: int, params: Params, policy: Any, environment: Any, horizon: int, discount: Any, method: Method
) -> Any:
    """The derivative of this order of `value`."""
    given = problem(policy, environment, horizon, discount, method)
    return _derivative(params, policy, given, int(horizon), discount, order)


@jit
def _derivative(params: Params, policy: Any, problem: Any, horizon: int, discount: Any, order: int) -> Any:
    def function(params: Params) -> jax.Array:
        return evaluate(params, policy, problem, horizon, discount)

    return (function, jax.grad(function), jax.hessian(function))[order](wide(params))


def choices(params: Params, policy: Any, mdp: TabularMDP, function: Callable[[Any, Any], jax.Array]) -> jax.Array:
    """`function(distribution, action)` in every state, shape `(S, A)`; never in a terminal one.

    Nothing is ever chosen in a terminal state and a policy need not be defined there: the first live state takes its
    place, so that no NaN can reach a derivative.
    """
    states = jnp.arange(mdp.num_states, dtype=jnp.int32)
    states = jnp.where(mdp.terminal, jnp.argmin(mdp.terminal).astype(jnp.int32), states)
    return _tabulate(params, policy, mdp, function, states)


def live_tables(mdp: TabularMDP, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Transition `(S, A, S)` and expected reward `(S, A)`, zero where they leave a terminal state."""
    ended = mdp.terminal[:, None]
    return (
        jnp.where(ended[..., None], 0, mdp.transition.astype(dtype)),
        jnp.where(ended, 0, mdp.expected_reward().astype(dtype)),
    )


def has_memory(policy: Any) -> bool:
    """Whether the policy's choices are no function of the state alone."""
    policy = as_policy(policy)
    return policy.has_memory or policy.takes_sequences


def _tabulate(params: Params, policy: Any, mdp: TabularMDP, function: Callable, states: jax.Array) -> jax.Array:
    refuse_complex(params=params)
    policy, params = as_policy(policy), wide(params)
    if has_memory(policy):
        raise ValueError(
            "policy: dynamic programming needs a policy of the state alone; received one with memory. "
            "Enumerate trajectories instead: method='enumeration', or logderiv.exact.enumerate_trajectories."
        )

    def entry(state: jax.Array, action: jax.Array) -> jax.Array:
        distribution, _ = policy.step(params, (), state)
        categories = distributions.num_categories(distribution, action)
        if categories not in (None, mdp.num_actions):
            raise ValueError(
                f"policy: expected a choice between the {mdp.num_actions} actions of the decision process, received a "
                f"distribution over {categories}."
            )
        return summable(function(distribution, action))

    over_actions = jax.vmap(entry, (None, 0))
    return jax.vmap(over_actions, (0, None))(states, jnp.arange(mdp.num_actions, dtype=jnp.int32))
