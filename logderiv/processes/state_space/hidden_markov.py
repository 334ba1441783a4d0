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
from logderiv._core.arrays import alike, row_of, summable
from logderiv._core.noise import gumbel
from logderiv._core.pytrees import jit, pytree
from logderiv.distributions.basic import Categorical, log_softmax
from logderiv.distributions.counts import Poisson
from logderiv.distributions.normal import Normal
from logderiv.processes.base import Previous, no_reward
from logderiv.processes.state_space.hidden import Emitting, Filtered, HiddenProcess, Smoothed, backwards, normalized
from logderiv.processes.state_space.stationary import stationary_log_probs
from logderiv.types import Key


class HiddenMarkovParams(NamedTuple):
    """Logits, unconstrained, and what the emissions take.

    Attributes:
        initial: Logits of the first state, shape `(S,)`; `None` for the stationary law of `transition`, the π with π P = π. Then
            the chain must be irreducible: the likelihood is NaN where it is not.
        transition: Logits of the next state, one row for each state, shape `(S, S)`.
        emission: Parameters of the emissions; for the default logits of the symbols in each state, shape `(S, V)`.
    """

    initial: Any
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


def poisson_emission(params: jax.Array, state: jax.Array) -> Poisson:
    """Counts from a rate for each state.

    Args:
        params: Logarithms of the rates, shape `(S,)`; `(S, D)` is refused, as one emission has one log-probability.
        state: Number of the state.

    Returns:
        The distribution of one count; a negative one has probability 0, a fraction is refused.

    Raises:
        ValueError: `params` have another number of axes.
    """
    params = summable(params, "params.emission")
    if params.ndim != 1:
        raise ValueError(f"params.emission: expected log-rates of shape (S,), received {params.shape}.")
    return Poisson(params[state])


class NormalEmissionParams(NamedTuple):
    """What `normal_emission` takes.

    Attributes:
        loc: Means, shape `(S,)` or, for vectors with independent components, `(S, D)`.
        log_scale: Logarithms of the standard deviations, in the same shape.
    """

    loc: jax.Array
    log_scale: jax.Array


def normal_emission(params: NormalEmissionParams, state: jax.Array) -> Normal:
    """Numbers, or vectors, from a mean and a standard deviation for each state.

    Args:
        params: Means and logarithms of standard deviations.
        state: Number of the state.

    Returns:
        The distribution of one observation, a number or a vector of shape `(D,)`.

    Raises:
        ValueError: The two differ in their shape, or have another number of axes.
    """
    loc, log_scale = alike(**{"params.emission.loc": params[0], "params.emission.log_scale": params[1]})
    if loc.ndim not in (1, 2):
        raise ValueError(f"params.emission.loc: expected shape (S,) or (S, D), received {loc.shape}.")
    check.shape(loc.shape, **{"params.emission.log_scale": log_scale}, hint="that of params.emission.loc")
    return Normal(loc[state], jnp.exp(log_scale[state]))


class StatePath(NamedTuple):
    """A path of hidden states, and how likely it is together with what was observed.

    Attributes:
        states: x_0, ..., x_T-1, shape `(T,)`, int32.
        log_prob: log p(x, y; θ), shape `()`.
    """

    states: jax.Array
    log_prob: jax.Array


