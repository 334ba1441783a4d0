r"""Credit: which rewards a choice is answerable for. Written for one trajectory; `jax.vmap` for a batch.

Every credit is a function of rewards and per-step discounts. The objective's $\gamma^t$, like an importance ratio, goes
into the rewards *before* credit: with `rewards = gamma^t r_t` and `discounts = 1`, reward-to-go is $\gamma^t G_t$, the
weight of the true gradient of the discounted objective.

The forms with values take $v_t = v(s_t)$ as `values` and $v(s_{t+1})$ as `next_values`, where the next observation of the
last step is the final one: a trajectory that was truncated, or cut by the horizon, bootstraps from it; one that
terminated does not, because its discount is 0 there. In the terms of rlax, `next_values` is `v_t`, `values` is `v_tm1`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from logderiv.estimators.declaration import Bias, biased, declared


def reward_to_go(rewards: jax.Array, discounts: jax.Array) -> jax.Array:
    r"""Discounted sum of rewards from each step to the end.

    $G_t = r_t + \gamma_t G_{t+1}$ with $G_T = 0$, by an associative scan: float32 stays exact to 1e-7 at 10^6 steps,
    where a sequential sum is wrong by a percent.

    Args:
        rewards: Reward on leaving step `t`. Shape `(T,)`.
        discounts: Continuation factor in [0, 1], zero where the episode terminates. Shape `(T,)`.

    Returns:
        $G_t$, shape `(T,)`, dtype of `rewards`.

    Raises:
        ValueError: The two shapes differ, or are not one-dimensional.

    Gradients: flow through both arguments; nothing is detached.

    Example:
        >>> import jax.numpy as jnp
        >>> reward_to_go(jnp.ones(3), jnp.array([1.0, 0.5, 0.0])).tolist()
        [2.5, 1.5, 1.0]

    References:
        Sutton & Barto (2018), Reinforcement Learning, 2nd ed., eq. 3.9.
    """
    _check(rewards=rewards, discounts=discounts)
    return backward_sums(rewards, discounts)


def total_return(rewards: jax.Array, discounts: jax.Array) -> jax.Array:
    r"""The whole return $G_0$ at every step: the score weighting of the plain identity.

    Args:
        rewards: Shape `(T,)`.
        discounts: As in `reward_to_go`. Shape `(T,)`.

    Returns:
        $G_0$ repeated, shape `(T,)`.

    Raises:
        ValueError: As `reward_to_go`.

    References:
        Williams (1992), Machine Learning 8, theorem 1 (REINFORCE).
    """
    returns = reward_to_go(rewards, discounts)
    return jnp.broadcast_to(returns[0], returns.shape)


def td_residuals(rewards: jax.Array, discounts: jax.Array, values: jax.Array, next_values: jax.Array) -> jax.Array:
    r"""One-step errors of a value function, $\delta_t = r_t + \gamma_t v(s_{t+1}) - v(s_t)$.

    Args:
        rewards: Shape `(T,)`.
        discounts: $\gamma$ times 0 at termination, 1 elsewhere. Shape `(T,)`.
        values: $v(s_t)$, shape `(T,)`.
        next_values: $v(s_{t+1})$, of the final observation after the last valid step. Shape `(T,)`.

    Returns:
        $\delta_t$, shape `(T,)`.

    Raises:
        ValueError: The shapes differ, or are not one-dimensional.

    Gradients: flow through everything, the bootstrap included; nothing is detached.

    References:
        Sutton & Barto (2018), eq. 6.5.
    """
    _check(rewards=rewards, discounts=discounts, values=values, next_values=next_values)
    return rewards + discounts * next_values - values


def lambda_returns(
    rewards: jax.Array,
    discounts: jax.Array,
    next_values: jax.Array,
    *,
    lambda_: float | jax.Array = 1.0,
    valid: jax.Array | None = None,
) -> jax.Array:
    r"""Returns that bootstrap from values, $G_t = r_t + \gamma_t \left((1 - \lambda_t)\, v(s_{t+1}) + \lambda_t G_{t+1}\right)$.

    The last valid step bootstraps wholly: $G = r + \gamma\, v(s_{\text{final}})$.

    | `lambda_` | name |
    |---|---|
    | 0 | one-step (temporal-difference) target |
    | 1 | discounted return, bootstrapped where the trajectory was cut |

    Args:
        rewards: Shape `(T,)`.
        discounts: As in `td_residuals`. Shape `(T,)`.
        next_values: As in `td_residuals`. Shape `(T,)`.
        lambda_: In [0, 1], a number or shape `(T,)`.
        valid: Prefix mask, shape `(T,)`; invalid steps may hold anything and return 0. `None`: all are valid.

    Returns:
        $G_t$, shape `(T,)`, dtype of `rewards`.

    Raises:
        ValueError: The shapes differ, or are not one-dimensional.

    Gradients: flow through everything; nothing is detached.

    References:
        Sutton & Barto (2018), eq. 12.18; `rlax.lambda_returns` is the same function of the same arrays.
    """
    _check(rewards=rewards, discounts=discounts, next_values=next_values)
    rewards, discounts, next_values = _masked(valid, rewards, discounts, next_values)
    mixing = _continuing(valid, rewards) * lambda_
    return backward_sums(rewards + discounts * (1 - mixing) * next_values, discounts * mixing)


def generalized_advantages(
    rewards: jax.Array,
    discounts: jax.Array,
    values: jax.Array,
    next_values: jax.Array,
    *,
    lambda_: float | jax.Array = 1.0,
    valid: jax.Array | None = None,
) -> jax.Array:
    r"""Generalized advantage estimation, $A_t = \delta_t + \gamma_t \lambda_t A_{t+1}$ with `td_residuals` $\delta_t$.

    Equal to `lambda_returns` minus `values`, without subtracting large numbers.

    Args:
        rewards: Shape `(T,)`.
        discounts: As in `td_residuals`. Shape `(T,)`.
        values: As in `td_residuals`. Shape `(T,)`.
        next_values: As in `td_residuals`. Shape `(T,)`.
        lambda_: In [0, 1], a number or shape `(T,)`.
        valid: Prefix mask, shape `(T,)`; invalid steps may hold anything and return 0. `None`: all are valid.

    Returns:
        $A_t$, shape `(T,)`, dtype of `rewards`.

    Raises:
        ValueError: The shapes differ, or are not one-dimensional.

    Gradients: flow through everything, the values included; nothing is detached.

    References:
        Schulman et al. (2016), arXiv:1506.02438, eq. 16; `rlax.truncated_generalized_advantage_estimation`.
    """
    _check(rewards=rewards, discounts=discounts, values=values, next_values=next_values)
    rewards, discounts, values, next_values = _masked(valid, rewards, discounts, values, next_values)
    residuals = td_residuals(rewards, discounts, values, next_values)
    return backward_sums(residuals, discounts * lambda_)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class GAE:
    """See `gae`."""

    lambda_: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.lambda_ <= 1.0:
            raise ValueError(f"lambda_: expected a number in [0, 1], received {self.lambda_}.")

    @property
    def bias(self) -> Bias:
        """Unbiased at `lambda_ = 1` if nothing is cut; else as wrong as the values."""
        if self.lambda_ == 1.0:
            return Bias(assumes=("every trajectory terminates within the horizon: one that is cut bootstraps",))
        return biased(f"lambda = {self.lambda_} bootstraps from the baseline's values, which are not the true ones")


def gae(lambda_: float) -> GAE:
    r"""Credit for `score_function`: $\lambda$-returns of the baseline's own values, so that the weights are $\gamma^t A_t$ of GAE.

    It takes the values from the baseline, which must be one of a state (`baseline_value`, `baseline_learned_value`, `baseline_shared_value`).
    `lambda_=0` is the one-step actor-critic, `lambda_=1` is reward-to-go minus the value, bootstrapped where a trajectory
    was cut. Off policy each residual carries the ratio of the choices up to it.

    Bias: for `lambda_ < 1` the estimate is as biased as the values are wrong; with the true values it is unbiased for
    every `lambda_`. Both are computed exactly in the tests.

    Args:
        lambda_: In [0, 1].

    Raises:
        ValueError: `lambda_` outside [0, 1].

    References:
        Schulman et al. (2016), arXiv:1506.02438, eq. 16.
    """
    return GAE(lambda_)


def credit_bias(credit: object) -> Bias:
    """What a credit does to the expectation; one that does not declare it is refused (see `logderiv.bias.declared`)."""
    return declared(credit, {reward_to_go: Bias(), total_return: Bias()}, "credit")


def discount_factors(discount: float, horizon: int, dtype: jnp.dtype) -> jax.Array:
    r"""$\gamma^t$ for `t = 0, ..., T-1`."""
    return jnp.asarray(discount, dtype) ** jnp.arange(horizon, dtype=dtype)


def backward_sums(terms: jax.Array, factors: jax.Array) -> jax.Array:
    r"""$y_t = x_t + c_t\, y_{t+1}$ with $y_T = 0$, by an associative scan. Shapes `(T,)`, dtype of `terms`."""

    def combine(
        later: tuple[jax.Array, jax.Array], earlier: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        return earlier[0] + earlier[1] * later[0], earlier[1] * later[1]

    return lax.associative_scan(combine, (terms, factors.astype(terms.dtype)), reverse=True)[0]


def _masked(valid: jax.Array | None, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    return arrays if valid is None else tuple(jnp.where(valid, x, 0) for x in arrays)


def _continuing(valid: jax.Array | None, like: jax.Array) -> jax.Array:
    """1 where another valid step follows, else 0."""
    present = jnp.ones(like.shape, bool) if valid is None else valid
    return jnp.append(present[1:], False).astype(like.dtype)


def _check(**arrays: jax.Array) -> None:
    shapes = {x.shape for x in arrays.values()}
    if len(shapes) != 1 or len(shapes.pop()) != 1:
        received = ", ".join(f"{name} {x.shape}" for name, x in arrays.items())
        raise ValueError(
            f"credit: expected arrays of one trajectory, all of shape (T,), received {received}; use jax.vmap for a batch."
        )
