"""Rewards in units of their own spread, as an advantage."""

from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core import check
from logderiv._core.moments import RunningMoments
from logderiv._core.pytrees import pytree
from logderiv.estimators.advantages import Advantage, Transformed, Weighed
from logderiv.estimators.batch import Batch
from logderiv.estimators.declaration import Declaration, Structure, biased, concrete, declaration_of
from logderiv.estimators.returns import backward_sums
from logderiv.types import Params, State


@pytree
class ScaledRewards(Transformed):
    """Weights from rewards that are divided by a scale: r_t / c in the place of r_t, before credit is given.

    The gradient is that of the return in units of c: with a fixed c it is 1/c times the gradient of the return, which is declared
    as its factor. Baselines, and values of the state that an actor-critic learns, are in units of c too.

    Without a fixed scale it is the standard deviation over the steps of *earlier* batches of what an episode has paid so far,

        R_t = γ R_{t−1} + r_t,  R_{−1} = 0,  c = std of R_t

    with the estimator's γ. The batch itself has no part in c: given the state, E[g] is 1/c times the gradient, exactly and at every
    order that the advantage has. Over a run c changes, and no number in the declaration can say by how much: it has no factor, and
    `scale_of(state)` is c. With the batch's own rewards in c the estimate would be no multiple of the gradient at all. Before
    anything was measured, and while all R_t are equal, c is infinite: that batch is measured, its rewards count as 0, and an
    optimizer never sees a gradient in other units than those of its successors.

    Weights that are `Standardized` afterwards lose the scale again; what is left of it are the targets of the values.

    Attributes:
        advantage: What gives credit for the divided rewards.
        scale: c > 0, in units of the reward; `None` for the running deviation of R_t, of which the state keeps a
            `logderiv.policies.RunningMoments` beside the advantage's own state.

    Raises:
        ValueError: `scale` is not positive, or not finite.
        TypeError: `advantage` is none, or was not called.

    References:
        Engstrom et al. (2020), arXiv:2005.12729, section 3, and `gymnasium.wrappers.NormalizeReward` (both from memory), where the
        current step has a part in c, and R goes on across batches. Here R starts anew with the batch, of a stream too.
    """

    advantage: Advantage
    scale: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check.positive(finite=True, or_none=True, scale=self.scale)

    @property
    def structure(self) -> Structure:
        """That of the inner advantage."""
        return self.advantage.structure

    @property
    def declaration(self) -> Declaration:
        """The factor 1/c of a fixed scale; of a running one the state decides it."""
        inner = declaration_of(self.advantage)
        if self.scale is None:
            return inner & biased(
                "rewards are divided by a running scale of earlier batches: a factor that the state decides"
            )
        scale: Any = concrete("scale", self.scale)
        if (scale == 1).all():
            return inner
        return inner & biased(f"rewards are divided by {scale}", lambda _: 1 / scale)

    def init(self, params: Params) -> State:
        inner = super().init(params)
        return inner if self.scale is not None else (inner, RunningMoments.start(jnp.zeros(())))

    def scale_of(self, state: State) -> Any:
        """What the rewards of the next batch are divided by.

        Args:
            state: From `init`, or from the last call.

        Returns:
            c, a scalar; infinite where no deviation was measured.
        """
        if self.scale is not None:
            return self.scale
        deviation = state[1].deviation
        return jnp.where(deviation == 0, jnp.inf, deviation)

    def __call__(self, params: Params, state: State, batch: Batch) -> Weighed:
        scale = jnp.asarray(self.scale_of(state), batch.rewards.dtype)
        inner = state if self.scale is not None else state[0]
        weights, targets, inner = self.advantage(params, inner, batch._replace(rewards=batch.rewards / scale))
        if self.scale is not None:
            return weights, targets, inner
        return weights, targets, (inner, state[1].including(sums_so_far(batch), batch.valid))


def sums_so_far(batch: Batch) -> jax.Array:
    """What each episode has paid up to each step, discounted: R_t = γ R_{t−1} + r_t, from 0 at the start of an episode or the batch.

    Args:
        batch: The batch.

    Returns:
        R_t, shape `(N, T)`.
    """
    before = jnp.ones_like(batch.rewards) if batch.ends is None else 1 - batch.ends.astype(batch.rewards.dtype)
    factors = batch.discount * jnp.roll(before, 1, axis=1)  # the first one multiplies nothing
    return backward_sums(batch.rewards[:, ::-1], factors[:, ::-1])[:, ::-1]
