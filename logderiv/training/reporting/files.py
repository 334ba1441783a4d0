"""Records of a run that outlive it: a CSV file, and event files for TensorBoard.

Reporters (`logderiv.reports`): pass them to `train`. Both are brought up to date several times a second, whole rows at a
time, so that a killed run leaves what it had reported. A run that goes on from update `k` keeps the rows before `k`,
drops the others, which it is about to write again, and goes on behind them.
"""

import dataclasses
import os
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from logderiv._core.arrays import check_whole


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class CSVWriter:
    """One line per update and seed: `update`, `seed`, then the metrics by name.

    Updates count from 0, seeds are the members of a `jax.vmap`, 0 where there is none. Numbers are written so that they
    read back bit for bit, NaN (no episode ended) as `nan`. `numpy.genfromtxt(path, delimiter=",", names=True)` reads it.

    A run from update 0 replaces the rows of an earlier run in the same file; nothing else is ever overwritten.

    Attributes:
        path: The file; its directory is made.

    Raises:
        ValueError: The file holds something other than these columns, or a row in its middle is damaged.
    """

    path: str | os.PathLike[str]

    def check(self, names: Sequence[str]) -> None:
        """A file that is there has these columns and is whole but for a torn last line."""
        path = Path(self.path)
        if path.exists():
            with path.open("rb") as file:
                _end_of_rows_before(sys.maxsize, file, path, _header(names))

    def open(self, start: int, total: int, names: Sequence[str]) -> "_CSVFile":
        """See `reports.Reporter`."""
        del total
        path, header = Path(self.path), _header(names)
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
        try:
            file.truncate(_end_of_rows_before(start, file, path, header))
        except ValueError:
            file.close()
            raise
        if file.seek(0, os.SEEK_END) == 0:
            file.write(header + b"\n")
            file.flush()
        return _CSVFile(file)


def _header(names: Sequence[str]) -> bytes:
    return ",".join(("update", "seed", *names)).encode()


def _end_of_rows_before(start: int, file: BinaryIO, path: Path, header: bytes) -> int:
    """Where in the file the rows of updates before `start` end. Rows are in order: what has to go is its tail."""
    file.seek(0)
    end, commas = 0, header.count(b",")
    for number, line in enumerate(file):
        whole, shown = line.endswith(b"\n"), line[:200].decode(errors="replace").strip()
        if number == 0:
            if line.rstrip() != header and (whole or not header.startswith(line)):
                raise ValueError(
                    f"{path}: expected the columns {header.decode()}, received {shown}; "
                    "the file is of other metrics or none of ours: write to another, or move it away."
                )
        elif whole:
            if line.count(b",") != commas or not line.split(b",")[0].isdigit():
                raise ValueError(f"{path}: line {number + 1} is damaged: {shown!r}; mend or delete it.")
            if int(line.split(b",")[0]) >= start:
                break
        if not whole:  # torn: the run was killed while it was being written
            break
        end += len(line)
    return end


class _CSVFile:
    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def write(self, updates: np.ndarray, rows: Mapping[str, np.ndarray]) -> None:
        seeds = next(iter(rows.values())).shape[1]
        columns = [
            np.repeat(updates, seeds),
            np.tile(np.arange(seeds), len(updates)),
            *(x.ravel() for x in rows.values()),
        ]
        lines = zip(*(map(str, column) for column in columns), strict=True)
        self.file.write("".join(",".join(line) + "\n" for line in lines).encode())
        self.file.flush()

    def close(self) -> None:
        self.file.close()


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class TensorBoardWriter:
    """Event files of scalars, one tag per metric against the update; needs tensorboardX (the extra `tensorboard`).

    Of several seeds each is a run of its own, `directory/seed_0` and so on. A run that goes on, or starts anew in the same
    directory, adds a file that tells TensorBoard to hide what it replaces.

    Attributes:
        directory: TensorBoard's `--logdir`, or a directory in it.
        every: Write only every so many updates. An event takes 60 microseconds, which a run of thousands of updates a
            second would feel; TensorBoard itself draws a thousand points of a curve.

    Raises:
        ValueError: `every` is below 1.
    """

    directory: str | os.PathLike[str]
    every: int = 1

    def __post_init__(self) -> None:
        check_whole(every=self.every)

    def check(self, names: Sequence[str]) -> None:
        """Whether tensorboardX is there."""
        del names
        _tensorboard()

    def open(self, start: int, total: int, names: Sequence[str]) -> "_EventFiles":
        """See `reports.Reporter`."""
        del total, names
        return _EventFiles(Path(self.directory), start, self.every)


def _tensorboard() -> tuple[Any, Any]:
    """The definition of an event, and the checksum of its format."""
    try:
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import masked_crc32c
    except ImportError as error:
        raise ImportError(
            "TensorBoardWriter needs tensorboardX; install it, or the extra: pip install 'logderiv[tensorboard]'."
        ) from error
    return event_pb2, masked_crc32c


class _EventFiles:
    """tensorboardX's own writers wait for the disk at every flush, several milliseconds; here that is left to the system."""

    def __init__(self, directory: Path, start: int, every: int) -> None:
        self.directory, self.start, self.every = directory, start, every
        self.event_pb2, self.checksum = _tensorboard()
        self.files: list[BinaryIO] = []

    def write(self, updates: np.ndarray, rows: Mapping[str, np.ndarray]) -> None:
        seeds, now = next(iter(rows.values())).shape[1], time.time()
        if not self.files:
            self.files = [self._begin(f"seed_{seed}" if seeds > 1 else "") for seed in range(seeds)]
        chosen = [(i, update) for i, update in enumerate(updates.tolist()) if update % self.every == 0]
        for seed, file in enumerate(self.files):
            columns = {name: x[:, seed].tolist() for name, x in rows.items()}
            for i, update in chosen:
                event = self.event_pb2.Event(wall_time=now, step=update)
                for name, column in columns.items():
                    event.summary.value.add(tag=name, simple_value=column[i])
                file.write(self._record(event))
            file.flush()

    def _begin(self, name: str) -> BinaryIO:
        directory, now = self.directory / name, time.time_ns()
        directory.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files in the order of their names.
        file = (directory / f"events.out.tfevents.{now}").open("xb")
        file.write(self._record(self.event_pb2.Event(wall_time=1e-9 * now, file_version="brain.Event:2")))
        start = self.event_pb2.SessionLog(status=self.event_pb2.SessionLog.START)
        file.write(self._record(self.event_pb2.Event(wall_time=1e-9 * now, step=self.start, session_log=start)))
        return file

    def _record(self, event: Any) -> bytes:
        """TFRecord: the length, its checksum, the content, its checksum."""
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        first, second = (struct.pack("<I", self.checksum(part)) for part in (length, content))
        return length + first + content + second

    def close(self) -> None:
        for file in self.files:
            file.close()
