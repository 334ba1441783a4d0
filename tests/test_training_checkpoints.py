"""Checkpoints: bitwise back, complete or not there after any kill, damage and strangers refused by name."""

import dataclasses
import functools
import itertools
import json
import operator
import shutil
import socket
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from logderiv._core.fingerprint import static_text
from logderiv.training import checkpoints
from logderiv.training.checkpoints import Checkpoints

pytest.importorskip("orbax.checkpoint")

ROOT = Path(__file__).resolve().parent.parent
RUN = {"estimator": "a"}


def payload(step):
    """A small one; the numbers do not compress, so that they are the largest file of a checkpoint."""
    numbers = np.random.default_rng(step).normal(size=1000)
    return {"params": (jnp.array(numbers), jnp.int32(step)), "key": jax.random.key(step), "metrics": np.ones(step)}


def many_kinds(step):
    """Every kind of leaf; the values depend on the step."""
    return {
        "params": ({"w": jnp.arange(12.0).reshape(3, 4) / (3 + step)}, jnp.ones(2, jnp.bfloat16)),
        "float32": jnp.float32(0.1) * step,
        "strange": jnp.array([jnp.nan, -0.0, jnp.inf, 5e-324]),
        "count": jnp.int32(step),
        "flag": jnp.array(True),
        "key": jax.random.key(step),
        "keys": jax.random.split(jax.random.key(step, impl="rbg"), 3),
        "raw key": jax.random.PRNGKey(step),
        "empty": jnp.zeros((0, 3)),
        "nothing": None,
        "host": np.arange(40, dtype=np.int16) + step,
        "metrics": np.linspace(0, 1, step),
        "complex": 1j * np.ones(2),
        "number": np.float32(step),
        "python": (step, 0.1 * step, step > 1),
    }


def bits(leaf):
    """What has to come back: the type, and each bit of the values."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return "key", str(jax.random.key_impl(leaf)), np.asarray(jax.random.key_data(leaf)).tobytes()
    kind = jax.Array if isinstance(leaf, jax.Array) else type(leaf)
    return kind, str(getattr(leaf, "dtype", "")), np.shape(leaf), np.asarray(leaf).tobytes()


def same(a, b):
    leaves = (list(map(bits, jax.tree.leaves(tree))) for tree in (a, b))
    return jax.tree.structure(a) == jax.tree.structure(b) and operator.eq(*leaves)


def flip(path):
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def data_file(directory, step):
    """The file that holds the arrays of a checkpoint."""
    return max((directory / str(step) / "arrays").glob("ocdbt.process_*/d/*"), key=lambda path: path.stat().st_size)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with the checkpoints 1 and 2."""
    directory = tmp_path_factory.mktemp("saved")
    for step in (1, 2):
        Checkpoints(directory, every=1).save(step, payload(step), RUN)
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def restore(directory, like=payload, run=RUN):
    found = Checkpoints(directory, every=1).restore(like, run)
    assert found is not None
    return found


def test_every_leaf_comes_back_bitwise(tmp_path):
    saved = many_kinds(2)
    Checkpoints(tmp_path, every=1).save(2, saved, RUN)
    step, found = restore(tmp_path, many_kinds)
    assert step == 2
    assert same(found, saved)
    others = {"strange": jnp.array([jnp.nan, 0.0, jnp.inf, 5e-324]), "host": saved["host"].astype(np.int32)}
    assert not any(same(found, saved | {name: other}) for name, other in others.items())


def test_a_structure_without_values_is_enough(saved):
    def shape(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if isinstance(leaf, jax.Array) else leaf

    assert same(restore(saved, lambda step: jax.tree.map(shape, payload(step)))[1], payload(2))


def test_no_checkpoint_is_no_error(tmp_path):
    """Neither is what a save that was killed leaves behind."""
    run = Checkpoints(tmp_path / "new", every=1)
    assert run.restore(payload) is None
    (tmp_path / "new" / "1.orbax-checkpoint-tmp").mkdir(parents=True)
    assert run.restore(payload) is None
    run.save(1, payload(1))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["1"]


def test_the_newest_are_kept(tmp_path):
    for step in (1, 2, 5, 9):
        Checkpoints(tmp_path, every=1, keep=2).save(step, {"step": step})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5", "9"]


DAMAGES = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "changed": flip,
}


