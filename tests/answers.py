"""Small token models, every answer of theirs listed, and the exact expectation of an objective over all groups of answers."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import logderiv as ld
from logderiv.distributions.interop import log_prob
from logderiv.likelihood.steps import over_steps
from logderiv.testing.padding import extend


def graded(tokens, length):
    """Dyadic; long answers are worse on the whole."""
    return jnp.sum((tokens == 2).astype(float)) - 0.25 * length.astype(float)


def right_or_wrong(tokens, length):
    """0 or 1."""
    return ((tokens[length - 1] == 0) & (length > 1)).astype(float)


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """A token model with parameters, those of a reference, and every answer with its tokens, reward and probability."""

    model: Any
    params: Any
    reference: Any
    every: Any
    mask: np.ndarray
    rewards: np.ndarray

    def logs(self, params):
        """Log-probabilities of the drawn tokens, shape `(K, T)`."""
        return ld.log_factors(params, self.model.policy, self.every)

    def steps(self, params):
        """Log-probabilities of all tokens at every step of every answer, shape `(K, T, V)`."""

        def of(token):
            def term(p, step, distribution):
                return log_prob(distribution.distribution, jnp.int32(token))

            return over_steps(term, params, self.model.policy, self.every)

        return jnp.stack([of(token) for token in range(self.model.vocabulary)], axis=-1)

    def tables(self, params):
        """What an objective is made of, for every answer."""
        all_logs, reference = self.steps(params), jax.lax.stop_gradient(self.steps(self.reference))
        chances = jnp.exp(all_logs)
        own = {
            "step_kl": jnp.sum(chances * (all_logs - reference), -1),
            "step_entropy": -jnp.sum(chances * all_logs, -1),
        }
        return {"log_probs": self.logs(params), "reference": self.logs(self.reference), **own}

    def chances(self, params):
        return jnp.exp(jnp.sum(self.logs(params), axis=1))

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        return np.asarray(jax.jit(self.chances)(self.params))

    def gradient(self, function: Callable[[jax.Array], jax.Array]) -> np.ndarray:
        """The gradient of a function of the probabilities of the answers, raveled."""
        found = jax.jit(jax.grad(lambda params: function(self.chances(params))))(self.params)
        return np.asarray(ravel_pytree(found)[0])

    def expected(self, of_tables: Any) -> dict[str, np.ndarray]:
        """E[∇ objective] over every group, from what `over_groups` compiled."""
        tables, back = jax.vjp(jax.jit(self.tables), self.params)
        found = of_tables(tables, jnp.asarray(self.rewards), jnp.asarray(self.mask), jnp.asarray(self.probabilities))
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *found.values())
        flat = np.asarray(jax.vmap(lambda x: ravel_pytree(back(x)[0])[0])(stacked))
        return dict(zip(found, flat, strict=True))


def over_groups(size: int, **objectives: Callable[..., jax.Array]) -> Any:
    """Derivatives by the tables of the expectation, over every group of so many answers, of `(tables, rewards, mask) -> scalar`.

    One program for several objectives and for all worlds, whose answers have one shape.
    """

    @jax.jit
    def gradients(tables, rewards, mask, probabilities):
        indices = np.array(list(itertools.product(range(len(rewards)), repeat=size)))
        chances = jnp.prod(probabilities[indices], axis=1)

        def expectation(function, tables):
            def of_group(rows):
                return function({name: x[rows] for name, x in tables.items()}, rewards[rows], mask[rows])

            return chances @ jax.vmap(of_group)(indices)

        return {name: jax.grad(functools.partial(expectation, f))(tables) for name, f in objectives.items()}

    return gradients


@functools.cache
def world(kind: str = "bigram", reward: Any = graded) -> World:
    """ "bigram"; "prompted", of two forced tokens before a bigram's; "gru"."""
    options: dict[str, Any] = {"vocabulary": 3, "end": 0, "horizon": 3}
    if kind == "prompted":
        options |= {"horizon": 5, "prompts": ((1, 2),)}
    model = ld.processes.TokenModel(ld.GRU(3, hidden=2) if kind == "gru" else ld.MLP(3, hidden=()), reward, **options)
    flat, unravel = ravel_pytree(model.policy.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(5), 2)
    params, reference = (unravel(flat + 0.7 * jax.random.normal(key, flat.shape)) for key in keys)
    every = ld.exact.enumerate_trajectories(model, horizon=options["horizon"], params=params, policy=model.policy)
    possible = np.isfinite(np.asarray(every.behavior_log_probs)).all(axis=1)
    every = jax.tree.map(lambda x: np.asarray(x)[possible], every)
    if kind != "prompted":  # all worlds in one shape
        every = extend(every, 2)
    mask = every.valid & (every.observations.forced < 0)
    found = World(model, params, reference, every, mask, np.sum(every.rewards, axis=1))
    np.testing.assert_allclose(found.probabilities.sum(), 1, rtol=1e-13)
    return found
