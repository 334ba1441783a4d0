"""Truncated sampling: top-k and top-p as a policy."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core import check
from logderiv._core.pytrees import pytree
from logderiv.distributions.basic import Categorical
from logderiv.distributions.interop import Forced
from logderiv.policies.stepwise import as_policy
from logderiv.policies.wrapper import PolicyWrapper
from logderiv.types import Observation


@pytree(static=("top_k",))
class Truncated(PolicyWrapper):
    """A policy that leaves the least probable actions out, at each step: what a sampler with top-k or top-p draws from.

    Kept are the `top_k` most probable actions, and of these the fewest whose share of the probability of all kept by top-k is at least
    `top_p`; of equal ones the first. A step that is prescribed stays so.

    Attributes:
        inner: A policy over a `Categorical`.
        top_k: How many are kept at most; `None` for all.
        top_p: From 0 to 1; 1 for all.

    Raises:
        ValueError: `top_k` is below 1, `top_p` out of [0, 1].
        TypeError: `inner` is no policy.

    Gradients: of the log-probability given what is kept; which actions those are is held.

    References:
        Fan, Lewis & Dauphin (2018), arXiv:1805.04833, for top-k; Holtzman et al. (2020), arXiv:1904.09751, section 3.1, for top-p.
    """

    inner: Any
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "inner", as_policy(self.inner))
        check.fraction(top_p=self.top_p)

    def change(self, distribution: Any, observation: Observation) -> Any:
        """The distribution over what is kept.

        Args:
            distribution: A `Categorical`, prescribed or not.
            observation: Not used.

        Returns:
            A distribution of the same kind.

        Raises:
            TypeError: It is another distribution.
        """
        if isinstance(distribution, Forced):
            return dataclasses.replace(distribution, distribution=self.change(distribution.distribution, observation))
        check.made("inner", distribution, isinstance(distribution, Categorical), "a policy over a logderiv.Categorical")
        logits = distribution.logits
        order = jnp.argsort(-logits, axis=-1, stable=True)
        most = logits.shape[-1] if self.top_k is None else self.top_k
        ranked = jnp.where(jnp.arange(logits.shape[-1]) < most, jnp.take_along_axis(logits, order, axis=-1), -jnp.inf)
        chances = jax.nn.softmax(ranked, axis=-1)
        before = jnp.cumsum(chances, axis=-1) - chances
        top_p = jnp.asarray(self.top_p, chances.dtype)
        enough = (before >= top_p) & (top_p < 1)  # not of 1, to which sums are rounded before the last
        kept = ~enough & (ranked > -jnp.inf)
        kept = kept.at[..., 0].set(True)
        kept = jnp.put_along_axis(jnp.zeros_like(kept), order, kept, axis=-1, inplace=False)
        return Categorical(jnp.where(kept | jnp.any(jnp.isnan(logits), axis=-1, keepdims=True), logits, -jnp.inf))
