"""The random walk of Arya et al. (2022): a discrete program whose derivative needs a score, small enough to be exact.

From 0 a step of +1 with probability exp(-x / p), else of -1, `n` times; the parameter is the decay length `p`, the return the
square of the last position. It is a finite decision process, so `logderiv.exact` knows everything about it.

References:
    Arya, Schauer, Schafer & Rackauckas (2022), arXiv:2210.08572, section 5, and the tutorial `random_walk` of StochasticAD.jl.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core import check
from logderiv._core.pytrees import pytree
from logderiv.distributions.basic import Bernoulli
from logderiv.environments.tabular import TabularMDP
from logderiv.types import FunctionPolicy, Key, Step


def up_or_down(params: jax.Array, observation: jax.Array) -> Bernoulli:
    """1, up, with probability exp(-x / p), certain at 0; else 0, down.

    Args:
        params: p, a positive scalar.
        observation: The position x.

    Returns:
        The distribution of the next step.
    """
    at_zero = observation == 0
    log_up = -jnp.where(at_zero, 1, observation).astype(params.dtype) / params
    return Bernoulli(jnp.where(at_zero, jnp.inf, log_up - jnp.log(-jnp.expm1(log_up))))


@pytree(static=("horizon",))
class RandomWalk(TabularMDP):
    """The walk of `steps` steps from 0, a `TabularMDP` on the positions 0, ..., n with actions 0 = down and 1 = up.

    Rewards add up to the square of the last position. `policy` takes the decay length `p`, a scalar, as its parameter.
    At `steps = 50`, `p = 100`: E[X²] = 1130.398830 and its derivative 7.558188.

    Args:
        steps: `n`; the default horizon. After more the walk would leave its table.

    Attributes:
        initial: All mass on 0, shape `(n + 1,)`.
        transition: One position up or down, shape `(n + 1, 2, n + 1)`.
        reward: Change of the squared position, shape `(n + 1, 2)`.
        terminal: No position ends the walk, shape `(n + 1,)`.
        horizon: `n`.

    Raises:
        ValueError: `steps` is below 1.

    Example:
        >>> import jax.numpy as jnp, logderiv as ld
        >>> walk = RandomWalk(2)  # up for certain, then up to 2 with probability exp(-1 / p), or back to 0
        >>> float(ld.exact.value(jnp.array(1e6), walk.policy, walk, horizon=2)) > 3.999
        True
    """

    policy = FunctionPolicy(up_or_down)

    def __init__(self, steps: int = 50) -> None:
        check.whole(steps=steps)
        x = np.arange(steps + 1)
        transition = np.zeros((steps + 1, 2, steps + 1))
        down, up = np.maximum(x - 1, 0), np.minimum(x + 1, steps)
        transition[x, 0, down] = transition[x, 1, up] = 1
        reward = np.stack([down**2 - x**2, (x + 1) ** 2 - x**2], axis=1).astype(float)
        initial, terminal = jnp.zeros(steps + 1).at[0].set(1), jnp.zeros(steps + 1, bool)
        super().__init__(initial, jnp.asarray(transition), jnp.asarray(reward), terminal, steps)

    def step(self, key: Key, state: jax.Array, action: jax.Array, params: Any = None) -> Step:
        """One position up or down: the table's transition without a draw.

        Args:
            key: Not used.
            state: The position.
            action: 1 is up, 0 is down.
            params: Not used.

        Returns:
            The `Step` to the next position.
        """
        del key, params
        new = jnp.clip(state + 2 * action.astype(state.dtype) - 1, 0, self.num_states - 1)
        return Step(new, new, self.reward[state, action], self.terminal[new], jnp.zeros((), bool))
