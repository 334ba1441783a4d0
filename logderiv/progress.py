"""A progress bar for loops that run inside `jax.jit`: rate, return and time left, at under 2 % of the time."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_REPORTS = 100


class _Bar:
    """The one bar that is open; seeds under `jax.vmap` report one after the other and are averaged."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.index = -1
        self.values: list[float] = []

    def show(self, index: int, total: int, value: float) -> None:
        if self.bar is None:
            if index == self.index and index + 1 == total > 1:
                return  # a further seed's last report, after the first one closed the bar
            self.bar = require()(total=total, unit="update", dynamic_ncols=True)
            self.index, self.values = -1, []
        if index != self.index:
            self.index, self.values = index, []
        self.values.append(value)
        self.bar.set_postfix_str(f"return {np.mean(self.values):.4g}", refresh=False)
        self.bar.update(index + 1 - self.bar.n)
        if index + 1 == total:
            self.bar.close()
            self.bar = None


_BAR = _Bar()


def require() -> Any:
    """`tqdm.tqdm`, or an `ImportError` that names the extra."""
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(
            "progress=True needs tqdm; install it, or the extra: pip install 'logderiv[progress]'."
        ) from error
    return tqdm


def report(index: jax.Array, total: int, value: jax.Array) -> None:
    """Show update `index` (from 0) of `total` and a value, at most about 100 times per run.

    Traced inside a loop; the host is called only on the iterations that report.
    """
    every = max(1, total // _REPORTS)
    due = ((index + 1) % every == 0) | (index + 1 == total)

    def show(index: jax.Array, value: jax.Array) -> None:
        jax.debug.callback(lambda i, v: _BAR.show(int(i), total, float(v)), index, value)

    lax.cond(due, show, lambda *_: None, index, jnp.asarray(value))
