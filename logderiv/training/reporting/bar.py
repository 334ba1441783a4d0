"""A progress bar for training: updates and environment steps a second, return, and time left."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from logderiv._core.optional import optional
from logderiv.training.reporting.protocol import Rows, Write, num_rows


@dataclasses.dataclass(frozen=True)
class Bar:
    """A tqdm bar on standard error; needs tqdm (the extra `progress`).

    It shows `mean_return` of the latest update in which an episode ended, averaged over the seeds, and `num_steps` a second,
    those of all seeds together; either only if the rows have it.
    """

    def check(self, names: Sequence[str]) -> None:
        """Raise `ImportError` unless tqdm is there.

        Args:
            names: The columns of its rows.

        Raises:
            ImportError: tqdm is missing.
        """
        del names
        _tqdm()

    @contextlib.contextmanager
    def open(self, past: Rows, total: int) -> Iterator[Write]:
        """Show the bar.

        Args:
            past: The rows of the updates before.
            total: How many updates the whole run has.

        Yields:
            What takes the rows of the others.
        """
        start, num_steps, mean_return = time.perf_counter(), 0, np.nan
        with _tqdm()(total=total, initial=num_rows(past)[0], unit="update", dynamic_ncols=True) as bar:

            def write(updates: np.ndarray, rows: Rows) -> None:
                nonlocal num_steps, mean_return
                shown = []
                if "num_steps" in rows:
                    num_steps += int(rows["num_steps"].sum(dtype=np.int64))
                    speed = num_steps / max(time.perf_counter() - start, 1e-9)
                    shown.append(f"{bar.format_sizeof(speed)} steps/s")
                if "mean_return" in rows:
                    ended = np.flatnonzero(~np.isnan(rows["mean_return"]).all(axis=1))
                    if ended.size:
                        mean_return = np.nanmean(rows["mean_return"][ended[-1]], dtype=float)
                    shown.append(f"return {mean_return:.4g}")
                bar.set_postfix_str(", ".join(shown), refresh=False)
                bar.update(len(updates))

            yield write


def _tqdm() -> Any:
    return optional("tqdm", "progress=True needs tqdm", "progress").tqdm
