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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from logderiv._core import check
from logderiv._core.optional import optional
from logderiv.training.files import check_place, expanded, held

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
    else is never overwritten, nor is one to which another run writes. A file that is gone while the run goes on is written again,
    with all its rows.

    Attributes:
        path: The file; its directory is made, and `~` is the home folder.

    Raises:
        TypeError: `path` is no path.
        ValueError: There is no such home folder.
    """

    path: str | os.PathLike[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", expanded("CSVWriter.path", self.path))

    def open(self, past: Rows, total: int) -> contextlib.AbstractContextManager[Write]:
        """Begin the file anew, once the block is entered.

        Args:
            past: The rows of the updates before, which are written first.
            total: How many updates the whole run has.

        Returns:
            A context, from which comes what takes the rows of the others.

        Raises:
            ValueError: The file that is there has other columns, or is no plain file, or another run writes to it.
        """
        del total
        table = _Table(Path(self.path), past)
        table.check()
        return table


class _Table:
    """A CSV file that grows by whole pieces: one that could not be written is taken back, and a file that is gone is made again."""

    def __init__(self, path: Path, past: Rows) -> None:
        self.path, self.past, self.size, self.stack = path, past, 0, contextlib.ExitStack()
        self.header = ",".join(("update", "seed", *past)) + "\n"

    def check(self) -> None:
        """Refuse what is there and is not ours to replace."""
        check_place("CSVWriter.path", self.path, folder=False)
        if self.path.exists():
            with held("CSVWriter.path", self.path), self.path.open(errors="replace") as file:
                line = file.readline(len(self.header))
            if not self.header.startswith(line):  # the line is a part of it where the run was killed while it wrote it
                raise ValueError(
                    f"{self.path}: expected the columns {self.header.strip()}, received {line[:200].strip()}; the file is of other "
                    "metrics or none of ours: write to another, or move it away."
                )

    def __enter__(self) -> Write:
        self._begin(_lines(np.arange(_num_rows(self.past)[0]), self.past))
        return self.write

    def __exit__(self, *_: object) -> None:
        with self.stack:
            if not self.file.closed:
                self.file.truncate(self.size)

    def write(self, updates: np.ndarray, rows: Rows) -> None:
        """Add the lines of these rows, all of them or none."""
        kept = os.fstat(self.file.fileno())
        if not (self.path.exists() and os.path.samestat(self.path.stat(), kept)):
            self.file.seek(0)
            content = self.file.read(self.size).decode()
            self.check()
            self.stack.close()
            self._begin(content)
        elif kept.st_size < self.size:  # someone has emptied it
            self.size = 0
        self._add(_lines(updates, rows))

    def _begin(self, content: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            self.file = stack.enter_context(self.path.open("a+b", buffering=0))
            stack.enter_context(held("CSVWriter.path", self.path))
            self.size = 0
            self._add(content)
            self.stack = stack.pop_all()

    def _add(self, text: str) -> None:
        self.file.truncate(self.size)
        left = memoryview((text if self.size else self.header * (not text.startswith(self.header)) + text).encode())
        size = self.size + len(left)
        while left:
            left = left[self.file.write(left) :]
        self.size = size


@dataclasses.dataclass(frozen=True)
class TensorBoardWriter:
    """Event files of scalars, one tag per metric against the update; needs tensorboardX (the extra `tensorboard`).

    Of several seeds each is a run of its own, `directory/seed_0` and so on. A run that goes on, or starts anew in the same
    directory, adds a file that tells TensorBoard to hide what it replaces. So does one whose file is gone while it goes on.

    Attributes:
        directory: TensorBoard's `--logdir`, or a directory in it; `~` is the home folder.
        every: Write only every so many updates. An update takes about 0.1 ms, which a run of thousands of updates a second
            would feel; TensorBoard itself draws a thousand points of a curve.

    Raises:
        TypeError: `directory` is no path.
        ValueError: `every` is below 1; there is no such home folder.
        ImportError: tensorboardX is missing.
    """

    directory: str | os.PathLike[str]
    every: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", expanded("TensorBoardWriter.directory", self.directory))
        check.whole(every=self.every)
        _tensorboard()

    def open(self, past: Rows, total: int) -> contextlib.AbstractContextManager[Write]:
        """Begin event files, once the block is entered.

        Args:
            past: The rows of the updates before, which earlier files hold.
            total: How many updates the whole run has.

        Returns:
            A context, from which comes what takes the rows of the others.

        Raises:
            ValueError: There is something else than a folder, or another run writes to it.
        """
        del total
        start, seeds = _num_rows(past)
        files = [_EventFile(os.path.join(self.directory, f"seed_{i}" if seeds > 1 else "")) for i in range(seeds)]
        for file in files:
            file.check()
        return self._events(files, start)

    @contextlib.contextmanager
    def _events(self, files: Sequence["_EventFile"], start: int) -> Iterator[Write]:
        summary = _tensorboard().proto.summary_pb2.Summary

        def write(updates: np.ndarray, rows: Rows) -> None:
            """One event an update: `add_scalar` would write one a metric, and take eight times as long."""
            now = time.time()
            for seed, file in enumerate(files):
                if file.is_gone():
                    file.begin(int(updates[0]))
                for i in np.flatnonzero(updates % self.every == 0).tolist():
                    values = [summary.Value(tag=name, simple_value=float(x[i, seed])) for name, x in rows.items()]
                    file.writer.file_writer.add_summary(summary(value=values), int(updates[i]), now)

        with contextlib.ExitStack() as stack:
            for file in files:
                stack.callback(file.close)
                file.begin(start)
            yield write


class _EventFile:
    """The newest event file of a run of TensorBoard."""

    def __init__(self, folder: str) -> None:
        self.folder, self.stack = folder, contextlib.ExitStack()
        self.close = self.stack.close

    def check(self) -> None:
        """Refuse what is no folder, and one where another run writes: it holds its own file."""
        check_place("TensorBoardWriter.directory", self.folder, folder=True)
        for path in Path(self.folder).glob("*.tfevents.*"):
            with held("TensorBoardWriter.directory", path):
                pass

    def begin(self, start: int) -> None:
        """A new file, which hides what others say of this update and later ones."""
        self.close()
        ending = f".{time.time_ns()}"
        options = {"purge_step": start, "flush_secs": 1, "filename_suffix": ending}
        self.writer = self.stack.enter_context(_tensorboard().SummaryWriter(self.folder, **options))
        self.path = next(Path(self.folder).glob(f"*{ending}"), None)  # none where it is no local folder
        if self.path is not None:
            self.stack.enter_context(held("TensorBoardWriter.directory", self.path))

    def is_gone(self) -> bool:
        """Whether someone has deleted it."""
        return self.path is not None and not self.path.exists()


def check_reporters(reporters: Any, more: Sequence[Reporter] = ()) -> tuple[Reporter, ...]:
    """Reporters, checked to be some, and to write to different places, however those are spelled.

    Args:
        reporters: What was given.
        more: Further ones.

    Returns:
        All of them.

    Raises:
        TypeError: No sequence, or something in it is no reporter.
        ValueError: Two are the same.
    """
    if not isinstance(reporters, Iterable):
        received = type(reporters).__name__
        raise TypeError(f"reporters: expected a sequence of reporters, received {received}; put it in a list.")
    reporters = (*reporters, *more)
    for i, reporter in enumerate(reporters):
        fits = callable(getattr(reporter, "open", None))
        check.made(f"reporters[{i}]", reporter, fits, "a reporter, such as CSVWriter(path)")
    places = [_place(reporter) for reporter in reporters]
    if any(reporter in reporters[:i] or places[i] in places[:i] for i, reporter in enumerate(reporters)):
        raise ValueError(f"reporters: expected different ones, received {list(reporters)}.")
    return reporters


def _place(reporter: Any) -> Any:
    """Where it writes: the file itself, whatever its names, or where it will be."""
    if not isinstance(reporter, CSVWriter | TensorBoardWriter):
        return reporter
    path = reporter.path if isinstance(reporter, CSVWriter) else reporter.directory
    return os.stat(path)[1:3] if os.path.exists(path) else os.path.realpath(path)


def _lines(updates: np.ndarray, rows: Rows) -> str:
    """Rows as the lines of a table."""
    seeds = _num_rows(rows)[1]
    numbers = [np.repeat(updates, seeds), np.tile(np.arange(seeds), len(updates))]
    lines = zip(*(map(str, column) for column in [*numbers, *map(np.ravel, rows.values())]), strict=True)
    return "".join(",".join(line) + "\n" for line in lines)


def _num_rows(rows: Rows) -> tuple[int, int]:
    """How many updates and seeds rows are of."""
    return next(iter(rows.values())).shape


def _tqdm() -> Any:
    return optional("tqdm", "progress=True needs tqdm", "progress").tqdm


def _tensorboard() -> Any:
    return optional("tensorboardX", "TensorBoardWriter needs tensorboardX", "tensorboard")
