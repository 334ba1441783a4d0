"""Off-policy weights: estimating a policy's gradient from trajectories that another policy drew.

Everything starts from per-step log-ratios log π(a_t|s_t) − log b(a_t|s_t) of the policy π and the behavior policy b, taken as
differences step by step and then summed: the difference of two sums would lose what matters. The weights ρ are exponentials of
those sums, and enter the rewards *before* credit is given; a baseline is multiplied by them too. Applied afterwards they are
biased. They are detached: no gradient flows through them.

Up to each step (`per="step"`) they have the lower variance without a baseline, and are exact where a weight contains later
rewards only (`advantages.ToGo`, `GAE`). A weight that contains earlier rewards too (`advantages.Return`) needs the whole product
(`per="trajectory"`): an earlier reward carries the ratios up to its own step, and meets the score of a later choice, whose ratio
is missing. A state value as baseline predicts the sum of later rewards with *one* weight, so with ratios per step give it the
residuals (`advantages.GAE(1.0)`), or take the trajectory's weight.

Ratios are exactly 1, bit for bit, when `behavior_log_probs` are the very numbers that `log_factors` returns. A rollout stores
what it computed one step at a time, which may differ in the last bit; `with_behavior` refreshes them.
"""

import jax
import jax.numpy as jnp
from jax import lax

from logderiv._core import check
from logderiv._core.arrays import as_trajectory, summable
from logderiv._core.pytrees import pytree
from logderiv.estimators.declaration import Declaration, Part, Structure, biased
from logderiv.likelihood.probability import log_factors
from logderiv.types import Params, Per, Policy, Trajectory

_COVERS = (
    "every choice that the policy can make can be made by the behavior policy",
    "behavior_log_probs are those of the policy that drew the batch",
)


def log_ratios(params: Params, policy: Policy, trajectories: Trajectory) -> jax.Array:
    """Logarithm of policy over behavior policy for every step, log π(a_t|s_t) − log b(a_t|s_t); 0 on invalid steps.

    Args:
        params: Parameters of the policy.
        policy: A policy, or a function `(params, observation) -> distribution`.
        trajectories: Leading axes `(*batch, T)`, with `behavior_log_probs`.

    Returns:
        Shape `(*batch, T)`.

    Raises:
        ValueError: The shapes of the trajectories disagree, or an action is out of range.
        TypeError: Not a policy, or it does not return a distribution; `behavior_log_probs` are missing.

    Gradients: flow through `params`. Nothing is detached.
    """
    trajectories = as_trajectory(trajectories, "behavior_log_probs")
    logs = log_factors(params, policy, trajectories)
    behavior = jnp.where(trajectories.valid, trajectories.behavior_log_probs, 0).astype(logs.dtype)
    return logs - behavior


def with_behavior(params: Params, policy: Policy, trajectories: Trajectory) -> Trajectory:
    """The trajectories with `behavior_log_probs` recomputed for the policy that drew them.

    Ratios of the same parameters are then exactly 1. Both are computed by `log_factors`: call it in the same compiled
    function, or both outside `jax.jit`, since a compiler may round the same formula differently in another program.

    Args:
        params: Parameters *of the policy that drew the trajectories*.
        policy: That policy.
        trajectories: Leading axes `(*batch, T)`.

    Returns:
        The trajectories; their `behavior_log_probs` are detached.

    Raises:
        ValueError: The shapes of the trajectories disagree, or an action is out of range.
        TypeError: Not a policy, or it does not return a distribution.
    """
    trajectories = as_trajectory(trajectories)
    logs = lax.stop_gradient(log_factors(params, policy, trajectories))
    return trajectories._replace(behavior_log_probs=logs)


