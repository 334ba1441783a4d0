"""Baselines in wide use that bias the gradient, under names that say so. Each declares why, and by how much where known."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from logderiv.estimators.baselines.averages import PerGroup, credits_and_counts
from logderiv.estimators.baselines.base import Baseline, CreditBatch, NoBaseline, Per, Stateless, check_per
from logderiv.estimators.baselines.optimal import Optimal
from logderiv.estimators.declaration import Bias, biased
from logderiv.types import Trajectory

_NONE = NoBaseline()


def own_sample_factor(num_trajectories: int) -> float:
    """$1 - 1/N$: what a mean that contains the own sample leaves of the gradient."""
    return 1.0 - 1.0 / num_trajectories


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class BatchMean(Stateless):
    """See `baseline_biased_batch_mean`."""

    per: Per = "trajectory"

    def __post_init__(self) -> None:
        check_per(self.per)

    @property
    def bias(self) -> Bias:
        """The factor 1 - 1/N per trajectory; per step it depends on how many are alive."""
        factor = own_sample_factor if self.per == "trajectory" else None
        return biased("batch mean: it contains the own sample", factor=factor, min_trajectories=2, degree=None)

    def values(self, state: Any, trajectories: Trajectory, batch: CreditBatch) -> jax.Array:
        """Mean credit of all trajectories, times the own ratio."""
        del state
        credit, counts = credits_and_counts(trajectories, batch, self.per)
        means = jnp.sum(credit, axis=0, keepdims=True) / jnp.maximum(jnp.sum(counts, axis=0, keepdims=True), 1)
        return batch.ratios * jnp.broadcast_to(means, trajectories.valid.shape)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Standardized:
    """See `baseline_biased_standardized`."""

    baseline: Baseline = _NONE
    per: Per = "step"
    ddof: int = 0
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        check_per(self.per)

    @property
    def bias(self) -> Bias:
        """No factor: mean and scale are random and contain the own sample."""
        reason = "standardized weights: mean and standard deviation contain the own sample"
        return self.baseline.bias & biased(reason, min_trajectories=2, degree=None)

    def init(self, params: Any) -> Any:
        """The inner baseline's state."""
        return self.baseline.init(params)

    def state_values(self, state: Any, trajectories: Trajectory) -> tuple[jax.Array, jax.Array]:
        """Those of the inner baseline, which must be one of a state."""
        return self.baseline.state_values(state, trajectories)  # pyright: ignore[reportAttributeAccessIssue]

    def values(self, state: Any, trajectories: Trajectory, batch: CreditBatch) -> jax.Array:
        """What turns the credit into (advantage - mean) / std."""
        advantages = batch.credit - self.baseline.values(state, trajectories, batch)
        over, counts = credits_and_counts(trajectories, batch._replace(credit=advantages), self.per)
        mean, std = _mean_and_std(over, counts > 0, self.ddof)
        return batch.credit - (advantages - mean) / (std + self.epsilon)

    def update(self, state: Any, trajectories: Trajectory, batch: CreditBatch) -> Any:
        """The inner baseline's next state."""
        return self.baseline.update(state, trajectories, batch)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _StatelessStandardized(Standardized, Stateless):
    """Standardized weights without an inner baseline, which may be taken per group."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class OptimalInSample(Optimal):
    """See `baseline_biased_optimal_in_sample`."""

    folds: int = dataclasses.field(default=1, init=False)

    def __post_init__(self) -> None:
        """One fold on purpose."""

    @property
    def bias(self) -> Bias:
        """No factor: a ratio of sums that contain the own sample."""
        return biased("optimal baseline fitted to the own sample", min_trajectories=2, degree=None)


def _mean_and_std(x: jax.Array, mask: jax.Array, ddof: int) -> tuple[jax.Array, jax.Array]:
    count = jnp.sum(mask).astype(x.dtype)
    mean = jnp.sum(jnp.where(mask, x, 0)) / jnp.maximum(count, 1)
    squares = jnp.sum(jnp.where(mask, jnp.square(x - mean), 0))
    return mean, jnp.sqrt(squares / jnp.maximum(count - ddof, 1))


def baseline_biased_batch_mean(*, per: Per = "trajectory") -> BatchMean:
    r"""The mean credit of the batch, the own trajectory included. Biased: $\mathbb{E}[g] = (1 - \tfrac1N) \nabla J$.

    `per="trajectory"`: the mean of $C_{m,0}$, at every step; on policy the factor is exact at every N and derivative order.
    `per="step"`: the mean over the trajectories alive at `t`, where a lone survivor is dropped altogether and no factor exists.

    `baseline_leave_one_out` costs the same and is unbiased.

    Raises:
        ValueError: `per` is neither.
    """
    return BatchMean(per)


def baseline_biased_standardized(
    baseline: Baseline | None = None, *, per: Per = "step", ddof: int = 0, epsilon: float = 1e-8
) -> Standardized:
    r"""Weights with mean 0 and standard deviation 1 over the batch, $(A - \bar A) / (\hat\sigma + \epsilon)$. Biased, in size and direction.

    Args:
        baseline: Subtracted first, so that $A = C - b$; `None` for none.
        per: Mean and deviation over all valid steps ('step', as in most PPO code), or over the trajectories' $A_{n,0}$.
        ddof: The variance is divided by the count minus this.
        epsilon: Added to the deviation.

    Raises:
        ValueError: `per` is neither.
    """
    if baseline is None:
        return _StatelessStandardized(_NONE, per, ddof, epsilon)
    return Standardized(baseline, per, ddof, epsilon)


def baseline_biased_group_normalized(group_size: int, *, ddof: int = 1, epsilon: float = 1e-4) -> PerGroup:
    r"""Weights $(R - \text{mean}) / (\text{std} + \epsilon)$ within consecutive groups. Biased, in size and direction.

    The advantage of GRPO. `baseline_per_group(baseline_leave_one_out(per="trajectory"), group_size)` is unbiased.

    Args:
        group_size: Trajectories in a group, at least 2.
        ddof: 1 for the sample deviation that most implementations take, 0 for the population's.
        epsilon: Added to the deviation.

    Raises:
        ValueError: Groups of fewer than 2.

    References:
        Shao et al. (2024), arXiv:2402.03300, section 4.1.
    """
    return PerGroup(_StatelessStandardized(_NONE, "trajectory", ddof, epsilon), group_size)


def baseline_biased_optimal_in_sample() -> OptimalInSample:
    r"""The constant of least variance, fitted on the very trajectories it is used on. Biased by order 1/N.

    Per parameter and with one trajectory the estimate would be identically 0. `baseline_optimal` is cross-fitted and unbiased.

    References:
        Peters & Schaal (2008), Neural Networks 21, section 3.2.
    """
    return OptimalInSample()
