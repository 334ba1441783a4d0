r"""Baselines: what is subtracted from the credit, $w_t = \text{credit}_t - b_t$, to lower the variance.

A baseline leaves the gradient unbiased if $b_t$ of trajectory `n` does not depend on the choices of trajectory `n`
from step `t` on. An average that contains the sample itself does depend on them.
"""

import dataclasses
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from logderiv.bias import Bias
from logderiv.types import Trajectory


class CreditBatch(NamedTuple):
    """Credit of a batch, and the factors that its rewards were multiplied by.

    Attributes:
        credit: From rewards multiplied by `ratios` and `discounts`; 0 on invalid steps. Shape `(N, T)`.
        ratios: Importance ratio of the choices up to step `t`; ones on policy. Shape `(N, T)`.
        discounts: `gamma^t`, or ones where it is left out. Shape `(T,)`.
    """

    credit: jax.Array
    ratios: jax.Array
    discounts: jax.Array


class Baseline(Protocol):
    """A baseline, as pure functions. `values` sees the state as it was *before* this batch, `update` comes after it."""

    @property
    def bias(self) -> Bias:
        """What is known about the expectation of an estimator with this baseline."""
        ...

    def init(self, params: Any) -> Any:
        """The first state, a pytree of arrays."""
        ...

    def values(self, state: Any, trajectories: Trajectory, batch: CreditBatch) -> jax.Array:
        """What is subtracted from `batch.credit`, its ratios and discounts included; shape `(N, T)`."""
        ...

    def update(self, state: Any, trajectories: Trajectory, batch: CreditBatch) -> Any:
        """The next state."""
        ...


class Stateless:
    """A baseline without state."""

    def init(self, params: Any) -> tuple[()]:
        """Nothing to remember."""
        del params
        return ()

    def update(self, state: Any, trajectories: Trajectory, batch: CreditBatch) -> Any:
        """Nothing to learn."""
        del trajectories, batch
        return state


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class NoBaseline(Stateless):
    """$b = 0$."""

    bias = Bias()

    def values(self, state: Any, trajectories: Trajectory, batch: CreditBatch) -> jax.Array:
        """Zeros."""
        del state, trajectories
        return jnp.zeros_like(batch.credit)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LeaveOneOut(Stateless):
    """See `baseline_leave_one_out`."""

    per: Literal["step", "trajectory"] = "step"

    def __post_init__(self) -> None:
        if self.per not in ("step", "trajectory"):
            raise ValueError(f"per: expected 'step' or 'trajectory', received {self.per!r}.")

    @property
    def bias(self) -> Bias:
        """Unbiased at every order from two trajectories; of degree 2 where the divisor is always N - 1."""
        return Bias(min_trajectories=2, degree=2 if self.per == "trajectory" else None)

    def values(self, state: Any, trajectories: Trajectory, batch: CreditBatch) -> jax.Array:
        """Mean of the other trajectories' credit, times the own ratio; 0 where there is no other."""
        del state
        credit = batch.credit
        if self.per == "trajectory":
            credit, counts = credit[:, :1], jnp.ones_like(credit[:, :1])
        else:
            counts = trajectories.valid.astype(credit.dtype)
        others = jnp.sum(credit, axis=0, keepdims=True) - credit
        num_others = jnp.sum(counts, axis=0, keepdims=True) - counts
        means = others / jnp.maximum(num_others, 1)
        return batch.ratios * jnp.broadcast_to(means, trajectories.valid.shape)


def baseline_none() -> NoBaseline:
    """No baseline."""
    return NoBaseline()


def baseline_leave_one_out(*, per: Literal["step", "trajectory"] = "step") -> LeaveOneOut:
    r"""The mean credit of the *other* trajectories of the batch.

    `per="step"`: $b_{n,t} = \sum_{m \ne n} v_{m,t} C_{m,t} / \sum_{m \ne n} v_{m,t}$ over the others that are still alive
    at step `t`; the last survivor of a step has no others and gets $b = 0$, so it keeps its full weight. (Subtracting
    its own credit from itself, as a plain batch mean does there, would silently drop it: a bias.)

    `per="trajectory"`: $b_n = \tfrac{1}{N-1} \sum_{m \ne n} C_{m,0}$, the others' whole return, at every step.

    Both are unbiased at every order: $b_{n,t}$ is independent of trajectory `n`. They need two trajectories. With
    `total_return`, $C_n - b_n = \tfrac{N}{N-1}(C_n - \bar C)$.

    Raises:
        ValueError: `per` is neither.

    References:
        Mnih & Rezende (2016), arXiv:1602.06725, section 2.4; Kool, van Hoof & Welling (2019), "Buy 4 REINFORCE samples,
        get a baseline for free!".
    """
    return LeaveOneOut(per)
