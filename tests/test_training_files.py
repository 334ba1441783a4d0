"""Where a run writes: named before it starts if it cannot be, kept from other runs, and written again where it is gone."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from logderiv.reporting import CSVWriter, TensorBoardWriter
from logderiv.training import Checkpoints
from logderiv.training.files import check_place, held

ROWS = {"mean_return": np.arange(6.0)[:, None]}
NONE = {"mean_return": np.zeros((0, 1))}
HEADER = "update,seed,mean_return\n"
WHOLE = HEADER + "".join(f"{i},0,{float(i)}\n" for i in range(6))


def write(take, start, stop):
    take(np.arange(start, stop), {"mean_return": ROWS["mean_return"][start:stop]})


def report(reporter):
    with reporter.open(NONE, 6) as take:
        write(take, 0, 6)


def train(**options):
    how: dict[str, Any] = {"estimator": ld.ScoreFunction(), "optimizer": optax.sgd(0.1), "num_updates": 2} | options
    where = ld.shared_softmax, ld.environments.short_corridor(), ld.Episodes(2, horizon=3)
    return ld.train(jnp.zeros(2), jax.random.key(0), *where, **how)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder and the home, with one of each kind in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("folder", "home"):
        Path(name).mkdir()
    Path("file").touch()
    os.mkfifo("pipe")
    Path("link").symlink_to("file")
    Path("dangling").symlink_to("later/file")
    return tmp_path


def test_what_is_no_plain_file_or_no_folder_is_named(folder):
    """Instead of: looking for the end of a line of /dev/full for ever, waiting for the other end of a pipe, an error of orbax's thread."""
    files = {"/dev/full": "a device", "/dev/null": "a device", "folder": "a folder", "pipe": "a device, pipe or socket"}
    for path, kind in files.items():
        with pytest.raises(ValueError, match=rf"CSVWriter.path: expected a plain file at .*{path}, received {kind}"):
            CSVWriter(path).open(NONE, 6)
    folders: tuple[tuple[Any, str, Any], ...] = (
        (Checkpoints, "Checkpoints.directory", lambda path: Checkpoints(path, 1).save(1, {"a": np.ones(1)})),
        (Checkpoints, "Checkpoints.directory", lambda path: Checkpoints(path, 1).restore(lambda _: {})),
        (TensorBoardWriter, "TensorBoardWriter.directory", lambda path: TensorBoardWriter(path).open(NONE, 6)),
        (CSVWriter, "CSVWriter.path", lambda path: CSVWriter(f"{path}/run.csv").open(NONE, 6)),
    )
    pytest.importorskip("orbax.checkpoint")
    pytest.importorskip("tensorboardX")
    for _, name, use in folders:
        for path, at in (("file", "file"), ("link", "file"), ("file/deeper", "file"), ("/dev/full", "full")):
            with pytest.raises(ValueError, match=rf"{name}: expected a folder at .*{at}, received a"):
                use(path)
    check_place("x", "later/run", folder=True)
    assert not Path("later").exists()


def test_a_file_without_permission_is_named(folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "folder" and not mode & os.X_OK)
    for reporter in (CSVWriter("folder/run.csv"), CSVWriter("file/../run.csv")):
        with pytest.raises(
            ValueError, match=r"expected a folder that can be written at .*, received one without permis"
        ):
            reporter.open(NONE, 6)


def test_the_home_folder_is_where_it_says(folder):
    report(CSVWriter("~/runs/a.csv"))
    report(CSVWriter(Path("~") / "b.csv"))
    pytest.importorskip("tensorboardX")
    report(TensorBoardWriter("~/board"))
    pytest.importorskip("orbax.checkpoint")
    Checkpoints("~/kept", 1).save(1, {"a": np.ones(1)})
    assert sorted(os.listdir("home")) == ["b.csv", "board", "kept", "runs"]
    assert not Path("~").exists()
    code = "from benchmarks import RESULTS; print(RESULTS)"
    where = os.environ | {"LOGDERIV_RESULTS": "~/results", "PYTHONPATH": str(Path(ld.__file__).parent.parent)}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=where, check=True)
    assert shown.stdout.strip() == str(folder / "home" / "results")
    with pytest.raises(ValueError, match=r"no home folder for ~nobody-at-all/a\.csv"):
        CSVWriter("~nobody-at-all/a.csv")
    makers: Any = CSVWriter, TensorBoardWriter, lambda path: Checkpoints(path, 1)
    for make in makers:
        with pytest.raises(TypeError, match="expected a path, received int"):
            make(3)


def test_two_names_of_one_file_are_one_reporter(folder):
    os.link("file", "hard")
    pytest.importorskip("tensorboardX")
    names = ("./file", "file"), ("file", "link"), ("file", "hard"), ("later/file", "dangling"), ("~/x", "home/x")
    twice: list[list[Any]] = [[CSVWriter(a), CSVWriter(b)] for a, b in names]
    twice += [[TensorBoardWriter("board"), TensorBoardWriter(folder / "board", every=2)]]
    for reporters in twice:
        with pytest.raises(ValueError, match="reporters: expected different ones"):
            train(reporters=reporters)
    assert not Path("later").exists()


def test_a_second_run_in_one_place_is_told_so_and_a_third_one_is_not(folder):
    """Whoever is second, in this process: under another name, while the first one writes."""
    pytest.importorskip("orbax.checkpoint")
    pytest.importorskip("tensorboardX")
    os.link("file", "hard")
    places: tuple[tuple[Any, Any], ...] = (
        (CSVWriter("file"), CSVWriter("hard")),
        (TensorBoardWriter("board"), TensorBoardWriter("./board")),
    )
    for first, second in places:
        with first.open(NONE, 6) as take:
            write(take, 0, 3)
            with pytest.raises(ValueError, match="is in use by another run"):
                second.open(NONE, 6)
            write(take, 3, 6)
        report(second)
    assert Path("file").read_text() == WHOLE


