"""What a run tells while it runs: after each piece of a run the host hands the new rows to reporters.

A reporter is a description, such as `CSVWriter("run.csv")`; within `with reporter.open(...) as write` it takes rows. They
come in order and once, those of all seeds together. A run that goes on from a checkpoint opens its reporters with all rows
before it, so that a file can be written anew rather than mended. Of several processes, process 0 reports.

Here are a progress bar, and records that outlive a run: a CSV file, and event files for TensorBoard. Both are brought up to
date after each piece, whole rows at a time, so that a killed run leaves what it had reported.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from logderiv._core import check
from logderiv._core.optional import optional

Rows = Mapping[str, np.ndarray]  # name to values, shape (updates, seeds)
Write = Callable[[np.ndarray, Rows], None]  # takes the numbers of updates, and their rows


class Reporter(Protocol):
    """Where rows go. What can be known before a run, such as a missing package, is raised when one is made."""

    def open(self, past: Rows, total: int) -> contextlib.AbstractContextManager[Write]:
        """Begin to report a run, to the end of a `with` block; write it as a generator under `contextlib.contextmanager`.

        All reporters of a run are asked before any of them begins, on every process: what can refuse does so here, and only the
        block begins.

        Args:
            past: The rows of the updates before, from a checkpoint: name to values, shape `(n, seeds)`; `n = 0` of a run that
                begins.
            total: How many updates the whole run has.

        Returns:
            A context, from which comes `write(updates, rows)`: it takes the rows of the consecutive updates with these numbers, from
            update `n` on, `(k,)` and `(k, seeds)`; NaN where there is nothing to say.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Bar:
    """A tqdm bar on standard error; needs tqdm (the extra `progress`).

    It shows `mean_return` of the latest update in which an episode ended, averaged over the seeds, and `num_steps` a second,
    those of all seeds together; either only if the rows have it.

    Raises:
        ImportError: tqdm is missing.
    """

    def __post_init__(self) -> None:
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
        with _tqdm()(total=total, initial=_num_rows(past)[0], unit="update", dynamic_ncols=True) as bar:

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


@dataclasses.dataclass(frozen=True)
class CSVWriter:
    """One line per update and seed: `update`, `seed`, then the metrics by name.

    Updates and seeds count from 0. Numbers are written so that they read back bit for bit, NaN (no episode ended) as `nan`.
    `numpy.genfromtxt(path, delimiter=",", names=True)` reads it.

    A run replaces the rows of an earlier run in the same file, one that goes on writes its earlier rows anew; a file of anything
    else is never overwritten.

    Attributes:
        path: The file; its directory is made.
    """

    path: str | os.PathLike[str]

    def open(self, past: Rows, total: int) -> contextlib.AbstractContextManager[Write]:
        """Begin the file anew, once the block is entered.

        Args:
            past: The rows of the updates before, which are written first.
            total: How many updates the whole run has.

        Returns:
            A context, from which comes what takes the rows of the others.

        Raises:
            ValueError: The file that is there has other columns.
        """
        del total
        path, header = Path(self.path), ",".join(("update", "seed", *past)) + "\n"
        if path.exists():
            with path.open(errors="replace") as file:
                line = file.readline()
            if not header.startswith(line):  # the line is a part of it where the run was killed while it wrote it
                raise ValueError(
                    f"{path}: expected the columns {header.strip()}, received {line[:200].strip()}; the file is of other metrics "
                    "or none of ours: write to another, or move it away."
                )
        return self._lines(header, past)

    @contextlib.contextmanager
    def _lines(self, header: str, past: Rows) -> Iterator[Write]:
        start, seeds = _num_rows(past)
        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        with Path(self.path).open("w") as file:

            def write(updates: np.ndarray, rows: Rows) -> None:
                numbers = [np.repeat(updates, seeds), np.tile(np.arange(seeds), len(updates))]
                lines = zip(*(map(str, column) for column in [*numbers, *map(np.ravel, rows.values())]), strict=True)
                file.writelines(",".join(line) + "\n" for line in lines)
                file.flush()

            file.write(header)
            write(np.arange(start), past)
            yield write


@dataclasses.dataclass(frozen=True)
class TensorBoardWriter:
    """Event files of scalars, one tag per metric against the update; needs tensorboardX (the extra `tensorboard`).

    Of several seeds each is a run of its own, `directory/seed_0` and so on. A run that goes on, or starts anew in the same
    directory, adds a file that tells TensorBoard to hide what it replaces.

    Attributes:
        directory: TensorBoard's `--logdir`, or a directory in it.
        every: Write only every so many updates. An update takes about 0.1 ms, which a run of thousands of updates a second
            would feel; TensorBoard itself draws a thousand points of a curve.

    Raises:
        ValueError: `every` is below 1.
        ImportError: tensorboardX is missing.
    """

    directory: str | os.PathLike[str]
    every: int = 1

    def __post_init__(self) -> None:
        check.whole(every=self.every)
        _tensorboard()

    @contextlib.contextmanager
    def open(self, past: Rows, total: int) -> Iterator[Write]:
        """Begin event files.

        Args:
            past: The rows of the updates before, which earlier files hold.
            total: How many updates the whole run has.

        Yields:
            What takes the rows of the others.
        """
        del total
        start, seeds = _num_rows(past)
        summary, make = _tensorboard().proto.summary_pb2.Summary, _tensorboard().SummaryWriter
        options = {"purge_step": start, "flush_secs": 1, "filename_suffix": f".{time.time_ns()}"}
        paths = [Path(self.directory) / (f"seed_{seed}" if seeds > 1 else "") for seed in range(seeds)]
        with contextlib.ExitStack() as stack:
            writers = [stack.enter_context(make(str(path), **options)) for path in paths]

            def write(updates: np.ndarray, rows: Rows) -> None:
                """One event an update: `add_scalar` would write one a metric, and take eight times as long."""
                now = time.time()
                for i in np.flatnonzero(updates % self.every == 0).tolist():
                    for seed, writer in enumerate(writers):
                        values = [summary.Value(tag=name, simple_value=float(x[i, seed])) for name, x in rows.items()]
                        writer.file_writer.add_summary(summary(value=values), int(updates[i]), now)

            yield write


def _num_rows(rows: Rows) -> tuple[int, int]:
    """How many updates and seeds rows are of."""
    return next(iter(rows.values())).shape


def _tqdm() -> Any:
    return optional("tqdm", "progress=True needs tqdm", "progress").tqdm


def _tensorboard() -> Any:
    return optional("tensorboardX", "TensorBoardWriter needs tensorboardX", "tensorboard")
