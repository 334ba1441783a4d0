"""Observations in units of their own spread, as a policy."""

from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core import check
from logderiv._core.arrays import as_steps
from logderiv._core.moments import RunningMoments
from logderiv._core.pytrees import pytree
from logderiv.policies.stepwise import as_policy
from logderiv.policies.wrapper import PolicyWrapper
from logderiv.types import Key, Observation, Params, Stream, Trajectories


@pytree
class Normalized(PolicyWrapper):
    """A policy that is shown each observation less its running mean, over its running deviation: coordinates in like units.

        π(a|s) = π_inner(a|z),  z = clip((s − μ) / σ, −c, c)

    The statistics μ and σ are settings, numbers that are held: an action's log-probability is that under the statistics that it was
    drawn with, and the gradient of an estimate is exactly that of the policy with these statistics. They change between batches only.
    `logderiv.train` does that where this is the outermost policy: it starts from the ones given here, draws each batch with those of
    earlier batches, then takes in the observations of the batch's valid steps, and keeps them in `TrainState.statistics`. Estimator
    and optimizer are there given the inner policy and the normalized observations: so value functions see these, too, and
    `natural_gradient` takes the inner policy. Evaluation uses the statistics and never changes them. What is trained is
    `Normalized(inner, result.state.statistics)`.

    Coordinates whose deviation is 0, or lost in the rounding of their mean, are shifted and not scaled. Leaves of the observation
    that are not floating point (integers, masks) are shown as they are. Before anything was measured all are, but for the clip.

    Attributes:
        inner: The policy that is shown the normalized observation. It has the parameters.
        statistics: Of earlier observations, a `RunningMoments`; `None` where `train` is to begin with none.
        clip: c > 0, in deviations; `None` does not clip.

    Raises:
        ValueError: `clip` is not positive; there is a `Normalized` in `inner`; later, there are no statistics, or an observation
            has another shape than those that were measured.
        TypeError: `inner` is no policy.

    Gradients: the statistics are detached.

    Example:
        >>> import jax.numpy as jnp
        >>> from logderiv.types import FunctionPolicy
        >>> from logderiv.distributions import Normal
        >>> seen = RunningMoments(jnp.array(9.0), jnp.array([1e4, 0.0]), jnp.array([4.0, 1.0]))
        >>> policy = Normalized(FunctionPolicy(lambda params, z: Normal(z, params)), seen)
        >>> policy.apply(jnp.ones(2), jnp.array([1e4 + 6, 0.5])).loc.tolist()
        [3.0, 0.5]
    """

    inner: Any
    statistics: RunningMoments | None = None
    clip: float | None = 10.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "inner", as_policy(self.inner))
        check.positive(or_none=True, clip=self.clip)
        below = self.inner.policy
        while isinstance(below, PolicyWrapper):
            if isinstance(below, Normalized):
                raise ValueError("inner: expected a policy that is not normalized, received one; normalize once.")
            below = below.inner.policy

    def init(self, key: Key, observation: Observation) -> Params:
        """Parameters, which are the inner policy's.

        Args:
            key: Consumed.
            observation: One observation, for its shape.

        Returns:
            What the inner policy's own `init` makes.

        Raises:
            TypeError: The inner policy has no `init`.
        """
        inner = self.inner.policy
        if not hasattr(inner, "init"):
            raise TypeError(
                f"init: expected an inner policy that has init, received {inner}; make its parameters yourself."
            )
        return inner.init(key, observation)

    def observe(self, params: Params, observation: Observation) -> Observation:
        del params
        return self._shown(observation, 0)

    def shown(self, trajectories: Trajectories) -> Trajectories:
        """Trajectories as the inner policy sees them: their observations normalized.

        Args:
            trajectories: Leading axes `(*batch, T)`, or a stream.

        Returns:
            The same with other observations, the final one among them; what stands at invalid steps is no number to be used.

        Raises:
            ValueError: There are no statistics, or the observations have other shapes than those that were measured.
        """
        steps = as_steps(trajectories)
        axes = steps.valid.ndim
        observations, final = self._shown(steps.observations, axes), self._shown(steps.final_observation, axes - 1)
        steps = steps._replace(observations=observations, final_observation=final)
        return trajectories._replace(steps=steps) if isinstance(trajectories, Stream) else steps

    def measured(self, trajectories: Trajectories) -> RunningMoments:
        """The statistics with the observations of a batch, those at valid steps.

        Args:
            trajectories: Leading axes `(*batch, T)`, or a stream.

        Returns:
            The statistics, for the next batch.

        Raises:
            ValueError: There are no statistics, or the observations have other shapes than those that were measured.
        """
        steps = as_steps(trajectories)
        return self._known().including(steps.observations, steps.valid, "observation")

    def _shown(self, observation: Observation, axes: int) -> Observation:
        found = self._known().standardize(observation, axes, "observation")
        if self.clip is None:
            return found

        def leaf(before: Any, x: jax.Array) -> jax.Array:
            if not jnp.issubdtype(jnp.result_type(before), jnp.floating):
                return x
            most = jnp.asarray(self.clip, x.dtype)
            return jnp.clip(x, -most, most)

        return jax.tree.map(leaf, observation, found)

    def _known(self) -> RunningMoments:
        if self.statistics is None:
            raise ValueError(
                "statistics: expected a RunningMoments, as of result.state.statistics, received None. logderiv.train fills them in "
                "where Normalized is the outermost policy, and gives estimator and optimizer the inner one."
            )
        return self.statistics
