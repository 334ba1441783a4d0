"""Divergences and entropies of whole trajectories, summed over every one of them: what regularizers are meant to estimate."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from logderiv._core import check
from logderiv._core.arrays import check_params, refuse_complex, wide
from logderiv._core.pytrees import jit
from logderiv.exact.enumeration import LIMIT, Listing, list_trajectories
from logderiv.likelihood.probability import log_factors
from logderiv.types import Params


class Divergences(NamedTuple):
    """Exact regularizers; scalars.

    Attributes:
        reverse_kl: KL(P_θ ‖ P_ref) = Σ P_θ log(P_θ / P_ref).
        forward_kl: KL(P_ref ‖ P_θ).
        entropy: −Σ P_θ Σ_t log π_θ(a_t|s_t), of the policy's choices; start and transitions are left out.
    """

    reverse_kl: jax.Array
    forward_kl: jax.Array
    entropy: jax.Array


def divergences(
    params: Params, reference: Params, policy: Any, environment: Any, *, horizon: int, limit: int = LIMIT
) -> Divergences:
    """Reverse and forward KL from a reference, and the entropy, of the trajectories of an environment.

    Their gradients are `jax.jacrev(divergences)(params, reference, policy, environment, horizon=T)`.

    Args:
        params: Parameters of the policy; use float64.
        reference: Those of the reference, for the same policy.
        policy: The policy.
        environment: What `enumerate_trajectories` takes; concrete.
        horizon: `T`.
        limit: Refuse to list more trajectories.

    Returns:
        `Divergences`; a KL is infinite where a trajectory that is possible for the one, however unlikely, is not for the other.

    Raises:
        ValueError: Too many trajectories to list, or a number is out of its range; `reference` does not have the structure and shapes of `params`.
        TypeError: A parameter is not floating point; complex numbers; an environment that cannot be listed.

    Gradients: flow through `params`; the reference is detached. Where a KL is infinite they mean nothing, and may be NaN.

    Example:
        >>> import jax.numpy as jnp, logderiv as ld
        >>> logits = jnp.array([0.5, -0.5])
        >>> found = divergences(logits, logits, ld.shared_softmax, ld.environments.short_corridor(), horizon=3)
        >>> float(found.reverse_kl), float(found.forward_kl)
        (0.0, 0.0)
    """
    horizon, limit = check.whole(horizon=horizon, limit=limit)
    check_params(params)
    refuse_complex(reference=reference)
    check.like("reference", reference, params)
    every = list_trajectories(environment, horizon, limit)
    return _divergences(wide(params), jax.lax.stop_gradient(wide(reference)), policy, every)


@jit
def _divergences(params: Params, reference: Params, policy: Any, every: Listing) -> Divergences:
    logs, of_reference = (jnp.sum(log_factors(p, policy, every.trajectories), axis=-1) for p in (params, reference))

    def mean(chosen: jax.Array, values: jax.Array) -> jax.Array:
        """Of what is possible; elsewhere the values may be infinite."""
        possible = (chosen > -jnp.inf) & (every.weights > 0)
        chances = every.weights.astype(chosen.dtype) * jnp.exp(jnp.where(possible, chosen, 0))
        terms = chances * jnp.where(possible, values, 0)  # NaN where a chance underflows and its value is infinite
        return jnp.sum(jnp.where(possible, jnp.where(values == jnp.inf, jnp.inf, terms), 0))

    return Divergences(
        mean(logs, _minus(logs, of_reference)), mean(of_reference, _minus(of_reference, logs)), -mean(logs, logs)
    )


def _minus(x: jax.Array, y: jax.Array) -> jax.Array:
    """0 where neither is possible."""
    both = (x == -jnp.inf) & (y == -jnp.inf)
    return jnp.where(both, 0, jnp.where(both, 0, x) - jnp.where(both, 0, y))
