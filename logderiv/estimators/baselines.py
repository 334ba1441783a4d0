"""Baselines: what is subtracted from the credit, w_t = C_t − b_t, to lower the variance.

A baseline leaves the gradient unbiased if b_t of trajectory n does not depend on the choices of trajectory n from step t on. An
average that contains the sample itself does depend on them: `BatchMean` and `Optimal(in_sample=True)`, both in wide use, say so
in their declaration, and by how much where that is known. Here are those that are one number, a constant and averages of credit;
`bootstrapped` has values of the state, `least_variance` those fitted to scores.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from logderiv._core import check
from logderiv._core.pytrees import pytree
from logderiv.estimators.batch import Batch, averaged, in_groups
from logderiv.estimators.declaration import Declaration, Part, Structure, biased
from logderiv.types import Params, Per, State


class Baseline(Part):
    """Base of all baselines: what is subtracted from the credit to lower the variance.

    Pure functions of a state; `values` sees the state as it was *before* a batch, `update` comes after it. One of your own is a
    frozen dataclass that inherits from this one, with `values` and the attributes `structure` and `declaration`, without which it
    is counted as biased; registered by `jax.tree_util.register_dataclass` it may be an argument of `jax.jit`.

    Attributes:
        discounted: Whether `values` are still to be multiplied by γ^t, as values of the state are.
    """

    discounted: Any = False

    def values(self, state: State, credit: jax.Array, batch: Batch) -> jax.Array:
        """What is subtracted from the credit once it is multiplied by the ratio, and by γ^t where `discounted`.

        Args:
            state: From `init`, or from the last `update`.
            credit: From rewards multiplied by the ratio and γ^t; 0 on invalid steps. Shape `(N, T)`.
            batch: The batch.

        Returns:
            Shape `(N, T)`.
        """
        raise NotImplementedError

    def update(self, state: State, credit: jax.Array, targets: jax.Array, batch: Batch) -> State:
        """The next state.

        Args:
            state: The one that `values` saw.
            credit: As `values` takes it.
            targets: What a value of the state should predict: the credit from step t on, as if the trajectory started there (no
                γ^t, ratios from t on); 0 on invalid steps. Shape `(N, T)`.
            batch: The batch.

        Returns:
            A pytree of the structure and dtypes of `state`.
        """
        del credit, targets, batch
        return state


@pytree(static=("per",))
class Constant(Baseline):
    """A fixed number, b = c, or b_t = γ^t c per step, the form that suits reward-to-go.

    Unbiased at every order. Off policy it is multiplied by the trajectory's own ratio.

    Attributes:
        value: c, in units of the return.
        per: "trajectory" or "step".

    Raises:
        ValueError: `per` is neither; `value` is not finite.

    References:
        Williams (1992), Machine Learning 8, section 4 (reinforcement baseline).
    """

    value: float
    per: Per = "trajectory"

    structure = Structure()
    declaration = Declaration()

    def __post_init__(self) -> None:
        check.one_of(("step", "trajectory"), per=self.per)
        check.finite(value=self.value)

    @property
    def discounted(self) -> bool:
        """Whether it is one per step."""
        return self.per == "step"

    def values(self, state: State, credit: jax.Array, batch: Batch) -> jax.Array:
        del state, batch
        return jnp.full_like(credit, self.value)


class MeanCredit(Baseline):
    """Base of means over trajectories.

    Attributes:
        per: "step" or "trajectory".

    Raises:
        ValueError: `per` is neither.
    """

    per: Per

    def __post_init__(self) -> None:
        check.one_of(("step", "trajectory"), per=self.per)

    def values(self, state: State, credit: jax.Array, batch: Batch) -> jax.Array:
        del state
        return jnp.broadcast_to(self.means(*averaged(credit, batch, self.per)), credit.shape)

    def means(self, over: jax.Array, counts: jax.Array) -> jax.Array:
        """The mean that each trajectory gets.

        Args:
            over: What the mean is taken of, 0 where it does not count. Leading axis `(N,)`.
            counts: 1 where it counts. Same shape.

        Returns:
            Same shape, or a leading axis of one for all of them; 0 where nothing counts.
        """
        unit = 2.0 ** -over.shape[0].bit_length()  # the sum of all may overflow where their mean does not
        total, count = self.sums(unit * over), self.sums(counts)
        return total / (unit * jnp.maximum(count, 1))

    def sums(self, x: jax.Array) -> jax.Array:
        """What each trajectory's mean is taken over, added up.

        Args:
            x: Leading axis `(N,)`.

        Returns:
            Shape of `x`, or a leading axis of one for all of them.
        """
        raise NotImplementedError


@pytree(static=("per", "group_size"))
class LeaveOneOut(MeanCredit):
    """The mean credit C of the *other* trajectories of the batch.

    Per step: b_{n,t} = Σ_{m≠n} v_{m,t} C_{m,t} / Σ_{m≠n} v_{m,t} over the others that are still alive at step t (v = 1). The last
    survivor of a step has no others and gets b = 0, so it keeps its full weight. (Subtracting its own credit from itself, as a
    plain batch mean does there, would silently drop it: a bias.)

    Per trajectory: b_n = 1/(N−1) Σ_{m≠n} C_{m,0}, the others' whole return, at every step.

    Both are unbiased at every order: b_{n,t} is independent of trajectory n. They need two trajectories. With `advantages.Return`
    the weight is C_n − b_n = N/(N−1) (C_n − mean C).

    Trajectories that depend on each other, such as the antithetic pairs of `logderiv.processes.rollout_pairs`, must be left out
    together: `group_size=2`.

    Attributes:
        per: "step" or "trajectory".
        group_size: Consecutive trajectories that are left out together, the own among them.

    Raises:
        ValueError: `per` is neither, or `group_size` is below 1; later, a batch that does not divide.

    References:
        Mnih & Rezende (2016), arXiv:1602.06725, section 2.4; Kool, van Hoof & Welling (2019), "Buy 4 REINFORCE samples, get a
        baseline for free!".
    """

    per: Per = "step"
    group_size: int = 1

    declaration = Declaration()

    @property
    def structure(self) -> Structure:
        """Two groups at least; of degree 2 where the divisor is always N − 1."""
        single = self.group_size == 1
        return Structure(2 * self.group_size, 2 if single and self.per == "trajectory" else None, symmetric=single)

    def sums(self, x: jax.Array) -> jax.Array:
        # The largest is summed apart, or nothing would be left of the others where it is subtracted again.
        own = jnp.sum(in_groups(x, self.group_size), axis=1)
        largest = jnp.abs(own) == jnp.max(jnp.abs(own), axis=0, keepdims=True)
        parts = jnp.where(largest, own, 0), jnp.where(largest, 0, own)
        others = (jnp.sum(part, axis=0, keepdims=True) - part for part in parts)
        return jnp.repeat(sum(others, jnp.zeros_like(own)), self.group_size, axis=0)


@pytree(static=("per",))
class BatchMean(MeanCredit):
    """The mean credit of the batch, the own trajectory included. Biased: E[g] = (1 − 1/N) ∇J.

    Per trajectory: the mean of C_{m,0}, at every step; on policy the factor is exact at every N and derivative order. Per step:
    the mean over the trajectories alive at t, where a lone survivor is dropped altogether and no factor exists.

    `LeaveOneOut` costs the same and is unbiased.

    Attributes:
        per: "trajectory" or "step".

    Raises:
        ValueError: `per` is neither.
    """

    per: Per = "trajectory"

    structure = Structure(min_trajectories=2, degree=None)

    @property
    def declaration(self) -> Declaration:
        """The factor 1 − 1/N per trajectory; per step it depends on how many are alive."""
        return biased("batch mean: it contains the own sample", own_sample if self.per == "trajectory" else None)

    def sums(self, x: jax.Array) -> jax.Array:
        return jnp.sum(x, axis=0, keepdims=True)


class MovingAverageState(NamedTuple):
    """Decayed sum of batch means and of their weights; scalars.

    Attributes:
        total: Sum of the means.
        weight: Sum of their weights.
    """

    total: jax.Array
    weight: jax.Array


@pytree
class MovingAverage(Baseline):
    """An exponential average of the mean returns of *earlier* batches, the same at every step.

        b = m / w,  then m ← d m + (1 − d) mean C,  w ← d w + (1 − d)

    The first batch gets b = 0. Dividing by w removes the start at zero without feeding the corrected value back. Unbiased at
    every order, because the old value knows nothing of this batch. With the batch taken in first, as in
    `optax.monte_carlo.moving_avg_baseline` (removed in optax 0.2.7), its own samples shrink the gradient.

    Attributes:
        decay: d in [0, 1).

    Raises:
        ValueError: `decay` is outside [0, 1).
    """

    decay: float = 0.99

    structure = Structure()
    declaration = Declaration(assumes=("the moving average saw only earlier batches",))

    def __post_init__(self) -> None:
        check.between(0, 1, open_right=True, decay=self.decay)

    def init(self, params: Params) -> MovingAverageState:
        del params
        return MovingAverageState(jnp.zeros(()), jnp.zeros(()))

    def values(self, state: MovingAverageState, credit: jax.Array, batch: Batch) -> jax.Array:
        del batch
        average = state.total / jnp.where(state.weight == 0, 1, state.weight)
        return jnp.full_like(credit, average)

    def update(self, state: MovingAverageState, credit: jax.Array, targets: jax.Array, batch: Batch) -> State:
        del targets, batch
        mean = jnp.sum(credit[:, 0] / credit.shape[0]).astype(state.total.dtype)
        decay = jnp.asarray(self.decay, state.total.dtype)
        return MovingAverageState(decay * state.total + (1 - decay) * mean, decay * state.weight + (1 - decay))


def own_sample(num_trajectories: int) -> float:
    """What a mean that contains the own sample leaves of the gradient, 1 − 1/N.

    Args:
        num_trajectories: N.

    Returns:
        The factor.
    """
    return 1.0 - 1.0 / num_trajectories
