"""`python -m tests`: the whole check. Formatting, linting, types, then tests with doctests and notebooks."""

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


def main(arguments: list[str]) -> int:
    """Run every check, pytest last; further arguments go to pytest. Returns 0 if all passed."""
    failed = []
    for name, *options in CHECKS:
        extra = arguments if name == "pytest" else []
        print(f"== {name} {' '.join([*options, *extra])}", flush=True)
        if subprocess.run([sys.executable, "-m", name, *options, *extra], cwd=ROOT, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
