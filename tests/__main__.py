"""`python -m tests`: the whole check: formatting, linting, types, then tests with doctests and notebooks.

`python -m tests ROOM` runs the tests and doctests of one room of the library (`likelihood`, `training`, ...) or of `benchmarks`
and other families of tests, `tests/test_ROOM*.py`. What else is given goes to pytest: `python -m tests sampling -k padding`.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TYPES = ("basedpyright", "--warnings")  # runs while the tests do, and says at the end what it found
CHECKS = (
    ("ruff", "format", "--check", "."),
    ("ruff", "check", "."),
    ("pytest", "-n", "2", "--dist", "loadfile", "-m", "not slow", "--durations", "15"),
)


def rooms() -> dict[str, list[str]]:
    """What pytest runs for each room: its tests, and the modules whose doctests are run."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "logderiv").iterdir()):
        if path.stem.strip("_") not in ("", "init", "pycache", "py"):
            found[path.stem.strip("_")] = [f"logderiv/{path.name}"]
    for path in sorted(ROOT.glob("tests/test_*.py")):
        words = path.stem.split("_")[1:]
        found.setdefault(words[0], []).append(f"tests/{path.name}")
    return found


def start(name: str, *options: str, **how: Any) -> "subprocess.Popen[str]":
    """A tool as a module of this interpreter, in the root of the tree."""
    return subprocess.Popen([sys.executable, "-m", name, *options], cwd=ROOT, **how)


def main(arguments: list[str]) -> int:
    """Run every check, or the tests of a room; further arguments go to pytest. Returns 0 if all passed, 2 for an unknown room."""
    checks, room = CHECKS, None
    if arguments and not arguments[0].startswith("-"):
        room, *arguments = arguments
        if room not in rooms():
            print(f"unknown room {room}; known are: {', '.join(sorted(rooms()))}", file=sys.stderr)
            return 2
        checks = (("pytest", *rooms()[room]),)
    types = start(*TYPES, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) if room is None else None
    failed = []
    for name, *options in checks:
        extra = arguments if name == "pytest" else []
        print(f"== {name} {' '.join([*options, *extra])}", flush=True)
        if start(name, *options, *extra).wait():
            failed.append(name)
    if types is not None:
        print(f"== {' '.join(TYPES)}\n{types.communicate()[0]}", flush=True)
        failed += [TYPES[0]] if types.returncode else []
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
