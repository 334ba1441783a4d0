"""What a run tells while it runs: every row once and in order, and files that a killed run leaves whole."""

import contextlib
import io
import re
import struct
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from logderiv.training import run
from logderiv.training.reporting import Bar, CSVWriter, TensorBoardWriter

NAMES = ("truncated_fraction", "mean_return", "num_steps")
HEADER = "update,seed,truncated_fraction,mean_return,num_steps"


def rows_of(num, seeds=1) -> dict[str, np.ndarray]:
    """Of so many updates, in none of whose every third an episode ended."""
    updates = np.tile(np.arange(num)[:, None], seeds) + 0.25 * np.arange(seeds)
    means = np.where(np.arange(num)[:, None] % 3 == 1, np.nan, np.cos(updates))
    return dict(zip(NAMES, ((0.1 * updates).astype(np.float32), means, (7 * updates).astype(np.int32)), strict=True))


def cut(rows, start, stop):
    return {name: x[start:stop] for name, x in rows.items()}


def report(reporter, rows, start, ends, total=100):
    """Open after `start` updates and write up to each of `ends` in turn."""
    with reporter.open(cut(rows, 0, start), total) as write:
        for end in ends:
            write(np.arange(start, end), cut(rows, start, end))
            start = end


class Recorder:
    """Keeps what it is given."""

    def __init__(self):
        self.events, self.pieces = [], []

    @contextlib.contextmanager
    def open(self, past, total):
        self.events.append(("open", len(next(iter(past.values()))), total, tuple(past)))
        try:
            yield self.write
        finally:
            self.events.append("close")

    def write(self, updates, rows):
        self.pieces.append((updates, rows))


def train(num_updates, *, seeds=(), **options):
    key, start = jax.random.split(jax.random.key(0), seeds), jnp.zeros((*seeds, 2))
    options = {"estimator": ld.ScoreFunction(), "optimizer": optax.sgd(0.1), "num_updates": num_updates} | options
    where = ld.shared_softmax, ld.environments.short_corridor(), ld.Episodes(2, horizon=3)
    return ld.train(start, key, *where, **options)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("seeds", [(), pytest.param((2,), marks=pytest.mark.slow)], ids=["one seed", "seeds"])
def test_every_row_arrives_once_and_in_order_and_the_run_ends_the_same(seeds, monkeypatch, tmp_path):
    """In pieces of 4 updates, the last one shorter; of all seeds together."""
    monkeypatch.setattr(run, "_PIECE", 4 * 6 + 1)
    recorder, path = Recorder(), tmp_path / "run.csv"
    found = train(10, seeds=seeds, reporters=(recorder, CSVWriter(path)))
    names = tuple(name for name in found.metrics._fields if name != "evaluation")
    assert recorder.events == [("open", 0, 10, names), "close"]
    assert [updates.tolist() for updates, _ in recorder.pieces] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    table = np.genfromtxt(path, delimiter=",", names=True)
    assert table.dtype.names == ("update", "seed", *names)
    for name in names:
        assert getattr(found.metrics, name).shape == (*seeds, 10)
        expected = np.atleast_2d(getattr(found.metrics, name)).T
        seen = np.concatenate([rows[name] for _, rows in recorder.pieces])
        np.testing.assert_array_equal(seen, expected, strict=True)
        np.testing.assert_array_equal(table[name], expected.ravel().astype(float))
    whole = train(10, seeds=seeds)
    jax.tree.map(np.testing.assert_array_equal, whole.metrics, found.metrics)
    np.testing.assert_array_equal(whole.params, found.params)


@pytest.mark.usefixtures("standard_promotion")
def test_a_run_that_stops_early_or_fails_closes_what_is_open():
    recorder = Recorder()
    evaluation = ld.Evaluation(every=3, num_episodes=2, stop_at=-1e9)
    found = train(10, reporters=[recorder], evaluation=evaluation)
    assert np.concatenate([updates for updates, _ in recorder.pieces]).tolist() == [0, 1, 2]
    assert np.isnan(np.asarray(found.metrics.mean_return)).tolist() == [False] * 3 + [True] * 7
    assert recorder.events[-1] == "close"

    class Failing(Recorder):
        def write(self, updates, rows):
            raise OSError("the disk is full")

    recorder = Recorder()
    with pytest.raises(OSError, match="the disk is full"):
        train(10, reporters=[recorder, Failing()], evaluation=evaluation)
    assert recorder.events[-1] == "close"
    train(10, reporters=[recorder], evaluation=evaluation)  # is opened again
    assert [event if event == "close" else event[0] for event in recorder.events] == ["open", "close"] * 2
    assert [updates.tolist() for updates, _ in recorder.pieces] == [[0, 1, 2]] * 2


@pytest.mark.usefixtures("standard_promotion")
def test_the_same_reporter_twice_is_refused(tmp_path):
    pytest.importorskip("tqdm")
    for twice in ([CSVWriter(tmp_path / "a"), CSVWriter(tmp_path / "a")], [Bar(), Bar()]):
        with pytest.raises(ValueError, match="expected different ones"):
            train(1, reporters=twice)
    train(1, reporters=[CSVWriter(tmp_path / "a"), CSVWriter(tmp_path / "b")])


