"""Evaluation: episodes that nothing is learnt from."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core.arrays import as_keys, check_whole, summable
from logderiv._core.sharding import spread
from logderiv.sampling.episodes import CHUNK, rollout
from logderiv.types import FunctionPolicy, as_policy


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How `logderiv.train` evaluates. Static.

    Attributes:
        every: Updates between two evaluations.
        num_episodes: Episodes of each.
        horizon: Their largest number of steps; `None` for that of training, or the environment's own.
        greedy: Take the likeliest action (`distribution.mode()`) instead of a sample.
        stop_at: Training stops at the first evaluation with at least this mean return; `None` never stops. Under `jax.vmap`
            each seed stops for itself, and its updates are computed and dropped until the last stops, which a stream of
            `Gymnasium` does not allow.
    """

    every: int = 10
    num_episodes: int = 32
    horizon: int | None = None
    greedy: bool = False
    stop_at: float | None = None

    def __post_init__(self) -> None:
        check_whole(every=self.every, num_episodes=self.num_episodes)


def evaluate(
    params: Any,
    key: jax.Array,
    policy: Any,
    environment: Any,
    *,
    num_episodes: int,
    horizon: int | None = None,
    greedy: bool = False,
    environment_params: Any = None,
) -> jax.Array:
    """Undiscounted returns of fresh episodes, shape `(num_episodes,)`.

    Args:
        params: Parameters of the policy.
        key: Consumed.
        policy: As in `rollout`.
        environment: As in `rollout`.
        num_episodes: How many, side by side; they stop when the last one has ended.
        horizon: As in `rollout`.
        greedy: Take the likeliest action, `distribution.mode()`, instead of a sample.
        environment_params: As in `rollout`.

    Raises:
        ValueError, TypeError: As `rollout`; `greedy`, and the policy's distribution has no `mode()`.
    """
    policy = _greedy(as_policy(policy)) if greedy else as_policy(policy)
    keys = spread(jax.random.split(as_keys(key), num_episodes))
    taus = rollout(
        params, keys, policy, environment, horizon=horizon, environment_params=environment_params, chunk=CHUNK
    )
    return jnp.sum(jnp.where(taus.valid, summable(taus.rewards), 0), axis=-1)


@dataclasses.dataclass(frozen=True)
class _Mode:
    """A distribution that always draws its mode."""

    distribution: Any

    def sample(self, key: jax.Array) -> Any:
        del key  # nothing is random
        mode = getattr(self.distribution, "mode", None)
        if mode is None:
            raise TypeError(f"greedy: {type(self.distribution).__name__} has no mode(); evaluate with greedy=False.")
        return mode() if callable(mode) else mode

    def log_prob(self, action: Any) -> jax.Array:
        del action  # not used: no score is taken
        return jnp.zeros(())


def _greedy(policy: Any) -> FunctionPolicy:
    if policy.initial_carry is None:
        return FunctionPolicy(lambda params, observation: _Mode(policy.apply(params, observation)))

    def apply(params: Any, carry: Any, observation: Any) -> tuple[Any, Any]:
        distribution, carry = policy.apply(params, carry, observation)
        return _Mode(distribution), carry

    return FunctionPolicy(apply, policy.initial_carry)
