"""What processes share: whatever is random, and depends on the parameters, is drawn by the policy that a process carries."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from logderiv._core import check
from logderiv._core.arrays import refuse_complex, summable
from logderiv._core.pytrees import pytree
from logderiv.environments import _protocol
from logderiv.types import Key, Observation, Params, Policy, State, Step, Trajectory


class Previous(NamedTuple):
    """What the next draw of a time series depends on: its state, and the observation of its policy.

    Attributes:
        state: The state before this step; without meaning where `start`.
        start: True at the step that draws the first state. Shape `()`, bool.
        observed: For processes that emit, which components of what this step emits are seen; the factor is 1 where none is.
    """

    state: Any
    start: jax.Array
    observed: Any = None

    def then(self, state: Any) -> "Previous":
        """What the draw after `state` depends on.

        Args:
            state: What this step drew.

        Returns:
            The next `Previous`, no longer at the start.
        """
        return self._replace(state=state, start=jnp.zeros((), bool))


class GaussianMoments(NamedTuple):
    """Mean and covariance of a Gaussian vector; with leading axes, of one at each time.

    Attributes:
        mean: Shape `(n,)`.
        covariance: Shape `(n, n)`.
    """

    mean: jax.Array
    covariance: jax.Array


@pytree
class ProcessPolicy(Policy):
    """The choices of a process as a policy.

    Attributes:
        process: The process; its settings are the leaves.
    """

    process: Any

    def apply(self, params: Params, observation: Observation) -> Any:
        """The distribution of one step's choice: `process.transition(params, observation)`."""
        return self.process.transition(jax.tree.map(jnp.asarray, params), observation)

    def check_params(self, params: Params) -> None:
        """What `process.check_params` refuses."""
        self.process.check_params(params)


class Process:
    """Base of processes: an environment that carries the policy which makes all of its random choices.

    A subclass says how it starts (`first`), what a step draws (`transition`) and where that leads (`advance`); the
    environment, the policy and the log-factors follow. As all randomness is in the policy, the environment's own
    log-factors, which `ld.log_prob(..., environment=process)` adds, are 0.

        @partial(jax.tree_util.register_dataclass, data_fields=["step_size"], meta_fields=["horizon"])
        @dataclass(frozen=True)
        class Drift(Process):
            step_size: float = 1.0
            horizon: int | None = None

            def first(self): return jnp.zeros(())
            def transition(self, params, observation): return Normal(observation + params, self.step_size)
            def advance(self, state, action): return action, action, False

    Attributes:
        horizon: Default number of steps of a rollout.
    """

    horizon: Any = None

    def first(self) -> State:
        """The state before anything is drawn.

        Returns:
            A pytree; it fixes shapes and dtypes of the state.
        """
        raise NotImplementedError

    def transition(self, params: Any, observation: Any) -> Any:
        """The distribution of what one step draws, its action.

        Args:
            params: Parameters of the process.
            observation: What `observe` says of the state.

        Returns:
            A distribution.
        """
        raise NotImplementedError

    def advance(self, state: Any, action: Any) -> tuple[State, jax.Array, Any]:
        """Where an action leads; nothing is random here.

        Args:
            state: The state before the step.
            action: What the step drew.

        Returns:
            The next state, the reward, and whether the path ends here: the Python `False` where it never does.
        """
        raise NotImplementedError

    def ends_by_itself(self, state: Any, action: Any) -> bool:
        """Whether `advance` says when a path ends. The number of steps of a rollout is then no part of the model.

        `ld.rollout`, `ld.evaluate` and `ld.train` warn of paths that it cuts short. A process whose horizon is a part of the
        model all the same, such as a game of so many rounds that may end before, returns `False` here.

        Args:
            state: The shapes of a state, as `jax.ShapeDtypeStruct`.
            action: Those of an action.

        Returns:
            Whether it does.
        """
        ends: list[Any] = []
        jax.eval_shape(lambda *step: ends.append(self.advance(*step)[2]), state, action)
        return ends[0] is not False

    def observe(self, state: Any) -> Observation:
        """What the next draw depends on: the state itself, unless a subclass says otherwise.

        Args:
            state: A state.

        Returns:
            The observation of the policy.
        """
        return state

    def check_params(self, params: Params) -> None:
        """Refuse parameters that `transition` cannot take; `ld.rollout` asks before it compiles. Nothing is refused by default.

        Args:
            params: Parameters of the process; where they are traced nothing is known.
        """

    @property
    def policy(self) -> Any:
        """Everything that the process draws, as a policy."""
        return ProcessPolicy(self)

    def reset(self, key: Key, params: Any = None) -> tuple[Observation, State]:
        """The first state.

        Args:
            key: Not used.
            params: Not used.

        Returns:
            The first observation and the first state.
        """
        del key, params
        state = self.first()
        return self.observe(state), state

    def step(self, key: Key, state: State, action: Any, params: Any = None) -> Step:
        """Go where the action says.

        Args:
            key: Not used.
            state: The state before the step.
            action: What the policy drew.
            params: Not used.

        Returns:
            A `Step` that is never truncated.
        """
        del key, params
        new, reward, ended = self.advance(state, action)
        return Step(self.observe(new), new, reward, jnp.asarray(ended), jnp.zeros((), bool))

    def log_initial(self, trajectory: Trajectory) -> jax.Array:
        """0: the start is fixed, or drawn by the policy.

        Args:
            trajectory: Leading axis `(T,)`.

        Returns:
            0, shape `()`.
        """
        return jnp.zeros((), trajectory.rewards.dtype)

    def log_factors(self, trajectory: Trajectory) -> jax.Array:
        """0: the policy draws the next state.

        Args:
            trajectory: Leading axis `(T,)`.

        Returns:
            Zeros, shape `(T,)`.
        """
        return jnp.zeros_like(trajectory.rewards)

    def trajectory(self, actions: Any) -> Trajectory:
        """The trajectory of a path that is given rather than drawn, for instance a recorded series.

        Args:
            actions: What each step draws, one row per step in every leaf, up to the end of the path; `jax.vmap` for a batch.

        Returns:
            A `Trajectory` with every step valid and `behavior_log_probs` 0: nobody drew it.

        Raises:
            ValueError: No step, leaves that disagree on their number, or rows of another shape than the process draws.
            TypeError: Rows are complex, or fractions where the process draws whole numbers.
        """
        actions = jax.tree.map(jnp.asarray, actions, is_leaf=lambda x: isinstance(x, list))
        check.rows("actions", actions)
        refuse_complex(actions=actions)

        def step(state: State, action: Any) -> tuple[State, Any]:
            new, reward, ended = self.advance(state, action)
            hint = "one row per step, each a state that the process can be in"
            new = _protocol.as_before("actions", new, state, source="first", hint=hint)
            return new, (self.observe(state), summable(reward, "reward"), jnp.asarray(ended, bool))

        final, (observations, rewards, ended) = lax.scan(step, self.first(), actions)
        ones = jnp.ones(ended.shape, rewards.dtype)
        ends = jnp.where(ended, 0, ones)
        return Trajectory(observations, actions, rewards, ends, ones > 0, 0 * ones, self.observe(final))


def no_reward(value: Any) -> jax.Array:
    """0: the reward of a process of which only the likelihood matters, or only the end.

    Args:
        value: What a step drew, or a state.

    Returns:
        0, shape `()`.
    """
    del value
    return jnp.zeros(())


def first_component(x: jax.Array) -> jax.Array:
    """A number, or the first of several: the default reward at the end.

    Args:
        x: Position or counts, shape `()` or `(D,)`.

    Returns:
        Shape `()`.
    """
    return x.reshape(-1)[0]
