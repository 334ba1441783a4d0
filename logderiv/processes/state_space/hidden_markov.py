r"""Hidden Markov models: a finite chain that is seen through what each state emits.

Filter, smoother and sampler are one recursion. Forwards, $\alpha_t(i) = \log p(x_t = i | y_{0:t})$. Backwards from there the
path is a Markov chain again, with kernel $p(x_{t-1} = i | x_t = j, y) \propto \exp \alpha_{t-1}(i)\, p(j|i)$: averaged over it
gives the smoothed marginals, drawn from it a path of the posterior. All in logarithms; structural zeros (`-inf`) are safe.

References:
    Cappe, Moulines & Ryden (2005), Inference in Hidden Markov Models, sections 3.2-3.3 and algorithm 6.1.1; Rabiner (1989),
    Proc. IEEE 77.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from logderiv.distributions.basic import Categorical
from logderiv.processes.base import Previous, no_reward
from logderiv.processes.state_space.hidden import EmittingLaw, HiddenProcess


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


class SmoothedChain(NamedTuple):
    """Posterior marginals given all observations.

    Attributes:
        states: $p(x_t = i | y)$, shape `(T, S)`.
        pairs: $p(x_{t-1} = i, x_t = j | y)$ for $t = 1, ..., T - 1$, shape `(T - 1, S, S)`.
    """

    states: jax.Array
    pairs: jax.Array


def categorical_emission(params: jax.Array, state: jax.Array) -> Categorical:
    """A row of logits for each state."""
    return Categorical(params[state])


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class HiddenMarkovModel(HiddenProcess):
    """A hidden Markov model as a process: step `t` draws `(x_t, y_t)`; `params` are `HiddenMarkovParams`.

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
        """No state yet."""
        return Previous(jnp.int32(0), jnp.ones((), bool), jnp.ones((), bool))

    def law(self, params: HiddenMarkovParams, observation: Previous) -> EmittingLaw:
        """The law of the next state and its emission."""
        _check_params(params)
        logits = jnp.where(observation.start, params.initial, params.transition[observation.state])
        return EmittingLaw(
            Categorical(logits), lambda state: self.emission(params.emission, state), observation.observed
        )

    def log_likelihood(self, params: HiddenMarkovParams, observations: Any, *, observed: Any = None) -> jax.Array:
        r"""$\log p_\theta(y)$ by the forward algorithm, $O(T S^2)$.

        Args:
            params: Parameters.
            observations: Leading axis `(T,)`.
            observed: False where an observation is missing, shape `(T,)`; `None` for none missing.

        Returns:
            A scalar; `-inf` where the observations are impossible.

        Raises:
            ValueError: Start and kernel disagree on the states; no observation; `observed` has another length.
        """
        return jnp.sum(self._filter(params, observations, observed)[1])

    def smooth(self, params: HiddenMarkovParams, observations: Any, *, observed: Any = None) -> SmoothedChain:
        """Posterior marginals of states and of neighbors; arguments as `log_likelihood`."""
        filtered, _ = self._filter(params, observations, observed)

        def back(later: jax.Array, log_filtered: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            pair = jnp.exp(_backward_kernel(params, log_filtered)) * later[None]
            now = jnp.sum(pair, axis=1)
            return now, (now, pair)

        last = jnp.exp(filtered[-1])
        _, (states, pairs) = lax.scan(back, last, filtered[:-1], reverse=True)
        return SmoothedChain(jnp.concatenate([states, last[None]]), pairs)

    def sample_states(
        self, params: HiddenMarkovParams, key: jax.Array, observations: Any, *, observed: Any = None
    ) -> jax.Array:
        """One path from the posterior, int32 `(T,)`; `key` is consumed."""
        filtered, _ = self._filter(params, observations, observed)
        key, key_last = jax.random.split(key)
        last = Categorical(filtered[-1]).sample(key_last)

        def back(carry: tuple[jax.Array, jax.Array], log_filtered: jax.Array) -> Any:
            key, later = carry
            key, key_state = jax.random.split(key)
            state = Categorical(_backward_kernel(params, log_filtered)[:, later]).sample(key_state)
            return (key, state), state

        states = lax.scan(back, (key, last), filtered[:-1], reverse=True)[1]
        return jnp.append(states, last)

    def expected_log_joint(
        self, params: HiddenMarkovParams, posterior: SmoothedChain, observations: Any, *, observed: Any = None
    ) -> jax.Array:
        r"""$\sum_i \gamma_0(i) \log p(i) + \sum_{t,i,j} \xi_t(i,j) \log p(j|i) + \sum_{t,i} \gamma_t(i) \log p(y_t|i)$."""
        start, kernel = _log_tables(params)
        emitted = self._emission_log_probs(params, observations, observed)
        return (
            _expected(posterior.states[0], start)
            + _expected(jnp.sum(posterior.pairs, axis=0), kernel)
            + _expected(posterior.states, emitted)
        )

    def fill(self, observations: Any, observed: Any) -> tuple[Any, jax.Array]:
        """Missing observations replaced by the first that is there (ones if none is), and the mask `(T,)`."""
        lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(observations)}
        if len(lengths) != 1 or lengths <= {(), (0,)}:
            raise ValueError("observations: expected leading axis (T,) with T >= 1 in every leaf; received none.")
        (shape,) = lengths
        if observed is None:
            return observations, jnp.ones(shape, bool)
        mask = jnp.asarray(observed, bool)
        if mask.shape != shape:
            raise ValueError(f"observed: expected shape {shape} as observations, received {mask.shape}.")

        def one(x: jax.Array) -> jax.Array:
            safe = jnp.where(jnp.any(mask), x[jnp.argmax(mask)], jnp.ones((), x.dtype))
            return jnp.where(mask.reshape(-1, *(1,) * (x.ndim - 1)), x, safe[None])

        return jax.tree.map(one, observations), mask

    def _filter(self, params: HiddenMarkovParams, observations: Any, observed: Any) -> tuple[jax.Array, jax.Array]:
        r"""$\log p(x_t | y_{0:t})$, shape `(T, S)`, and the increments $\log p(y_t | y_{0:t-1})$, shape `(T,)`."""
        start, kernel = _log_tables(params)
        emitted = self._emission_log_probs(params, observations, observed)

        def update(predicted: jax.Array, emitted: jax.Array) -> tuple[jax.Array, jax.Array]:
            joint = predicted + emitted
            increment = _logsumexp(joint, axis=0)
            return joint - jnp.where(jnp.isneginf(increment), 0, increment), increment

        def step(filtered: jax.Array, emitted: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            new = update(_logsumexp(filtered[:, None] + kernel, axis=0), emitted)
            return new[0], new

        first = update(start, emitted[0])
        rest = lax.scan(step, first[0], emitted[1:])[1]
        return jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), first, rest)

    def _emission_log_probs(self, params: HiddenMarkovParams, observations: Any, observed: Any) -> jax.Array:
        """Log-density of each observation in each state, 0 where it is missing, shape `(T, S)`."""
        observations, mask = self.fill(observations, observed)
        states = jnp.arange(params.initial.shape[0], dtype=jnp.int32)
        one = lambda y, state: self.emission(params.emission, state).log_prob(y)  # noqa: E731
        logs = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(observations, states)
        return jnp.where(mask[:, None], logs, 0)


