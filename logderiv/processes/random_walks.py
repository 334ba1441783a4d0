r"""The random walk of Arya et al. (2022): a discrete program whose derivative needs a score, small enough to be exact.

From 0 a step of +1 with probability $e^{-X/p}$, else of -1, `n` times; the parameter is the decay length `p`, the return the
square of the last position. It is a finite decision process, so `logderiv.exact` knows everything about it.

References:
    Arya, Schauer, Schafer & Rackauckas (2022), arXiv:2210.08572, section 5, and the tutorial `random_walk` of StochasticAD.jl.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core.arrays import check_whole, register_dataclass
from logderiv.distributions.basic import Bernoulli
from logderiv.environments.tabular import TabularMDP
from logderiv.types import Step


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class WalkPolicy:
    """Up with probability exp(-x / p): certain at 0. `params` is `p`, a positive scalar; the observation is `x`."""

    initial_carry = None
    log_factors = None

    def apply(self, params: jax.Array, observation: jax.Array) -> Bernoulli:
        """1 is up, 0 is down."""
        at_zero = observation == 0
        log_up = -jnp.where(at_zero, 1, observation).astype(params.dtype) / params
        return Bernoulli(jnp.where(at_zero, jnp.inf, log_up - jnp.log(-jnp.expm1(log_up))))


@dataclasses.dataclass(frozen=True)
class RandomWalk(TabularMDP):
    """A `TabularMDP` on the positions `0, ..., n` with actions 0 = down, 1 = up, and its own `policy`; see `random_walk`."""

    policy = WalkPolicy()

    def step(self, key: jax.Array, state: jax.Array, action: jax.Array, params: Any = None) -> Step:
        """One position up or down: the table's transition without a draw; `key` is not used."""
        del key, params
        new = jnp.clip(state + 2 * action.astype(state.dtype) - 1, 0, self.num_states - 1)
        return Step(new, new, self.reward[state, action], self.terminal[new], jnp.zeros((), bool))


register_dataclass(RandomWalk, ("initial", "transition", "reward", "terminal"), ("horizon",))


def random_walk(steps: int = 50) -> RandomWalk:
    r"""The walk of `steps` steps from 0; rewards add up to the square of the last position. `params` is the scalar `p`.

    At `steps = 50`, `p = 100`: $\mathbb{E}[X^2] = 1130.398830$ and its derivative $7.558188$.

    Args:
        steps: `n`; the default horizon. After more the walk would leave its table.

    Raises:
        ValueError: `steps` below 1.

    Example:
        >>> import jax.numpy as jnp, logderiv as ld
        >>> walk = random_walk(2)  # up for certain, then up to 2 with probability exp(-1 / p), or back to 0
        >>> float(ld.exact.value(jnp.array(1e6), walk.policy, walk, horizon=2)) > 3.999
        True
    """
    check_whole(steps=steps)
    x = np.arange(steps + 1)
    transition = np.zeros((steps + 1, 2, steps + 1))
    down, up = np.maximum(x - 1, 0), np.minimum(x + 1, steps)
    transition[x, 0, down] = transition[x, 1, up] = 1
    reward = np.stack([down**2 - x**2, (x + 1) ** 2 - x**2], axis=1).astype(float)
    start = jnp.zeros(steps + 1).at[0].set(1)
    return RandomWalk(start, jnp.asarray(transition), jnp.asarray(reward), jnp.zeros(steps + 1, bool), horizon=steps)
