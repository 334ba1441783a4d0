r"""Hidden processes: states that are seen only through what they emit, and Fisher's identity for their likelihood.

The marginal likelihood $p_\theta(y) = \int p_\theta(x, y)\, dx$ is a sum over all hidden paths. Its score is the score of the
complete data, averaged over the paths that the observations leave possible:

$$\nabla \log p_\theta(y) = \mathbb{E}[\nabla \log p_\theta(x, y) \mid y].$$

That is the log-derivative identity once more: $\nabla p(x, y) = p(x, y) \nabla\log p(x, y)$, divided by $p(y)$. Exactly by the
smoothed marginals (`fisher_score`), or from paths drawn out of the posterior (`fisher_score_samples`); both must equal the
derivative of the filter, `jax.grad(model.log_likelihood)`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from logderiv._core.arrays import as_keys
from logderiv.likelihood.probability import log_prob
from logderiv.processes.base import AutonomousProcess
from logderiv.types import Trajectory


class EmittingLaw:
    r"""Of a pair `(x, y)`: $x$ from `transition`, then $y$ from `emission(x)`, whose factor is 1 where it is not observed."""

    def __init__(self, transition: Any, emission: Any, observed: Any):
        self.transition, self.emission, self.observed = transition, emission, observed

    def log_prob(self, action: tuple[Any, Any]) -> jax.Array:
        """Log-density of the pair."""
        state, observation = action
        emitted = self.emission(state).log_prob(observation)
        return self.transition.log_prob(state) + jnp.where(jnp.any(self.observed), emitted, 0)

    def sample(self, key: jax.Array) -> tuple[Any, Any]:
        """A pair; `key` is consumed."""
        key_state, key_emission = jax.random.split(key)
        state = self.transition.sample(key_state)
        return state, self.emission(state).sample(key_emission)


class HiddenProcess(AutonomousProcess):
    """Base of processes that emit: step `t` draws `(x_t, y_t)`, the state and its emission.

    A subclass adds to those of `AutonomousProcess` the four exact methods below; `observed` there is `None` for "all".
    """

    def next_state(self, action: tuple[Any, Any]) -> Any:
        """The state of the pair."""
        return action[0]

    def log_likelihood(self, params: Any, observations: Any, *, observed: Any = None) -> jax.Array:
        r"""$\log p_\theta(y)$ by the filter."""
        raise NotImplementedError

    def smooth(self, params: Any, observations: Any, *, observed: Any = None) -> Any:
        r"""The marginals of $p_\theta(x_{t-1}, x_t | y)$."""
        raise NotImplementedError

    def expected_log_joint(self, params: Any, posterior: Any, observations: Any, *, observed: Any = None) -> jax.Array:
        r"""$\mathbb{E}[\log p_\theta(x, y)]$ over the marginals that `smooth` gave: the `Q` of the EM algorithm."""
        raise NotImplementedError

    def sample_states(self, params: Any, key: jax.Array, observations: Any, *, observed: Any = None) -> Any:
        r"""One path $x \sim p_\theta(x | y)$, by forward filtering and backward sampling; `key` is consumed."""
        raise NotImplementedError

    def fill(self, observations: Any, observed: Any) -> tuple[Any, jax.Array]:
        """Observations that are safe where they are missing, and the mask in full."""
        raise NotImplementedError

    def pair_trajectory(self, states: Any, observations: Any, *, observed: Any = None) -> Trajectory:
        """The trajectory of a hidden path with its emissions, of which those not `observed` have the factor 1."""
        observations, mask = self.fill(observations, observed)
        tau = self.trajectory((states, observations))
        return tau._replace(observations=tau.observations._replace(observed=mask))


def fisher_score(params: Any, model: HiddenProcess, observations: Any, *, observed: Any = None) -> Any:
    r"""The score $\nabla\log p_\theta(y)$ by Fisher's identity, exactly: from the smoothed marginals.

    The smoother runs at `params` and is held; what is differentiated is only the expected complete-data log-density, in
    closed form. Nothing is differentiated through a filter.

    Args:
        params: Parameters of the model.
        model: A hidden Markov or linear-Gaussian state-space model.
        observations: One series, leading axis `(T,)`; `jax.vmap` for several.
        observed: False where an observation is missing, shape `(T,)` or, for vectors, also of `observations`. What stands
            there does not matter.

    Returns:
        Pytree of `params`.

    References:
        Cappe, Moulines & Ryden (2005), Inference in Hidden Markov Models, proposition 10.1.6; Koopman
        & Shephard (1992), Biometrika 79, for state-space models.
    """
    held = lax.stop_gradient(params)
    posterior = model.smooth(held, observations, observed=observed)
    return jax.grad(model.expected_log_joint)(params, posterior, observations, observed=observed)


def fisher_score_samples(
    params: Any,
    key: jax.Array,
    model: HiddenProcess,
    observations: Any,
    *,
    num_samples: int,
    observed: Any = None,
) -> Any:
    r"""$\nabla\log p_\theta(x, y)$ for paths $x$ drawn from $p_\theta(x|y)$: their mean is the score of $p_\theta(y)$, unbiased.

    The same identity where no marginals are at hand, only draws; each gradient is that of `ld.log_prob` on the complete
    path. `ld.diagnostics.mean` and `ld.sem` give the estimate and its standard error.

    Args:
        params: Parameters of the model.
        key: Consumed.
        model: As in `fisher_score`.
        observations: As in `fisher_score`.
        num_samples: Number of paths.
        observed: As in `fisher_score`.

    Returns:
        Pytree of `params` with a leading axis of `num_samples`.
    """
    held = lax.stop_gradient(params)

    def one(key: jax.Array) -> Any:
        states = model.sample_states(held, key, observations, observed=observed)
        tau = model.pair_trajectory(states, observations, observed=observed)
        return jax.grad(log_prob)(params, model.policy, tau)

    return jax.vmap(one)(jax.random.split(as_keys(key), num_samples))
