"""Checkpoints: a run that was killed goes on from its newest complete checkpoint.

Orbax (the extra `checkpoints`) writes each checkpoint under another name and renames it when it is complete, so that a kill
at any moment leaves it whole or not there. Orbax does not notice when numbers change on the disk; the SHA-256 of every leaf,
which is kept beside them and checked on the way back, does.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils


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
        every: Updates between two checkpoints.
        keep: How many are kept: the newest. An old one is deleted only after a newer one is complete.

    Raises:
        ValueError: `every` or `keep` below 1.
    """

    directory: str | os.PathLike[str]
    every: int
    keep: int = 3

    def __post_init__(self) -> None:
        for name in ("every", "keep"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name}: expected a whole number >= 1, received {value}.")

    def save(self, step: int, payload: Any, run: Mapping[str, str] | None = None) -> None:
        """Write a checkpoint; when this returns, it is complete. A kill before that leaves the earlier ones as they were.

        Args:
            step: Its number, larger than those that are there.
            payload: Pytree of arrays (JAX or NumPy, sharded or not), typed keys and Python numbers.
            run: What `restore` must be given again: names and texts, such as those of `static_text`.

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


def static_text(value: Any) -> str:
    """A static object (estimator, optimiser, configuration) as text that is the same in every process.

    Dataclasses and tuples by their fields, functions by their name and what they close over, arrays by their digest; of
    anything else only the type. The code of a function is not looked at.

    Example:
        >>> import optax
        >>> static_text(optax.adam(1e-2)) == static_text(optax.adam(1e-2)), static_text(optax.adam(1e-3))[:20]
        (True, 'GradientTransformati')
    """
    return _text(value, ())


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
    return jnp.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)


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


def _text(value: Any, above: tuple[int, ...]) -> str:
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    if id(value) in above:
        return "..."
    text = functools.partial(_text, above=(*above, id(value)))
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return f"{_kind('', value)} {_sha256(_on_host(_storable(value)))[:16]}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{text(key)}: {text(item)}" for key, item in value.items()) + "}"
    if type(value) in (tuple, list):
        return f"({', '.join(map(text, value))})"
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{name}({', '.join(f'{key}={text(item)}' for key, item in _fields(value).items())})"


def _fields(value: Any) -> dict[str, Any]:
    """What a static object is made of."""
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return dict(zip(getattr(value, "_fields", ()), value, strict=True))
    if isinstance(value, functools.partial):
        return {"func": value.func, "args": value.args, "keywords": value.keywords}
    if isinstance(value, types.MethodType):
        return {"self": value.__self__, "func": value.__func__}
    if isinstance(value, types.FunctionType):
        cells = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))
        held = {name: cell.cell_contents for name, cell in cells.items() if cell != types.CellType()}
        defaults = {"defaults": value.__defaults__, "keywords": value.__kwdefaults__}
        return held | {name: default for name, default in defaults.items() if default}
    wrapped = getattr(value, "__wrapped__", None)
    return {} if wrapped is None else {"wrapped": wrapped}
