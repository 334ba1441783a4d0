"""What autonomous processes share: each step draws the next state, and nothing else is random."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from logderiv._core.arrays import register_dataclass
from logderiv.types import Step, Trajectory


class Previous(NamedTuple):
    """What the next draw depends on: the observation of an autonomous process.

    Attributes:
        state: The state before this step; without meaning where `start`.
        start: True at the step that draws the first state.
        observed: For processes that emit, whether what this step emits is seen; its factor is 1 where it is not.
    """

    state: Any
    start: jax.Array
    observed: Any = None


@dataclasses.dataclass(frozen=True)
class ProcessPolicy:
    """The choices of a process as a policy: `apply(params, observation)` is `process.law(params, observation)`.

    Attributes:
        process: The process; array fields, if it has any, are leaves.
    """

    process: Any

    initial_carry = None
    log_factors = None

    def apply(self, params: Any, observation: Any) -> Any:
        """The law of one step's choice."""
        return self.process.law(params, observation)


register_dataclass(ProcessPolicy, ("process",))


def no_reward(action: Any) -> jax.Array:
    """0: a process of which only the likelihood matters."""
    del action
    return jnp.zeros(())


class AutonomousProcess:
    """Base of processes whose action *is* the next state, or the next state with what it emits.

    A rollout of `T` steps draws `x_0, ..., x_{T-1}`; the reward of a step is a function of what it drew. All randomness
    is in the policy, so the environment's own log-factors, which `ld.log_prob(..., environment=process)` adds, are 0.
    """

    reward: Any
    horizon: int | None

    def law(self, params: Any, observation: Previous) -> Any:
        """The law of one step's action: the start's where `observation.start`, elsewhere that of the dynamics."""
        raise NotImplementedError

    def first(self) -> Previous:
        """The observation before anything is drawn; fixes shape and dtype of the state."""
        raise NotImplementedError

    def next_state(self, action: Any) -> Any:
        """The state that an action leads to: the action itself."""
        return action

    @property
    def policy(self) -> ProcessPolicy:
        """Everything that the process draws."""
        return ProcessPolicy(self)

    def reset(self, key: jax.Array, params: Any = None) -> tuple[Previous, Previous]:
        """Nothing is drawn yet."""
        del key, params
        return self.first(), self.first()

    def step(self, key: jax.Array, state: Previous, action: Any, params: Any = None) -> Step:
        """Go where the action says; never ends."""
        del key, params
        new = state._replace(state=self.next_state(action), start=jnp.zeros((), bool))
        return Step(new, new, self.reward(action), jnp.zeros((), bool), jnp.zeros((), bool))

    def log_initial(self, trajectory: Trajectory) -> jax.Array:
        """0: the policy draws the start."""
        return jnp.zeros((), trajectory.rewards.dtype)

    def log_factors(self, trajectory: Trajectory) -> jax.Array:
        """0: the policy draws the next state."""
        return jnp.zeros_like(trajectory.rewards)

    def trajectory(self, actions: Any) -> Trajectory:
        r"""The trajectory of a path that is given rather than drawn, for instance a recorded series.

        Args:
            actions: What each step draws, one row per step in every leaf; `jax.vmap` for a batch.

        Returns:
            A `Trajectory` with every step valid and `behavior_log_probs` 0: nobody drew it.

        Raises:
            ValueError: No step, or leaves that disagree on their number.
        """
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(actions)]
        if not shapes or () in shapes or len({shape[0] for shape in shapes}) > 1 or shapes[0][0] == 0:
            raise ValueError(
                f"actions: expected the same number of rows, one per step and at least one, in every leaf; received shapes {shapes}."
            )

        def step(state: Previous, action: Any) -> tuple[Previous, tuple[Previous, jax.Array]]:
            new = Step(*self.step(jax.random.key(0), state, action))
            return _like(new.state, state), (state, new.reward)

        final, (observations, rewards) = lax.scan(step, self.first(), actions)
        ones = jnp.ones_like(rewards)
        return Trajectory(observations, actions, rewards, ones, ones > 0, 0 * ones, final)


def _like(new: Any, old: Any) -> Any:
    """`new` in the dtypes of `old`, whose shapes it must have.

    Raises:
        ValueError: It has not.
    """

    def leaf(a: Any, b: Any) -> jax.Array:
        if jnp.shape(a) != jnp.shape(b):
            raise ValueError(f"actions: expected rows of shape {jnp.shape(b)}, received {jnp.shape(a)}.")
        return jnp.asarray(a, jnp.result_type(b))

    return jax.tree.map(leaf, new, old)
