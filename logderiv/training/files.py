"""Files and folders of a run: what stands in the way is named before it starts, and no two runs write to one place."""

import contextlib
import importlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None
_held: set[int] = set()


def expanded(name: str, path: Any) -> str:
    """The path as a text, with `~` as the home folder.

    Args:
        name: Of the argument.
        path: What was given.

    Returns:
        The path.

    Raises:
        TypeError: No path.
        ValueError: There is no such home folder.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{name}: expected a path, received {type(path).__name__}.")
    found = os.path.expanduser(os.fsdecode(path))
    if found.startswith("~"):
        raise ValueError(f"{name}: there is no home folder for {found}; a name that begins with ~ is written ./~.")
    return found


def check_place(name: str, path: Any, *, folder: bool, write: bool = True) -> None:
    """Refuse a path where there is no plain file, or no folder, and none can be made. Nothing is made here; of a URL nothing is known.

    Args:
        name: Of the argument.
        path: The path.
        folder: Whether a folder is to be there, or a plain file.
        write: Whether it is to be written.

    Raises:
        ValueError: What is there is something else, or must not be written.
    """
    if "://" in str(path):
        return
    whole = nearest = Path(os.path.realpath(path))
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    mode = nearest.stat().st_mode
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFREG: "a plain file"}
    kind = kinds.get(stat.S_IFMT(mode), "a device, pipe or socket")
    wanted = "a folder" if folder or nearest != whole else "a plain file"
    if kind != wanted:
        raise ValueError(f"{name}: expected {wanted} at {nearest}, received {kind}; write to another path.")
    if write and not os.access(nearest, os.R_OK | os.W_OK | (os.X_OK if wanted == "a folder" else 0)):
        raise ValueError(
            f"{name}: expected {wanted} that can be written at {nearest}, received one without permission."
        )


@contextlib.contextmanager
def held(name: str, path: Any) -> Iterator[None]:
    """Keep a file or a folder to one run, by a lock that ends with the block, or with the process, however it ends.

    Links to one file are one file. Where the file system or the platform has no such locks, nothing is kept.

    Args:
        name: Of the argument.
        path: A file or a folder that is there.

    Yields:
        Nothing.

    Raises:
        ValueError: Another run holds it, of this process or another one.
    """
    descriptor = os.open(path, os.O_RDONLY)
    _held.add(descriptor)
    try:
        with contextlib.suppress(OSError):
            _lock(name, path, descriptor)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _lock(name: str, path: Any, descriptor: int) -> None:
    if _fcntl is None:
        return
    try:
        _fcntl.flock(descriptor, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"{name}: {path} is in use by another run, which writes to it; give this one a path of its own, or wait for the end "
            "of the other."
        ) from None


def _forget() -> None:
    """In a forked process, which would otherwise hold on to the locks of the one that it came from."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
