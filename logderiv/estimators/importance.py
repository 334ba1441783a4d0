r"""Off-policy weights: estimating a policy's gradient from trajectories that another policy drew.

Everything starts from per-step log-ratios $\ell_t - \ell^b_t = \log\pi_\theta(a_t|s_t) - \log b(a_t|s_t)$, taken as differences step by step and then
summed: the difference of two sums would lose what matters. The weights are exponentials of those sums,

| | weight of step `t` | |
|---|---|---|
| per decision | $\rho_{\le t} = \prod_{s \le t} \pi/b$ | only the choices that a reward follows from |
| trajectory | $\rho_{\le T}$ at every step | the whole product |
| self-normalized | $N \rho_n / \sum_m \rho_m$ | bounded by N; biased, consistent |
| truncated | $\min(\rho, c)$ | bounded by c; biased |

and enter the rewards *before* credit; a baseline is multiplied by them too. Applied after credit they are biased. Weights
are held: no gradient flows through them.

Per decision has the lower variance without a baseline. A state value as baseline is different: what it predicts is then the
sum of rewards with *one* weight, so give it the residuals (`credit=gae(1.0)`), or take the trajectory's weight.

They are exactly 1, bit for bit, when `behavior_log_probs` are the very numbers that `log_factors` returns. A rollout stores
what it computed one step at a time, which may differ in the last bit; `with_behavior` refreshes them.
"""

import dataclasses
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from logderiv.estimators.declaration import Bias, biased
from logderiv.likelihood.factors import log_factors
from logderiv.types import Trajectory

Product = Literal["decision", "trajectory"]
_COVERS = (
    "every choice that the policy can make can be made by the behavior policy",
    "behavior_log_probs are those of the policy that drew the batch",
)


class Importance(Protocol):
    """A weighting of off-policy steps."""

    @property
    def bias(self) -> Bias:
        """What it does to the expectation."""
        ...

    def ratios(self, log_ratios: jax.Array) -> jax.Array:
        """Weights of a batch from its per-step log-ratios, both `(N, T)`; log-ratios are 0 on invalid steps."""
        ...


def log_ratios(params: Any, policy: Any, trajectories: Trajectory) -> jax.Array:
    r"""$\log\pi_\theta(a_t|s_t) - \log b(a_t|s_t)$ for every step; 0 on invalid steps.

    Args:
        params: Parameters of the policy.
        policy: As in `log_factors`.
        trajectories: Leading axes `(*batch, T)`, with `behavior_log_probs`.

    Returns:
        Shape `(*batch, T)`.

    Gradients: flow through `params`. Nothing is detached.
    """
    logs = log_factors(params, policy, trajectories)
    behavior = jnp.where(trajectories.valid, trajectories.behavior_log_probs, 0).astype(logs.dtype)
    return logs - behavior


def with_behavior(params: Any, policy: Any, trajectories: Trajectory) -> Trajectory:
    """The trajectories with `behavior_log_probs` recomputed for the policy that drew them.

    Ratios of the same parameters are then exactly 1. Both are computed by `log_factors`: call it in the same compiled
    function, or both outside `jax.jit`, since a compiler may round the same formula differently in another program.

    Args:
        params: Parameters *of the policy that drew the trajectories*.
        policy: That policy.
        trajectories: Leading axes `(*batch, T)`.
    """
    logs = lax.stop_gradient(log_factors(params, policy, trajectories))
    return trajectories._replace(behavior_log_probs=logs)


def per_decision_ratios(log_ratios: jax.Array) -> jax.Array:
    r"""$\rho_{\le t} = \exp \sum_{s \le t} (\ell_s - \ell^b_s)$. Shape `(*batch, T)` in and out."""
    return jnp.exp(_sums(log_ratios))


def trajectory_ratios(log_ratios: jax.Array) -> jax.Array:
    r"""The whole product $\rho_{\le T}$ at every step. Shape `(*batch, T)` in and out."""
    return jnp.broadcast_to(jnp.exp(jnp.sum(log_ratios, axis=-1, keepdims=True)), log_ratios.shape)


