"""What one update is estimated from: whole episodes, groups of them that share a start, or steps of a stream.

| batch | is | mean over |
|---|---|---|
| `Episodes` | whole episodes, drawn until the last one has ended: any estimator | episodes |
| `Groups` | the same, in groups that start alike: group-relative estimators | episodes |
| `Steps` | a stream of environments that go on across updates: estimators that bootstrap | steps |

`train` asks a batch object for five things, `of`, `check`, `size`, `start` and `draw`, and knows nothing else of it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core.pytrees import pytree
from logderiv._core.sharding import check_divides, spread
from logderiv.sampling.episodes import BLOCK_SIZE, rollout
from logderiv.sampling.streams import collect, start_streams
from logderiv.types import Key, Params, State, Stream, Trajectory


class Batch:
    """How the trajectories of an update are drawn: whole episodes, unless a subclass says otherwise.

    Attributes:
        num_trajectories: How many.
        group_size: So many consecutive ones start alike.
        horizon: Largest number of steps of an episode; `None` for the environment's own.

    Raises:
        ValueError: A number is below 1, or no whole number.
    """

    num_trajectories: Any
    group_size: Any = 1
    horizon: Any

    def of(self, estimator: Any) -> "Batch":
        """The batch as an estimator wants it.

        Args:
            estimator: What weighs it.

        Returns:
            The batch.

        Raises:
            ValueError: The two do not agree.
        """
        del estimator
        return self

    def check(self, estimator: Any, mesh: Any) -> None:
        """Refuse what does not go with this batch.

        Args:
            estimator: What weighs it.
            mesh: Over whose devices it is spread, or `None`.

        Raises:
            ValueError: Its size does not go with one of them.
            TypeError: The estimator needs another kind of batch.
        """
        estimator.structure.check(self.num_trajectories)
        check_divides(self.num_trajectories, mesh, "num_trajectories")

    def size(self, environment: Any) -> int:
        """Steps in it at most, as far as they are known beforehand.

        Args:
            environment: Where it is drawn.

        Returns:
            The number of steps.
        """
        horizon = getattr(environment, "horizon", None) if self.horizon is None else self.horizon
        return self.num_trajectories * (horizon or 1)

    def start(self, key: Key, environment: Any, environment_params: Any) -> tuple[Key, State]:
        """What goes on from batch to batch, before the first one.

        Args:
            key: Consumed.
            environment: Where they are drawn.
            environment_params: Of the environment.

        Returns:
            The key of the rest of the run, and where the environments stand: `()` where nothing goes on.
        """
        del environment, environment_params
        return key, ()

    def draw(
        self, params: Params, key: Key, policy: Any, environment: Any, environment_params: Any, streams: State
    ) -> tuple[Trajectory | Stream, State]:
        """The next batch.

        Args:
            params: Parameters of the policy.
            key: Consumed.
            policy: What acts.
            environment: Where.
            environment_params: Of the environment.
            streams: Where the environments stand, from `start` or the last call.

        Returns:
            The batch, and where the environments stand after it.
        """
        key, key_start = jax.random.split(key)
        keys = jax.random.split(key, self.num_trajectories)
        starts = jax.random.split(key_start, self.num_trajectories // self.group_size)
        keys, starts = spread((keys, jnp.repeat(starts, self.group_size, axis=0)))
        options = {"horizon": self.horizon, "environment_params": environment_params, "block_size": BLOCK_SIZE}
        return rollout(params, keys, policy, environment, start_key=starts, **options), streams


@pytree(static=("num_trajectories", "horizon"))
class Episodes(Batch):
    """Whole episodes, drawn side by side until the last one has ended. Any estimator; the mean is over episodes.

    Attributes:
        num_trajectories: How many, `N`.
        horizon: Largest number of steps `T` of each; `None` for the environment's own.

    Raises:
        ValueError: A number is below 1, or no whole number.

    Example:
        >>> Episodes(16, horizon=100).num_trajectories
        16
    """

    num_trajectories: int
    horizon: int | None = None


@pytree(static=("num_groups", "group_size", "horizon"))
class Groups(Batch):
    """Whole episodes in groups that share their start and go on differently, for group-relative estimators.

    Attributes:
        num_groups: How many groups.
        group_size: Episodes in each; consecutive in the batch. `None` for that of the estimator.
        horizon: Largest number of steps `T` of each episode; `None` for the environment's own.

    Raises:
        ValueError: A number is below 1, or no whole number; later, the estimator's groups have another size, or none does.

    Example:
        >>> Groups(num_groups=8, group_size=4).num_trajectories
        32
    """

    num_groups: int
    group_size: int | None = None
    horizon: int | None = None

    @property
    def num_trajectories(self) -> int:
        """Episodes in all."""
        if self.group_size is None:
            raise ValueError("group_size: expected a whole number, as the estimator has none to take; received None.")
        return self.num_groups * self.group_size

    def of(self, estimator: Any) -> "Groups":
        size = estimator.structure.group_size
        if self.group_size not in (None, size) and size != 1:
            raise ValueError(
                f"group_size: expected that of the estimator, {size}, received {self.group_size}; leave it out of Groups."
            )
        return self if size == 1 else dataclasses.replace(self, group_size=size)


@pytree(static=("num_environments", "num_steps", "horizon"))
class Steps(Batch):
    """The next steps of environments that go on across updates: a stream, which cuts episodes. The mean is over steps.

    Only estimators whose advantages bootstrap from values of the state (`A2C`, `PPOActorCritic`) can weigh it.

    Attributes:
        num_environments: How many environments, `E`.
        num_steps: Steps `T` of each in an update.
        horizon: An episode is truncated after so many steps; `None` for the environment's own limit, where it has one.

    Raises:
        ValueError: A number is below 1, or no whole number.

    Example:
        >>> Steps(num_environments=64, num_steps=32).size(None)
        2048
    """

    num_environments: int
    num_steps: int
    horizon: int | None = None

    def check(self, estimator: Any, mesh: Any) -> None:
        if not estimator.structure.streams:
            raise TypeError(
                f"batch: {type(estimator).__name__} needs whole episodes (logderiv.Episodes); a stream cuts them, which only "
                "a credit that bootstraps from values of the state (logderiv.advantages.GAE) can weigh."
            )
        check_divides(self.num_environments, mesh, "num_environments")

    def size(self, environment: Any) -> int:
        del environment
        return self.num_environments * self.num_steps

    def start(self, key: Key, environment: Any, environment_params: Any) -> tuple[Key, State]:
        key, key_start = jax.random.split(key)
        streams = start_streams(key_start, environment, self.num_environments, environment_params=environment_params)
        return key, spread(streams)

    def draw(
        self, params: Params, key: Key, policy: Any, environment: Any, environment_params: Any, streams: State
    ) -> tuple[Stream, State]:
        options = {"horizon": self.horizon, "environment_params": environment_params, "num_steps": self.num_steps}
        return collect(params, key, policy, environment, streams, **options)