def test_each_damage_is_named_and_the_one_before_is_used(copy, saved):
    """Every file of a checkpoint gone, empty, cut and changed, and whole directories: what is restored is right, and never silently the older one."""
    refused = set()

    def damaged(name, file, damage):
        damage(copy / file)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step, found = restore(copy)
        assert same(found, payload(step)), (name, file)
        named = [str(w.message) for w in caught if f"{copy / '2'} is damaged and passed over: " in str(w.message)]
        assert len(named) == (step == 1) == (copy / "2.damaged").is_dir(), (name, file)
        if step == 1:
            refused.add((name, str(file)))
            shutil.rmtree(copy / "2.damaged")
        shutil.rmtree(copy / "2", ignore_errors=True)
        shutil.copytree(saved / "2", copy / "2")

    for file in (path.relative_to(copy) for path in sorted((copy / "2").rglob("*")) if path.is_file()):
        for name, damage in DAMAGES.items():
            damaged(name, file, damage)
    for directory in ("2/note", "2/arrays"):
        damaged("no directory", directory, shutil.rmtree)
    damaged("empty directory", "2", lambda path: (shutil.rmtree(path), path.mkdir()))
    numbers = str(data_file(copy, 2).relative_to(copy))
    assert {(name, file) for name in DAMAGES for file in (numbers, "2/note/metadata")} <= refused
    assert {("no directory", "2/note"), ("no directory", "2/arrays"), ("empty directory", "2")} <= refused


def test_orbax_alone_does_not_see_a_changed_number_and_the_damaged_one_stays_to_be_looked_at(copy):
    """The wrong twin: without the digests the changed array is simply read. A run goes on after the damage."""
    flip(data_file(copy, 2))
    with Checkpoints(copy, every=1)._manager(alone=True) as manager:
        args = checkpoints.require().args
        found = manager.restore(2, args=args.Composite(arrays=args.StandardRestore()))["arrays"]
    expected = {
        name: np.asarray(checkpoints._storable(leaf)) for name, leaf in checkpoints.named_leaves(payload(2), "payload")
    }
    assert any(bits(np.asarray(found[name])) != bits(expected[name]) for name in found)
    with pytest.warns(UserWarning, match="have changed since they were saved"):
        restore(copy)
    Checkpoints(copy, every=1).save(2, payload(2), RUN)
    assert restore(copy)[0] == 2
    assert sorted(path.name for path in copy.iterdir()) == ["1", "2", "2.damaged"]


def test_nothing_left_is_an_error_and_not_a_new_start(copy):
    for step in (1, 2):
        flip(data_file(copy, step))
    message = rf"(?s)none of those in {copy} .*{copy / '2'}: .*{copy / '1'}: "
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(RuntimeError, match=message):
        restore(copy)
    assert sorted(path.name for path in copy.iterdir()) == ["1", "2"]


def test_another_model_or_run_is_an_error_that_names_the_leaf_or_setting(saved):
    """No damage, and no fallback: an older one would not fit either."""
    for change, message in (
        ({"params": (np.zeros(3), np.int32(0))}, r"\['params'\]\[0\]: expected float64\[3\], found float64\[1000\]"),
        ({"params": (np.zeros(1000), 0)}, r"\['params'\]\[1\]: expected int, found int32\[\]"),
        ({"params": (np.zeros(1000),)}, r"\['params'\]\[1\]: expected nothing, found int32\[\]"),
        ({"key": np.zeros(2, np.uint32)}, r"\['key'\]: expected uint32\[2\], found key<fry>\[\]"),
        ({"more": 1}, r"\['more'\]: expected int, found nothing"),
    ):
        with pytest.raises(ValueError, match=r"leaf " + message):
            restore(saved, lambda step, change=change: payload(step) | change)
    with pytest.raises(ValueError, match="of another run: estimator: expected b, found a"):
        restore(saved, run={"estimator": "b"})