def test_a_csv_file_reads_back_bit_for_bit(tmp_path):
    path, rows = tmp_path / "new" / "run.csv", rows_of(5, seeds=2)
    report(CSVWriter(path), rows, 0, [1, 5])
    assert path.read_text().splitlines()[0] == HEADER
    table = np.genfromtxt(path, delimiter=",", names=True)
    rows |= {"update": np.repeat(np.arange(5), 2), "seed": np.tile([0, 1], 5)}
    for name, expected in rows.items():
        np.testing.assert_array_equal(table[name].astype(expected.dtype), expected.ravel())
    assert np.isnan(table["mean_return"]).sum() == 4


def test_a_csv_file_of_a_resumed_run_is_that_of_one_never_stopped(tmp_path):
    """Killed in the middle of a line, and resumed from before what it had written, also where the file was damaged or is gone."""
    whole, path, rows = tmp_path / "whole.csv", tmp_path / "resumed.csv", rows_of(30)
    report(CSVWriter(whole), rows, 0, [30])
    text = whole.read_text()
    left = [text[:end] for end in (len(text) - 3, text.index("\n25,") + 1, text.index("\n20,") + 4, 11, 0)]
    for kept in (*left, text.replace("\n3,", "\n3;"), None):
        path.unlink() if kept is None else path.write_text(kept)
        report(CSVWriter(path), rows, 20, [25, 30])
        assert path.read_text() == text


def test_no_reporter_begins_where_a_later_one_refuses(tmp_path):
    mine, strange = tmp_path / "mine.csv", tmp_path / "strange.csv"
    train(2, reporters=[CSVWriter(mine)])
    kept = mine.read_text()
    strange.write_text("notes\n")
    with pytest.raises(ValueError, match=r"strange\.csv: expected the columns"):
        train(1, reporters=[CSVWriter(mine), CSVWriter(strange)])
    assert mine.read_text() == kept


def test_a_csv_file_of_something_else_is_left_alone(tmp_path):
    path = tmp_path / "mine.csv"
    for text, message in (
        ("time,weight\n1,2\n", f"expected the columns {HEADER}, received time,weight"),
        ("no table", "received no table"),
        (f"{HEADER},evaluation\n", "received update,seed"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            report(CSVWriter(path), rows_of(5), 5, [], 10)
        assert path.read_text() == text


def events(path):
    """The records of an event file, by the format itself: length, its checksum, content, its checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    data, at = path.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        yield event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
        at += length + 16


def test_event_files_read_back_and_hide_what_a_resumed_run_replaces(tmp_path):
    pytest.importorskip("tensorboardX")
    rows = rows_of(30)
    report(TensorBoardWriter(tmp_path), rows, 0, [7, 20])
    report(TensorBoardWriter(tmp_path), rows, 10, [30])
    first, second = (list(events(path)) for path in sorted(tmp_path.iterdir()))
    for found, start, last in ((first, 0, 20), (second, 10, 30)):
        assert found[0].file_version == "brain.Event:2"  # the version from which a start means what it does here
        (begin,) = [event for event in found if event.HasField("session_log")]
        assert (begin.session_log.status, begin.step) == (1, start)
        for name in NAMES:
            points = [(e.step, v.simple_value) for e in found for v in e.summary.value if v.tag == name]
            expected = zip(range(start, last), rows[name][start:last, 0].astype(np.float32), strict=True)
            np.testing.assert_array_equal(points, list(expected))


def test_event_files_of_seeds_are_runs_and_may_be_thinned(tmp_path):
    pytest.importorskip("tensorboardX")
    report(TensorBoardWriter(tmp_path, every=3), {"a": np.arange(16.0).reshape(8, 2)}, 2, [8])
    for seed in range(2):
        (path,) = (tmp_path / f"seed_{seed}").iterdir()
        found = [(e.step, e.summary.value[0].simple_value) for e in events(path) if e.HasField("summary")]
        assert found == [(3, 6.0 + seed), (6, 12.0 + seed)]
    for wrong in (0, 0.5):
        with pytest.raises(ValueError, match=rf"every: expected a whole number >= 1, received {wrong}"):
            TensorBoardWriter(tmp_path, every=wrong)  # pyright: ignore[reportArgumentType]


def test_a_missing_package_names_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    for make, extra in ((lambda: TensorBoardWriter(tmp_path), "tensorboard"), (Bar, "progress")):
        with pytest.raises(ImportError, match=rf"logderiv\[{extra}\]"):
            make()


def test_the_bar_shows_both_rates_and_the_last_return_that_there_is():
    pytest.importorskip("tqdm")
    with contextlib.redirect_stderr(io.StringIO()) as shown:
        means = np.array([[1.0, 4.0], [np.nan, 3.0], [np.nan, np.nan]])
        with Bar().open(rows_of(40), 50) as write:
            time.sleep(0.11)  # tqdm redraws every 0.1 s
            write(np.arange(40, 43), {"mean_return": means, "num_steps": np.full((3, 2), 500)})
            text = shown.getvalue().split("\r")[-1]
    found = re.search(r"43/50 \[[\d:]+<\d\d:\d\d, .* ([\d.]+)(k?) steps/s, return 3\b", text)  # after <, the time left
    assert found is not None, text
    assert 0 < float(found[1]) * (1000 if found[2] else 1) <= 3000 / 0.11
    with contextlib.redirect_stderr(io.StringIO()) as shown:
        report(Bar(), {"loss": np.ones((2, 1))}, 0, [2], total=2)
    assert "2/2" in shown.getvalue()
    assert "return" not in shown.getvalue()
