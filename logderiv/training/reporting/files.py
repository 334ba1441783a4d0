"""Records of a run that outlive it: a CSV file, and event files for TensorBoard.

Both are brought up to date after each piece of a run, whole rows at a time, so that a killed run leaves what it had reported.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from logderiv._core import check
from logderiv._core.optional import optional
from logderiv.training.reporting.protocol import Rows, Write, num_rows


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

    def check(self, names: Sequence[str]) -> None:
        """Raise if the file that is there has other columns.

        Args:
            names: The columns.

        Raises:
            ValueError: It has.
        """
        path, header = Path(self.path), _header(names)
        if not path.exists():
            return
        with path.open("rb") as file:
            line = file.readline()
        if not header.startswith(line):  # the line is a part of it where the run was killed while it wrote it
            raise ValueError(
                f"{path}: expected the columns {header.decode().strip()}, received {line[:200].decode(errors='replace').strip()}; "
                "the file is of other metrics or none of ours: write to another, or move it away."
            )

    @contextlib.contextmanager
    def open(self, past: Rows, total: int) -> Iterator[Write]:
        """Begin the file anew.

        Args:
            past: The rows of the updates before, which are written first.
            total: How many updates the whole run has.

        Yields:
            What takes the rows of the others.
        """
        del total
        self.check(tuple(past))
        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        start, seeds = num_rows(past)
        with Path(self.path).open("wb") as file:

            def write(updates: np.ndarray, rows: Rows) -> None:
                numbers = [np.repeat(updates, seeds), np.tile(np.arange(seeds), len(updates))]
                lines = zip(*(map(str, column) for column in [*numbers, *map(np.ravel, rows.values())]), strict=True)
                file.write("".join(",".join(line) + "\n" for line in lines).encode())
                file.flush()

            file.write(_header(tuple(past)))
            write(np.arange(start), past)
            yield write


def _header(names: Sequence[str]) -> bytes:
    return (",".join(("update", "seed", *names)) + "\n").encode()


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
    """

    directory: str | os.PathLike[str]
    every: int = 1

    def __post_init__(self) -> None:
        check.whole(every=self.every)

    def check(self, names: Sequence[str]) -> None:
        """Raise unless tensorboardX is there.

        Args:
            names: The columns of its rows.

        Raises:
            ImportError: It is not.
        """
        del names
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
        start, seeds = num_rows(past)
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


def _tensorboard() -> Any:
    return optional("tensorboardX", "TensorBoardWriter needs tensorboardX", "tensorboard")
