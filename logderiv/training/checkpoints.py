"""Checkpoints: a run that was killed goes on from its newest complete checkpoint.

Orbax (the extra `checkpoints`) writes each checkpoint under another name and renames it when it is complete, so that a kill
at any moment leaves it whole or not there. Orbax does not notice when numbers change on the disk; a SHA-256 of them all,
which is kept beside them and checked on the way back, does.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import itertools
import json
import os
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from logderiv._core import check
from logderiv._core.fingerprint import differ, readable, static_text
from logderiv._core.optional import optional
from logderiv._core.tables import named_leaves
from logderiv.training.files import check_place, expanded, held

_DISAGREE = "checkpoints: the processes do not find the same newest checkpoint."


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Where checkpoints of one run go, how often one is saved, and how many are kept.

    `train(..., checkpoints=Checkpoints(...))` saves every `every` updates and at the end, and goes on from the newest good
    checkpoint when the same call is made again. `save` and `restore` serve loops of your own.

    Several processes under `jax.distributed` call `save` and `restore` together; the directory is one that all of them see.
    Every array is gathered on each host for its digest, one at a time, so the largest must fit there.

    What `train` compares, so that no run goes on as another one: policy, environment, batch, estimator, optimizer, the other
    settings and the key. Of these it sees settings and attributes of objects, what functions close over, their defaults, and the
    code of functions and classes that are not from an installed package: constants and names, nested functions too, and the
    bytecode where the version of Python is the same. It does not see values of globals, nor files: name a `version` of those.

    Attributes:
        directory: Of this run alone: while one `train` writes to it, another is refused. Made where it does not exist; `~` is the
            home folder.
        every: Updates between two checkpoints. One takes about 20 ms, 2 ms a leaf and 4 ms a megabyte, while nothing else runs:
            choose so many that it comes once a minute or less.
        keep: How many are kept: the newest. An old one is deleted only after a newer one is complete.
        version: Of what cannot be seen: a text or a number that is another one whenever globals or files are.
        may_differ: Names of settings that may be others than those that a checkpoint was saved with: `("optimizer",)` extends a
            run whose schedule depends on `num_updates`. It goes on with the new ones.

    Raises:
        TypeError: `directory` is no path.
        ValueError: `every` or `keep` below 1; there is no such home folder.
    """

    directory: str | os.PathLike[str]
    every: int
    keep: int = 3
    version: Any = None
    may_differ: Collection[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", expanded("Checkpoints.directory", self.directory))
        check.whole(every=self.every, keep=self.keep)
        if isinstance(self.may_differ, str):
            raise TypeError(
                f"may_differ: expected names in a tuple, received {self.may_differ!r}; write ({self.may_differ!r},)."
            )

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep the directory to this run, as `train` does: until the end of the block, or of the process.

        Yields:
            Nothing.

        Raises:
            ValueError: Another run holds it; there is something else than a folder, or one that cannot be written.
        """
        if jax.process_index() or "://" in str(self.directory):
            yield
            return
        check_place("Checkpoints.directory", self.directory, folder=True)
        Path(self.directory).mkdir(parents=True, exist_ok=True)
        with held("Checkpoints.directory", self.directory):
            yield

    def save(self, step: int, payload: Any, run: Mapping[str, str] | None = None) -> None:
        """Write a checkpoint; when this returns, it is complete. A kill before that leaves the earlier ones as they were.

        Args:
            step: Its number, larger than those that are there.
            payload: Pytree of arrays (JAX or NumPy, sharded or not), typed keys and Python numbers.
            run: What `restore` must be given again: names and texts, which say what run it is.

        Raises:
            ValueError: `step` is no whole number from 0.
            TypeError: A leaf is something else; the error names it.
            ValueError: The directory is no folder, or cannot be written.
            ImportError: Orbax is not installed.
        """
        step = check.whole(at_least=0, step=step)
        ocp = require()
        run = self._run(run, payload)
        arrays = {name: _storable(leaf) for name, leaf in named_leaves(payload, "payload")}
        leaves = {name: [list(x.shape), str(x.dtype)] for name, x in arrays.items()}
        note: dict[str, Any] = {"run": run, "leaves": leaves}
        note["sha256"] = _sha256(note, arrays.values())
        full = {name: array for name, array in arrays.items() if array.size}  # orbax refuses arrays without elements
        items = {"arrays": ocp.args.StandardSave(full)} if full else {}  # and it refuses to save no array at all
        args = ocp.args.Composite(note=ocp.args.JsonSave(note), **items)
        with self._manager(alone=False) as manager:
            manager.save(step, args=args, force=True)

    def restore(self, like: Callable[[int], Any], run: Mapping[str, str] | None = None) -> tuple[int, Any] | None:
        """The newest good checkpoint.

        A damaged one (a file missing, cut or changed, an empty directory) is named in a warning and passed over; once a good
        one is found, those are renamed to `<step>.damaged`, out of the way of the run that goes on.

        Args:
            like: From a step to the payload that such a checkpoint should have: its structure, shapes and dtypes are checked;
                its leaves say what comes back (a JAX array with the same sharding, a NumPy array, a number) and may
                be `jax.ShapeDtypeStruct`. Values are not used.
            run: As given to `save`.

        Returns:
            `(step, payload)`, bitwise what was saved; `None` where there is no checkpoint yet.

        Raises:
            ValueError: The checkpoint is of another model or another run; the error names the leaf or the setting. The directory is
                no folder; `may_differ` names no setting.
            RuntimeError: There are checkpoints, all of them damaged.
            ImportError: Orbax is not installed.
        """
        require()
        damaged = []
        with self._manager(alone=True) as manager:  # of a damaged file all processes then learn alike
            for step in sorted(manager.all_steps(), reverse=True):
                where = manager.directory / str(step)
                try:
                    note, arrays = _read(manager, step)
                except Exception as error:  # whatever orbax, JSON or the file system makes of a damaged file
                    why = _cut(f"{type(error).__name__}: {error}", 0)
                    damaged.append((where, why))
                    warnings.warn(f"checkpoint {where} is damaged and passed over: {why}.", stacklevel=2)
                    continue
                expected = like(step)
                _check_same(where, note["run"], self._run(run, expected), self.may_differ)
                multihost_utils.assert_equal(np.int32(step), _DISAGREE)
                _move_aside([path for path, _ in damaged])
                placed = [_like(leaf, arrays[name]) for name, leaf in named_leaves(expected, "payload")]
                return step, jax.tree.unflatten(jax.tree.structure(expected), placed)
        multihost_utils.assert_equal(np.int32(-1), _DISAGREE)
        if damaged:
            listed = "\n".join(f"  {path}: {error}" for path, error in damaged)
            raise RuntimeError(
                f"checkpoints: none of those in {self.directory} can be used:\n{listed}\nRestore one of them from a copy, "
                "or start anew in another directory."
            )
        return None

    def _run(self, run: Mapping[str, str] | None, payload: Any) -> dict[str, str]:
        """All that must be the same, in words."""
        version = {} if self.version is None else {"version": static_text(self.version)}
        leaves = {f"leaf {name}": _kind(name, leaf) for name, leaf in named_leaves(payload, "payload")}
        return {**(run or {}), **version, **leaves}

    def _manager(self, *, alone: bool) -> Any:
        """Orbax's manager, of all processes together or of this one alone."""
        check_place("Checkpoints.directory", self.directory, folder=True, write=not alone)
        ocp, epath, here = require(), importlib.import_module("etils.epath"), jax.process_index()
        some = {"primary_host": here, "active_processes": {here}, "barrier_sync_key_prefix": f"process_{here}"}
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(self.keep),
            enable_async_checkpointing=False,
            create=not alone,
            cleanup_tmp_directories=not alone,
            multiprocessing_options=ocp.options.MultiprocessingOptions(**(some if alone else {})),
        )
        return ocp.CheckpointManager(epath.Path(self.directory).absolute(), options=options)


