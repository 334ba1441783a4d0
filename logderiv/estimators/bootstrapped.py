"""Values of the state: as baselines, b_t = ρ γ^t v(s_t), and in the advantages that bootstrap from them.

A value is a given function, a learned one, or that of an actor-critic. The advantages are generalized advantage estimation and V-trace.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from logderiv._core import check
from logderiv._core.pytrees import pytree
from logderiv.estimators.advantages import Advantage, Weighed
from logderiv.estimators.baselines import Baseline
from logderiv.estimators.batch import Batch, evaluate_value, value_of_each
from logderiv.estimators.declaration import Declaration, Structure, biased, concrete, declaration_of
from logderiv.estimators.returns import Scaled, scaled_sums, td_residuals, times_exp
from logderiv.types import Params, State

_EARLIER = Declaration(assumes=("the value function was fitted to earlier batches only",))


class StateBaseline(Baseline):
    """Base of baselines that are values of the state, which `advantages.GAE` and `VTrace` bootstrap from."""

    structure, discounted = Structure(), True

    def state_values(self, state: State, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """v(s_t) and v(s_{t+1}), the latter of the final observation after the last valid step.

        Args:
            state: From `init`, or from the last `update`.
            batch: The batch.

        Returns:
            Two arrays of the shape of `batch.steps.valid`, 0 on invalid steps, detached.
        """
        raise NotImplementedError

    def values(self, state: State, credit: jax.Array, batch: Batch) -> jax.Array:
        return self.state_values(state, batch)[0].astype(credit.dtype)


@pytree(static=("function", "start"))
class Value(StateBaseline):
    """A given value of the state: b_t = γ^t v(s_t).

    Unbiased at every order, whatever the function; the better it predicts the reward-to-go, the lower the variance. A value
    that depends on the time needs the time in the observation.

    Attributes:
        function: `observation -> scalar`; with `start`, `(value_params, observation) -> scalar`.
        start: `policy_params -> value_params`, which `Estimator.init` calls; the value parameters are then the state, to be
            replaced by you between batches.

    References:
        Sutton & Barto (2018), Reinforcement Learning, 2nd ed., section 13.4.
    """

    function: Callable[..., jax.Array]
    start: Callable[[Any], Any] | None = None

    declaration = Declaration()

    def init(self, params: Params) -> State:
        return () if self.start is None else self.start(params)

    def state_values(self, state: State, batch: Batch) -> tuple[jax.Array, jax.Array]:
        if self.start is not None:
            return evaluate_value(self.function, state, batch.steps)
        return evaluate_value(lambda _, observation: self.function(observation), (), batch.steps)


@pytree
class SharedValue(StateBaseline):
    """The value of the actor-critic that the advantage is part of (`logderiv.ActorCritic(value=...)`), detached."""

    declaration = _EARLIER

    def state_values(self, state: State, batch: Batch) -> tuple[jax.Array, jax.Array]:
        del state
        if batch.values is None:
            raise ValueError(
                "baseline: this advantage bootstraps from values of the state; expected a baseline that has them "
                "(baselines.Value, baselines.LearnedValue), or an estimator with a value function of its own "
                "(logderiv.ActorCritic(..., value=...)), received neither."
            )
        return batch.values


@pytree(static=("function", "start", "optimizer", "num_steps"))
class LearnedValue(StateBaseline):
    """A value of the state with parameters φ of its own, fitted after each batch: b_t = γ^t v_φ(s_t).

    Minimizes the mean over valid steps of (v_φ(s_t) − G_t)², with G_t the credit from step t on: reward-to-go, or the λ-return of
    `advantages.GAE`. Off policy the targets carry the ratios of the choices from t on. The batch is weighed with the parameters
    from *before* it, so the estimate stays unbiased at every order. The state is `(value parameters, optimizer state)`.

    Attributes:
        function: `(value_params, observation) -> scalar`.
        start: `policy_params -> value_params`, called by `Estimator.init`.
        optimizer: An optax transformation that *descends*, such as `optax.adam(1e-2)`.
        num_steps: Its steps per batch.

    Raises:
        ValueError: `num_steps` is below 1.

    References:
        Sutton & Barto (2018), Reinforcement Learning, 2nd ed., section 13.4; Greensmith, Bartlett & Baxter (2004), JMLR 5, on what
        minimizes the variance.
    """

    function: Callable[[Any, Any], jax.Array]
    start: Callable[[Any], Any]
    optimizer: optax.GradientTransformation
    num_steps: int = 1

    declaration = _EARLIER

    def init(self, params: Params) -> tuple[Params, optax.OptState]:
        first = self.start(params)
        return first, self.optimizer.init(first)

    def state_values(self, state: State, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return evaluate_value(self.function, state[0], batch.steps)

    def update(self, state: State, credit: jax.Array, targets: jax.Array, batch: Batch) -> State:
        del credit
        targets, valid = jax.lax.stop_gradient(targets), batch.valid

        def loss(value_params: Params) -> jax.Array:
            values = value_of_each(self.function, value_params, batch.steps.observations, batch.steps.valid)
            errors = jnp.where(valid, values.reshape(valid.shape) - targets.astype(values.dtype), 0)
            return jnp.sum(jnp.square(errors)) / jnp.maximum(jnp.sum(valid), 1).astype(values.dtype)

        def step(_: int, state: State) -> State:
            value_params, opt_state = state
            updates, opt_state = self.optimizer.update(jax.grad(loss)(value_params), opt_state, value_params)
            return optax.apply_updates(value_params, updates), opt_state

        return jax.lax.fori_loop(0, self.num_steps, step, state)


class Bootstrapped(Advantage):
    """Base of advantages that take values of the state from a baseline, or from the actor-critic that they are part of.

    Attributes:
        lambda_: λ in [0, 1].
        baseline: What gives the values.

    Raises:
        ValueError: `lambda_` is outside [0, 1]; the baseline has no values of the state.
        TypeError: The baseline was not called.
    """

    lambda_: float
    baseline: StateBaseline

    past_rewards = False

    def __post_init__(self) -> None:
        check.between(0, 1, lambda_=self.lambda_)
        expected = "one of logderiv.baselines with values of the state, such as SharedValue()"
        check.made("baseline", self.baseline, True, expected)
        if not hasattr(self.baseline, "state_values"):
            raise ValueError(
                "baseline: this advantage bootstraps from values of the state; expected baselines.Value, "
                f"baselines.LearnedValue or baselines.SharedValue, received {type(self.baseline).__name__}."
            )

    def bootstrap(self, batch: Batch, values: jax.Array, next_values: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Weights and targets from values of the state; those of invalid steps are not used.

        Args:
            batch: The batch.
            values: v(s_t), in the dtype of the rewards. Shape `(N, T)`.
            next_values: v(s_{t+1}), likewise.

        Returns:
            `(weights, targets)`, both `(N, T)`.
        """
        raise NotImplementedError

    def init(self, params: Params) -> State:
        return self.baseline.init(params)

    def __call__(self, params: Params, state: State, batch: Batch) -> Weighed:
        del params
        shape, dtype = batch.valid.shape, batch.rewards.dtype
        values = (x.reshape(shape).astype(dtype) for x in self.baseline.state_values(state, batch))
        weights, targets = (jnp.where(batch.valid, x, 0) for x in self.bootstrap(batch, *values))
        return weights, targets, self.baseline.update(state, weights, targets, batch)


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
        TypeError: The baseline was not called.

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

    def bootstrap(self, batch: Batch, values: jax.Array, next_values: jax.Array) -> tuple[jax.Array, jax.Array]:
        going_on = batch.discount * batch.discounts
        residuals = jax.vmap(td_residuals)(batch.rewards, going_on, values, next_values)
        lambda_ = jnp.asarray(self.lambda_, residuals.dtype)
        mixing = lambda_ if batch.ends is None else jnp.where(batch.ends, 0, lambda_)
        # Sums to the end of the trajectory, or of the episode in a stream.
        inside, later, ratios = batch.inside * batch.discounts * mixing, going_on * mixing, batch.log_step_ratios
        weights = scaled_sums(Scaled(batch.powers * residuals, batch.log_scale), Scaled(inside))
        return weights.value, values + scaled_sums(Scaled(residuals, ratios), Scaled(later, ratios)).value


