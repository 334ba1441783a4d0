"""What a run tells while it runs: every row once and in order, from any loop, and files that a killed run leaves whole."""

import contextlib
import dataclasses
import io
import os
import re
import struct
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from logderiv.training.reporting import bar as progress
from logderiv.training.reporting import files as writers
from logderiv.training.reporting import scan as reports


class Row(NamedTuple):
    """Names not in alphabetical order, one field that is left out."""

    truncated_fraction: Any
    mean_return: Any
    num_steps: Any
    evaluation: Any = None


NAMES = ("truncated_fraction", "mean_return", "num_steps")
HEADER = "update,seed,truncated_fraction,mean_return,num_steps"


@dataclasses.dataclass(frozen=True)
class Recorder:
    """Keeps what it is given, in `SEEN`."""

    name: str = ""

    def check(self, names):
        assert names == NAMES

    def open(self, start, total, names):
        SEEN.append(("open", start, total, names))
        return self

    def write(self, updates, rows):
        SEEN.append((updates, {name: np.array(x) for name, x in rows.items()}))

    def close(self):
        SEEN.append(("close",))


SEEN: list[Any] = []


def seen():
    """Openings and closings, the updates' numbers, and the rows by name; forgets them."""
    events = [x for x in SEEN if isinstance(x[0], str)]
    pieces = [x for x in SEEN if not isinstance(x[0], str)]
    SEEN.clear()
    columns = {name: np.concatenate([rows[name] for _, rows in pieces]) for name in pieces[0][1]}
    return events, np.concatenate([updates for updates, _ in pieces]), columns


def update(x, index):
    """No episode ends in every third update."""
    x = jnp.cos(x) + x / 3
    mean_return = jnp.where(index % 3 == 1, jnp.nan, x)
    return x, Row(
        truncated_fraction=jnp.float32(0.1) * index.astype(jnp.float32), mean_return=mean_return, num_steps=7 * index
    )


def run(x, start, length, total, reporters):
    return reports.scan(update, x, start, length, total=total, reporters=reporters)


START = jnp.float32(0.5)
compiled = jax.jit(run, static_argnums=(2, 3, 4))


def finished(*args):
    result = jax.block_until_ready(compiled(*args))
    jax.effects_barrier()
    return result


def test_without_reporters_the_loop_is_that_of_jax_and_with_them_it_ends_the_same():
    def plain(x):
        return run(x, 0, 5, 5, ())

    expected = jax.make_jaxpr(lambda x: jax.lax.scan(update, x, jnp.int32(0) + jnp.arange(5, dtype=jnp.int32)))(START)
    assert str(jax.make_jaxpr(plain)(START)) == str(expected)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(plain)(START), finished(START, 0, 5, 5, (Recorder(),)))
    seen()


def test_every_row_arrives_once_and_in_order_through_a_buffer_that_fills_many_times(monkeypatch):
    monkeypatch.setattr(reports, "_CAPACITY", 16)
    _, rows = finished(START, 0, 1000, 1000, (Recorder("many"),))
    calls = len(SEEN) - 2
    events, updates, columns = seen()
    assert events == [("open", 0, 1000, NAMES), ("close",)]
    assert 1000 / 16 <= calls < 1000 / 4
    np.testing.assert_array_equal(updates, np.arange(1000))
    for name in NAMES:
        np.testing.assert_array_equal(columns[name], np.asarray(getattr(rows, name))[:, None])
        assert columns[name].dtype == getattr(rows, name).dtype


def test_seeds_arrive_together_also_where_a_number_is_common_to_all():
    starts = jnp.linspace(0.0, 1.0, 6).reshape(2, 3)
    _, rows = jax.jit(jax.vmap(jax.vmap(lambda x: run(x, 0, 40, 40, (Recorder("seeds"),)))))(starts)
    jax.effects_barrier()
    events, updates, columns = seen()
    assert len(events) == 2
    np.testing.assert_array_equal(updates, np.arange(40))
    np.testing.assert_array_equal(columns["mean_return"], np.asarray(rows.mean_return).reshape(6, 40).T)
    np.testing.assert_array_equal(columns["num_steps"], np.tile(7 * np.arange(40)[:, None], 6))


def _programs() -> int:
    traced: Any = compiled
    return traced._cache_size()


def test_pieces_are_one_run_and_one_program_and_another_start_opens_anew():
    reporters = (Recorder("pieces"),)
    before = _programs()
    x, _ = finished(START, 0, 10, 30, reporters)
    x, _ = finished(x, 10, 10, 30, reporters)
    finished(x, 10, 10, 30, reporters)  # a step back: the run was resumed from an earlier checkpoint
    assert _programs() == before + 1
    reports.close(reporters)
    reports.close(reporters)
    events, updates, _ = seen()
    assert [event[:2] for event in events] == [("open", 0), ("close",), ("open", 10), ("close",)]
    np.testing.assert_array_equal(updates, [*range(20), *range(10, 20)])


