r"""Baselines that depend on the state, $b_t = \rho_{\le t}\, \gamma^t v(s_t)$, given or learned."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from logderiv._core.arrays import expand
from logderiv._core.blocks import map_rows, wide_rows
from logderiv.estimators.baselines.base import CreditBatch
from logderiv.estimators.declaration import Bias
from logderiv.likelihood.factors import fill_invalid
from logderiv.types import Trajectory


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Value:
    """See `baseline_value`."""

    function: Callable[..., jax.Array]
    start: Callable[[Any], Any] | None = None

    @property
    def bias(self) -> Bias:
        """Unbiased at every order: a function of the state alone."""
        return Bias()

    def init(self, params: Any) -> Any:
        """The value function's parameters."""
        return () if self.start is None else self.start(params)

    def state_values(self, state: Any, trajectories: Trajectory) -> tuple[jax.Array, jax.Array]:
        r"""$v(s_t)$ and $v(s_{t+1})$, the latter of the final observation after the last valid step; 0 on invalid steps."""
        return evaluate(self._function(), state, trajectories)

    def values(self, state: Any, trajectories: Trajectory, batch: CreditBatch) -> jax.Array:
        """The value of each state, times the own ratio and `gamma^t`."""
        values = self.state_values(state, trajectories)[0] if batch.values is None else batch.values
        return batch.ratios * batch.discounts * values.astype(batch.credit.dtype)

    def update(self, state: Any, trajectories: Trajectory, batch: CreditBatch) -> Any:
        """Nothing to learn."""
        del trajectories, batch
        return state

    def _function(self) -> Callable[[Any, Any], jax.Array]:
        if self.start is not None:
            return self.function
        return lambda _, observation: self.function(observation)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class SharedValue(Value):
    """See `baseline_shared_value`. The state is the policy's parameters."""

    @property
    def bias(self) -> Bias:
        """Unbiased at every order: the parameters are those from before the batch, held."""
        return Bias(assumes=("the value function was fitted to earlier batches only",))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LearnedValue(Value):
    """See `baseline_learned_value`. The state is `(value parameters, optimizer state)`."""

    optimizer: optax.GradientTransformation = dataclasses.field(default_factory=optax.identity)
    num_steps: int = 1

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps: expected a whole number >= 1, received {self.num_steps}.")

    @property
    def bias(self) -> Bias:
        """Unbiased at every order: the parameters are those from before the batch."""
        return Bias(assumes=("the value function was fitted to earlier batches only",))

    def init(self, params: Any) -> tuple[Any, Any]:
        """First parameters of the value function, and the optimizer's state."""
        first = super().init(params)
        return first, self.optimizer.init(first)

    def state_values(self, state: Any, trajectories: Trajectory) -> tuple[jax.Array, jax.Array]:
        """As `Value.state_values`, with the parameters from before the batch."""
        return super().state_values(state[0], trajectories)

    def update(self, state: Any, trajectories: Trajectory, batch: CreditBatch) -> Any:
        """`num_steps` of the optimizer on the mean squared error over valid steps."""
        valid = trajectories.valid
        targets = jax.lax.stop_gradient(batch.targets)

        def loss(value_params: Any) -> jax.Array:
            values, _ = evaluate(self.function, value_params, trajectories)
            errors = jnp.where(valid, values - targets.astype(values.dtype), 0)
            return jnp.sum(jnp.square(errors)) / jnp.maximum(jnp.sum(valid), 1).astype(values.dtype)

        def step(_: int, state: Any) -> Any:
            value_params, opt_state = state
            updates, opt_state = self.optimizer.update(jax.grad(loss)(value_params), opt_state, value_params)
            return optax.apply_updates(value_params, updates), opt_state

        return jax.lax.fori_loop(0, self.num_steps, step, state)


def _own(params: Any) -> Any:
    return params


def evaluate(
    function: Callable[[Any, Any], jax.Array], value_params: Any, trajectories: Trajectory
) -> tuple[jax.Array, jax.Array]:
    r"""$v(s_t)$ and $v(s_{t+1})$ for a batch, each `(N, T)`; 0 on invalid steps, whose observations are never seen.

    Raises:
        ValueError: The function does not return a scalar for one observation.
    """
    valid = trajectories.valid
    filled = fill_invalid(trajectories)

    def value(value_params: Any, observation: Any) -> jax.Array:
        result = function(value_params, observation)
        if jnp.shape(result) != ():
            raise ValueError(
                f"value function: expected a scalar for one observation, received shape {jnp.shape(result)}; squeeze its last axis."
            )
        return jnp.asarray(result)

    rows = 4 * wide_rows()  # one network forwards: large blocks cost little memory
    values = jnp.where(valid, map_rows(value, value_params, filled.observations, rows=rows), 0)
    last = jax.tree.map(lambda x: x[:, None], filled.final_observation)
    final = map_rows(value, value_params, last, rows=rows)[:, 0]
    follows = jnp.roll(valid, -1, axis=1).at[:, -1].set(False)
    next_values = jnp.where(follows, jnp.roll(values, -1, axis=1), expand(final, values))
    return values, jnp.where(valid, next_values, 0)


def baseline_value(function: Callable[..., jax.Array], init: Callable[[Any], Any] | None = None) -> Value:
    r"""A given value of the state: $b_t = \gamma^t v(s_t)$.

    Unbiased at every order, whatever the function; the better it predicts the reward-to-go, the lower the variance.
    A value that depends on the time needs the time in the observation.

    Args:
        function: `observation -> scalar`; with `init`, `(value_params, observation) -> scalar`.
        init: `policy_params -> value_params`, which `Estimator.init` calls; the value parameters are then the state, to be
            replaced by you between batches.

    References:
        Sutton & Barto (2018), Reinforcement Learning, 2nd ed., section 13.4.
    """
    return Value(function, init)


def baseline_shared_value(function: Callable[[Any, Any], jax.Array]) -> Value:
    r"""A value of the state whose parameters are among the policy's: $b_t = \gamma^t v_\theta(s_t)$, held.

    For `logderiv.actor_critic`, which adds the value's own error to the objective, so that one optimizer trains both. Two
    networks in one pytree, or one network with two heads.

    Args:
        function: `(params, observation) -> scalar`, with all of the policy's `params`.
    """
    return SharedValue(function, _own)


def baseline_learned_value(
    function: Callable[[Any, Any], jax.Array],
    init: Callable[[Any], Any],
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int = 1,
) -> LearnedValue:
    r"""A value of the state with parameters of its own, fitted after each batch: $b_t = \gamma^t v_\phi(s_t)$.

    Minimizes the mean over valid steps of $(v_\phi(s_t) - G_t)^2$, with $G_t$ the credit from step `t` on: reward-to-go, or the
    $\lambda$-return if the credit is `gae`. Off policy the targets carry the ratios of the choices from `t` on. The batch is
    weighed with the parameters from *before* it, so the estimate stays unbiased at every order.

    Args:
        function: `(value_params, observation) -> scalar`.
        init: `policy_params -> value_params`, called by `Estimator.init`.
        optimizer: An optax transformation that *descends*, such as `optax.adam(1e-2)`.
        num_steps: Its steps per batch.

    Raises:
        ValueError: `num_steps` below 1.

    References:
        Sutton & Barto (2018), section 13.4; Greensmith, Bartlett & Baxter (2004), JMLR 5, on what minimizes the variance.
    """
    return LearnedValue(function, init, optimizer, num_steps)