@pytree
class VTrace(Bootstrapped):
    """V-trace: w_t = γ^t A_t, advantages whose ratios are clipped step by step (`advantages.vtrace`). The policy gradient of IMPALA.

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
        ValueError: `lambda_` is outside [0, 1]; a clip is not positive; the baseline has no values of the state; later, there is
            no value function.

    References:
        Espeholt et al. (2018), arXiv:1802.01561, section 4.2.
    """

    baseline: StateBaseline = SharedValue()
    lambda_: float = 1.0
    clip_rho: float = 1.0
    clip_c: float = 1.0
    clip_pg: float = 1.0

    own_ratios = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check.positive(clip_rho=self.clip_rho, clip_c=self.clip_c, clip_pg=self.clip_pg)

    @property
    def structure(self) -> Structure:
        """That of the baseline."""
        return self.baseline.structure

    @property
    def declaration(self) -> Declaration:
        """Biased for three reasons."""
        reason = "V-trace: states as the behavior policy visits them, clipped ratios, bootstrapped values"
        return declaration_of(self.baseline) & biased(reason)

    def bootstrap(self, batch: Batch, values: jax.Array, next_values: jax.Array) -> tuple[jax.Array, jax.Array]:
        going_on, ratios = batch.discount * batch.discounts, batch.log_step_ratios
        residuals = jax.vmap(td_residuals)(batch.rewards, going_on, values, next_values)
        clips = (jnp.log(jnp.asarray(clip, values.dtype)) for clip in (self.clip_rho, self.clip_c, self.clip_pg))
        rho, c, pg = (jnp.minimum(ratios, clip) for clip in clips)
        later = going_on * jnp.asarray(self.lambda_, values.dtype)
        errors = scaled_sums(Scaled(residuals, rho), Scaled(later, c))
        error, log = (jnp.roll(x, -1, axis=-1).at[:, -1].set(0) for x in errors)
        advantage, log = Scaled(later * error, log).plus(residuals, None)
        return times_exp(batch.powers * advantage, log + pg + batch.log_scale), values + errors.value
