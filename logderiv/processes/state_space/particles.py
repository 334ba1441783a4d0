"""Particle filters: the likelihood of a hidden process by N weighted copies of its state, for models without an exact filter.

The bootstrap filter draws at each step an ancestor for every particle out of the weights before (multinomial), moves it by the
model's transition, and weights it by the density of what was observed. It is written in plain calls, so it stands in a model:

    def model(params):
        found = ld.processes.particle_filter(params, process, y, num_particles=100, resampling="stop_gradient")
        return found.log_likelihood

    value, grads = jax.value_and_grad(ld.expectation(model, num_samples=8))(params, jax.random.key(0))

Its estimate of the likelihood is unbiased, Z = Π_t Σ_i w_t^i with E[Z] = p(y; θ), and so is its gradient, if it knows that the
ancestors were drawn from weights that depend on the parameters, too. There are two ways of knowing it, and one without:

| `resampling` | an ancestor a is drawn from the weights w, and | of Z | of log Z |
|---|---|---|---|
| `"score"` | is scored: the cost's derivative gains log w(a) (DiCE) | ∇p(y), unbiased | ∇E[log Z], unbiased; not ∇ log p(y) |
| `"stop_gradient"` | its new weight is 1/N · w(a) / detached w(a) | ∇p(y), unbiased | ∇ log p(y) but for O(1/N) |
| `"ignored_biased"` | nothing | biased | biased at any N |

The second carries scored states likewise, by weights with the factor p(x) / detached p(x). Then nothing at all is scored, and the
gradient of log Z is Fisher's identity over the paths of the particles that have survived: of less variance than the first, which
credits every choice of every particle with all of Z.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from logderiv import distributions
from logderiv._core import check
from logderiv._core.arrays import as_mask, expand, refuse_complex, scalar_cost, summable, unbroken
from logderiv._core.blocks import fill_steps
from logderiv._core.products import precision_of
from logderiv._core.pytrees import pytree
from logderiv._core.staging import inside_a_model
from logderiv.environments import _protocol
from logderiv.expectations import calls
from logderiv.expectations.sources import detached
from logderiv.processes.state_space.hidden import HiddenProcess, normalized

RESAMPLING = ("score", "stop_gradient", "ignored_biased")
STATES = ("score", "pathwise")


@pytree(static=("initial", "transition", "emission"))
class HiddenChain:
    """A hidden process by three functions, for `particle_filter`: any state, any distributions.

    Attributes:
        initial: `params -> distribution` of x_0.
        transition: `(params, x) -> distribution` of the next state, of the same structure, shapes and dtypes.
        emission: `(params, x) -> distribution` of one observation.

    Example:
        >>> import jax.numpy as jnp, logderiv as ld
        >>> volatility = ld.processes.HiddenChain(  # log-variance of returns as an autoregressive process
        ...     initial=lambda params: ld.Normal(jnp.zeros(()), jnp.ones(())),
        ...     transition=lambda params, x: ld.Normal(params["decay"] * x, jnp.exp(params["log_scale"])),
        ...     emission=lambda params, x: ld.Normal(jnp.zeros(()), jnp.exp(x / 2)),
        ... )
    """

    initial: Callable[[Any], Any]
    transition: Callable[[Any, Any], Any]
    emission: Callable[[Any, Any], Any]


class Particles(NamedTuple):
    """What a particle filter knows after each observation.

    Attributes:
        states: The particles, leading axes `(T, N)`.
        log_weights: Logarithms of their weights, which sum to 1 at each step; shape `(T, N)`.
        increments: Logarithms of the estimates of p(y_t | y_0, ..., y_t-1), shape `(T,)`; 0 in padding.
    """

    states: Any
    log_weights: jax.Array
    increments: jax.Array

    @property
    def log_likelihood(self) -> jax.Array:
        """The estimate log Z, shape `()`; `-inf` where no particle could emit what was observed. E[log Z] < log p(y), by O(1/N)."""
        return jnp.sum(self.increments)

    def likelihood(self, log_scale: Any = 0.0) -> jax.Array:
        """Z / exp(log_scale), an unbiased estimate of p(y) / exp(log_scale).

        Z underflows for long series. Whatever does not depend on this run will do as a scale: a number, `log_likelihood` of an
        exact filter of a similar model, or of a run with another key. The gradient is then an unbiased estimate of
        ∇p(y) / exp(log_scale), which is ∇ log p(y) times p(y) / exp(log_scale). With this run's own `log_likelihood` and
        `resampling="stop_gradient"` it is ∇ log Z; with `"score"` it is no estimate of anything, since a cost whose value is
        always 1 credits no choice.

        Args:
            log_scale: Detached; shape `()`.

        Returns:
            Shape `()`.

        Raises:
            ValueError: `log_scale` is not a scalar.
            TypeError: It is no real number.
        """
        scale = lax.stop_gradient(scalar_cost(log_scale, "log_scale"))
        return jnp.exp(self.log_likelihood - scale.astype(self.increments.dtype))

    def means(self, function: Callable[[Any], Any] = lambda x: x) -> Any:
        """Weighted means of a function of the states: estimates of E[f(x_t) | y_0, ..., y_t], consistent, biased by O(1/N).

        Args:
            function: Of one state, a pytree of arrays.

        Returns:
            Leading axis `(T,)`.
        """
        weights = jnp.exp(self.log_weights)

        def mean(x: jax.Array) -> jax.Array:
            x = summable(x)
            return jnp.einsum("tn,tn...->t...", weights.astype(x.dtype), x, precision=precision_of())

        return jax.tree.map(mean, jax.vmap(jax.vmap(function))(self.states))


def particle_filter(
    params: Any,
    model: HiddenProcess | HiddenChain,
    observations: Any,
    *,
    num_particles: int,
    resampling: Literal["score", "stop_gradient", "ignored_biased"] = "score",
    states: Literal["score", "pathwise"] = "score",
    observed: Any = None,
    valid: Any = None,
) -> Particles:
    """The bootstrap particle filter of one series, by plain calls: to be called inside a function that `ld.expectation` is of.

    With weights that sum to 1 after each step, for t = 0, 1, ...:

        a_t^i ~ w_t-1,   x_t^i ~ p(x | x_t-1^a),   W_t^i = p(y_t | x_t^i) / N,   Z = Π_t Σ_i W_t^i,   w_t = W_t / Σ_i W_t^i.

    Every choice is made by `ld.sample` in an `ld.plate` over the particles, so that all paths of a small model with finitely many
    states can be listed (`ld.exact.program_derivatives`: N (2 T - 1) choices).

    Args:
        params: Parameters of the model.
        model: A hidden process of this library or a subclass of `HiddenProcess`, or a `HiddenChain`.
        observations: One series, leading axis `(T,)`; `ld.plate` for several.
        num_particles: `N`.
        resampling: What the ancestors tell the gradient: `"score"`, `"stop_gradient"`, or `"ignored_biased"` (nothing). Multinomial
            resampling at every step after an observation; no other scheme is proved, none is offered.
        states: `"score"`, or `"pathwise"` for states whose draws are differentiable in the parameters, with emissions that are
            differentiable in the state.
        observed: False where an observation is missing; shape `(T,)` or, for vectors of a `StateSpaceModel`, also of
            `observations`. The states move on there, and are not resampled after it; what stands there does not matter.
        valid: False for padding at the end, shape `(T,)`: the particles stand still, nothing is scored, and all is as if the steps
            were not there.

    Returns:
        `Particles`: states and weights at each step, `log_likelihood`, `likelihood()`, `means()`.

    Raises:
        TypeError: Outside of an expectation; the model is another object; states change their dtype from step to step.
        ValueError: An unknown way; shapes disagree; no observation; a hole in `valid` (NaN where it is traced); the states'
            structure changes from step to step.

    Gradients: flow into `params`, `observations`, and whatever the model closes over, at any order. States are detached, unless
        pathwise; ancestors always are. ∇Z is unbiased (but for `"ignored_biased"`), ∇ log Z is not, nor are those of
        `means`: at 2 states, T = 3 and N = 2 the former is off by 0.96 of the largest entry of ∇ log p(y), either way
        (`tests/test_processes_particle_filter.py`).

    Example:
        >>> import jax, jax.numpy as jnp, logderiv as ld
        >>> chain = ld.processes.HiddenMarkovModel()
        >>> params = ld.processes.HiddenMarkovParams(jnp.zeros(2), jnp.eye(2), 2 * jnp.eye(2))
        >>> y = jnp.array([0, 1, 1])
        >>> def likelihood(params):
        ...     return ld.processes.particle_filter(params, chain, y, num_particles=50).likelihood()
        >>> value = ld.expectation(likelihood, num_samples=200)(params, jax.random.key(0))
        >>> bool(abs(jnp.log(value) - chain.log_likelihood(params, y)) < 0.03)
        True

    References:
        Gordon, Salmond & Smith (1993), IEE Proc. F 140 (the filter); Del Moral (2004), Feynman-Kac Formulae, section 7.4 (E[Z]);
        Foerster et al. (2018), arXiv:1802.05098 (DiCE); Scibior & Wood (2021), arXiv:2106.10314 (stop-gradient resampling, and
        Fisher's identity); Maddison et al. (2017), arXiv:1705.09279 (E[log Z] as an objective, the ancestors' scores left out);
        from memory.
    """
    check.one_of(RESAMPLING, resampling=resampling)
    check.one_of(STATES, states=states)
    num = check.whole(num_particles=num_particles)
    if not inside_a_model():
        raise TypeError(
            "particle_filter: called outside of a model; call it inside a function that logderiv.expectation is given, which runs it."
        )
    refuse_complex(params=params)
    inputs = _fill(model, observations, observed, valid)
    step = _step_of(model, jax.tree.map(jnp.asarray, params))
    steps = _Filter(step, num, resampling, states, observed is None and valid is None)
    cloud, first = steps.first(*jax.tree.map(lambda x: x[0], inputs))
    rest = lax.scan(steps.next, cloud, jax.tree.map(lambda x: x[1:], inputs))[1]
    found = jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), first, rest)
    return found._replace(increments=found.increments * unbroken(inputs[2], found.increments.dtype, "valid"))


class _Cloud(NamedTuple):
    """Particles after a step: states `(N, ...)`, log-weights `(N,)`, and whether these are of an observation."""

    states: Any
    log_weights: jax.Array
    weighted: jax.Array


class _Filter(NamedTuple):
    """The steps of a filter. `step` is `(state or None, seen) -> (distribution, emission)`; `full` where no step has a mask."""

    step: Callable[..., tuple[Any, Callable[[Any], Any]]]
    num: int
    resampling: str
    made_by: str
    full: bool

    def first(self, y: Any, seen: jax.Array, here: jax.Array) -> tuple[_Cloud, Particles]:
        """The start, weighted."""
        own = jnp.arange(self.num, dtype=jnp.int32)
        states, logs = calls.plate(lambda own: self._move(own, None, y, seen, here))(own)
        return self._weighted(jnp.zeros((), bool), states, logs, seen, here)

    def next(self, cloud: _Cloud, inputs: tuple[Any, jax.Array, jax.Array]) -> tuple[_Cloud, Particles]:
        """One step: resample, move, weight."""
        (y, seen, here), own = inputs, jnp.arange(self.num, dtype=jnp.int32)
        states, logs = calls.plate(lambda own: self._move(own, cloud, y, seen, here))(own)
        return self._weighted(cloud.weighted, states, logs, seen, here)

    def _move(
        self, own: jax.Array, cloud: _Cloud | None, y: Any, seen: jax.Array, here: jax.Array
    ) -> tuple[Any, jax.Array]:
        """The next state of one particle, and the logarithm of its weight."""
        parent, log_weight = None, jnp.full((), -math.log(self.num))
        if cloud is not None:
            ancestor, log_weight = self._ancestor(own, cloud, here)
            parent = jax.tree.map(lambda x: x[ancestor], cloud.states)
        distribution, emission = self.step(parent, seen)
        state, factor = self._draw(distribution, None if self.full else here)
        if cloud is not None:
            hint = "initial and transition draw states of the same shapes and dtypes"
            state = _protocol.as_before("state", state, parent, source="initial", hint=hint)
            state = jax.tree.map(lambda new, old: jnp.where(here, new, old), state, parent)
        emitted = distributions.log_probs(emission(state), y)
        if emitted.shape != ():
            raise ValueError(
                f"emission: expected log_prob of one observation to be a scalar, received shape {emitted.shape}; an event axis is not "
                "summed (use logderiv.Normal, or the library's Independent), or `observations` is a batch (use logderiv.plate)."
            )
        factor = jnp.where(jnp.any(seen), emitted.astype(factor.dtype), 0) + factor
        return state, log_weight + jnp.where(here, factor, 0)

    def _ancestor(self, own: jax.Array, cloud: _Cloud, here: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Whose state one particle goes on with, and with the logarithm of which weight; its own where nothing was observed."""
        live, fixed = cloud.log_weights, lax.stop_gradient(cloud.log_weights)
        by, due = distributions.Categorical(live if self.resampling == "score" else fixed), here & cloud.weighted
        drawn = calls.sample(by, where=None if self.full else due).astype(jnp.int32)
        log_weight = jnp.full((), -math.log(self.num))
        if self.resampling == "stop_gradient":
            log_weight = log_weight + _one(live[drawn])
        return jnp.where(due, drawn, own), jnp.where(due, log_weight, live[own])

    def _draw(self, distribution: Any, where: Any) -> tuple[Any, jax.Array]:
        """A state, and what it adds to the logarithm of the weight: 0, with the derivative of log p(x) where weights carry it."""
        zero = jnp.zeros(())
        if self.made_by == "pathwise":
            return calls.sample(distribution, method="pathwise"), zero
        if self.resampling != "stop_gradient":
            return calls.sample(distribution, where=where), zero
        if jax.tree_util.all_leaves([distribution]):
            raise TypeError(
                f"transition: expected a distribution that is a pytree with resampling='stop_gradient', which detaches its parameters, "
                f"received {type(distribution).__name__}; use resampling='score'."
            )
        state = calls.sample(detached(distribution), where=where)  # without derivatives there is nothing to score
        logs = summable(distributions.log_prob(distribution, state)).astype(zero.dtype)
        return state, _one(logs if where is None else jnp.where(where, logs, 0))

    def _weighted(
        self, weighted: jax.Array, states: Any, logs: jax.Array, seen: jax.Array, here: jax.Array
    ) -> tuple[_Cloud, Particles]:
        """The particles after their factors. Where none is possible Z is 0, and all of them go on alike."""
        logs, increment = normalized(logs)
        logs = jnp.where(jnp.isneginf(increment), -math.log(self.num), logs)
        weighted = jnp.where(here, jnp.any(seen), weighted)
        return _Cloud(states, logs, weighted), Particles(states, logs, jnp.where(here, increment, 0))


