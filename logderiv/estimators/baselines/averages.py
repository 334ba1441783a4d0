"""Baselines that are averages of credit: a constant, earlier batches, the other trajectories of this one, of a group."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from logderiv.estimators.baselines.base import Baseline, CreditBatch, Per, Stateless, check_per
from logderiv.estimators.declaration import Bias, unit
from logderiv.types import Trajectory


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Constant(Stateless):
    """See `baseline_constant`."""

    value: float
    per: Per = "trajectory"

    bias = Bias()

    def __post_init__(self) -> None:
        check_per(self.per)
        object.__setattr__(self, "value", float(self.value))

    def values(self, state: Any, trajectories: Trajectory, batch: CreditBatch) -> jax.Array:
        """The constant, times the own ratio, times `gamma^t` if per step."""
        del state, trajectories
        scale = batch.ratios * batch.discounts if self.per == "step" else batch.ratios
        return self.value * scale


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LeaveOneOut(Stateless):
    """See `baseline_leave_one_out`."""

    per: Per = "step"
    group_size: int = 1

    def __post_init__(self) -> None:
        check_per(self.per)
        if self.group_size < 1:
            raise ValueError(f"group_size: expected a whole number >= 1, received {self.group_size}.")

    @property
    def bias(self) -> Bias:
        """Unbiased at every order from two groups; of degree 2 where the divisor is always N - 1."""
        single = self.group_size == 1
        degree = 2 if single and self.per == "trajectory" else None
        return Bias(min_trajectories=2 * self.group_size, degree=degree, symmetric=single)

    def values(self, state: Any, trajectories: Trajectory, batch: CreditBatch) -> jax.Array:
        """Mean of the other groups' credit, times the own ratio; 0 where there is no other."""
        del state
        credit, counts = credits_and_counts(trajectories, batch, self.per)
        others, num_others = self._others(credit), self._others(counts)
        means = others / jnp.maximum(num_others, 1)
        return batch.ratios * jnp.broadcast_to(means, trajectories.valid.shape)

    def _others(self, x: jax.Array) -> jax.Array:
        """Sum over all trajectories but those of the own group."""
        own = jnp.sum(in_groups(x, self.group_size), axis=1, keepdims=True)
        others = jnp.sum(x, axis=0, keepdims=True)[None] - own
        return jnp.broadcast_to(others, (others.shape[0], self.group_size, x.shape[1])).reshape(x.shape)


class MovingAverageState(NamedTuple):
    """Decayed sum of batch means and of their weights; scalars."""

    total: jax.Array
    weight: jax.Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class MovingAverage:
    """See `baseline_moving_average`."""

    decay: float = 0.99

    bias = Bias(assumes=("the moving average saw only earlier batches",))

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"decay: expected a number in [0, 1), received {self.decay}.")

    def init(self, params: Any) -> MovingAverageState:
        """Nothing seen yet: the first batch gets $b = 0$."""
        del params
        return MovingAverageState(jnp.zeros(()), jnp.zeros(()))

    def values(self, state: MovingAverageState, trajectories: Trajectory, batch: CreditBatch) -> jax.Array:
        """The average before this batch, times the own ratio."""
        del trajectories
        average = state.total / jnp.where(state.weight == 0, 1, state.weight)
        return batch.ratios * average.astype(batch.ratios.dtype)

    def update(self, state: MovingAverageState, trajectories: Trajectory, batch: CreditBatch) -> MovingAverageState:
        """Take this batch in."""
        del trajectories
        mean = jnp.mean(batch.credit[:, 0]).astype(state.total.dtype)
        decay = self.decay
        return MovingAverageState(decay * state.total + (1 - decay) * mean, decay * state.weight + (1 - decay))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class PerGroup(Stateless):
    """See `baseline_per_group`."""

    baseline: Baseline
    group_size: int

    def __post_init__(self) -> None:
        if self.group_size < self.baseline.bias.min_trajectories:
            raise ValueError(
                f"group_size: expected at least {self.baseline.bias.min_trajectories} for this baseline, received {self.group_size}."
            )
        if not isinstance(self.baseline, Stateless):
            raise ValueError(
                f"baseline_per_group: expected a baseline without state, received {type(self.baseline).__name__}."
            )

    @property
    def bias(self) -> Bias:
        """That of the inner baseline at N = `group_size`, whatever the number of groups."""
        inner = self.baseline.bias
        factor = inner.factor if inner.factor in (None, unit) else _At(inner.factor, self.group_size)
        alone = inner.degree == 1
        return dataclasses.replace(
            inner,
            factor=factor,
            min_trajectories=self.group_size,
            degree=1 if alone else None,
            symmetric=alone and inner.symmetric,
        )

    def values(self, state: Any, trajectories: Trajectory, batch: CreditBatch) -> jax.Array:
        """The inner baseline's values in each group."""

        def one(trajectories: Trajectory, credit: jax.Array, ratios: jax.Array, targets: Any) -> jax.Array:
            part = batch._replace(credit=credit, ratios=ratios, targets=targets)
            return self.baseline.values(state, trajectories, part)

        arrays = (trajectories, batch.credit, batch.ratios, batch.targets)
        arrays = jax.tree.map(lambda x: in_groups(x, self.group_size), arrays)
        return jax.vmap(one)(*arrays).reshape(batch.credit.shape)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _At:
    """A factor at a fixed number of trajectories."""

    factor: Callable[[int], float]
    number: int

    def __call__(self, num_trajectories: int) -> float:
        del num_trajectories  # the factor is that of one group
        return self.factor(self.number)


