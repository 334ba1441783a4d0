"""Sampling trajectories with `lax.scan`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from logderiv._arrays import as_keys, floating
from logderiv.distributions import log_prob, sample
from logderiv.environments import as_environment, check_action
from logderiv.types import BatchInfo, Step, Trajectory, as_policy, check_trajectory


def rollout(
    params: Any,
    key: jax.Array,
    policy: Any,
    environment: Any,
    *,
    horizon: int | None = None,
    environment_params: Any = None,
) -> Trajectory:
    r"""Draw a trajectory $\tau \sim P(\tau|\theta)$ of at most `horizon` steps.

    The sample is *held*: `params` pass through `stop_gradient`, so no reparameterised derivative leaks into a score.
    An episode ends by masks: after `terminated` or `truncated` the steps are invalid, with reward 0 and discount 1.
    Memory is that of the trajectory; the key is split inside the scan.

    Args:
        params: Parameters of the policy.
        key: One key, or keys of shape `(*batch,)` for a batch; typed, or raw uint32. Consumed.
        policy: A `Policy` or a function `(params, observation) -> distribution`.
        environment: `reset` and `step` as in `logderiv.types.Environment`, or a gymnax environment.
        horizon: Number of steps `T`; `None` takes `environment.horizon`.
        environment_params: Passed to the environment; `None` for its own.

    Returns:
        A `Trajectory` with leading axes `(*batch, T)`.

    Raises:
        ValueError: No horizon, or one below 1; the environment's reset and step disagree in shapes.
        TypeError: Not a policy, an environment, or a key.

    Example:
        >>> import jax, logderiv as ld
        >>> keys = jax.random.split(jax.random.key(0), 5)
        >>> taus = rollout(jax.numpy.zeros(2), keys, ld.shared_softmax, ld.short_corridor(), horizon=30)
        >>> taus.rewards.shape
        (5, 30)
    """
    key, policy, environment = as_keys(key), as_policy(policy), as_environment(environment)
    horizon = _horizon(horizon, environment)

    def one(key: jax.Array) -> Trajectory:
        return _rollout(params, key, policy, environment, horizon, environment_params)

    for _ in range(key.ndim):
        one = jax.vmap(one)
    return one(key)


def batch_info(trajectories: Trajectory) -> BatchInfo:
    """What a batch looked like; see `BatchInfo`. Any leading axes, all of which are averaged over."""
    _, horizon = check_trajectory(trajectories)
    valid = trajectories.valid
    rewards = jnp.where(valid, trajectories.rewards, 0)
    lengths = jnp.sum(valid, axis=-1)
    cut = (lengths == horizon) & (trajectories.discounts[..., -1] != 0)
    returns = jnp.sum(rewards, axis=-1)
    return BatchInfo(
        mean_return=jnp.mean(returns),
        num_steps=jnp.sum(lengths),
        unfinished=jnp.mean(cut.astype(returns.dtype)),
        empty=jnp.sum(lengths == 0),
    )


def _rollout(params: Any, key: jax.Array, policy: Any, environment: Any, horizon: int, env_params: Any) -> Trajectory:
    params = lax.stop_gradient(params)
    has_memory = policy.initial_carry is not None
    key, key_reset = jax.random.split(key)
    observation, state = environment.reset(key_reset, env_params)

    def step(carry: Any, _: None) -> tuple[Any, Any]:
        key, state, observation, memory, alive = carry
        key, key_action, key_step = jax.random.split(key, 3)
        if has_memory:
            distribution, new_memory = policy.apply(params, memory, observation)
        else:
            distribution, new_memory = policy.apply(params, observation), None
        action = sample(distribution, key_action)
        check_action(environment, distribution, action)
        new = Step(*environment.step(key_step, state, action, env_params))
        row = (
            observation,
            action,
            jnp.where(alive, floating(new.reward), 0),
            jnp.where(alive & new.terminated, 0, 1).astype(floating(new.reward).dtype),
            alive,
            jnp.where(alive, log_prob(distribution, action), 0),
        )
        held = _select(alive, (new.state, new.observation, new_memory), (state, observation, memory))
        return (key, *held, alive & ~(new.terminated | new.truncated)), row

    memory = policy.initial_carry(params) if has_memory else None
    start = (key, state, observation, memory, jnp.ones((), bool))
    (_, _, final, _, _), rows = lax.scan(step, start, None, length=horizon)
    return Trajectory(*rows, final_observation=final)


def _select(alive: jax.Array, new: Any, old: Any) -> Any:
    """`new` while the episode lives, `old` after it; the two must agree in structure, shapes and dtypes."""
    if jax.tree.structure(new) != jax.tree.structure(old):
        raise ValueError(
            "environment: expected step to return state and observation of the structure that reset returned, "
            f"{jax.tree.structure(old)}; received {jax.tree.structure(new)}."
        )

    def leaf(path: Any, a: Any, b: Any) -> Any:
        if jnp.shape(a) != jnp.shape(b):
            raise ValueError(
                f"environment: leaf {jax.tree_util.keystr(path)} of (state, observation, carry) has shape {jnp.shape(b)} "
                f"after reset and {jnp.shape(a)} after step; they must agree."
            )
        is_key = jnp.issubdtype(jnp.result_type(b), jax.dtypes.prng_key)
        return jnp.where(alive, a if is_key else jnp.asarray(a, jnp.result_type(b)), b)

    return jax.tree_util.tree_map_with_path(leaf, new, old)


def _horizon(horizon: int | None, environment: Any) -> int:
    horizon = getattr(environment, "horizon", None) if horizon is None else horizon
    if horizon is None:
        raise ValueError("horizon: this environment has no default; pass horizon=, the number of steps.")
    if not isinstance(horizon, int) or horizon < 1:
        raise ValueError(f"horizon: expected a whole number >= 1, received {horizon!r}.")
    return horizon
