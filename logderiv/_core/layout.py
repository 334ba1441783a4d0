"""How the steps of a batch of trajectories are cut into blocks."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Layout(NamedTuple):
    """How `(N, T)` steps become `(groups, blocks, rows)`: `N = together * turns` and `T <= outer * inner * steps`.

        N: | together      | turns |            rows   = together * steps: a block, vectorized
        T: | outer | inner | steps |            blocks = inner:            scanned inside a group
                                                groups = turns * outer:    scanned

    A block holds `steps` consecutive steps of `together` trajectories. Of the trajectory axis only `turns` is scanned, the
    part that varies fastest, so that the axis stays where it is when it is sharded.
    """

    together: int
    turns: int
    outer: int
    inner: int
    steps: int

    @classmethod
    def of(cls, num_trajectories: int, num_steps: int, block_size: int) -> "Layout":
        """Blocks of at most `block_size` rows, in groups of about the square root of their number."""
        together = max(d for d in range(1, min(num_trajectories, block_size) + 1) if num_trajectories % d == 0)
        turns = num_trajectories // together
        steps = min(num_steps, max(1, block_size // together))
        blocks = -(-num_steps // steps)
        groups = max(1, math.isqrt(turns * blocks) // turns)
        inner = -(-blocks // groups)
        outer = -(-blocks // inner)
        return cls(together, turns, outer, inner, -(-num_steps // (outer * inner)))

    def fold(self, tree: Any, fill: Any = None) -> Any:
        """Leaves `(N, T, ...)` as `(groups, blocks, rows, ...)`; padding repeats the last step, or is `fill`."""
        return jax.tree.map(lambda x: self._fold(x, fill), tree)

    def unfold(self, tree: Any, num_steps: int) -> Any:
        """The inverse of `fold`, padding taken off."""
        return jax.tree.map(lambda y: self._unfold(y)[:, :num_steps], tree)

    def _fold(self, x: jax.Array, fill: Any) -> jax.Array:
        padding = self.outer * self.inner * self.steps - x.shape[1]
        if padding:
            last = x[:, -1:] if fill is None else jnp.asarray(fill, x.dtype)
            x = jnp.concatenate([x, jnp.broadcast_to(last, (x.shape[0], padding, *x.shape[2:]))], axis=1)
        x = x.reshape((*self, *x.shape[2:]))
        return jnp.moveaxis(x, 0, 3).reshape(
            (self.turns * self.outer, self.inner, self.together * self.steps, *x.shape[5:])
        )

    def _unfold(self, y: jax.Array) -> jax.Array:
        y = y.reshape((self.turns, self.outer, self.inner, self.together, self.steps, *y.shape[3:]))
        y = jnp.moveaxis(y, 3, 0)
        return y.reshape((self.together * self.turns, self.outer * self.inner * self.steps, *y.shape[5:]))