def in_groups(x: jax.Array, size: int) -> jax.Array:
    """Consecutive groups: `(N, ...)` as `(N / size, size, ...)`.

    Raises:
        ValueError: `size` does not divide N.
    """
    if x.shape[0] % size:
        raise ValueError(
            f"trajectories: expected a multiple of group_size = {size}, received {x.shape[0]}; "
            "the groups are consecutive: draw each prompt or start group_size times."
        )
    return x.reshape((x.shape[0] // size, size, *x.shape[1:]))


def credits_and_counts(trajectories: Trajectory, batch: CreditBatch, per: Per) -> tuple[jax.Array, jax.Array]:
    """What is averaged, and 1 where it counts: every valid step, or the first step's credit of every trajectory."""
    if per == "trajectory":
        return batch.credit[:, :1], jnp.ones_like(batch.credit[:, :1])
    return batch.credit, trajectories.valid.astype(batch.credit.dtype)


def baseline_constant(value: float, *, per: Per = "trajectory") -> Constant:
    r"""A fixed number, $b = c$, or $b_t = \gamma^t c$ with `per="step"`, the form that suits reward-to-go.

    Unbiased at every order. Off policy it is multiplied by the trajectory's own ratio.

    Raises:
        ValueError: `per` is neither.

    References:
        Williams (1992), Machine Learning 8, section 4 (reinforcement baseline).
    """
    return Constant(value, per)


def baseline_leave_one_out(*, per: Per = "step", group_size: int = 1) -> LeaveOneOut:
    r"""The mean credit of the *other* trajectories of the batch.

    `per="step"`: $b_{n,t} = \sum_{m \ne n} v_{m,t} C_{m,t} / \sum_{m \ne n} v_{m,t}$ over the others that are still alive
    at step `t`; the last survivor of a step has no others and gets $b = 0$, so it keeps its full weight. (Subtracting
    its own credit from itself, as a plain batch mean does there, would silently drop it: a bias.)

    `per="trajectory"`: $b_n = \tfrac{1}{N-1} \sum_{m \ne n} C_{m,0}$, the others' whole return, at every step.

    Both are unbiased at every order: $b_{n,t}$ is independent of trajectory `n`. They need two trajectories. With
    `total_return`, $C_n - b_n = \tfrac{N}{N-1}(C_n - \bar C)$.

    Trajectories that depend on each other, such as the antithetic pairs of `logderiv.rollout_pairs`, must be left out
    together: `group_size=2`.

    Args:
        per: 'step' or 'trajectory'.
        group_size: Consecutive trajectories that are left out together, the own among them.

    Raises:
        ValueError: `per` is neither, or `group_size` is below 1; later, a batch that does not divide.

    References:
        Mnih & Rezende (2016), arXiv:1602.06725, section 2.4; Kool, van Hoof & Welling (2019), "Buy 4 REINFORCE samples,
        get a baseline for free!".
    """
    return LeaveOneOut(per, group_size)


def baseline_moving_average(decay: float = 0.99) -> MovingAverage:
    r"""An exponential average of the mean returns of *earlier* batches, the same at every step.

    $b = m / w$ with $m \leftarrow d\, m + (1 - d)\, \bar C$ and $w \leftarrow d\, w + (1 - d)$ *after* the batch has been weighed; the
    first batch gets $b = 0$. Dividing by $w$ removes the start at zero without feeding the corrected value back.

    Unbiased at every order, because the old value knows nothing of this batch. With the batch taken in first, as in
    `optax.monte_carlo.moving_avg_baseline` (removed in optax 0.2.7), its own samples shrink the gradient.

    Args:
        decay: $d$ in [0, 1).

    Raises:
        ValueError: `decay` outside [0, 1).
    """
    return MovingAverage(decay)


def baseline_per_group(baseline: Baseline, group_size: int) -> PerGroup:
    """A baseline applied within consecutive groups of `group_size` trajectories, such as the answers to one prompt.

    `baseline_per_group(baseline_leave_one_out(per="trajectory"), 8)` is RLOO over groups of eight. The declaration is that
    of the inner baseline at `group_size` trajectories.

    Args:
        baseline: One without state.
        group_size: The number of trajectories must be a multiple of it.

    Raises:
        ValueError: A baseline with state, or a group smaller than it needs; later, a batch that does not divide.
    """
    return PerGroup(baseline, group_size)
