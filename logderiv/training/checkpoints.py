"""Checkpoints: a run that was killed goes on from its newest complete checkpoint.

Orbax (the extra `checkpoints`) writes each checkpoint under another name and renames it when it is complete, so that a kill
at any moment leaves it whole or not there. Orbax does not notice when numbers change on the disk; the SHA-256 of every leaf,
which is kept beside them and checked on the way back, does.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils

from logderiv._core.arrays import check_whole


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Where checkpoints of one run go, how often one is saved, and how many are kept.

    A static object; `train(..., checkpoints=Checkpoints(...))` saves every `every` updates, and goes on from the newest good
    checkpoint when the same call is made again. `save` and `restore` serve loops of your own.

    Several processes under `jax.distributed` call `save` and `restore` together; the directory is one that all of them see.
    Every array is gathered on each host for its digest, one at a time, so the largest must fit there.

    Attributes:
        directory: Of this run alone. Made where it does not exist.
        every: Updates between two checkpoints. One takes about 20 ms, 2 ms a leaf and 4 ms a megabyte, while nothing else runs:
            choose so many that it comes once a minute or less.
        keep: How many are kept: the newest. An old one is deleted only after a newer one is complete.

    Raises:
        ValueError: `every` or `keep` below 1.
    """

    directory: str | os.PathLike[str]
    every: int
    keep: int = 3

    def __post_init__(self) -> None:
        check_whole(every=self.every, keep=self.keep)

    def save(self, step: int, payload: Any, run: Mapping[str, str] | None = None) -> None:
        """Write a checkpoint; when this returns, it is complete. A kill before that leaves the earlier ones as they were.

        Args:
            step: Its number, larger than those that are there.
            payload: Pytree of arrays (JAX or NumPy, sharded or not), typed keys and Python numbers.
            run: What `restore` must be given again: names and texts, such as those of `logderiv._static_text`.

        Raises:
            TypeError: A leaf is something else; the error names it.
            ImportError: Orbax is not installed.
        """
        ocp = require()
        arrays, leaves = {}, {}
        for name, leaf in _named_leaves(payload):
            kind, array = _kind(name, leaf), _storable(leaf)
            arrays[name] = array
            leaves[name] = {
                "kind": kind,
                "shape": list(array.shape),
                "dtype": str(array.dtype),
                "sha256": _sha256(_on_host(array)),
            }
        note = {"run": dict(run or {}), "leaves": leaves}
        note = {"note": note, "sha256": _sha256(json.dumps(note, sort_keys=True).encode())}
        full = {name: array for name, array in arrays.items() if array.size}  # orbax refuses arrays without elements
        args = ocp.args.Composite(arrays=ocp.args.StandardSave(full), note=ocp.args.JsonSave(note))
        with self._manager() as manager:
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
            ValueError: The checkpoint is of another model or another run; the error names the leaf or the setting.
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
                except _DamagedError as error:
                    damaged.append((where, error))
                    warnings.warn(f"checkpoint {where} is damaged and passed over: {error}.", stacklevel=2)
                    continue
                expected = like(step)
                _check_same_run(where, note["run"], run or {})
                _check_same_model(where, note["leaves"], expected)
                _agree(step)
                _move_aside([path for path, _ in damaged])
                return step, _place(expected, arrays)
        _agree(-1)
        if damaged:
            listed = "\n".join(f"  {path}: {error}" for path, error in damaged)
            raise RuntimeError(
                f"checkpoints: none of those in {self.directory} can be used:\n{listed}\nRestore one of them from a copy, "
                "or start anew in another directory."
            )
        return None

    @contextlib.contextmanager
    def _manager(self, *, alone: bool = False) -> Iterator[Any]:
        """Orbax's manager, of all processes together or of this one alone."""
        ocp = require()
        from etils import epath

        here = jax.process_index()
        some = {"primary_host": here, "active_processes": {here}, "barrier_sync_key_prefix": f"process_{here}"}
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(self.keep),
            enable_async_checkpointing=False,
            create=not alone,
            cleanup_tmp_directories=not alone,
            multiprocessing_options=ocp.options.MultiprocessingOptions(**(some if alone else {})),
        )
        with ocp.CheckpointManager(epath.Path(self.directory).absolute(), options=options) as manager:
            yield manager


