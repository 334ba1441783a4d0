"""Exact moments of weighted scores g = sum_t w_t ∇log π(a_t|s_t) by dynamic programming, and the Fisher matrix.

With φ_t the score of step `t`, c_t = γ^t r_t and b_t the baseline, let G_t, Φ_t, g_t be the sums over the steps from `t` on of
c, of φ and of the weighted scores. For both weightings z_t = (1, G_t, Φ_t, g_t) is *linear* in z_{t+1}, with coefficients
that the step alone decides:

    reward_to_go:   w_t = G_t - b_t   g_t = g_{t+1} + φ_t (c_t - b_t + G_{t+1})
    total_return:   w_t = G_0 - b_t   g_t = g_{t+1} + φ_t (c_t - b_t + G_{t+1}) + c_t Φ_{t+1}

so M_t(s) = E[z_t z_tᵀ | s_t = s] obeys a backward recursion M_t(s) = E_{a, s'}[L M_{t+1}(s') Lᵀ].
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from logderiv import distributions
from logderiv._core import check
from logderiv._core.arrays import check_params, summable, wide
from logderiv._core.products import precision_of
from logderiv._core.pytrees import jit
from logderiv.environments.rewards import RewardLaw, possible
from logderiv.environments.tabular import TabularMDP
from logderiv.estimators.returns import reward_to_go, total_return
from logderiv.exact.dynamic import choices, live_tables, occupancy, problem
from logderiv.exact.enumeration import Listing
from logderiv.likelihood.probability import log_prob, prob
from logderiv.types import Params


class ScoreMoments(NamedTuple):
    """First and second moments of one trajectory's weighted score; divide `covariance` by N for a mean over N.

    Attributes:
        mean: E[g]; pytree of `params`.
        covariance: Cov[g] of the raveled g (`jax.flatten_util.ravel_pytree`), shape `(D, D)`.
    """

    mean: Any
    covariance: jax.Array


def weighted_score_moments(
    params: Params,
    policy: Any,
    mdp: TabularMDP,
    *,
    horizon: int,
    credit: Callable[..., jax.Array] = reward_to_go,
    baseline: Any = 0.0,
    discount: Any = 1.0,
) -> ScoreMoments:
    """Mean and covariance of g = sum_t (C_t - b_t(s_t)) ∇log π_θ(a_t|s_t) for one trajectory, without listing any.

    C_t = γ^t G_t for `reward_to_go`, C_t = G_0 for `total_return`. Costs O(T S² A D²) time and
    O(S A D²) memory. Second moments are raw: use float64.

    Args:
        params: Parameters of the policy, `D` numbers in all.
        policy: A policy of the state alone.
        mdp: The decision process.
        horizon: `T`.
        credit: `logderiv.advantages.reward_to_go` or `logderiv.advantages.total_return`.
        baseline: b_t(s), exactly what is subtracted from the credit, γ^t included: a number, or an array of shape
            `(S,)` or `(T, S)`. The state value is `discount ** arange(T)[:, None] * logderiv.exact.state_values(...)`.
        discount: γ in [0, 1].

    Returns:
        `ScoreMoments`.

    Raises:
        ValueError: Another credit, a baseline of another shape, a policy with memory, `horizon` or `discount` out of range.
        TypeError: A parameter is not floating point, or the baseline no real number.

    Gradients: flow to `params`, `mdp`, `baseline` and `discount`, all of which may be traced.

    Example:
        >>> import jax.numpy as jnp, logderiv as ld
        >>> mdp = ld.environments.TabularMDP(jnp.ones(1), jnp.ones((1, 2, 1)), jnp.array([[0.0, 1.0]]), jnp.zeros(1))
        >>> weighted_score_moments(jnp.zeros(2), ld.shared_softmax, mdp, horizon=1).mean.tolist()
        [-0.25, 0.25]
    """
    check_params(params)
    horizon = check.whole(at_most=2**24, horizon=horizon)
    check.fraction(discount=discount)
    if credit not in (reward_to_go, total_return):
        raise ValueError(
            f"credit: expected logderiv.advantages.reward_to_go or logderiv.advantages.total_return, received {credit!r}; for any "
            "other estimator logderiv.exact.moments enumerates."
        )
    table = _baseline_table(baseline, horizon, mdp.num_states)
    return _weighted_score_moments(params, policy, mdp, horizon, credit, table, discount)


def fisher(params: Params, policy: Any, environment: Any, *, horizon: int) -> jax.Array:
    """F(θ) = E[∇log P ∇log Pᵀ], exactly.

    For a table and a policy of the state alone sum_t E[φ_t φ_tᵀ] over the occupancy of each state, since scores of
    different steps are uncorrelated; otherwise by enumeration.

    Args:
        params: Parameters of the policy.
        policy: Any policy.
        environment: A `TabularMDP`, or what `enumerate_trajectories` takes; concrete where it is enumerated.
        horizon: `T`.

    Returns:
        Shape `(D, D)`; axes follow `jax.flatten_util.ravel_pytree`.

    Raises:
        ValueError: Too many trajectories to enumerate; `horizon` below 1.
        TypeError: A parameter is not floating point; an environment that cannot be enumerated.

    Gradients: flow to `params`, and to a table that is not enumerated.
    """
    check_params(params)
    return _fisher(params, policy, problem(policy, environment, horizon, 1.0), int(horizon))


@jit
def _weighted_score_moments(
    params: Params, policy: Any, mdp: TabularMDP, horizon: int, credit: Callable, baselines: jax.Array, discount: Any
) -> ScoreMoments:
    flat, unravel = ravel_pytree(wide(params))
    table, scores = _choices_and_scores(params, policy, mdp)
    dtype, size = scores.dtype, flat.size
    transition, reward = live_tables(mdp, dtype)
    drawn = isinstance(mdp.reward, RewardLaw) or mdp.reward.ndim == 3  # not known once the action is
    powers = _reward_powers(mdp, transition) if drawn else None
    rows = 2 + size * (1 if credit is reward_to_go else 2)
    end = jnp.zeros((mdp.num_states, rows, rows), dtype).at[:, 0, 0].set(1)

    over_actions, precision = jax.vmap(functools.partial(_both_sides, credit), (0, 0, None, 0)), precision_of()

    def backup(second: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        factor, b = inputs
        following = jnp.einsum("sap,pij->saij", transition, second, precision=precision)
        if powers is not None:
            following = following + _on_arrival(credit, factor, powers, second)
        paid = jnp.zeros_like(reward) if drawn else factor * reward
        following = jax.vmap(over_actions)(following, paid, b, scores)
        second = jnp.einsum("sa,saij->sij", table, following, precision=precision)
        return jnp.where(mdp.terminal[:, None, None], end, second), None

    factors = jnp.asarray(discount, dtype) ** jnp.arange(horizon, dtype=dtype)
    second, _ = lax.scan(backup, end, (factors, baselines.astype(dtype)), reverse=True)
    second = jnp.einsum("s,sij->ij", mdp.initial.astype(dtype), second, precision=precision)
    mean = second[0, -size:]
    return ScoreMoments(unravel(mean), second[-size:, -size:] - jnp.outer(mean, mean))


@jit
def _fisher(params: Params, policy: Any, problem: TabularMDP | Listing, horizon: int) -> jax.Array:
    params = wide(params)
    if isinstance(problem, TabularMDP):
        weights = jnp.sum(occupancy(params, policy, problem, horizon=horizon), axis=0)
        table, scores = _choices_and_scores(params, policy, problem)
        return jnp.einsum("s,sa,sai,saj->ij", weights, table, scores, scores, precision=precision_of())
    flat, unravel = ravel_pytree(params)
    every = problem.trajectories
    weights = prob(params, policy, every)
    weights = weights * problem.weights.astype(weights.dtype)
    scores = jax.jacfwd(lambda flat: log_prob(unravel(flat), policy, every))(flat)
    scores = jnp.where(weights[:, None] == 0, 0, scores)  # never drawn, and its score not defined
    return jnp.einsum("k,ki,kj->ij", weights, scores, scores, precision=precision_of())


def _both_sides(credit: Callable, second: jax.Array, c: jax.Array, b: jax.Array, score: jax.Array) -> jax.Array:
    """L M Lᵀ for a symmetric `M`."""

    def advance(z: jax.Array) -> jax.Array:
        """z_t from z_{t+1} in each column; it holds the sum of scores only where the whole return weighs them."""
        one, later, sums, g = z[0], z[1], z[2 : -score.size], z[-score.size :]
        g = g + jnp.outer(score, later + (c - b) * one)
        if credit is total_return:
            g, sums = g + c * sums, sums + jnp.outer(score, one)
        return jnp.concatenate([one[None], later[None] + c * one[None], sums, g])

    return advance(advance(second).T)


def _reward_powers(mdp: TabularMDP, transition: jax.Array) -> tuple[jax.Array, jax.Array]:
    """p(s'|s,a) E[rⁿ|s,a,s'] for n = 1 and 2, zero where they leave a terminal state."""

    def of(power: int) -> jax.Array:
        moment = mdp.reward_moment(power).astype(transition.dtype)
        moment = moment if moment.ndim == 3 else moment[..., None]
        return transition * possible(transition, jnp.where(mdp.terminal[:, None, None], 0, moment))

    return of(1), of(2)


def _on_arrival(
    credit: Callable, factor: jax.Array, powers: tuple[jax.Array, jax.Array], second: jax.Array
) -> jax.Array:
    """What a reward c that is drawn with the next state adds to the mean of M: c (E M + M Eᵀ) + c² E M Eᵀ, where I + c E pays it."""
    size = (second.shape[-1] - 2) // (1 if credit is reward_to_go else 2)
    precision = precision_of()

    def pay(x: jax.Array) -> jax.Array:
        """E x: the return takes 1, and the gradient, where the whole return weighs it, the sum of scores."""
        g = x[:, 2:-size] if credit is total_return else jnp.zeros_like(x[:, -size:])
        return jnp.concatenate([jnp.zeros_like(x[:, :1]), x[:, :1], jnp.zeros_like(x[:, 2:-size]), g], axis=1)

    once = pay(second)
    once, twice = once + jnp.swapaxes(once, 1, 2), pay(jnp.swapaxes(once, 1, 2))
    mean = factor * jnp.einsum("sap,pij->saij", powers[0], once, precision=precision)
    return mean + factor**2 * jnp.einsum("sap,pij->saij", powers[1], twice, precision=precision)


def _choices_and_scores(params: Params, policy: Any, mdp: TabularMDP) -> tuple[jax.Array, jax.Array]:
    """π(a|s), shape `(S, A)`, and ∇log π(a|s), shape `(S, A, D)`; 0 for an action that is never taken."""
    flat, unravel = ravel_pytree(wide(params))
    table = choices(params, policy, mdp, distributions.prob)
    scores = jax.jacrev(lambda flat: choices(unravel(flat), policy, mdp, distributions.log_prob))(flat)
    return table, jnp.where(table[..., None] == 0, 0, scores)


def _baseline_table(baseline: Any, horizon: int, num_states: int) -> jax.Array:
    baseline = summable(baseline, "baseline")
    if baseline.shape not in ((), (num_states,), (horizon, num_states)):
        raise ValueError(
            f"baseline: expected a number or an array of shape (S,) = {(num_states,)} or (T, S) = {(horizon, num_states)}, "
            f"received shape {baseline.shape}."
        )
    return jnp.broadcast_to(baseline, (horizon, num_states))
