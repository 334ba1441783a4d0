r"""Surrogates: scalars whose derivatives are the estimates.

An estimator is a weighting of per-step scores. With log-factors $\ell_{n,t} = \log\pi_\theta(a_{n,t}|s_{n,t})$ and weights $w_{n,t}$,
held constant, the score surrogate is $\tfrac1N \sum_n \sum_t w\,\ell$. DiCE changes only how the weighted scores are
differentiated again. Reductions are sum over time, mean over trajectories; the value of a surrogate means nothing.
"""

import jax
import jax.numpy as jnp
from jax import lax


def score_surrogate(log_factors: jax.Array, weights: jax.Array) -> jax.Array:
    r"""$\tfrac1N \sum_n \sum_t w_{n,t}\, \ell_{n,t}$: right at order one only.

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
    return _mean_of_sums(weights * (_box(up_to) - _box(up_to - log_factors)))


def _box(x: jax.Array) -> jax.Array:
    return jnp.exp(x - lax.stop_gradient(x))


def _held(log_factors: jax.Array, weights: jax.Array) -> jax.Array:
    if log_factors.shape != weights.shape or log_factors.ndim == 0:
        raise ValueError(
            f"surrogate: expected log_factors and weights of one shape (*batch, T), received {log_factors.shape} and "
            f"{weights.shape}; a (N, 1) against a (N,) would broadcast to (N, N)."
        )
    return lax.stop_gradient(weights).astype(log_factors.dtype)


def _mean_of_sums(terms: jax.Array) -> jax.Array:
    return jnp.mean(jnp.sum(terms, axis=-1))
