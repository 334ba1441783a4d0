"""The data that estimates are made of: trajectories, and streams of steps. `logderiv._core.arrays` checks them."""

from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from logderiv._core.tables import concrete, shapes


class Trajectory(NamedTuple):
    r"""One episode, or a batch of episodes, of at most `T` steps. Leading axes `(*batch, T)`.

    `valid` is a prefix mask: the last real step is valid, everything after it is padding whose content is never
    used. A stream that contains several episodes does not fit; cut it into episodes first.

    Attributes:
        observations: Pytree; the action `t` was chosen on observation `t`. Leaves `(*batch, T, ...)`.
        actions: Pytree of held samples. Leaves `(*batch, T, ...)`.
        rewards: Reward on leaving step `t`. Shape `(*batch, T)`.
        discounts: 0 where the episode terminates, 1 elsewhere, padding included. Shape `(*batch, T)`.
        valid: True on real steps. Shape `(*batch, T)`, bool.
        behavior_log_probs: Log-probability of the action under the policy that drew it. Shape `(*batch, T)`.
        final_observation: Observation after the last valid step, before any reset. Leaves `(*batch, ...)`.
    """

    observations: Any
    actions: Any
    rewards: jax.Array
    discounts: jax.Array
    valid: jax.Array
    behavior_log_probs: jax.Array
    final_observation: Any

    def __str__(self) -> str:
        if not concrete(self[2:5]) or len({np.shape(x) for x in self[2:5]}) > 1 or np.size(self.valid) == 0:
            return shapes("Trajectory", self)
        valid = np.asarray(self.valid, bool)
        rewards = np.where(valid, np.asarray(self.rewards, float), 0.0)
        lengths, returns = np.sum(valid, axis=-1).ravel(), np.sum(rewards, axis=-1).ravel()
        ended = np.sum(np.any(valid & (np.asarray(self.discounts, float) == 0), axis=-1))
        error = f" (standard error {np.std(returns, ddof=1) / np.sqrt(returns.size):.2g})" if returns.size > 1 else ""
        return shapes(
            f"Trajectory: batch of {lengths.size}, at most {valid.shape[-1]} steps each, {ended} terminated\n"
            f"  valid steps {lengths.min()} to {lengths.max()}; mean return {returns.mean():.6g}{error}",
            self,
        )


class Stream(NamedTuple):
    """`T` consecutive steps of each of `E` environments that restart whenever an episode ends. Leading axes `(E, T)`.

    A grid of one-step trajectories, so that whatever takes trajectories takes `steps`, and what says how they hang
    together. Only a credit that bootstraps from values of the state (`logderiv.advantages.GAE`) can weigh a stream: what comes
    after its last step is not in it.

    An estimate from a stream is a mean over its `E T` steps, at the states that the environments happen to be in, where
    one from trajectories is a mean over episodes of sums over steps. In the long run it is smaller by the mean length of
    an episode; what `Estimator.declaration` declares is said of whole episodes.

    Attributes:
        steps: Trajectories of one step, leading axes `(E, T)` and then the step, `(E, T, 1, ...)`; `final_observation`,
            `(E, T, ...)`, is the one after that step, before any restart.
        ends: Whether the step is the last one of its episode, terminated or truncated. Shape `(E, T)`.
        times: Steps of the episode before this one. Shape `(E, T)`, int32.
        returns: Undiscounted sum of the rewards of the episode up to this step, included. Shape `(E, T)`.
    """

    steps: Trajectory
    ends: jax.Array
    times: jax.Array
    returns: jax.Array


Trajectories: TypeAlias = Trajectory | Stream  # a batch of either kind