def require() -> Any:
    """Orbax's module.

    Raises:
        ImportError: It is not installed.
    """
    return optional("orbax.checkpoint", "checkpoints need orbax-checkpoint", "checkpoints")


def _read(manager: Any, step: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A checkpoint's note and arrays, with their digest checked."""
    ocp, arrays = require(), {}
    note = manager.restore(step, args=ocp.args.Composite(note=ocp.args.JsonRestore()))["note"]
    digest = note.pop("sha256")
    # One at a time. Orbax would read all at once, but when one fails it leaves the others' errors to be printed by Python.
    for name, (shape, dtype) in note["leaves"].items():
        item = {name: np.empty(shape, dtype)}
        how = ocp.args.PyTreeRestore(item, ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True)
        full = item[name].size > 0
        arrays |= manager.restore(step, args=ocp.args.Composite(arrays=how))["arrays"] if full else item
    if digest != _sha256(note, arrays.values()):
        raise ValueError("its numbers have changed since they were saved")
    return note, arrays


def _check_same(where: Any, found: Mapping[str, str], expected: Mapping[str, str], may_differ: Collection[str]) -> None:
    if strangers := set(may_differ) - {*expected, *found}:
        settings = [name for name in expected if not name.startswith("leaf ")]
        raise ValueError(f"may_differ: expected some of {settings}, received {sorted(strangers)}.")
    for name in [*expected, *found]:
        there, here = found.get(name, "nothing"), expected.get(name, "nothing")
        if differ(there, here) and (name not in may_differ or name.startswith("leaf ")):
            there, here = readable(there, here)
            shared = next(i for i, (a, b) in enumerate(itertools.zip_longest(there, here)) if a != b)
            start = max(0, shared - 60)
            permission = "" if name.startswith("leaf ") else f", or permit it: Checkpoints(..., may_differ=({name!r},))"
            raise ValueError(
                f"checkpoint {where} is of another run: {name}: expected {_cut(here, start)}, found {_cut(there, start)}. "
                f"Give this run a directory of its own{permission}."
            )


def _cut(text: str, start: int, length: int = 200) -> str:
    end = start + length
    return ("... " if start else "") + text[start:end] + (" ..." if end < len(text) else "")


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _kind(name: str, leaf: Any) -> str:
    """What a leaf is, as far as a checkpoint has to agree: `float32[3,4]`, `key<fry>[]`, `int`."""
    if isinstance(leaf, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)) and leaf.dtype != object:
        return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
    if isinstance(leaf, (bool, int, float, complex)):
        return type(leaf).__name__
    raise TypeError(f"payload: leaf {name}: expected an array or a Python number, received {type(leaf).__name__}.")


