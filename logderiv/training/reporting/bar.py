"""A progress bar for training: updates and environment steps a second, return, and time left."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Bar:
    """A tqdm bar on standard error; needs tqdm (the extra `progress`).

    It shows `mean_return` of the latest update in which an episode ended, averaged over the seeds of a `jax.vmap`, and
    `num_steps` a second, those of all seeds together; either only if the rows have it.
    """

    def check(self, names: Sequence[str]) -> None:
        """Tqdm is there."""
        del names
        require()

    def open(self, start: int, total: int, names: Sequence[str]) -> "_OpenBar":
        """See `reports.Reporter`."""
        del names
        return _OpenBar(start, total)


class _OpenBar:
    def __init__(self, start: int, total: int) -> None:
        self.bar = require()(total=total, initial=start, unit="update", dynamic_ncols=True)
        self.mean_return, self.num_steps, self.time = np.nan, 0, time.perf_counter()

    def write(self, updates: np.ndarray, rows: Mapping[str, np.ndarray]) -> None:
        shown = []
        if "num_steps" in rows:
            self.num_steps += int(rows["num_steps"].sum(dtype=np.int64))
            speed = self.num_steps / max(time.perf_counter() - self.time, 1e-9)
            shown.append(f"{self.bar.format_sizeof(speed)} steps/s")
        if "mean_return" in rows:
            ended = np.flatnonzero(~np.isnan(rows["mean_return"]).all(axis=1))
            if ended.size:
                self.mean_return = np.nanmean(rows["mean_return"][ended[-1]], dtype=float)
            shown.append(f"return {self.mean_return:.4g}")
        self.bar.set_postfix_str(", ".join(shown), refresh=False)
        self.bar.update(len(updates))

    def close(self) -> None:
        self.bar.close()


def require() -> Any:
    """`tqdm.tqdm`, or an `ImportError` that names the extra."""
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(
            "progress=True needs tqdm; install it, or the extra: pip install 'logderiv[progress]'."
        ) from error
    return tqdm