def require() -> Any:
    """Orbax's module.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ImportError("checkpoints need orbax-checkpoint: pip install 'logderiv[checkpoints]'.") from error
    return ocp


def run_in_chunks(
    checkpoints: Checkpoints,
    start: Any,
    advance: Callable[[Any, np.int32, int], tuple[Any, Any]],
    num_updates: int,
    *,
    run: Mapping[str, str],
    stopped: Callable[[Any], bool],
) -> tuple[Any, Any]:
    """Updates in chunks of `checkpoints.every`, each followed by a checkpoint; goes on from the newest one there is.

    Every chunk is one call of the same compiled program on what a checkpoint holds, so a run that was interrupted ends with
    bitwise the state and the rows of one that was not.

    Args:
        checkpoints: See `Checkpoints`.
        start: State before the first update.
        advance: `(state, number of the first update, how many) -> (state, rows)`, each leaf of `rows` with one entry per update.
        num_updates: Of the whole run.
        run: As in `Checkpoints.save`.
        stopped: Of a state, whether to end before `num_updates`.

    Returns:
        The last state and all rows, on the host.

    Raises:
        ValueError: `num_updates` is no multiple of `every`, or the newest checkpoint lies behind it; see also
            `Checkpoints.restore`.
    """
    if num_updates % checkpoints.every:
        raise ValueError(
            f"num_updates: expected a multiple of checkpoints.every = {checkpoints.every}, received {num_updates}."
        )
    start = jax.tree.map(lambda x: x if _is_key(x) else lax.convert_element_type(x, x.dtype), start)  # no weak types
    shapes = jax.eval_shape(lambda state: advance(state, np.int32(0), checkpoints.every)[1], start)

    def payload(step: int) -> tuple[Any, Any]:
        return start, jax.tree.map(lambda x: np.empty((step, *x.shape[1:]), x.dtype), shapes)

    step, (state, rows) = checkpoints.restore(payload, run) or (0, payload(0))
    if step > num_updates:
        raise ValueError(
            f"checkpoints: {checkpoints.directory} is at update {step} already, num_updates is {num_updates}."
        )
    while step < num_updates and not stopped(state):
        state, new = advance(state, np.int32(step), checkpoints.every)
        jax.effects_barrier()  # what writers tell of these updates is there before the checkpoint
        rows = jax.tree.map(lambda old, new: np.concatenate([old, _on_host(new)]), rows, new)
        step += checkpoints.every
        checkpoints.save(step, (state, rows), run)
    return state, rows


class _DamagedError(Exception):
    """Why a checkpoint cannot be used."""


def _read(manager: Any, step: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A checkpoint's note and arrays, with all digests checked."""
    args = require().args
    try:
        stored = manager.restore(step, args=args.Composite(note=args.JsonRestore()))["note"]
        note = stored["note"]
        if stored["sha256"] != _sha256(json.dumps(note, sort_keys=True).encode()):
            raise ValueError("its note has changed since it was saved")
        return note, {name: _read_leaf(manager, step, name, leaf) for name, leaf in note["leaves"].items()}
    except Exception as error:  # whatever orbax, JSON or the file system makes of a damaged file
        raise _DamagedError(_cut(f"{type(error).__name__}: {error}", 0)) from error


def _read_leaf(manager: Any, step: int, name: str, leaf: Mapping[str, Any]) -> np.ndarray:
    """One array. Orbax would read all at once, but when one fails it leaves the others' errors to be printed by Python."""
    array = np.empty(leaf["shape"], leaf["dtype"])
    if array.size:
        ocp = require()
        item = {name: array}
        how = ocp.args.PyTreeRestore(item, ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True)
        array = manager.restore(step, args=ocp.args.Composite(arrays=how))["arrays"][name]
    if _sha256(array) != leaf["sha256"]:
        raise ValueError(f"the numbers of {name} have changed since they were saved")
    return array