def _log_tables(params: HiddenMarkovParams) -> tuple[jax.Array, jax.Array]:
    _check_params(params)
    return jax.nn.log_softmax(params.initial), jax.nn.log_softmax(params.transition)


def _backward_kernel(params: HiddenMarkovParams, log_filtered: jax.Array) -> jax.Array:
    r"""$\log p(x_{t-1} = i | x_t = j, y_{0:t-1})$, shape `(S, S)`; a column of a state that cannot be reached is `-inf`."""
    joint = log_filtered[:, None] + _log_tables(params)[1]
    norm = _logsumexp(joint, axis=0)
    return joint - jnp.where(jnp.isneginf(norm), 0, norm)[None]


def _logsumexp(x: jax.Array, axis: int) -> jax.Array:
    """`logsumexp` whose gradient is 0, not NaN, where everything is `-inf`."""
    impossible = jnp.all(jnp.isneginf(x), axis=axis, keepdims=True)
    total = jax.nn.logsumexp(jnp.where(impossible, 0, x), axis=axis)
    return jnp.where(jnp.squeeze(impossible, axis), -jnp.inf, total)


def _expected(weights: jax.Array, logs: jax.Array) -> jax.Array:
    """Sum of `weights * logs` where an impossible event has the weight 0 and counts as 0."""
    return jnp.sum(weights * jnp.where(weights > 0, logs, 0))


def _check_params(params: HiddenMarkovParams) -> None:
    if jnp.ndim(params.initial) != 1 or jnp.shape(params.transition) != jnp.shape(params.initial) * 2:
        raise ValueError(
            "params: expected initial of shape (S,) and transition of shape (S, S), received "
            f"{jnp.shape(params.initial)} and {jnp.shape(params.transition)}; start and kernel must agree on the states."
        )
