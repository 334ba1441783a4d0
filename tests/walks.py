"""The way that a call takes through the files of the library."""

import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import logderiv as ld

ROOT = Path(ld.__file__).resolve().parent


def stations(call: Callable[[], Any]) -> list[str]:
    """The files of the library whose functions a call enters, in this order, with the functions.

    Equal neighbors are one station. A function that JAX traces again is counted the first time only. Comprehensions and
    lambdas belong to the function that they stand in.
    """
    entered: list[tuple[str, str]] = []
    seen: set[Any] = set()

    def note(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or code in seen:
            return
        seen.add(code)
        path = Path(code.co_filename)
        if path.is_relative_to(ROOT) and not code.co_name.startswith("<"):
            entered.append((str(path.relative_to(ROOT)), code.co_name))

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    parts = groupby(entered, key=lambda found: found[0])
    return [f"{file}: {', '.join(name for _, name in names)}" for file, names in parts]