@pytree(static=("emission", "reward", "horizon"))
class HiddenMarkovModel(HiddenProcess):
    """A hidden Markov model as a process: step `t` draws `(x_t, y_t)`; `params` are `HiddenMarkovParams`.

    Filter and smoother take O(T S²) steps. The expected log-density of `expected_log_joint` is, with the marginals γ and ξ,

        Σ_i γ_0(i) log p(i) + Σ_tij ξ_t(i, j) log p(j | i) + Σ_ti γ_t(i) log p(y_t | i).

    Attributes:
        emission: `(params.emission, state) -> distribution` of one observation; symbols from logits by default
            (`categorical_emission`); `poisson_emission` for counts, `normal_emission` for numbers and vectors.
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
            The distribution of `(x_t, y_t)`; its logits are NaN after a state outside `0 .. S - 1`.

        Raises:
            ValueError: Start, kernel and emissions differ in their number of states.
            TypeError: The state is no whole number.
        """
        start, kernel = _logits(params)
        state = jnp.where(observation.start, 0, observation.state)  # without meaning at the start
        logits = jnp.where(observation.start, start, row_of(kernel, state, "observation.state"))
        return Emitting(Categorical(logits), self._emission(params, len(kernel)), observation.observed)

    @jit
    def most_likely_states(self, params: HiddenMarkovParams, observations: Any, *, observed: Any = None) -> StatePath:
        """The path argmax_x p(x | y; θ), by Viterbi's recursion: the likeliest path to each state, step by step.

            δ_0(j) = log p(j) + log p(y_0 | j),   δ_t(j) = max_i [δ_t-1(i) + log p(j | i)] + log p(y_t | j).

        Among several such paths, the one whose last state has the lowest number, then its last but one, and so on.

        Args:
            params: Parameters.
            observations: One series, leading axis `(T,)`.
            observed: False where an observation is missing; `None` for none missing.

        Returns:
            The path and log p(x, y; θ), of what is observed. Where the observations are impossible it is `-inf`, and the path
            means nothing.

        Raises:
            ValueError: Shapes disagree, or there is no observation.

        Gradients: `log_prob` is differentiated along the path that was found, which is detached.

        References:
            Viterbi (1967), IEEE Trans. Inf. Theory 13; Rabiner (1989), section III.B; from memory.
        """
        start, kernel = _log_tables(params)
        emitted = self._emission_log_probs(params, *self.fill(observations, observed))

        def step(best: jax.Array, emitted: jax.Array) -> tuple[jax.Array, jax.Array]:
            through = best[:, None] + lax.stop_gradient(kernel)
            return jnp.max(through, axis=0) + emitted, jnp.argmax(through, axis=0)

        def back(later: jax.Array, came_from: jax.Array) -> tuple[jax.Array, jax.Array]:
            return came_from[later], later

        best, came_from = lax.scan(step, *lax.stop_gradient((start + emitted[0], emitted[1:])))
        first, later = lax.scan(back, jnp.argmax(best), came_from, reverse=True)
        states = jnp.append(first, later).astype(jnp.int32)
        moves = jnp.sum(kernel[states[:-1], states[1:]])
        seen = jnp.sum(jnp.take_along_axis(emitted, states[:, None], axis=1))
        return StatePath(states, start[states[0]] + moves + seen)

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
        # An event of weight 0 counts as 0, even where it is impossible; a weight of NaN stays one.
        terms = [jnp.sum(w * jnp.where(w == 0, 0, x)) for w, x in zip(weights, (start, kernel, emitted), strict=True)]
        return terms[0] + terms[1] + terms[2]

    def _emission_log_probs(self, params: HiddenMarkovParams, observations: Any, observed: jax.Array) -> jax.Array:
        """Log-density of each observation in each state, 0 where it is missing, shape `(T, S)`."""
        states = jnp.arange(len(_logits(params)[1]), dtype=jnp.int32)
        emission = self._emission(params, len(states))

        def one(y: Any) -> jax.Array:
            return jax.vmap(lambda state: emission(state).log_prob(y))(states)

        return jnp.where(observed[:, None], jax.vmap(one)(observations), 0)

    def _emission(self, params: HiddenMarkovParams, num_states: int) -> Partial:
        """From a state to its emission. Parameters of the emissions above have one row for each state."""
        emission = params.emission
        if self.emission in (categorical_emission, poisson_emission, normal_emission):
            rows = summable(emission[0] if self.emission is normal_emission else emission, "params.emission").shape[:1]
            if rows not in ((), (num_states,)):
                raise ValueError(
                    f"params.emission: expected a row for each of {num_states} states, received {rows[0]}."
                )
        return Partial(self.emission, jax.tree.map(jnp.asarray, emission))


def _log_tables(params: HiddenMarkovParams) -> tuple[jax.Array, jax.Array]:
    start, kernel = _logits(params)
    return log_softmax(start), log_softmax(kernel)


def _backward_kernel(params: HiddenMarkovParams, log_filtered: jax.Array) -> jax.Array:
    """Log p(x_t-1 = i | x_t = j, y_0, ..., y_t-1), shape `(S, S)`; a column of a state that cannot be reached is `-inf`."""
    return normalized(log_filtered[:, None] + _log_tables(params)[1])[0]


def _logits(params: HiddenMarkovParams) -> tuple[jax.Array, jax.Array]:
    """Of the first state and of the kernel."""
    hint, kernel = "start and kernel must agree on the states", summable(params.transition, "params.transition")
    if params.initial is None:
        states = kernel.shape[:1] or (1,)
        check.shape(states * 2, **{"params.transition": kernel}, hint="one row of logits for each state")
        return stationary_log_probs(log_softmax(kernel)), kernel
    start = summable(params.initial, "params.initial")
    check.shape(start.shape * 2, **{"params.transition": kernel}, hint=hint)
    return start, kernel
