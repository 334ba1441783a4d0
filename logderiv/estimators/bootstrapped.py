"""Advantages that bootstrap from values of the state: generalized advantage estimation, and V-trace."""

from functools import partial

import jax
import jax.numpy as jnp

from logderiv._core import check
from logderiv._core.pytrees import pytree
from logderiv.estimators.advantages import Advantage, Weighed
from logderiv.estimators.batch import Batch
from logderiv.estimators.declaration import Declaration, Structure, biased, concrete, declaration_of
from logderiv.estimators.returns import backward_sums, td_residuals, vtrace
from logderiv.estimators.values import SharedValue, StateBaseline
from logderiv.types import Params, State


class Bootstrapped(Advantage):
    """Base of advantages that take values of the state from a baseline, or from the actor-critic that they are part of.

    Attributes:
        lambda_: λ in [0, 1].
        baseline: What gives the values.

    Raises:
        ValueError: `lambda_` is outside [0, 1]; the baseline has no values of the state.
    """

    lambda_: float
    baseline: StateBaseline

    def init(self, params: Params) -> State:
        return self.baseline.init(params)

    def __post_init__(self) -> None:
        check.between(0, 1, lambda_=self.lambda_)
        if not hasattr(self.baseline, "state_values"):
            raise ValueError(
                "baseline: this advantage bootstraps from values of the state; expected baselines.Value, "
                f"baselines.LearnedValue or baselines.SharedValue, received {type(self.baseline).__name__}."
            )

    def _values(self, state: State, batch: Batch) -> tuple[jax.Array, jax.Array]:
        values, next_values = self.baseline.state_values(state, batch)
        shape, dtype = batch.valid.shape, batch.rewards.dtype
        return values.reshape(shape).astype(dtype), next_values.reshape(shape).astype(dtype)


@pytree
class GAE(Bootstrapped):
    """Generalized advantage estimation: w_t = γ^t A_t with A_t = δ_t + γ λ A_{t+1} (`generalized_advantages`).

    The weights are sums of temporal differences δ, formed directly, so that large values cost no digits. `lambda_` = 0 is the
    one-step actor-critic, 1 is reward-to-go minus the value, bootstrapped where a trajectory was cut. Off policy each δ carries
    the ratio of the choices up to it. It takes streams.

    For `lambda_` < 1 the estimate is as biased as the values are wrong; with the true values it is unbiased for every `lambda_`.

    Attributes:
        lambda_: λ in [0, 1].
        baseline: What gives the values; by default the actor-critic's own.

    Raises:
        ValueError: `lambda_` is outside [0, 1]; the baseline has no values of the state; later, there is no value function.

    References:
        Schulman et al. (2016), arXiv:1506.02438, eq. 16.
    """

    lambda_: float
    baseline: StateBaseline = SharedValue()

    @property
    def structure(self) -> Structure:
        """Streams too, whose episodes may be cut anywhere."""
        return Structure(streams=True) & self.baseline.structure

    @property
    def declaration(self) -> Declaration:
        """Unbiased at λ = 1 if nothing is cut; else as wrong as the values."""
        lambda_ = concrete("lambda_", self.lambda_)
        own = biased(f"lambda = {lambda_} bootstraps from the baseline's values, which are not the true ones")
        if (lambda_ == 1).all():
            own = Declaration(assumes=("every trajectory terminates within the horizon: one that is cut bootstraps",))
        return own & declaration_of(self.baseline)

    def __call__(self, params: Params, state: State, batch: Batch) -> Weighed:
        del params
        values, next_values = self._values(state, batch)
        going_on = batch.discount * batch.discounts
        residuals = jax.vmap(td_residuals)(batch.rewards, going_on, values, next_values)
        lambda_ = jnp.asarray(self.lambda_, residuals.dtype)
        mixing = lambda_ if batch.ends is None else jnp.where(batch.ends, 0, lambda_)
        # Sums to the end of the trajectory, or of the episode in a stream.
        weights = backward_sums(batch.scale * residuals, batch.inside * batch.discounts * mixing)
        targets = values + backward_sums(batch.step_ratios * residuals, batch.step_ratios * going_on * mixing)
        weights, targets = (jnp.where(batch.valid, x, 0) for x in (weights, targets))
        return weights, targets, self.baseline.update(state, weights, targets, batch)


@pytree
class VTrace(Bootstrapped):
    """V-trace: w_t = γ^t A_t, advantages whose ratios are clipped step by step (`vtrace`). The policy gradient of IMPALA.

    Biased off policy, whatever the clips: the states are weighted as the behavior policy visits them. Its variance stays bounded
    where the products of `Importance` do not. The baseline is fitted to the V-trace targets. It takes the ratios of the steps
    itself: an estimator with it has no `importance`.

    Attributes:
        baseline: What gives the values; by default the actor-critic's own.
        lambda_: λ in [0, 1].
        clip_rho: Largest ratio of a temporal difference, which decides what the values converge to.
        clip_c: Largest ratio between steps, which decides how fast.
        clip_pg: Largest ratio of an advantage.

    Raises:
        ValueError: `lambda_` is outside [0, 1]; the baseline has no values of the state; later, there is no value function.

    References:
        Espeholt et al. (2018), arXiv:1802.01561, section 4.2.
    """

    baseline: StateBaseline = SharedValue()
    lambda_: float = 1.0
    clip_rho: float = 1.0
    clip_c: float = 1.0
    clip_pg: float = 1.0

    own_ratios = True

    @property
    def structure(self) -> Structure:
        """That of the baseline."""
        return self.baseline.structure

    @property
    def declaration(self) -> Declaration:
        """Biased for three reasons."""
        reason = "V-trace: states as the behavior policy visits them, clipped ratios, bootstrapped values"
        return declaration_of(self.baseline) & biased(reason)

    def __call__(self, params: Params, state: State, batch: Batch) -> Weighed:
        del params
        values, next_values = self._values(state, batch)
        names = ("lambda_", "clip_rho", "clip_c", "clip_pg")
        settings = {name: jnp.asarray(getattr(self, name), values.dtype) for name in names}
        arrays = (batch.rewards, batch.discount * batch.discounts, values, next_values, batch.step_ratios)
        found = jax.vmap(partial(vtrace, **settings))(*arrays)
        weights, targets = (jnp.where(batch.valid, x, 0) for x in (batch.scale * found.advantages, found.targets))
        return weights, targets, self.baseline.update(state, weights, targets, batch)
