r"""What a run tells while it runs: each update's row of numbers, handed from inside a compiled loop to a bar or a file.

`scan` is `lax.scan` for a training loop whose rows are also given to *reporters*: `progress.Bar`, `writers.CSVWriter`,
`writers.TensorBoardWriter`, or your own. In `train`, where `update(carry, index) -> (carry, Metrics)`:

    carry, metrics = reports.scan(update, carry, start, num_updates, total=total, reporters=reporters)

Without reporters that is `lax.scan(update, carry, start + jnp.arange(num_updates))` and nothing else. With them, rows
gather in a buffer on the device, and the host is called when it said that it wants to be: each call returns the update at
which the next is due, so that it comes about every 0.2 s whatever the speed, or when the buffer is full. Three things follow.

- The cost is bounded by the clock and not by the number of updates (`benchmarks/reporting_cost`).
- The next call waits for what the last one returned, so rows arrive in order and once, on any number of devices, where
  ordered effects are not to be had.
- Under `jax.vmap` there is one call for all seeds, and a row of every seed in it.

One run in several pieces (chunks between checkpoints, or resumed in another process) is several calls with the same
`reporters` and `total`, each from the `start` where the last one ended; `start` may be traced, so that all pieces are one
compiled program. What is open stays open from piece to piece, until update `total - 1` has been reported; a call with any
other `start` opens anew, and a file then keeps only what lies before `start`. `check` before compiling raises what can be
known by then, `jax.effects_barrier()` afterwards waits for the last row, and `close` ends a run that stops before `total`.

Of several processes, process 0 writes. Inside `shard_map` every device would report: report outside.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental import io_callback

_PERIOD = 0.2  # seconds between two calls
_CAPACITY = 512  # updates in the buffer
_DUE = jax.ShapeDtypeStruct((), jnp.int32)


class Session(Protocol):
    """A reporter at work: what it holds open."""

    def write(self, updates: np.ndarray, rows: Mapping[str, np.ndarray]) -> None:
        """Take the rows of consecutive updates.

        Args:
            updates: Their numbers, from 0, shape `(n,)`.
            rows: Name to values, shape `(n, seeds)`; NaN where there is nothing to say.
        """
        ...

    def close(self) -> None:
        """The run is over."""
        ...


class Reporter(Protocol):
    """Where rows go. A static frozen dataclass: hashable, and equal to any other with the same fields."""

    def check(self, names: Sequence[str]) -> None:
        """Raise what can be known before a run whose rows have these columns, such as a missing package."""
        ...

    def open(self, start: int, total: int, names: Sequence[str]) -> Session:
        """Begin a run of `total` updates, or go on with it at update `start`; `names` are the columns of its rows."""
        ...


class Pending(NamedTuple):
    """Rows on their way; part of the loop's carry.

    Attributes:
        rows: Name to the buffer of its values, shape `(capacity,)`.
        waiting: How many of them there are.
        due: The update after which the host wants them.
    """

    rows: dict[str, jax.Array]
    waiting: jax.Array
    due: jax.Array


def scan(
    update: Callable[[Any, jax.Array], tuple[Any, Any]],
    carry: Any,
    start: jax.Array | int,
    length: int,
    *,
    total: int,
    reporters: Sequence[Reporter] = (),
) -> tuple[Any, Any]:
    """`lax.scan(update, carry, start + jnp.arange(length))`, its rows also given to `reporters`.

    Args:
        update: `(carry, index) -> (carry, row)`, `index` an int32; `row` a NamedTuple of scalars, fields that are `None` left out.
        carry: As in `lax.scan`.
        start: Number of the first update, from 0. May be traced.
        length: How many.
        total: How many the whole run has.
        reporters: Who gets the rows.

    Returns:
        The last carry, and all rows, stacked, as of `lax.scan`.

    Raises:
        TypeError: A row is not a NamedTuple.
        ValueError: A field of a row is not a scalar.
    """
    indices = jnp.asarray(start, jnp.int32) + jnp.arange(length, dtype=jnp.int32)
    if not reporters or not length:
        return lax.scan(update, carry, indices)
    update = jax.jit(update, inline=True)  # traced once for both, its row's shapes and the loop
    pending = begin(reporters, start, total, jax.eval_shape(update, carry, indices[0])[1], capacity=length)

    def body(both: tuple[Any, Pending], index: jax.Array) -> tuple[tuple[Any, Pending], Any]:
        carry, row = update(both[0], index)
        return (carry, report(reporters, both[1], index, row)), row

    (carry, pending), rows = lax.scan(body, (carry, pending), indices)
    finish(reporters, pending)
    return carry, rows


def begin(
    reporters: Sequence[Reporter], start: jax.Array | int, total: int, row: Any, *, capacity: int = _CAPACITY
) -> Pending:
    """An empty buffer for rows like `row`, and the host told to expect them. `scan` for loops of another kind starts here."""
    shapes = _columns(row)
    capacity = min(capacity, _CAPACITY)
    rows = {name: jnp.zeros(capacity, x.dtype) for name, x in shapes.items()}
    host = functools.partial(_begin, tuple(reporters), total, tuple(shapes), capacity)
    return Pending(rows, jnp.int32(0), io_callback(host, _DUE, jnp.asarray(start, jnp.int32)))


def report(reporters: Sequence[Reporter], pending: Pending, index: jax.Array, row: Any) -> Pending:
    """Put the row of update `index` into the buffer; if it is time, hand the buffer over."""
    rows = {
        name: lax.dynamic_update_index_in_dim(pending.rows[name], value, pending.waiting, 0)
        for name, value in _columns(row).items()
    }
    pending = Pending(rows, pending.waiting + 1, pending.due)
    return _call(functools.partial(_receive, tuple(reporters)), pending, index >= pending.due)


def finish(reporters: Sequence[Reporter], pending: Pending) -> None:
    """Hand over what is left after the loop."""
    _call(functools.partial(_finish, tuple(reporters)), pending, jnp.bool_(True))


def check(reporters: Sequence[Reporter], names: Sequence[str]) -> None:
    """Raise what can be known before a run whose rows have the fields `names`; where a run raises, it is inside a callback.

    Raises:
        ImportError: A package is missing.
        ValueError: A reporter is given twice, or a file holds something else.
    """
    if len(set(reporters)) < len(reporters):
        raise ValueError(f"reporters: expected different ones, received {list(reporters)}.")
    for reporter in reporters:
        reporter.check(names)


def close(reporters: Sequence[Reporter]) -> None:
    """End a run that stopped before its last update. Waits for rows that are on their way."""
    jax.effects_barrier()
    run = _RUNS.pop(tuple(reporters), None)
    if run is not None:
        run.close()


def _columns(row: Any) -> dict[str, jax.Array]:
    if not hasattr(row, "_fields"):
        raise TypeError(f"row: expected a NamedTuple of scalars, received {type(row).__name__}.")
    found = {name: getattr(row, name) for name in row._fields if getattr(row, name) is not None}
    for name, value in found.items():
        if jnp.shape(value) != ():
            raise ValueError(
                f"row.{name}: expected a scalar, received shape {jnp.shape(value)}; seeds are a `jax.vmap` around the loop."
            )
    return found


def _call(host: Callable[..., np.int32], pending: Pending, now: jax.Array) -> Pending:
    """If it is time, give the host the rows that wait, under `jax.vmap` those of all seeds in one call."""

    def if_due(rows: dict[str, jax.Array], count: jax.Array, due: jax.Array, now: jax.Array) -> Any:
        return lax.cond(now, lambda: (jnp.int32(0), io_callback(host, _DUE, rows, count)), lambda: (count, due))

    def all_seeds(axis_size: int, batched: Any, rows: dict[str, jax.Array], *others: jax.Array) -> Any:
        if any(batched[1:]):
            raise ValueError("reports: expected one `start` for all seeds of a vmap, received one for each.")
        rows = {name: x if batched[0][name] else jnp.broadcast_to(x, (axis_size, *x.shape)) for name, x in rows.items()}
        return call(rows, *others), (False, False)

    call: Any = custom_vmap(if_due)  # around the condition, under whose own vmap the host could not be called
    call.def_vmap(all_seeds)
    count, due = call(pending.rows, pending.waiting, pending.due, now)
    return Pending(pending.rows, count, due)


class _Run:
    """The host's side of one run: what is open, where it stands, and when to call again."""

    def __init__(self, reporters: Sequence[Reporter], start: int, total: int, names: tuple[str, ...]) -> None:
        self.total, self.names, self.next = total, names, start
        self.sessions = [reporter.open(start, total, names) for reporter in reporters]
        self.interval, self.time = 1, time.perf_counter()

    def receive(self, rows: Mapping[str, np.ndarray], num: int, capacity: int) -> None:
        """Pass `num` rows on, and see from the time they took how many to wait for."""
        updates = np.arange(self.next, self.next + num)
        for session in self.sessions:
            session.write(updates, rows)
        now = time.perf_counter()
        wanted = num * _PERIOD / max(now - self.time, 1e-6)
        self.interval = int(np.clip(round(wanted), 1, min(capacity, 4 * self.interval)))
        self.next, self.time = self.next + num, now

    @property
    def due(self) -> np.int32:
        """The update after which the host wants to be called."""
        return np.int32(self.next + self.interval - 1)

    def close(self) -> None:
        for session in self.sessions:
            session.close()


