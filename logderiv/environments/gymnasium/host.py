"""Episodes on the host: batches of Gymnasium environments that a JAX program addresses by handles.

A handle is `(batch, row, time)`. `batch` names episodes that were started together, `time` counts what was done to the row.
JAX may leave out, repeat or reorder a callback whose result does not depend on it, so nothing here relies on
being called once: every call returns the next handle, which the next call needs, and a call that comes again finds its
answer kept. A handle from further back is refused, since an environment on the host cannot go back.
"""

import itertools
import random
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

Leaves = list[np.ndarray]


class _Batch:
    def __init__(self, stepper: Any, seeds: np.ndarray) -> None:
        n = len(seeds)
        self.stepper = stepper  # None once every episode has ended
        self.times, self.ended, self.fresh = np.zeros(n, np.int32), np.zeros(n, bool), np.ones(n, bool)
        self.outcome = np.zeros((n, 3))
        self.observation = stepper.restart(np.arange(n), seeds)
        self.action: Leaves = []

    def step(self, rows: np.ndarray, times: np.ndarray, action: Leaves) -> np.ndarray:
        """Outcomes of these rows: one whose time it is advances, or stands still with reward 0 after its end; any other was
        stepped before, and gets the answer that was kept.
        """  # noqa: D205
        now = times == self.times[rows]
        if not now.all():
            self._check_replay(rows[~now], times[~now], [a[~now] for a in action])
        outcome, live = self.outcome[rows], now & ~self.ended[rows]
        outcome[now & ~live, 0] = 0
        if live.any():
            outcome[live] = self._move(rows[live], [a[live] for a in action])
        return outcome

    def _check_replay(self, rows: np.ndarray, times: np.ndarray, action: Leaves) -> None:
        """A call that comes again: the last one of these rows, with the same action."""
        again = (times == self.times[rows] - 1) & ~self.fresh[rows] & bool(self.action)
        for kept, given in zip(self.action, action, strict=bool(self.action)):
            again &= (kept[rows] == given).all(tuple(range(1, given.ndim)))
        _check_times(again)

    def _move(self, rows: np.ndarray, action: Leaves) -> np.ndarray:
        if np.bincount(rows).max() > 1:
            raise ValueError(_BRANCHED)
        observation, outcome = self.stepper.step(rows, action)
        self.action = self.action or [np.zeros((len(self.times), *a.shape[1:]), a.dtype) for a in action]
        for kept, new in zip([*self.observation, *self.action], [*observation, *action], strict=True):
            kept[rows] = new
        self.outcome[rows], self.ended[rows], self.fresh[rows] = outcome, outcome[:, 1:].any(1), False
        self.times[rows] += 1
        return outcome

    def restart(self, rows: np.ndarray, times: np.ndarray, seeds: np.ndarray) -> None:
        here = times == self.times[rows]
        _check_times(here | ((times == self.times[rows] - 1) & self.fresh[rows]))
        rows, seeds = rows[here], seeds[here]
        if len(rows):
            for kept, new in zip(self.observation, self.stepper.restart(rows, seeds), strict=True):
                kept[rows] = new
            self.times[rows] += 1
            self.fresh[rows], self.ended[rows] = True, False