def test_settings_in_words():
    def texts():
        rate, to_go = optax.linear_schedule(1e-2, 1e-3, 100), ld.advantages.ToGo(ld.baselines.LeaveOneOut())
        settings = (
            *(optax.adam(rate) for rate in (1e-2, 1e-3)),
            *(optax.chain(optax.clip_by_global_norm(norm), optax.adam(rate)) for norm in (1.0, 2.0)),
            ld.ScoreFunction(to_go),
            ld.ScoreFunction(to_go, discount=0.9),
            *(functools.partial(jnp.clip, min=least) for least in (jnp.zeros(2), jnp.ones(2))),
            jax.jit(lambda x, power=2: x**power),
            object(),
            *(jax.lax.Precision.HIGH, jax.lax.Precision.HIGHEST),
            *(frozenset("ab"), frozenset("bc")),
            jax.tree_util.Partial(jnp.add, 1),
            type("Pair", (tuple,), {})((1, 2)),
        )
        return [static_text(x) for x in settings]

    first = texts()
    assert first == texts()
    assert len(set(first)) == len(first) == 16
    assert not any(" at 0x" in text for text in first)
    assert "discount=0.9" in first[5]


def kills(directory, writer, stride):
    command = [sys.executable, "-m", "tests.kills", writer, str(directory), str(stride)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_kill_loses_nothing(tmp_path):
    """Before any operation on the file system (a stride of 3 of them): the last step that was saved is there, or the next one."""
    found = kills(tmp_path / "run", "orbax", 3)
    assert len(found) > 6
    gains = [after - before for before, after in itertools.pairwise(found)]
    assert set(gains) == {1, 2}, "no kill after the rename, or a loss"
    assert kills(tmp_path / "twin", "in-place", 1)[-1] == 0


TWO_PROCESSES = """
import sys, warnings
import jax, numpy as np
from jax.experimental.multihost_utils import sync_global_devices
from logderiv.training.checkpoints import Checkpoints
from tests.test_training_checkpoints import data_file, flip, sharded
from pathlib import Path

process, port, directory = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{port}", 2, process)
run = Checkpoints(directory, every=1)
assert jax.device_count() == 4

def check(step):
    found, tree = run.restore(sharded)
    assert found == step, found
    for name, leaf in sharded(step).items():
        assert tree[name].sharding == leaf.sharding, name
        for a, b in zip(tree[name].addressable_shards, leaf.addressable_shards, strict=True):
            a, b = (jax.random.key_data(x.data) if name == "keys" else x.data for x in (a, b))
            assert np.array_equal(a, b), name

assert run.restore(sharded) is None
for step in (1, 2, 3):
    run.save(step, sharded(step))
check(3)
sync_global_devices("read")
if process == 0:
    flip(data_file(directory, 3))
sync_global_devices("damaged")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    check(2)
assert any("3 is damaged" in str(w.message) for w in caught)
"""


def sharded(step):
    """A batch over all devices, parameters everywhere, keys as the batch."""
    mesh = jax.make_mesh((jax.device_count(),), ("n",), axis_types=(jax.sharding.AxisType.Auto,))

    def place(array, *axes):
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(step), 8)))
    return {
        "batch": place(np.random.default_rng(step).normal(size=(8, 500)).astype(np.float32), "n"),
        "params": place(np.ones((3, 2), np.float32) / (1 + step)),
        "keys": jax.random.wrap_key_data(place(keys, "n")),
    }


def test_two_processes_write_one_checkpoint_that_any_other_number_reads(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", TWO_PROCESSES]
    with ThreadPoolExecutor() as both:
        run = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
        done = list(both.map(lambda process: run([*command, process, port, str(tmp_path)]), "01"))
    assert [process.returncode for process in done] == [0, 0], "".join(process.stderr for process in done)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "3.damaged"]
    step, found = restore(tmp_path, sharded, run=None)
    assert step == 2
    assert same(found, sharded(2))


def test_bad_input(tmp_path, monkeypatch):
    wrongs: Any = ({"every": 0}, "0"), ({"every": 1, "keep": 0}, "0"), ({"every": 2.5}, r"2\.5")
    for wrong, received in wrongs:
        with pytest.raises(ValueError, match=f"expected a whole number >= 1, received {received}"):
            Checkpoints(tmp_path, **wrong)
    with pytest.raises(TypeError, match=r"leaf \['name'\]: expected an array or a Python number, received str"):
        Checkpoints(tmp_path, every=1).save(1, {"name": "x"})
    assert dataclasses.replace(Checkpoints(tmp_path, every=1), keep=3) == Checkpoints(tmp_path, every=1)
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r"pip install 'logderiv\[checkpoints\]'"):
        restore(tmp_path)
