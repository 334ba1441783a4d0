"""Hidden processes: states that are seen only through what they emit, and Fisher's identity for their likelihood.

The marginal likelihood p(y; θ) = ∫ p(x, y; θ) dx is a sum over all hidden paths. Its score is the score of the complete data,
averaged over the paths that the observations leave possible:

    ∇ log p(y; θ) = E[∇ log p(x, y; θ) | y].

That is the log-derivative identity once more: ∇p(x, y) = p(x, y) ∇ log p(x, y), divided by p(y). Exactly by the smoothed
marginals (`fisher_score`), or from paths drawn out of the posterior (`fisher_score_samples`); both must equal the derivative
of the filter, `jax.grad(model.log_likelihood)`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from logderiv._core import check
from logderiv._core.arrays import as_key, refuse_complex, summable
from logderiv._core.blocks import fill_steps
from logderiv._core.pytrees import jit, pytree
from logderiv.likelihood.probability import log_prob
from logderiv.processes.base import Previous, Process
from logderiv.types import Key, Params, Trajectory


@pytree
class Emitting:
    """The distribution of a pair `(x, y)`: x from `state`, then y from `emission(x)`.

    Attributes:
        state: Distribution of x.
        emission: `x -> distribution` of y, a pytree: `jax.tree_util.Partial` of a function and its parameters.
        observed: Which components of y are seen, bool; where none is, the factor of y is 1.
    """

    state: Any
    emission: Partial
    observed: Any

    def log_prob(self, action: tuple[Any, Any]) -> jax.Array:
        """Log-density of the pair.

        Args:
            action: State and emission.

        Returns:
            Shape `()`.
        """
        state, observation = action
        emitted = self.emission(state).log_prob(observation)
        return self.state.log_prob(state) + jnp.where(jnp.any(self.observed), emitted, 0)

    def sample(self, key: Key) -> tuple[Any, Any]:
        """Draw a pair.

        Args:
            key: Consumed.

        Returns:
            State and emission.
        """
        key_state, key_emission = jax.random.split(key)
        state = self.state.sample(key_state)
        return state, self.emission(state).sample(key_emission)


class Filtered(NamedTuple):
    """What a filter knows after each observation.

    Attributes:
        states: Of x_t given y_0, ..., y_t: `GaussianMoments` of a state-space model, log-probabilities `(T, S)` of a hidden Markov model.
        increments: log p(y_t | y_0, ..., y_t-1), shape `(T,)`; they sum to the log-likelihood.
    """

    states: Any
    increments: jax.Array


class Smoothed(NamedTuple):
    """What all observations say of the states.

    Attributes:
        states: Of x_t given y: `GaussianMoments` of a state-space model, probabilities `(T, S)` of a hidden Markov model.
        pairs: Of x_t and x_t+1 for t = 0, ..., T - 2: Cov(x_t, x_t+1 | y), shape `(T - 1, n, n)`, or p(x_t = i, x_t+1 = j | y), shape
            `(T - 1, S, S)`.
    """

    states: Any
    pairs: jax.Array


class HiddenProcess(Process):
    """Base of processes that emit: step `t` draws `(x_t, y_t)`, the state and its emission.

    A subclass adds to `first` and `transition` of `Process` four functions of a series without holes:

        _filter(params, observations, observed) -> Filtered
        _smooth(params, filtered) -> marginals
        _sample(params, key, filtered) -> states
        _expected(params, marginals, observations, observed) -> E[log p(x, y; θ)]

    The methods below take one series; `jax.vmap` for several.

    Attributes:
        reward: Function of `(x_t, y_t)`.
    """

    reward: Any
    _filter: Callable[..., Filtered]
    _smooth: Callable[..., Any]
    _sample: Callable[..., Any]
    _expected: Callable[..., jax.Array]

    def advance(self, state: Previous, action: tuple[Any, Any]) -> tuple[Previous, jax.Array, bool]:
        return state.then(action[0]), self.reward(action), False

    @jit
    def log_likelihood(self, params: Any, observations: Any, *, observed: Any = None) -> jax.Array:
        """The log-likelihood log p(y; θ), by the filter.

        Args:
            params: Parameters.
            observations: One series, leading axis `(T,)`.
            observed: False where an observation is missing, shape `(T,)`, or for vectors of a `StateSpaceModel` also of
                `observations`, where a component is; `None` for none missing. What stands there does not matter.

        Returns:
            Shape `()`; `-inf` where the observations are impossible.

        Raises:
            ValueError: Shapes disagree, or there is no observation.

        Gradients: flow through `params` and observations, at any order.
        """
        return jnp.sum(self.filter(params, observations, observed=observed).increments)

    @jit
    def filter(self, params: Any, observations: Any, *, observed: Any = None) -> Filtered:
        """The states given what was observed up to each.

        Args:
            params: Parameters.
            observations: One series, leading axis `(T,)`.
            observed: False where an observation is missing; `None` for none missing.

        Returns:
            The filtered states, and the increments of the log-likelihood.

        Raises:
            ValueError: Shapes disagree, or there is no observation.
        """
        return self._filter(params, *self.fill(observations, observed))

    @jit
    def smooth(self, params: Any, observations: Any, *, observed: Any = None) -> Any:
        """The marginals of p(x_t-1, x_t | y; θ).

        Args:
            params: Parameters.
            observations: One series, leading axis `(T,)`.
            observed: False where an observation is missing; `None` for none missing.

        Returns:
            What `expected_log_joint` takes.

        Raises:
            ValueError: Shapes disagree, or there is no observation.
        """
        return self._smooth(params, self.filter(params, observations, observed=observed).states)

    @jit
    def expected_log_joint(self, params: Any, posterior: Any, observations: Any, *, observed: Any = None) -> jax.Array:
        """E[log p(x, y; θ)] over the marginals that `smooth` gave: the `Q` of the EM algorithm.

        Args:
            params: Parameters.
            posterior: From `smooth`, at these or at other parameters.
            observations: One series, leading axis `(T,)`.
            observed: False where an observation is missing; `None` for none missing.

        Returns:
            Shape `()`.

        Raises:
            ValueError: Shapes disagree, or there is no observation.
        """
        return self._expected(params, posterior, *self.fill(observations, observed))

    @jit
    def sample_states(self, params: Any, key: Key, observations: Any, *, observed: Any = None) -> Any:
        """One path x ~ p(x | y; θ), by forward filtering and backward sampling.

        Args:
            params: Parameters.
            key: Consumed.
            observations: One series, leading axis `(T,)`.
            observed: False where an observation is missing; `None` for none missing.

        Returns:
            The states, leading axis `(T,)`.

        Raises:
            ValueError: Shapes disagree, or there is no observation.
        """
        return self._sample(params, as_key(key), self.filter(params, observations, observed=observed).states)

    def fill(self, observations: Any, observed: Any) -> tuple[Any, jax.Array]:
        """Observations that are safe where they are missing, and the mask in full.

        Args:
            observations: One series, leading axis `(T,)`.
            observed: False where an observation is missing; `None` for none missing.

        Returns:
            The series and its mask. What is missing is replaced by the first observation that is there; if none is, by ones, or by
            0 where an observation is one whole number.

        Raises:
            ValueError: No observation; `observed` has another length.
        """
        observations = jax.tree.map(jnp.asarray, observations, is_leaf=lambda x: isinstance(x, list))
        refuse_complex(observations=observations)
        length = check.rows("observations", observations)
        mask = jnp.ones(length, bool) if observed is None else summable(observed, "observed") != 0
        check.shape((length,), observed=mask, hint="except in a StateSpaceModel, an observation is missing as a whole")
        return fill_steps(observations, mask), mask

    def pair_trajectory(self, states: Any, observations: Any, *, observed: Any = None) -> Trajectory:
        """The trajectory of a hidden path with its emissions, of which those not `observed` have the factor 1.

        Args:
            states: One path, leading axis `(T,)`.
            observations: One series, leading axis `(T,)`.
            observed: False where an observation is missing; `None` for none missing.

        Returns:
            A `Trajectory` with every step valid.

        Raises:
            ValueError: Path and series differ in length, or have other shapes than the process draws.
        """
        observations, mask = self.fill(observations, observed)
        tau = self.trajectory((states, observations))
        return tau._replace(observations=tau.observations._replace(observed=mask))


def backwards(step: Callable[..., tuple[Any, Any]], last: Any, inputs: Any) -> tuple[Any, Any]:
    """States from the last one back to the first.

    Args:
        step: `(later state, input) -> (state, something else)`.
        last: The state at T - 1.
        inputs: Of all times, leading axis `(T,)`; the last one is not used.

    Returns:
        The `T` states, and the `T - 1` other things.
    """

    def back(later: Any, x: Any) -> tuple[Any, Any]:
        now, other = step(later, x)
        return now, (now, other)

    states, others = lax.scan(back, last, jax.tree.map(lambda x: x[:-1], inputs), reverse=True)[1]
    return jax.tree.map(lambda xs, x: jnp.concatenate([xs, x[None]]), states, last), others


def normalized(logs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities along the first axis, and the `logsumexp` that they were off by.

    Where everything is `-inf`, so are both, and their gradients are 0, not NaN.

    Args:
        logs: Leading axis `(S,)`.

    Returns:
        Normalized along it, and what was taken off, without it.
    """
    impossible = jnp.all(jnp.isneginf(logs), axis=0, keepdims=True)
    total = jax.nn.logsumexp(jnp.where(impossible, 0, logs), axis=0, keepdims=True)
    return logs - jnp.where(impossible, 0, total), jnp.where(impossible, -jnp.inf, total)[0]


