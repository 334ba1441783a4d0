"""Hidden Markov models: a finite chain that is seen through what each state emits.

Filter, smoother and sampler are one recursion. Forwards, α_t(i) = log p(x_t = i | y_0, ..., y_t). Backwards from there the
path is a Markov chain again, with kernel p(x_t-1 = i | x_t = j, y) ∝ exp(α_t-1(i)) p(j | i): averaged over it gives the
smoothed marginals, drawn from it a path of the posterior. All in logarithms; structural zeros (`-inf`) are safe.

References:
    Cappe, Moulines & Ryden (2005), Inference in Hidden Markov Models, sections 3.2-3.3 and algorithm 6.1.1; Rabiner (1989),
    Proc. IEEE 77.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from logderiv._core import check
from logderiv._core.arrays import summable
from logderiv._core.noise import gumbel
from logderiv._core.pytrees import pytree
from logderiv.distributions.basic import Categorical, log_softmax
from logderiv.processes.base import Previous, no_reward
from logderiv.processes.state_space.hidden import Emitting, Filtered, HiddenProcess, Smoothed, backwards, normalized
from logderiv.types import Key


class HiddenMarkovParams(NamedTuple):
    """Logits, unconstrained, and what the emissions take.

    Attributes:
        initial: Logits of the first state, shape `(S,)`.
        transition: Logits of the next state, one row for each state, shape `(S, S)`.
        emission: Parameters of the emissions; for the default logits of the symbols in each state, shape `(S, V)`.
    """

    initial: jax.Array
    transition: jax.Array
    emission: Any


def categorical_emission(params: jax.Array, state: jax.Array) -> Categorical:
    """Symbols from a row of logits for each state.

    Args:
        params: Logits, shape `(S, V)`.
        state: Number of the state.

    Returns:
        The distribution of one symbol.
    """
    return Categorical(summable(params, "params.emission")[state])


@pytree(static=("emission", "reward", "horizon"))
class HiddenMarkovModel(HiddenProcess):
    """A hidden Markov model as a process: step `t` draws `(x_t, y_t)`; `params` are `HiddenMarkovParams`.

    Filter and smoother take O(T S²) steps. The expected log-density of `expected_log_joint` is, with the marginals γ and ξ,

        Σ_i γ_0(i) log p(i) + Σ_tij ξ_t(i, j) log p(j | i) + Σ_ti γ_t(i) log p(y_t | i).

    Attributes:
        emission: `(params.emission, state) -> distribution` of one observation; symbols from logits by default.
        reward: Function of `(x_t, y_t)`.
        horizon: Default number of steps of a rollout.

    Example:
        >>> import jax, jax.numpy as jnp, logderiv as ld
        >>> model = ld.processes.HiddenMarkovModel()
        >>> params = ld.processes.HiddenMarkovParams(jnp.zeros(2), jnp.eye(2), jnp.array([[1.0, 0.0], [0.0, 1.0]]))
        >>> y = jnp.array([0, 0, 1, 1, 1])
        >>> by_filter = jax.jit(jax.grad(model.log_likelihood))(params, y)
        >>> by_identity = jax.jit(ld.processes.fisher_score)(params, model, y)
        >>> bool(jnp.allclose(by_filter.transition, by_identity.transition, atol=1e-6))
        True
    """

    emission: Callable[[Any, jax.Array], Any] = categorical_emission
    reward: Callable[[Any], jax.Array] = no_reward
    horizon: int | None = None

    def first(self) -> Previous:
        return Previous(jnp.int32(0), jnp.ones((), bool), jnp.ones((), bool))

    def transition(self, params: HiddenMarkovParams, observation: Previous) -> Emitting:
        """The distribution of the next state and its emission.

        Args:
            params: Logits and parameters of the emissions.
            observation: The state before, or that there is none.

        Returns:
            The distribution of `(x_t, y_t)`.

        Raises:
            ValueError: Start and kernel differ in their number of states.
        """
        params = _checked(params)
        logits = jnp.where(observation.start, params.initial, params.transition[observation.state])
        return Emitting(Categorical(logits), Partial(self.emission, params.emission), observation.observed)

    def _filter(self, params: HiddenMarkovParams, observations: Any, observed: jax.Array) -> Filtered:
        start, kernel = _log_tables(params)

        def step(predicted: jax.Array, emitted: jax.Array) -> tuple[jax.Array, Filtered]:
            states, increment = normalized(predicted + emitted)
            return normalized(states[:, None] + kernel)[1], Filtered(states, increment)

        return lax.scan(step, start, self._emission_log_probs(params, observations, observed))[1]

    def _smooth(self, params: HiddenMarkovParams, filtered: jax.Array) -> Smoothed:
        def step(later: jax.Array, log_filtered: jax.Array) -> tuple[jax.Array, jax.Array]:
            pair = jnp.exp(_backward_kernel(params, log_filtered)) * later[None]
            return jnp.sum(pair, axis=1), pair

        return Smoothed(*backwards(step, jnp.exp(filtered[-1]), filtered))

    def _sample(self, params: HiddenMarkovParams, key: Key, filtered: jax.Array) -> jax.Array:
        def step(later: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            log_filtered, noise = inputs
            return jnp.argmax(_backward_kernel(params, log_filtered)[:, later] + noise), None

        # The index of the largest log-probability plus noise is a draw.
        noise = gumbel(key, filtered.shape, filtered.dtype)
        states, _ = backwards(step, jnp.argmax(filtered[-1] + noise[-1]), (filtered, noise))
        return states.astype(jnp.int32)

    def _expected(self, params: Any, posterior: Smoothed, observations: Any, observed: jax.Array) -> jax.Array:
        start, kernel = _log_tables(params)
        emitted = self._emission_log_probs(params, observations, observed)
        weights = posterior.states[0], jnp.sum(posterior.pairs, axis=0), posterior.states
        # An event of weight 0 counts as 0, even where it is impossible.
        terms = [jnp.sum(w * jnp.where(w > 0, x, 0)) for w, x in zip(weights, (start, kernel, emitted), strict=True)]
        return terms[0] + terms[1] + terms[2]

    def _emission_log_probs(self, params: HiddenMarkovParams, observations: Any, observed: jax.Array) -> jax.Array:
        """Log-density of each observation in each state, 0 where it is missing, shape `(T, S)`."""
        states = jnp.arange(_checked(params).initial.shape[0], dtype=jnp.int32)

        def one(y: Any) -> jax.Array:
            return jax.vmap(lambda state: self.emission(params.emission, state).log_prob(y))(states)

        return jnp.where(observed[:, None], jax.vmap(one)(observations), 0)


def _log_tables(params: HiddenMarkovParams) -> tuple[jax.Array, jax.Array]:
    params = _checked(params)
    return log_softmax(params.initial), log_softmax(params.transition)


def _backward_kernel(params: HiddenMarkovParams, log_filtered: jax.Array) -> jax.Array:
    """Log p(x_t-1 = i | x_t = j, y_0, ..., y_t-1), shape `(S, S)`; a column of a state that cannot be reached is `-inf`."""
    return normalized(log_filtered[:, None] + _log_tables(params)[1])[0]


def _checked(params: HiddenMarkovParams) -> HiddenMarkovParams:
    start, kernel = summable(params.initial, "params.initial"), summable(params.transition, "params.transition")
    params = params._replace(initial=start, transition=kernel)
    hint = "start and kernel must agree on the states"
    check.fields("params.", params, hint=hint, transition=start.shape * 2)
    return params