def _storable(leaf: Any) -> Any:
    """A leaf as orbax takes it: an array of numbers."""
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def on_host(array: Any) -> np.ndarray:
    """All of an array, wherever its parts are.

    Args:
        array: A JAX array, sharded or not, or a NumPy one.

    Returns:
        The same numbers as a NumPy array, in every process.
    """
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def _sha256(note: Mapping[str, Any], arrays: Iterable[Any]) -> str:
    digest = hashlib.sha256(json.dumps(note, sort_keys=True).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(on_host(array)).tobytes())
    return digest.hexdigest()


def _like(leaf: Any, array: np.ndarray) -> Any:
    """The array as the leaf is kept."""
    if _is_key(leaf):
        data = jax.random.key_data(leaf) if isinstance(leaf, jax.Array) else jax.eval_shape(jax.random.key_data, leaf)
        return jax.random.wrap_key_data(_like(data, array), impl=jax.random.key_impl(jnp.empty((), leaf.dtype)))
    if isinstance(leaf, np.ndarray):
        return array
    if not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
        return type(leaf)(array[()])
    if leaf.sharding is None or not getattr(leaf, "committed", True):
        return jnp.asarray(array)
    return jax.make_array_from_callback(array.shape, leaf.sharding, lambda index: array[index])


def _move_aside(paths: Iterable[Any]) -> None:
    for path in paths if jax.process_index() == 0 else ():
        aside = path.parent / f"{path.name}.damaged"
        if aside.exists():
            aside.rmtree()
        path.rename(aside)
    multihost_utils.sync_global_devices("logderiv: damaged checkpoints moved aside")