def effective_sample_size(log_weights: jax.Array) -> jax.Array:
    r"""How many equally weighted samples the weights are worth, $(\sum_n w_n)^2 / \sum_n w_n^2$, between 1 and N.

    Args:
        log_weights: Logarithms of the weights, up to a constant: for trajectories the sum of `log_ratios` over time.
            Shape `(..., N)`.

    Returns:
        Shape `(...)`; exactly N for equal weights, NaN if all are zero.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(effective_sample_size(jnp.log(jnp.array([1.0, 1.0, 2.0])))), 4)
        2.6667

    References:
        Kish (1965), Survey Sampling; Kong, Liu & Wong (1994), JASA 89.
    """
    weights = jnp.exp(log_weights - jnp.max(log_weights, axis=-1, keepdims=True))
    return jnp.square(jnp.sum(weights, axis=-1)) / jnp.sum(jnp.square(weights), axis=-1)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Plain:
    """See `importance_per_decision` and `importance_trajectory`."""

    product: Product = "decision"

    bias = Bias(assumes=_COVERS)

    def ratios(self, log_ratios: jax.Array) -> jax.Array:
        """The products themselves."""
        return jnp.exp(log_products(log_ratios, self.product))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class SelfNormalized:
    """See `importance_self_normalized`."""

    product: Product = "decision"

    def __post_init__(self) -> None:
        _check_product(self.product)

    @property
    def bias(self) -> Bias:
        """No factor: a ratio of two random sums."""
        reason = "self-normalized weights: divided by a random sum that contains the own weight"
        return biased(reason, min_trajectories=2, degree=None, assumes=_COVERS)

    def ratios(self, log_ratios: jax.Array) -> jax.Array:
        """The products, divided by their mean over the batch; an ended trajectory keeps its last one."""
        logs = log_products(log_ratios, self.product)
        weights = jnp.exp(logs - jnp.max(logs, axis=0, keepdims=True))
        return weights / jnp.mean(weights, axis=0, keepdims=True)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Truncated:
    """See `importance_truncated`."""

    threshold: float
    product: Product = "decision"

    def __post_init__(self) -> None:
        _check_product(self.product)
        if not self.threshold > 0:
            raise ValueError(f"threshold: expected a positive number, received {self.threshold}.")

    @property
    def bias(self) -> Bias:
        """No factor: what lies above the threshold is cut off."""
        return biased(f"ratios truncated at {self.threshold}", assumes=_COVERS)

    def ratios(self, log_ratios: jax.Array) -> jax.Array:
        """The products, at most the threshold."""
        return jnp.minimum(jnp.exp(log_products(log_ratios, self.product)), self.threshold)


def log_products(log_ratios: jax.Array, product: Product) -> jax.Array:
    """Logarithm of the product up to each step, or of the whole at every step."""
    if product == "decision":
        return _sums(log_ratios)
    return jnp.broadcast_to(jnp.sum(log_ratios, axis=-1, keepdims=True), log_ratios.shape)


def importance_per_decision() -> Plain:
    r"""The product of the ratios up to each step: $\sum_t \rho_{\le t} \gamma^t r_t$ has the return's expectation under the policy.

    Unbiased at every order with any credit and any legal baseline.

    References:
        Precup, Sutton & Singh (2000), "Eligibility traces for off-policy policy evaluation".
    """
    return Plain("decision")


def importance_trajectory() -> Plain:
    """The whole trajectory's ratio at every step. Unbiased at every order; its variance grows exponentially with T."""
    return Plain("trajectory")


def importance_self_normalized(*, product: Product = "decision") -> SelfNormalized:
    r"""Ratios divided by their mean over the batch, $N \rho_n / \sum_m \rho_m$ (per step: of the products up to that step).

    Biased by order 1/N, consistent, and never larger than N. Needs two trajectories: with one the weight is always 1.

    Args:
        product: 'decision' for products up to each step, 'trajectory' for the whole.

    Raises:
        ValueError: `product` is neither.

    References:
        Owen (2013), Monte Carlo theory, methods and examples, section 9.2.
    """
    return SelfNormalized(product)


def importance_truncated(threshold: float, *, product: Product = "decision") -> Truncated:
    r"""Ratios of at most `threshold`, $\min(\rho, c)$. Biased, unless no ratio exceeds it; bounded.

    Args:
        threshold: $c > 0$.
        product: As in `importance_self_normalized`.

    Raises:
        ValueError: `threshold` not positive, or `product` neither.

    References:
        Ionides (2008), J. Comput. Graph. Statist. 17, "Truncated importance sampling".
    """
    return Truncated(threshold, product)


def _sums(log_ratios: jax.Array) -> jax.Array:
    return lax.associative_scan(jnp.add, log_ratios, axis=log_ratios.ndim - 1)


def _check_product(product: str) -> None:
    if product not in ("decision", "trajectory"):
        raise ValueError(f"product: expected 'decision' or 'trajectory', received {product!r}.")