def _one(log: jax.Array) -> jax.Array:
    """The logarithm of x / detached x: 0, with the derivative of log x; 0 where x is."""
    log = jnp.where(jnp.isneginf(log), 0, log)
    return log - lax.stop_gradient(log)


def _step_of(model: Any, params: Any) -> Callable[..., tuple[Any, Callable[[Any], Any]]]:
    """`(state or None, seen) -> (distribution of the next state, what it emits)`."""
    if isinstance(model, HiddenChain):

        def of_chain(x: Any, seen: jax.Array) -> tuple[Any, Callable[[Any], Any]]:
            del seen
            distribution = model.initial(params) if x is None else model.transition(params, x)
            return distribution, partial(model.emission, params)

        return of_chain

    def of_process(x: Any, seen: jax.Array) -> tuple[Any, Partial]:
        previous = model.first()._replace(observed=seen)
        emitting = model.transition(params, previous if x is None else previous.then(x))
        return emitting.state, emitting.emission

    return of_process


def _fill(model: Any, observations: Any, observed: Any, valid: Any) -> tuple[Any, jax.Array, jax.Array]:
    """Observations that are safe wherever they do not count, which of them are seen, and which steps there are."""
    filler = HiddenProcess() if isinstance(model, HiddenChain) else model
    if isinstance(model, type) or not isinstance(filler, HiddenProcess):
        received = f"the class {model.__name__}; call it" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"model: expected a HiddenProcess or a HiddenChain, received {received}.")
    observations, seen = filler.fill(observations, observed)
    here = jnp.ones(seen.shape[:1], bool) if valid is None else as_mask(valid, "valid")
    check.shape(seen.shape[:1], valid=here, hint="that of the series")
    if valid is not None and not check.is_traced(*jax.tree.leaves(valid)):
        known = np.asarray(valid, bool)
        if np.any(known[1:] & ~known[:-1]):
            raise ValueError(
                "valid: expected padding at the end only, received a hole; use observed for what is missing."
            )
    return fill_steps(observations, here), seen & expand(here, seen), here
