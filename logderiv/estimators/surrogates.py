r"""Surrogates: scalars whose derivatives are the estimates.

An estimator is a weighting of per-step scores. With log-factors $\ell_{n,t} = \log\pi_\theta(a_{n,t}|s_{n,t})$ and weights $w_{n,t}$,
held constant, the score surrogate is $\tfrac1N \sum_n \sum_t w\,\ell$. DiCE changes only how the weighted scores are
differentiated again, the clipped surrogate only what a second step on the same batch may do. The value means nothing.

Reductions are sum over time, mean over trajectories. Others have names (`reduce_steps`) and are biased.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from logderiv.estimators.declaration import Bias, biased, declared

Normalizer = Literal["per_trajectory", "per_own_token", "per_token"]


def score_surrogate(log_factors: jax.Array, weights: jax.Array) -> jax.Array:
    r"""$\tfrac1N \sum_n \sum_t w_{n,t}\, \ell_{n,t}$: right at order one only.

    Differentiated twice it yields $\mathbb{E} \sum w\, \nabla^2\ell$ and lacks every product of scores.

    Args:
        log_factors: Shape `(*batch, T)`, 0 on invalid steps.
        weights: Same shape; cast to the dtype of `log_factors` and detached.

    Returns:
        A scalar.

    Raises:
        ValueError: The shapes differ.
    """
    return _mean_of_sums(_held(log_factors, weights) * log_factors)


def dice_surrogate(log_factors: jax.Array, weights: jax.Array) -> jax.Array:
    r"""$\tfrac1N \sum_n \sum_t w_{n,t}\, (\square(\ell_{\le t}) - \square(\ell_{<t}))$ with $\square(x) = \exp(x - \bot(x))$: right at every order.

    $\bot$ stops the gradient. The same weights serve as in `score_surrogate`: reward-to-go minus any legal baseline. The
    k-th derivative is unbiased for the k-th derivative of the objective; in float64, since the box sums log-factors.

    Args:
        log_factors: Shape `(*batch, T)`, 0 on invalid steps.
        weights: Same shape; cast to the dtype of `log_factors` and detached.

    Returns:
        A scalar.

    Raises:
        ValueError: The shapes differ.

    References:
        Foerster et al. (2018), arXiv:1802.05098, eqs. 5-6; Mao et al. (2019), arXiv:1904.09664, for the baseline.
    """
    weights = _held(log_factors, weights)
    up_to = jnp.cumsum(log_factors, axis=-1)
    return _mean_of_sums(weights * (box(up_to) - box(up_to - log_factors)))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LoadedDice:
    """See `loaded_dice`."""

    lambda_: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.lambda_ <= 1.0:
            raise ValueError(f"lambda_: expected a number in [0, 1], received {self.lambda_}.")

    @property
    def bias(self) -> Bias:
        """Every order at `lambda_ = 1`, else order one."""
        if self.lambda_ == 1.0:
            return Bias()
        return Bias(
            order=1, reasons=(f"Loaded DiCE forgets earlier choices at lambda = {self.lambda_} from order 2 on",)
        )

    def __call__(self, log_factors: jax.Array, weights: jax.Array) -> jax.Array:
        """As `dice_surrogate`, with sums of log-factors that decay."""
        weights = _held(log_factors, weights)
        decays = jnp.full_like(log_factors, self.lambda_)
        up_to = _decayed_sums(log_factors, decays)
        return _mean_of_sums(weights * (box(up_to) - box(up_to - log_factors)))


def loaded_dice(lambda_: float) -> LoadedDice:
    r"""DiCE whose dependence on earlier choices decays: $\ell_{\le t}$ becomes $\sum_{s \le t} \lambda^{t-s} \ell_s$.

    $\tfrac1N \sum_n \sum_t w_{n,t}\, (\square(\textstyle\sum_{s \le t} \lambda^{t-s} \ell_s) - \square(\sum_{s < t} \lambda^{t-s} \ell_s))$

    `lambda_=1` is `dice_surrogate`, exact at every order with step-wise baselines. Below 1 the gradient is the same, exactly, and
    higher derivatives trade bias for variance; `lambda_=0` keeps each step's own choice only.

    Args:
        lambda_: In [0, 1].

    Returns:
        A surrogate `(log_factors, weights) -> scalar`.

    Raises:
        ValueError: `lambda_` outside [0, 1].

    References:
        Farquhar, Whiteson & Foerster (2019), arXiv:1909.10549, section 4 (Loaded DiCE).
    """
    return LoadedDice(lambda_)


def clipped_terms(log_ratios: jax.Array, weights: jax.Array, clip: float | None) -> jax.Array:
    r"""$\min(\rho\, w,\ \mathrm{clip}(\rho, 1 - \epsilon, 1 + \epsilon)\, w)$ per step, with $\rho = \exp(\ell - \ell^b)$.

    At $\rho = 1$ its gradient is $w \nabla\ell$; it is flat where a step has already moved by more than $\epsilon$ in the direction that
    its weight asks for.

    Args:
        log_ratios: $\ell - \ell^b$ per step, 0 on invalid steps. Shape `(*batch, T)`.
        weights: Advantages, same shape; cast and detached.
        clip: $\epsilon > 0$; `None` does not clip.

    Returns:
        Shape `(*batch, T)`; reduce it by `reduce_steps`.

    Raises:
        ValueError: The shapes differ.

    References:
        Schulman et al. (2017), arXiv:1707.06347, eq. 7.
    """
    return clipped_step(log_ratios, _held(log_ratios, weights), clip)


def clipped_step(log_ratio: jax.Array, weight: jax.Array, clip: float | None) -> jax.Array:
    """As `clipped_terms`, of arrays of any shape, or of one step; the weight is held already."""
    ratio = jnp.exp(log_ratio)
    if clip is None:
        return ratio * weight
    return jnp.minimum(ratio * weight, jnp.clip(ratio, 1 - clip, 1 + clip) * weight)


def reduce_steps(terms: jax.Array, valid: jax.Array, normalizer: Normalizer) -> jax.Array:
    r"""One number from per-step terms, with the normalizer named.

    | normalizer | | |
    |---|---|---|
    | `per_trajectory` | $\tfrac1N \sum_n \sum_t x_{n,t}$ | ours, Dr. GRPO; leaves the gradient unbiased |
    | `per_own_token` | $\tfrac1N \sum_n \tfrac{1}{T_n} \sum_t x_{n,t}$ | GRPO; weighs a step less in a long trajectory |
    | `per_token` | $\sum_n \sum_t x_{n,t} / \sum_n T_n$ | DAPO; divides by a random number |

    Args:
        terms: Shape `(*batch, T)`, 0 on invalid steps; `N` is the number of trajectories in all.
        valid: Same shape; $T_n$ counts it, and is taken as at least 1.
        normalizer: One of the three.

    Raises:
        ValueError: None of the three.
    """
    return jnp.sum(terms * step_weights(valid, normalizer, terms.dtype))


def step_weights(valid: jax.Array, normalizer: Normalizer, dtype: Any) -> jax.Array:
    """What each step counts in `reduce_steps`, whatever the leading axes; shape of `valid`, invalid steps included."""
    num, lengths = math.prod(valid.shape[:-1]), jnp.sum(valid, axis=-1, keepdims=True).astype(dtype)
    if normalizer == "per_trajectory":
        divisors = jnp.full_like(lengths, num)
    elif normalizer == "per_own_token":
        divisors = num * jnp.maximum(lengths, 1)
    elif normalizer == "per_token":
        divisors = jnp.full_like(lengths, jnp.maximum(jnp.sum(lengths), 1))
    else:
        raise _unknown(normalizer)
    return jnp.broadcast_to(1 / divisors, valid.shape)


def normalizer_bias(normalizer: Normalizer) -> Bias:
    """What a normalizer does to the expectation.

    Raises:
        ValueError: None of the three of `reduce_steps`.
    """
    if normalizer == "per_trajectory":
        return Bias()
    if normalizer == "per_own_token":
        return biased("per_own_token: each trajectory is divided by its own random length")
    if normalizer == "per_token":
        return biased("per_token: divided by the random number of steps in the batch", degree=None)
    raise _unknown(normalizer)


def surrogate_bias(surrogate: object) -> Bias:
    """What a surrogate does to the expectation; one that does not declare it is refused (see `logderiv.bias.declared`)."""
    return declared(surrogate, {score_surrogate: Bias(order=1), dice_surrogate: Bias()}, "surrogate")


def box(x: jax.Array) -> jax.Array:
    r"""$\square(x) = \exp(x - \bot(x))$: 1, with the derivatives of $e^x$ at 0."""
    return jnp.exp(x - lax.stop_gradient(x))


def _unknown(normalizer: object) -> ValueError:
    return ValueError(
        f"normalizer: expected 'per_trajectory', 'per_own_token' or 'per_token', received {normalizer!r}."
    )


def _decayed_sums(terms: jax.Array, decays: jax.Array) -> jax.Array:
    """$y_t = x_t + c_t y_{t-1}$ along the last axis, by an associative scan."""

    def combine(
        earlier: tuple[jax.Array, jax.Array], later: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        return later[0] + later[1] * earlier[0], later[1] * earlier[1]

    return lax.associative_scan(combine, (terms, decays), axis=terms.ndim - 1)[0]


def _held(log_factors: jax.Array, weights: jax.Array) -> jax.Array:
    if log_factors.shape != weights.shape or log_factors.ndim == 0:
        raise ValueError(
            f"surrogate: expected log_factors and weights of one shape (*batch, T), received {log_factors.shape} and "
            f"{weights.shape}; a (N, 1) against a (N,) would broadcast to (N, N)."
        )
    return lax.stop_gradient(weights).astype(log_factors.dtype)


def _mean_of_sums(terms: jax.Array) -> jax.Array:
    return jnp.mean(jnp.sum(terms, axis=-1))
