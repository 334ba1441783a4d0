"""Policies that are made of another one."""

from collections.abc import Callable
from typing import Any

from logderiv.policies.stepwise import StepPolicy
from logderiv.types import Observation, Params, Policy


class PolicyWrapper(Policy):
    """Base of policies that show another one a changed observation, or change the distribution that it returns.

    It has memory where the inner policy has. A subclass has the field `inner`, a `StepPolicy`.
    """

    inner: StepPolicy

    @property
    def initial_carry(self) -> Callable[[Params], Any] | None:
        """The inner policy's own, where it has memory."""
        return self.inner.start if self.inner.has_memory else None

    def observe(self, params: Params, observation: Observation) -> Observation:
        """What the inner policy is shown.

        Args:
            params: Parameters of the policy.
            observation: One observation.

        Returns:
            The observation itself, unless a subclass says otherwise.
        """
        del params
        return observation

    def change(self, distribution: Any, observation: Observation) -> Any:
        """What the action is drawn from.

        Args:
            distribution: That of the inner policy.
            observation: One observation.

        Returns:
            The inner policy's distribution, unless a subclass says otherwise.
        """
        del observation
        return distribution

    def apply(self, params: Params, *carry_and_observation: Any) -> Any:
        """The changed distribution at one observation.

        Args:
            params: Parameters of the policy.
            *carry_and_observation: With memory the carry and the observation, else the observation alone.

        Returns:
            With memory `(distribution, carry)`, else the distribution.
        """
        *carry, observation = carry_and_observation
        distribution, new = self.inner.step(params, carry[0] if carry else (), self.observe(params, observation))
        distribution = self.change(distribution, observation)
        return (distribution, new) if carry else distribution