def effective_sample_size(log_weights: jax.Array) -> jax.Array:
    """How many equally weighted samples the weights are worth, (Σ_n w_n)² / Σ_n w_n², between 1 and N.

    Args:
        log_weights: Logarithms of the weights, up to a constant: for trajectories the sum of `log_ratios` over time.
            Shape `(..., N)`.

    Returns:
        Shape `(...)`; exactly N for equal weights, NaN if all are zero.

    Raises:
        TypeError: Complex numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(effective_sample_size(jnp.log(jnp.array([1.0, 1.0, 2.0])))), 4)
        2.6667

    References:
        Kish (1965), Survey Sampling; Kong, Liu & Wong (1994), JASA 89.
    """
    log_weights = summable(log_weights, "log_weights")
    weights = jnp.exp(log_weights - jnp.max(log_weights, axis=-1, keepdims=True))
    return jnp.square(jnp.sum(weights, axis=-1)) / jnp.sum(jnp.square(weights), axis=-1)


@pytree(static=("per", "normalize"))
class Importance(Part):
    """Weights of off-policy steps from their ratios π/b.

    | `per` | weight of step t | |
    |---|---|---|
    | `"step"` | ρ_t = Π_{s≤t} π/b | the choices that a reward follows from; exact with `ToGo` and `GAE` |
    | `"trajectory"` | Π_s π/b over all steps, at every step | exact with any advantage; its variance grows exponentially with T |

    Truncated weights, min(ρ, c), are bounded by c, and biased unless no ratio exceeds it. Normalized ones,
    N ρ_n / Σ_m ρ_m (per step: of the products up to that step; one that has ended keeps its last), are bounded by N, biased by
    order 1/N, and consistent.

    Attributes:
        per: "step" or "trajectory".
        normalize: Divide by the mean over the batch. Needs two trajectories: with one the weight is always 1.
        truncate: c > 0; `None` does not truncate.

    Raises:
        ValueError: `per` is neither of the two, or `truncate` is not positive.

    References:
        Precup, Sutton & Singh (2000), "Eligibility traces for off-policy policy evaluation", for products per step; Owen (2013),
        Monte Carlo theory, methods and examples, section 9.2, for normalized weights; Ionides (2008), J. Comput. Graph. Statist.
        17, "Truncated importance sampling".
    """

    per: Per = "step"
    normalize: bool = False
    truncate: float | None = None

    def __post_init__(self) -> None:
        check.one_of(("step", "trajectory"), per=self.per)
        check.positive(or_none=True, truncate=self.truncate)

    @property
    def structure(self) -> Structure:
        """Normalized weights tie the batch together."""
        return Structure(min_trajectories=2, degree=None) if self.normalize else Structure()

    @property
    def declaration(self) -> Declaration:
        """Exact at every order as they are; without a factor if truncated or normalized."""
        declared = Declaration(assumes=_COVERS)
        if self.truncate is not None:
            declared &= biased(f"ratios truncated at {self.truncate}")
        if self.normalize:
            declared &= biased("normalized weights: divided by a random sum that contains the own weight")
        return declared

    def ratios(self, log_ratios: jax.Array) -> jax.Array:
        """Weights of a batch from its per-step log-ratios.

        Args:
            log_ratios: Shape `(N, T)`, 0 on invalid steps.

        Returns:
            Shape `(N, T)`.

        Raises:
            TypeError: Complex numbers.

        Gradients: flow through; an estimator detaches them.
        """
        return jnp.exp(self.log_weights(log_ratios))

    def log_weights(self, log_ratios: jax.Array) -> jax.Array:
        """Logarithms of the weights, which do not overflow: what estimators use.

        Args:
            log_ratios: Shape `(N, T)`, 0 on invalid steps.

        Returns:
            Shape `(N, T)`.

        Gradients: flow through; an estimator detaches them.
        """
        log_ratios = summable(log_ratios, "log_ratios")
        if self.per == "step":
            logs = lax.associative_scan(jnp.add, log_ratios, axis=log_ratios.ndim - 1)
        else:
            logs = jnp.broadcast_to(jnp.sum(log_ratios, axis=-1, keepdims=True), log_ratios.shape)
        if self.truncate is not None:
            logs = jnp.minimum(logs, jnp.log(jnp.asarray(self.truncate, logs.dtype)))
        if self.normalize:
            peak = jnp.max(logs, axis=0, keepdims=True)
            logs = logs - peak - jnp.log(jnp.mean(jnp.exp(logs - peak), axis=0, keepdims=True))
        return logs
