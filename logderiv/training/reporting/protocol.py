"""What a run tells while it runs: after each piece of a run the host hands the new rows to reporters.

A reporter is a description, such as `CSVWriter("run.csv")`; within `with reporter.open(...) as write` it takes rows. They
come in order and once, those of all seeds together. A run that goes on from a checkpoint opens its reporters with all rows
before it, so that a file can be written anew rather than mended. Of several processes, process 0 reports.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np

Rows = Mapping[str, np.ndarray]  # name to values, shape (updates, seeds)
Write = Callable[[np.ndarray, Rows], None]  # takes the numbers of updates, and their rows


class Reporter(Protocol):
    """Where rows go."""

    def check(self, names: Sequence[str]) -> None:
        """Raise what can be known before a run, such as a missing package.

        Args:
            names: The columns of its rows.
        """
        ...

    def open(self, past: Rows, total: int) -> AbstractContextManager[Write]:
        """Begin to report a run, to the end of a `with` block; write it as a generator under `contextlib.contextmanager`.

        Args:
            past: The rows of the updates before, from a checkpoint: name to values, shape `(n, seeds)`; `n = 0` of a run that
                begins.
            total: How many updates the whole run has.

        Returns:
            A context, from which comes `write(updates, rows)`: it takes the rows of the consecutive updates with these numbers, from
            update `n` on, `(k,)` and `(k, seeds)`; NaN where there is nothing to say.
        """
        ...


def check_reporters(reporters: Sequence[Reporter], names: Sequence[str]) -> None:
    """Raise what can be known before a run whose rows have these columns.

    Args:
        reporters: Who is told.
        names: The columns.

    Raises:
        ImportError: A package is missing.
        ValueError: A reporter is given twice, or a file holds something else.
    """
    if any(reporter in reporters[:i] for i, reporter in enumerate(reporters)):
        raise ValueError(f"reporters: expected different ones, received {list(reporters)}.")
    for reporter in reporters:
        reporter.check(names)


def num_rows(rows: Rows) -> tuple[int, int]:
    """How many updates and seeds rows are of."""
    return next(iter(rows.values())).shape
