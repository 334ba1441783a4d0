"""Evaluation: episodes that nothing is learnt from."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core import check
from logderiv._core.arrays import as_key, expand, summable
from logderiv._core.pytrees import jit, pytree
from logderiv._core.sharding import spread
from logderiv.distributions import Forced
from logderiv.environments import as_environment
from logderiv.policies import PolicyWrapper, StepPolicy, as_policy
from logderiv.sampling.episodes import BLOCK_SIZE, draw, warn_of_cut
from logderiv.types import Key, Params


@pytree(static=("every", "num_episodes", "horizon", "greedy"))
class Evaluation:
    """When and how `logderiv.train` evaluates.

    Attributes:
        every: Updates between two evaluations.
        num_episodes: Episodes of each.
        horizon: Their largest number of steps; `None` for that of training, or the environment's own.
        greedy: Take the likeliest action (`distribution.mode()`) instead of a sample.
        stop_at: Training stops at the first evaluation with at least this mean return; `None` never stops. Each seed stops for
            itself; its updates are computed and dropped until the last one stops, which a stream of `Gymnasium` does not allow.

    Raises:
        ValueError: `every`, `num_episodes` or `horizon` is below 1, or no whole number; `stop_at` is NaN.
    """

    every: int = 10
    num_episodes: int = 32
    horizon: int | None = None
    greedy: bool = False
    stop_at: float | None = None

    def __post_init__(self) -> None:
        check.between(-np.inf, np.inf, or_none=True, stop_at=self.stop_at)


def evaluate(
    params: Params,
    key: Key,
    policy: Any,
    environment: Any,
    *,
    num_episodes: int,
    horizon: int | None = None,
    greedy: bool = False,
    environment_params: Any = None,
) -> jax.Array:
    """Undiscounted returns of fresh episodes.

    The call compiles itself; a second one with the same policy and environment, and arrays of the same shapes, does not.

    Args:
        params: Parameters of the policy.
        key: Consumed.
        policy: A policy, or a function `(params, observation) -> distribution`.
        environment: `reset` and `step` as in `logderiv.types.Environment`, or an environment of a public suite.
        num_episodes: How many, side by side; they stop when the last one has ended.
        horizon: Largest number of steps of each; `None` for the environment's own.
        greedy: Take the likeliest action, `distribution.mode()`, instead of a sample.
        environment_params: Passed to the environment; `None` for its own.

    Returns:
        The returns, shape `(num_episodes,)`, of a game `(num_episodes, num_players)`; float32 at least.

    Raises:
        ValueError: `num_episodes` or `horizon` is below 1, or there is no horizon.
        TypeError: Not a policy, an environment or a key; `greedy`, and the policy's distribution has no `mode()`.

    Warns:
        UserWarning: `horizon` cuts some paths of a process that ends by itself; see `logderiv.rollout`.
    """
    num_episodes = check.whole(num_episodes=num_episodes)
    horizon, policy = check.whole(or_none=True, horizon=horizon), as_policy(policy)
    policy = _Greedy(policy) if greedy else policy
    options = {"horizon": horizon, "environment_params": environment_params, "block_size": BLOCK_SIZE}
    returns, cut = _returns(params, as_key(key), policy, as_environment(environment), num_episodes, options)
    warn_of_cut("evaluate", cut, stacklevel=2)
    return returns


@jit
def _returns(
    params: Params, key: Key, policy: Any, environment: Any, num_episodes: int, options: Any
) -> tuple[jax.Array, jax.Array | None]:
    keys = spread(jax.random.split(key, num_episodes))
    taus, cut = draw(params, keys, policy, environment, **options)
    return jnp.sum(jnp.where(expand(taus.valid, taus.rewards), summable(taus.rewards), 0), axis=1), cut


@pytree
class _Greedy(PolicyWrapper):
    """A policy that always takes its likeliest action."""

    inner: StepPolicy

    def change(self, distribution: Any, observation: Any) -> Forced:
        del observation
        mode = getattr(distribution, "mode", None)
        if mode is None:
            raise TypeError(f"greedy: {type(distribution).__name__} has no mode(); evaluate with greedy=False.")
        return Forced(distribution, mode() if callable(mode) else mode, jnp.ones((), bool))
