"""Small Ising models, whose law and gradient are sums over all states."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import logderiv as ld


def lattice(side: int, periodic: bool) -> np.ndarray:
    """Pairs of neighbors, shape `(bonds, 2)`."""
    site, last = np.arange(side * side).reshape(side, side), slice(None) if periodic else slice(-1)
    right, down = (np.roll(site, -1, axis)[index] for axis, index in ((1, np.s_[:, last]), (0, np.s_[last])))
    pairs = (site[:, last].ravel(), right.ravel()), (site[last].ravel(), down.ravel())
    return np.concatenate([np.stack(pair, axis=1) for pair in pairs])


def states(num: int) -> np.ndarray:
    return np.array(list(itertools.product((-1.0, 1.0), repeat=num)))


class Ising:
    """minus the energy, Σ J x x' + h Σ x, with one coupling or one for each bond, and its law by a sum over all states in numpy."""

    def __init__(self, bonds: Any, params: Any) -> None:
        self.bonds, self.params = np.asarray(bonds), jax.tree.map(jnp.asarray, params)
        self.states = states(self.bonds.max() + 1)
        self.values = np.abs(self.states.sum(axis=1)) + 0.5 * self.states[:, 0] + 3.0

    def log_prob(self, params: Any, x: Any) -> Any:
        """Unnormalized."""
        pairs = x[self.bonds[:, 0]] * x[self.bonds[:, 1]]
        return jnp.sum(params["coupling"] * pairs) + params["field"] * jnp.sum(x)

    def normalized(self, params: Any, x: Any) -> Any:
        every = jax.vmap(self.log_prob, (None, 0))(params, jnp.asarray(self.states))
        return self.log_prob(params, x) - jax.nn.logsumexp(every)

    def law(self, params: Any = None) -> Any:
        """Probability of each state; by a formula of its own, without `log_prob`."""
        params = self.params if params is None else params
        pairs = self.states[:, self.bonds[:, 0]] * self.states[:, self.bonds[:, 1]]
        logs = jnp.asarray(pairs) @ jnp.broadcast_to(params["coupling"], len(self.bonds))
        return jax.nn.softmax(logs + params["field"] * self.states.sum(axis=1))

    @property
    def exact(self) -> Any:
        return jax.grad(lambda params: self.law(params) @ self.values)(self.params)

    def found(self, index: Any, density: str = "log_prob", **options: Any) -> Any:
        """The gradient from states of these numbers."""
        samples, values = jnp.asarray(self.states)[index], jnp.asarray(self.values)[index]
        return ld.gradient_from_samples(self.params, getattr(self, density), samples, values, **options)


ONE = {"coupling": 0.35, "field": 0.1}
PAIR = Ising([(0, 1)], ONE)


def close(found: Any, exact: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), found, exact)