@jit
def fisher_score(params: Params, model: HiddenProcess, observations: Any, *, observed: Any = None) -> Params:
    """The score ∇ log p(y; θ) by Fisher's identity, exactly: from the smoothed marginals.

    The smoother runs at `params` and is detached; what is differentiated is only the expected complete-data log-density, in
    closed form. Nothing is differentiated through a filter.

    Args:
        params: Parameters of the model.
        model: A hidden Markov or linear-Gaussian state-space model.
        observations: One series, leading axis `(T,)`; `jax.vmap` for several.
        observed: False where an observation is missing, shape `(T,)`, or for vectors of a `StateSpaceModel` also of
            `observations`, where a component is. What stands there does not matter.

    Returns:
        Pytree of `params`.

    Raises:
        ValueError: Shapes disagree.

    Gradients: the marginals are detached, so the derivative of this function is *not* that of the score.

    References:
        Cappe, Moulines & Ryden (2005), Inference in Hidden Markov Models, proposition 10.1.6; Koopman
        & Shephard (1992), Biometrika 79, for state-space models.
    """
    posterior = model.smooth(lax.stop_gradient(params), observations, observed=observed)
    return jax.grad(model.expected_log_joint)(params, posterior, observations, observed=observed)


def fisher_score_samples(
    params: Params, key: Key, model: HiddenProcess, observations: Any, *, num_samples: int, observed: Any = None
) -> Params:
    """∇ log p(x, y; θ) for paths x drawn from p(x | y; θ): their mean is the score of p(y; θ), unbiased.

    The same identity where no marginals are at hand, only draws; each gradient is that of `ld.log_prob` on the complete
    path. `ld.diagnostics.summary` gives the estimate and its standard error.

    Args:
        params: Parameters of the model.
        key: Consumed.
        model: A hidden Markov or linear-Gaussian state-space model.
        observations: One series, leading axis `(T,)`; `jax.vmap` for several.
        num_samples: Number of paths.
        observed: False where an observation is missing, shape `(T,)`, or for vectors of a `StateSpaceModel` also of
            `observations`, where a component is. What stands there does not matter.

    Returns:
        Pytree of `params` with a leading axis of `num_samples`.

    Raises:
        ValueError: Shapes disagree; `num_samples` is below 1; several keys.
        TypeError: `key` is no key.

    Gradients: the paths are detached.
    """
    num_samples = check.whole(num_samples=num_samples)
    return _scores(params, as_key(key), model, observations, observed, num_samples)


@jit
def _scores(
    params: Params, key: Key, model: HiddenProcess, observations: Any, observed: Any, num_samples: int
) -> Params:
    detached = lax.stop_gradient(params)

    def one(key: jax.Array) -> Any:
        states = model.sample_states(detached, key, observations, observed=observed)
        tau = model.pair_trajectory(states, observations, observed=observed)
        return jax.grad(log_prob)(params, model.policy, tau)

    return jax.vmap(one)(jax.random.split(key, num_samples))
