r"""Exact moments of weighted scores $g = \sum_t w_t\, \nabla\log\pi(a_t|s_t)$ by dynamic programming, and the Fisher matrix.

With $\phi_t$ the score of step `t`, $c_t = \gamma^t r_t$ and $b_t$ the baseline, let $G_t, \Phi_t, g_t$ be the sums over the
steps from `t` on of $c$, of $\phi$ and of the weighted scores. For both weightings $z_t = (1, G_t, \Phi_t, g_t)$ is *linear* in
$z_{t+1}$, with coefficients that the step alone decides:

    reward_to_go:   w_t = G_t - b_t   g_t = g_{t+1} + phi_t (c_t - b_t + G_{t+1})
    total_return:   w_t = G_0 - b_t   g_t = g_{t+1} + phi_t (c_t - b_t + G_{t+1}) + c_t Phi_{t+1}

so $M_t(s) = \mathbb{E}[z_t z_t^\top | s_t = s]$ obeys a backward recursion $M_t(s) = \mathbb{E}_{a, s'}[L\, M_{t+1}(s')\, L^\top]$.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from logderiv import distributions
from logderiv._core.arrays import check_whole
from logderiv.environments.tabular import TabularMDP
from logderiv.estimators import Credit
from logderiv.estimators.credit import discount_factors, reward_to_go, total_return
from logderiv.exact.dynamic import check_discount, choices, has_memory, live_tables, occupancy
from logderiv.exact.enumeration import enumerate_trajectories
from logderiv.likelihood.probability import log_prob, prob
from logderiv.types import check_params


class ScoreMoments(NamedTuple):
    """First and second moments of one trajectory's weighted score; divide `covariance` by N for a mean over N.

    Attributes:
        mean: E[g]; pytree of `params`.
        covariance: Cov[g] of the raveled g (`jax.flatten_util.ravel_pytree`), shape `(D, D)`.
    """

    mean: Any
    covariance: jax.Array


def weighted_score_moments(
    params: Any,
    policy: Any,
    mdp: TabularMDP,
    *,
    horizon: int,
    credit: Credit = reward_to_go,
    baseline: Any = 0.0,
    discount: float = 1.0,
) -> ScoreMoments:
    r"""Mean and covariance of $g = \sum_t (C_t - b_t(s_t))\, \nabla\log\pi_\theta(a_t|s_t)$ for one trajectory, without listing any.

    $C_t = \gamma^t G_t$ for `reward_to_go`, $C_t = G_0$ for `total_return`, as in `logderiv.score_function`. Costs
    $O(T S^2 A\, D^2)$ time and $O(S A D^2)$ memory. Second moments are raw: use float64.

    Args:
        params: Parameters of the policy, `D` numbers in all.
        policy: A policy of the state alone.
        mdp: The decision process.
        horizon: `T`.
        credit: `logderiv.reward_to_go` or `logderiv.total_return`.
        baseline: $b_t(s)$, exactly what is subtracted from the credit, $\gamma^t$ included: a number, or an array of shape
            `(S,)` or `(T, S)`. The state value is `discount ** arange(T)[:, None] * logderiv.exact.state_values(...)`.
        discount: $\gamma$ in [0, 1].

    Returns:
        `ScoreMoments`. Differentiable in `params`, `mdp` and `baseline`; may be traced.

    Raises:
        ValueError: Another credit, a baseline of another shape, a policy with memory, `horizon` or `discount` out of range.
        TypeError: A parameter is not floating point.

    Example:
        >>> import jax.numpy as jnp, logderiv as ld
        >>> mdp = ld.TabularMDP(jnp.ones(1), jnp.ones((1, 2, 1)), jnp.array([[0.0, 1.0]]), jnp.zeros(1))
        >>> weighted_score_moments(jnp.zeros(2), ld.shared_softmax, mdp, horizon=1).mean.tolist()
        [-0.25, 0.25]
    """
    check_params(params)
    check_whole(horizon=horizon)
    check_discount(discount)
    if credit not in (reward_to_go, total_return):
        raise ValueError(
            f"credit: expected logderiv.reward_to_go or logderiv.total_return, received {credit!r}; for any other estimator "
            "logderiv.exact.estimator_moments enumerates."
        )
    flat, unravel = ravel_pytree(params)
    baselines = _baseline_table(baseline, horizon, mdp.num_states)
    table, scores = _choices_and_scores(params, policy, mdp)
    dtype, size = scores.dtype, flat.size
    transition, reward = live_tables(mdp, dtype)
    rows = 2 + size * (1 if credit is reward_to_go else 2)
    end = jnp.zeros((mdp.num_states, rows, rows), dtype).at[:, 0, 0].set(1)

    both_sides = functools.partial(_both_sides, credit)
    over_actions = jax.vmap(both_sides, (0, 0, None, 0))
    over_states = jax.vmap(over_actions, (0, 0, 0, 0))

    def backup(second: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        factor, b = inputs
        following = jnp.einsum("sap,pij->saij", transition, second)
        second = jnp.einsum("sa,saij->sij", table, over_states(following, factor * reward, b, scores))
        return jnp.where(mdp.terminal[:, None, None], end, second), None

    factors = discount_factors(discount, horizon, dtype)
    second, _ = lax.scan(backup, end, (factors, baselines.astype(dtype)), reverse=True)
    second = jnp.einsum("s,sij->ij", mdp.initial.astype(dtype), second)
    mean = second[0, -size:]
    return ScoreMoments(unravel(mean), second[-size:, -size:] - jnp.outer(mean, mean))


def fisher(params: Any, policy: Any, mdp: TabularMDP, *, horizon: int) -> jax.Array:
    r"""$F(\theta) = \mathbb{E}[\nabla\log P\, \nabla\log P^\top]$, exactly; shape `(D, D)`, raveled as `ravel_pytree`.

    For a policy of the state alone $\sum_t \mathbb{E}[\phi_t \phi_t^\top]$ over the occupancy of each state, since scores of
    different steps are uncorrelated; with memory by enumeration.

    Args:
        params: Parameters of the policy.
        policy: Any policy.
        mdp: The decision process; concrete where the policy has memory.
        horizon: `T`.

    Raises:
        ValueError: Memory, and too many trajectories to enumerate; `horizon` below 1.
        TypeError: A parameter is not floating point.
    """
    check_params(params)
    if not has_memory(policy):
        weights = jnp.sum(occupancy(params, policy, mdp, horizon=horizon), axis=0)
        table, scores = _choices_and_scores(params, policy, mdp)
        return jnp.einsum("s,sa,sai,saj->ij", weights, table, scores, scores)
    flat, unravel = ravel_pytree(params)
    every = enumerate_trajectories(mdp, horizon=horizon)
    weights = prob(params, policy, every, environment=mdp)
    scores = jax.jacfwd(lambda flat: log_prob(unravel(flat), policy, every))(flat)
    scores = jnp.where(weights[:, None] == 0, 0, scores)  # never drawn, and its score not defined
    return jnp.einsum("k,ki,kj->ij", weights, scores, scores)


def _both_sides(credit: Credit, second: jax.Array, c: jax.Array, b: jax.Array, score: jax.Array) -> jax.Array:
    """$L M L^T$ for a symmetric `M`."""

    def advance(z: jax.Array) -> jax.Array:
        """$z_t$ from $z_{t+1}$ in each column; it holds the sum of scores only where the whole return weighs them."""
        one, later, sums, g = z[0], z[1], z[2 : -score.size], z[-score.size :]
        g = g + jnp.outer(score, later + (c - b) * one)
        if credit is total_return:
            g, sums = g + c * sums, sums + jnp.outer(score, one)
        return jnp.concatenate([one[None], later[None] + c * one[None], sums, g])

    return advance(advance(second).T)


def _choices_and_scores(params: Any, policy: Any, mdp: TabularMDP) -> tuple[jax.Array, jax.Array]:
    r"""$\pi(a|s)$, shape `(S, A)`, and $\nabla\log\pi(a|s)$, shape `(S, A, D)`; 0 for an action that is never taken."""
    flat, unravel = ravel_pytree(params)
    table = choices(params, policy, mdp, distributions.prob)
    scores = jax.jacrev(lambda flat: choices(unravel(flat), policy, mdp, distributions.log_prob))(flat)
    return table, jnp.where(table[..., None] == 0, 0, scores)


def _baseline_table(baseline: Any, horizon: int, num_states: int) -> jax.Array:
    baseline = jnp.asarray(baseline)
    if baseline.shape not in ((), (num_states,), (horizon, num_states)):
        raise ValueError(
            f"baseline: expected a number or an array of shape (S,) = {(num_states,)} or (T, S) = {(horizon, num_states)}, "
            f"received shape {baseline.shape}."
        )
    baseline = baseline.reshape((1,) * (2 - baseline.ndim) + baseline.shape)
    return jnp.broadcast_to(baseline, (horizon, num_states))