class Host:
    """Batches of episodes by name, and the environments that are free to be used again.

    Attributes:
        make: From `n` to a stepper, such as `OneByOne`: `n` environments that `restart` and `step` these rows and `close`.
        capacity: How many batches are kept. A further one takes the place of one whose episodes have all ended, or
            else of the one that was used least recently.
        legal: Actions of all rows, checked.
    """

    def __init__(self, make: Callable[[int], Any], capacity: int, legal: Callable[[Any], Any]) -> None:
        self.make, self.capacity, self.legal = make, capacity, legal
        self.lock = threading.Lock()
        self.names = itertools.count(random.SystemRandom().randrange(2**30))  # unlike those of a resumed process
        self.batches: OrderedDict[int, _Batch] = OrderedDict()
        self.free: dict[int, list[Any]] = {}

    def reset(self, seeds: np.ndarray) -> tuple[Leaves, np.ndarray]:
        """Start a batch: observations and handles."""
        n = len(seeds)
        with self.lock:
            while len(self.batches) >= self.capacity:
                ended = (name for name, batch in self.batches.items() if batch.stepper is None)
                self._release(self.batches.pop(next(ended, next(iter(self.batches)))))
            name = next(self.names)
            batch = self.batches[name] = _Batch(self._acquire(n), seeds)
            handles = np.stack([np.full(n, name), np.arange(n), np.zeros(n, int)], 1)
            return [o.copy() for o in batch.observation], handles

    def step(self, handles: np.ndarray, action: Any) -> tuple[Leaves, np.ndarray, np.ndarray]:
        """Step each row: observations, `(reward, terminated, truncated)`, handles."""
        outcome, action = np.empty((len(handles), 3)), jax.tree.leaves(self.legal(action))
        with self.lock:
            groups = self._groups(handles)
            for where, batch, rows in groups:
                outcome[where] = batch.step(rows, handles[where, 2], [a[where] for a in action])
                if batch.stepper is not None and batch.ended.all():
                    self._release(batch)
            observation, handles = _where_they_stand(groups, handles)
        return observation, outcome, handles

    def renew(self, handles: np.ndarray, ended: np.ndarray, seeds: np.ndarray) -> tuple[Leaves, np.ndarray]:
        """Restart the rows that ended: observations and handles."""
        with self.lock:
            groups = self._groups(handles)
            for where, batch, rows in groups:
                which = ended[where]
                if batch.stepper is None and which.any():
                    batch.stepper = self._acquire(len(batch.ended))
                batch.restart(rows[which], handles[where, 2][which], seeds[where][which])
            return _where_they_stand(groups, handles)

    def close(self) -> None:
        """Close every environment; handles are refused from here on."""
        with self.lock:
            for batch in self.batches.values():
                self._release(batch)
            for stepper in itertools.chain(*self.free.values()):
                stepper.close()
            self.batches.clear()
            self.free.clear()

    def _groups(self, handles: np.ndarray) -> list[tuple[Any, _Batch, np.ndarray]]:
        """For each batch among the handles: where it is meant, the batch, its rows."""
        names, rows = handles[:, 0], handles[:, 1]
        return [(where := names == name, self._find(int(name)), rows[where]) for name in np.unique(names)]

    def _find(self, name: int) -> _Batch:
        if name not in self.batches:
            raise ValueError(_LOST.format(capacity=self.capacity))
        self.batches.move_to_end(name)
        return self.batches[name]

    def _acquire(self, n: int) -> Any:
        free = self.free.get(n)
        return free.pop() if free else self.make(n)

    def _release(self, batch: _Batch) -> None:
        if batch.stepper is not None:
            self.free.setdefault(len(batch.ended), []).append(batch.stepper)
            batch.stepper = None


def _where_they_stand(groups: list[tuple[Any, _Batch, np.ndarray]], handles: np.ndarray) -> tuple[Leaves, np.ndarray]:
    """Where each row stands now: observations and handles."""
    handles = handles.copy()
    observation = [np.empty((len(handles), *o.shape[1:]), o.dtype) for o in groups[0][1].observation]
    for where, batch, rows in groups:
        handles[where, 2] = batch.times[rows]
        for out, kept in zip(observation, batch.observation, strict=True):
            out[where] = kept[rows]
    return observation, handles


def _check_times(known: np.ndarray) -> None:
    if not known.all():
        raise ValueError(_BACK)


_BACK = (
    "environment: this state was stepped before with another action. An environment on the host cannot go back: use each "
    "state once, do not differentiate through a recomputed (checkpointed) rollout, and do not let seeds under a vmap stop "
    "one by one (Evaluation.stop_at): all are stepped until the last has stopped."
)
_BRANCHED = (
    "environment: one state is stepped several times in one call, as under a vmap over parameters with one key for all. "
    "An environment on the host cannot branch: give each rollout its own key."
)
_LOST = (
    "environment: the episodes of this state are no longer on the host. They were closed, belong to another process (a "
    "resumed stream must be started anew), or more than max_batches = {capacity} batches were in use; raise max_batches. An "
    "environment of your own around this one has to hand its method renew through, or a stream starts a batch at every step."
)