_RUNS: dict[tuple[Reporter, ...], _Run] = {}
_NEVER = np.int32(np.iinfo(np.int32).max)


def _begin(reporters: tuple[Reporter, ...], total: int, names: tuple[str, ...], capacity: int, start: Any) -> np.int32:
    if jax.process_index() != 0:
        return _NEVER
    run = _RUNS.get(reporters)
    if run is None or (run.next, run.total, run.names) != (int(start), total, names):
        if run is not None:
            del _RUNS[reporters]
            run.close()
        _RUNS[reporters] = run = _Run(reporters, int(start), total, names)
    run.interval, run.time = min(run.interval, capacity), time.perf_counter()
    return run.due


def _receive(reporters: tuple[Reporter, ...], rows: Any, count: Any) -> np.int32:
    """Buffers `(*seeds, capacity)`, of which the first `count` rows are new."""
    if jax.process_index() != 0:
        return _NEVER
    run, num = _RUNS[reporters], int(count)
    buffers = {name: np.asarray(rows[name]) for name in run.names}  # JAX has sorted them
    capacity = buffers[run.names[0]].shape[-1]
    if num:
        run.receive({name: x.reshape(-1, capacity)[:, :num].T for name, x in buffers.items()}, num, capacity)
    return run.due


def _finish(reporters: tuple[Reporter, ...], rows: Any, count: Any) -> np.int32:
    """As `_receive`, after the last update of a piece; closes after the last of the run."""
    due = _receive(reporters, rows, count)
    run = _RUNS.get(reporters)
    if run is not None and run.next == run.total:
        del _RUNS[reporters]
        run.close()
    return due