DEVICES = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from logderiv.training.reporting import files as writers
from logderiv.training.reporting import scan as reports
from tests.test_reports import Row

mesh = jax.make_mesh((4,), ("n",), axis_types=(AxisType.Auto,))
batch = jax.device_put(np.arange(8.0, dtype=np.float32), NamedSharding(mesh, PartitionSpec("n")))
update = lambda x, index: (jnp.cos(x), Row(jnp.max(x), jnp.mean(x), index))
run = lambda x: reports.scan(update, x, 0, 300, total=300, reporters=(writers.CSVWriter(sys.argv[1]),))
(x, rows), _ = jax.jit(run)(batch), jax.effects_barrier()
assert len(x.sharding.device_set) == 4
table = np.genfromtxt(sys.argv[1], delimiter=",", names=True)
np.testing.assert_array_equal(table["update"], np.arange(300))
np.testing.assert_array_equal(table["mean_return"].astype(np.float32), rows.mean_return)
"""


def test_a_loop_over_several_devices_reports_once(tmp_path):
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-c", DEVICES, str(tmp_path / "run.csv")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr


def test_the_host_is_called_by_the_clock(monkeypatch):
    """Updates of a millisecond, a call wanted every 20: about one in twenty, where one in each would be 200."""
    monkeypatch.setattr(reports, "_PERIOD", 0.02)

    @jax.jit
    def slow():
        def update(x, index):
            x = jax.pure_callback(lambda x: (time.sleep(1e-3), x)[1], x, x)
            return x, Row(x, x, index)

        return reports.scan(update, jnp.float32(0), 0, 200, total=200, reporters=(Recorder("clock"),))

    jax.block_until_ready(slow())
    jax.effects_barrier()
    assert 4 <= len(SEEN) - 2 <= 60
    np.testing.assert_array_equal(seen()[1], np.arange(200))


def test_what_is_no_row_or_differs_between_seeds_is_refused():
    def scan(row, start=0):
        return reports.scan(lambda x, i: (x, row), 0.0, start, 2, total=2, reporters=(Recorder(),))

    with pytest.raises(TypeError, match="row: expected a NamedTuple of scalars, received dict"):
        scan({"mean_return": 0.0})
    with pytest.raises(ValueError, match=r"row.num_steps: expected a scalar, received shape \(2,\)"):
        scan(Row(0.0, 0.0, jnp.ones(2)))
    with pytest.raises(ValueError, match="expected one `start` for all seeds"):
        jax.vmap(lambda start: scan(Row(0.0, 0.0, 0.0), start))(jnp.arange(2))
    with pytest.raises(ValueError, match="expected different ones"):
        reports.check((Recorder(), Recorder()), NAMES)
    SEEN.clear()


def test_a_csv_file_reads_back_bit_for_bit(tmp_path):
    path = tmp_path / "new" / "run.csv"
    writer = writers.CSVWriter(path)
    reports.check((writer,), NAMES)
    _, rows = jax.vmap(lambda x: run(x, 0, 5, 5, (writer,)))(jnp.array([0.5, 0.7]))
    jax.effects_barrier()
    assert path.read_text().splitlines()[0] == HEADER
    table = np.genfromtxt(path, delimiter=",", names=True)
    np.testing.assert_array_equal(table["update"], np.repeat(np.arange(5), 2))
    np.testing.assert_array_equal(table["seed"], np.tile([0, 1], 5))
    np.testing.assert_array_equal(table["mean_return"], np.asarray(rows.mean_return).T.ravel())
    np.testing.assert_array_equal(
        table["truncated_fraction"].astype(np.float32), np.asarray(rows.truncated_fraction).T.ravel()
    )
    assert np.isnan(table["mean_return"]).sum() == 4


def test_a_csv_file_of_a_resumed_run_is_that_of_one_never_stopped(tmp_path):
    """Killed in the middle of a line, and resumed from before what it had written."""
    whole, path = tmp_path / "whole.csv", tmp_path / "resumed.csv"
    resumed = writers.CSVWriter(path)
    finished(START, 0, 30, 30, (writers.CSVWriter(whole),))
    text = whole.read_text()
    for kept in (len(text) - 3, text.index("\n25,") + 1, text.index("\n20,") + 4, 11, 0):
        path.write_text(text[:kept])
        start = 20 if kept > 100 else 0
        x = finished(START, 0, 20, 30, ())[0] if start else START
        reports.check((resumed,), NAMES)
        finished(x, start, 10 if start else 30, 30, (resumed,))
        assert path.read_text() == text


def test_a_csv_file_of_something_else_is_left_alone(tmp_path):
    path = tmp_path / "mine.csv"
    for text, message in (
        (
            "time,weight\n1,2\n",
            "expected the columns update,seed,truncated_fraction,mean_return,num_steps, received time,weight",
        ),
        ("no table", "received no table"),
        (f"{HEADER}\n0,0,1,2,3\n1,0,1\n2,0,1,2,3\n", "line 3 is damaged: '1,0,1'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            reports.check((writers.CSVWriter(path),), NAMES)
        with pytest.raises(ValueError, match=message):
            writers.CSVWriter(path).open(5, 10, NAMES)
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
    writer = writers.TensorBoardWriter(tmp_path)
    x, rows = finished(START, 0, 20, 30, (writer,))
    finished(x, 10, 20, 30, (writer,))
    first, second = (list(events(path)) for path in sorted(tmp_path.iterdir()))
    scalars = [event for event in first if event.HasField("summary")]
    assert [event.step for event in scalars] == list(range(20))
    for name in NAMES:
        values = [{v.tag: v.simple_value for v in event.summary.value}[name] for event in scalars]
        np.testing.assert_array_equal(np.array(values, np.float32), np.asarray(getattr(rows, name), np.float32))
    for events_, start, last in ((first, 0, 19), (second, 10, 29)):
        assert events_[0].file_version == "brain.Event:2"  # the version from which a start means what it does here
        assert (events_[1].session_log.status, events_[1].step) == (1, start)
        assert events_[-1].step == last


def test_event_files_of_seeds_are_runs_and_may_be_thinned(tmp_path):
    pytest.importorskip("tensorboardX")
    session = writers.TensorBoardWriter(tmp_path, every=3).open(0, 10, ["a"])
    session.write(np.arange(2, 8), {"a": np.arange(12.0).reshape(6, 2)})
    session.close()
    for seed in range(2):
        (path,) = (tmp_path / f"seed_{seed}").iterdir()
        found = [(e.step, e.summary.value[0].simple_value) for e in events(path) if e.HasField("summary")]
        assert found == [(3, 2.0 + seed), (6, 8.0 + seed)]
    with pytest.raises(ValueError, match="every: expected a whole number >= 1"):
        writers.TensorBoardWriter(tmp_path, every=0)
    with pytest.raises(ValueError, match=r"every: expected a whole number >= 1, received 0\.5"):
        writers.TensorBoardWriter(tmp_path, every=0.5)  # pyright: ignore[reportArgumentType]


def test_a_missing_package_names_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX.proto", None)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    for reporter, extra in ((writers.TensorBoardWriter(tmp_path), "tensorboard"), (progress.Bar(), "progress")):
        with pytest.raises(ImportError, match=rf"logderiv\[{extra}\]"):
            reports.check((reporter,), NAMES)


def test_the_bar_shows_both_rates_and_the_last_return_that_there_is():
    pytest.importorskip("tqdm")
    with contextlib.redirect_stderr(io.StringIO()) as shown:
        bar = progress.Bar().open(40, 50, NAMES)
        time.sleep(0.11)  # tqdm redraws every 0.1 s
        rows = {
            "mean_return": np.array([[1.0, 4.0], [np.nan, 3.0], [np.nan, np.nan]]),
            "num_steps": np.full((3, 2), 500),
        }
        bar.write(np.arange(40, 43), rows)
        text = shown.getvalue().split("\r")[-1]
        bar.close()
    assert "43/50" in text
    assert "return 3" in text
    rate = re.search(r"([\d.]+)k? steps/s", text)
    assert rate is not None
    assert 1.0 < float(rate[1]) <= 3000 / 0.11 / 1000
    assert re.search(r"<\d\d:\d\d", text)  # time left


def test_a_bar_of_other_rows_shows_only_its_rate():
    pytest.importorskip("tqdm")
    with contextlib.redirect_stderr(io.StringIO()) as shown:
        bar = progress.Bar().open(0, 2, ["loss"])
        bar.write(np.arange(2), {"loss": np.ones((2, 1))})
        bar.close()
    assert "2/2" in shown.getvalue()
    assert "return" not in shown.getvalue()


@pytest.mark.usefixtures("standard_promotion")
def test_training_writes_its_metrics(tmp_path):
    path = tmp_path / "run.csv"

    def train(key):
        return ld.train(
            jnp.zeros(2),
            key,
            ld.shared_softmax,
            ld.short_corridor(),
            estimator=ld.score_function(),
            optimizer=ld.maximize(optax.sgd(0.1)),
            num_updates=6,
            num_trajectories=2,
            horizon=3,
            writers=(ld.CSVWriter(path),),
        )

    metrics = jax.vmap(train)(jax.random.split(jax.random.key(0), 2)).metrics
    jax.effects_barrier()
    table = np.genfromtxt(path, delimiter=",", names=True)
    names = [name for name in metrics._fields if name != "evaluation"]
    assert table.dtype.names == ("update", "seed", *names)
    for name in names:
        np.testing.assert_array_equal(table[name], np.asarray(getattr(metrics, name), float).T.ravel())