@pytest.mark.usefixtures("standard_promotion")
def test_a_second_run_in_one_folder_of_checkpoints_is_told_so(folder):
    pytest.importorskip("orbax.checkpoint")

    class Second:
        """A reporter that is another run in the same folder."""

        def open(self, past, total):
            return contextlib.nullcontext(self.write)

        def write(self, updates, rows):
            with pytest.raises(ValueError, match=r"Checkpoints\.directory: .*kept is in use by another run"):
                Checkpoints(folder / "kept", every=1).held().__enter__()  # as train does

    train(checkpoints=Checkpoints("kept", every=1), reporters=[Second(), CSVWriter("kept/run.csv")])
    assert sorted(os.listdir("kept")) == ["1", "2", "run.csv"]


HOLDER = """
import importlib.util, os, sys, time
spec = importlib.util.spec_from_file_location("files", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
with files.held("x", sys.argv[2]):
    if os.fork() == 0:  # a worker that outlives the run that it belongs to
        print(flush=True)
    time.sleep(60)
"""


def test_a_lock_ends_with_the_process_that_was_killed(folder):
    source = sys.modules[held.__module__].__file__
    command = [sys.executable, "-W", "ignore", "-c", HOLDER, str(source), "folder"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, process_group=0) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(ValueError, match="is in use by another run"), held("x", "folder"):
            pass
        process.kill()
        process.wait()
        with held("x", "folder"):
            pass
        os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def disk_of(size):
    """No file can be larger than this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_rows_that_could_not_be_written_are_written_once_when_they_can_be(folder):
    """In the middle of the first rows; beside it what a file with a buffer does."""
    with CSVWriter("run.csv").open(NONE, 6) as take, open("twin.csv", "w") as twin:
        twin.write(HEADER)
        lines = WHOLE.splitlines(keepends=True)[1:]
        for last in (False, True):
            with contextlib.ExitStack() as stack:
                if not last:
                    stack.enter_context(disk_of(len(HEADER) + 5))
                    stack.enter_context(pytest.raises(OSError, match="File too large"))
                write(take, 0, 3)
        assert Path("run.csv").read_text() == HEADER + "".join(lines[:3])
        for last in (False, True):
            with contextlib.suppress(OSError), disk_of(1 << 20 if last else len(HEADER) + 5):
                twin.writelines(lines[:3])
                twin.flush()
        write(take, 3, 6)
    assert Path("run.csv").read_text() == WHOLE
    assert Path("twin.csv").read_text().count("\n0,0,0.0") == 2


def test_rows_that_could_not_be_written_at_all_leave_whole_ones(folder):
    with CSVWriter("run.csv").open(NONE, 6) as take:
        write(take, 0, 2)
        with disk_of(len(HEADER) + 20), pytest.raises(OSError, match="File too large"):
            write(take, 2, 6)
        assert Path("run.csv").stat().st_size == len(HEADER) + 20
    assert Path("run.csv").read_text() == WHOLE[: WHOLE.index("2,0")]


LOSSES = {
    "deleted": Path.unlink,
    "moved": lambda path: path.rename(path.with_suffix(".old")),
    "its folder deleted": lambda path: shutil.rmtree(path.parent),
    "replaced by its copy": lambda path: shutil.copy(path, "copy") and os.replace("copy", path),
    "replaced by an empty one": lambda path: path.unlink() or path.touch(),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_file_that_is_gone_is_written_again_with_all_its_rows(loss, folder):
    path = folder / "runs" / "run.csv"
    with CSVWriter(path).open({"mean_return": ROWS["mean_return"][:1]}, 6) as take:
        write(take, 1, 3)
        LOSSES[loss](path)
        write(take, 3, 4)
        write(take, 4, 6)
    assert path.read_text() == WHOLE


def test_a_file_that_was_emptied_has_the_later_rows_and_one_of_something_else_is_left_alone(folder):
    with CSVWriter("run.csv").open(NONE, 6) as take:
        write(take, 0, 3)
        os.truncate("run.csv", 0)
        write(take, 3, 6)
        assert Path("run.csv").read_text() == HEADER + WHOLE[WHOLE.index("3,0") :]
        Path("run.csv").unlink()
        Path("run.csv").write_text("notes\n")
        with pytest.raises(ValueError, match=r"expected the columns .*, received notes"):
            write(take, 0, 1)
    assert Path("run.csv").read_text() == "notes\n"


def test_event_files_that_are_gone_are_begun_again(folder):
    pytest.importorskip("tensorboardX")
    with TensorBoardWriter("board").open(NONE, 6) as take:
        write(take, 0, 3)
        shutil.rmtree("board")
        write(take, 3, 6)
    (path,) = Path("board").iterdir()
    from tests.test_training_reporting import events

    assert [event.step for event in events(path) if event.HasField("summary")] == [3, 4, 5]


def test_an_empty_payload_is_saved(folder):
    pytest.importorskip("orbax.checkpoint")
    for name, payload in (("none", {}), ("empty", {"a": jnp.zeros((0, 2)), "b": None})):
        run = Checkpoints(name, 1)
        run.save(1, payload)
        found: Any = run.restore(lambda step, payload=payload: payload)
        assert found[0] == 1
        assert jax.tree.structure(found[1]) == jax.tree.structure(payload)
        assert [x.shape for x in jax.tree.leaves(found[1])] == [x.shape for x in jax.tree.leaves(payload)]
