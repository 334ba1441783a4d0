"""Baselines that depend on the state, b_t = ρ γ^t v(s_t): a given value, a learned one, or that of an actor-critic."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from logderiv._core import check
from logderiv._core.pytrees import pytree
from logderiv.estimators.baselines import Baseline
from logderiv.estimators.batch import Batch, evaluate_value, value_of_each
from logderiv.estimators.declaration import Declaration, Structure
from logderiv.types import Params, State

_EARLIER = Declaration(assumes=("the value function was fitted to earlier batches only",))


class StateBaseline(Baseline):
    """Base of baselines that are values of the state, which `advantages.GAE` and `VTrace` bootstrap from."""

    structure = Structure()

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
        return batch.scale * self.state_values(state, batch)[0].astype(credit.dtype)


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

    def __post_init__(self) -> None:
        check.whole(num_steps=self.num_steps)

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
