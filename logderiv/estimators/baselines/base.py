"""What a baseline is: the protocol, the batch it sees, and the absence of one."""

import dataclasses
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from logderiv.estimators.declaration import Bias
from logderiv.types import Trajectory

Per = Literal["step", "trajectory"]


class CreditBatch(NamedTuple):
    """Credit of a batch, the factors that its rewards were multiplied by, and where it comes from.

    Attributes:
        credit: From rewards multiplied by `ratios` and `discounts`; 0 on invalid steps. Shape `(N, T)`.
        ratios: Importance ratio of the choices up to step `t`; ones on policy. Shape `(N, T)`.
        discounts: `gamma^t`, or ones where it is left out. Shape `(1, T)` or `(N, T)`.
        targets: What a value of the state should predict: the credit from step `t` on, as if the trajectory started
            there (no `gamma^t`, ratios from `t` on); 0 on invalid steps. Shape `(N, T)`.
        params: Parameters of the policy whose gradient is wanted.
        policy: That policy.
        values: Values of the states, where the credit bootstrapped from the baseline's own; else `None`. Shape `(N, T)`.
    """

    credit: jax.Array
    ratios: jax.Array
    discounts: jax.Array
    targets: Any = None
    params: Any = None
    policy: Any = None
    values: Any = None


class Baseline(Protocol):
    """A baseline, as pure functions. `values` sees the state as it was *before* this batch, `update` comes after it.

    One of a state also has `state_values(state, trajectories) -> (values, next_values)`, which `logderiv.gae` and
    `logderiv.vtrace_gradient` bootstrap from.
    """

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


def baseline_none() -> NoBaseline:
    """No baseline."""
    return NoBaseline()


def check_per(per: str) -> None:
    """Raise `ValueError` unless `per` is 'step' or 'trajectory'."""
    if per not in ("step", "trajectory"):
        raise ValueError(f"per: expected 'step' or 'trajectory', received {per!r}.")