def _check_same_run(where: Any, found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    for name in sorted(found.keys() | expected.keys()):
        there, here = found.get(name, "nothing"), expected.get(name, "nothing")
        if there != here:
            shared = sum(
                1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(there, here, strict=False))
            )
            start = max(0, shared - 60)
            raise ValueError(
                f"checkpoint {where} is of another run: {name}: expected {_cut(here, start)}, found {_cut(there, start)}. "
                "Give this run a directory of its own."
            )


def _cut(text: str, start: int, length: int = 200) -> str:
    end = start + length
    return ("... " if start else "") + text[start:end] + (" ..." if end < len(text) else "")


def _check_same_model(where: Any, found: Mapping[str, Mapping[str, Any]], payload: Any) -> None:
    expected = {name: _kind(name, leaf) for name, leaf in _named_leaves(payload)}
    for name in list(expected) + [name for name in found if name not in expected]:
        there, here = found.get(name, {"kind": "nothing"})["kind"], expected.get(name, "nothing")
        if there != here:
            raise ValueError(
                f"checkpoint {where} is of another model: leaf {name}: expected {here}, found {there}. "
                "Give this model a directory of its own."
            )


def _named_leaves(payload: Any) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path) or "payload", leaf) for path, leaf in jax.tree.leaves_with_path(payload)]


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _kind(name: str, leaf: Any) -> str:
    """What a leaf is, as far as a checkpoint has to agree: `float32[3,4]`, `key<fry>[]`, `int`."""
    if isinstance(leaf, (bool, int, float, complex)) and not isinstance(leaf, np.generic):
        return type(leaf).__name__
    if isinstance(leaf, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)) and leaf.dtype != object:
        return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
    raise TypeError(f"payload: leaf {name}: expected an array or a Python number, received {type(leaf).__name__}.")


def _storable(leaf: Any) -> Any:
    """A leaf as orbax takes it: an array of numbers."""
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _on_host(array: Any) -> np.ndarray:
    """All of an array, wherever its parts are."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def _sha256(data: Any) -> str:
    return hashlib.sha256(data if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes()).hexdigest()


def _place(payload: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The arrays in the structure of `payload`, each as the leaf there is kept."""
    leaves = [_like(leaf, arrays[name]) for name, leaf in _named_leaves(payload)]
    return jax.tree.unflatten(jax.tree.structure(payload), leaves)


def _like(leaf: Any, array: np.ndarray) -> Any:
    if _is_key(leaf):
        data = jax.random.key_data(leaf) if isinstance(leaf, jax.Array) else jax.eval_shape(jax.random.key_data, leaf)
        return jax.random.wrap_key_data(_like(data, array), impl=jax.random.key_impl(jnp.empty((), leaf.dtype)))
    if isinstance(leaf, (np.ndarray, np.generic)):
        return array if isinstance(leaf, np.ndarray) else array[()]
    if not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
        return array.item()
    if leaf.sharding is None or not getattr(leaf, "committed", True):
        return jnp.asarray(array)
    return jax.make_array_from_callback(array.shape, leaf.sharding, lambda index: array[index])


def _agree(step: int) -> None:
    """All processes found the same checkpoint, or all stop here."""
    if jax.process_count() > 1:
        multihost_utils.assert_equal(
            np.int32(step), "checkpoints: the processes do not find the same newest checkpoint."
        )


def _move_aside(paths: Iterable[Any]) -> None:
    if jax.process_index() == 0:
        for path in paths:
            aside = path.parent / f"{path.name}.damaged"
            if aside.exists():
                aside.rmtree()
            path.rename(aside)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("logderiv: damaged checkpoints moved aside")
