"""`python -m tests`: the whole check: formatting, linting, types, then tests with doctests and notebooks.

`python -m tests ROOM` runs the tests and doctests of one room of the library (`likelihood`, `training`, ...) or of `benchmarks`
and other families of tests, `tests/test_ROOM*.py`. What else is given goes to pytest: `python -m tests sampling -k padding`.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKS = (
    ("ruff", "format", "--check", "."),
    ("ruff", "check", "."),
    ("basedpyright", "--warnings"),
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


def main(arguments: list[str]) -> int:
    """Run every check, or the tests of a room; further arguments go to pytest. Returns 0 if all passed, 2 for an unknown room."""
    checks = CHECKS
    if arguments and not arguments[0].startswith("-"):
        room, *arguments = arguments
        if room not in rooms():
            print(f"unknown room {room}; known are: {', '.join(sorted(rooms()))}", file=sys.stderr)
            return 2
        checks = (("pytest", *rooms()[room]),)
    failed = []
    for name, *options in checks:
        extra = arguments if name == "pytest" else []
        print(f"== {name} {' '.join([*options, *extra])}", flush=True)
        if subprocess.run([sys.executable, "-m", name, *options, *extra], cwd=ROOT, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
