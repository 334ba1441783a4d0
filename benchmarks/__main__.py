"""`python -m benchmarks [names...] [--quick] [--platform gpu] [--list]`: list the benchmarks, or run some or all of them.

A benchmark is a module of this folder that defines `main(quick)`; the first line of its docstring is its question. Each
runs in a process of its own, so that its peak memory is its own and one that fails does not stop the others.
"""

import argparse
import ast
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
BY_NAME = ("mutation",)  # run only when named: most of an hour, and about the tests rather than the library


def questions(*, by_name: bool = False) -> dict[str, str]:
    """Name and question of every benchmark, or of those that run `BY_NAME` only, read without importing them."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        runs = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in module.body)
        if runs and not path.name.startswith("_") and (path.stem in BY_NAME) == by_name:
            found[path.stem] = (ast.get_docstring(module) or "").partition("\n")[0]
    return found


def main(arguments: list[str]) -> int:
    """The command line. Returns the exit code: 0, 1 if a benchmark failed, 2 for an unknown name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run benchmarks.")
    parser.add_argument("names", nargs="*", help=f"which to run; none means all but {', '.join(BY_NAME)}")
    parser.add_argument("--quick", action="store_true", help="smaller runs, all of them in a few minutes")
    parser.add_argument("--platform", help="cpu, gpu or tpu: run on that accelerator instead of JAX's own choice")
    parser.add_argument("--list", action="store_true", help="only list them")
    options = parser.parse_args(arguments)

    standard = questions()
    known = standard | questions(by_name=True)
    unknown = [name for name in options.names if name not in known]
    if unknown:
        print(f"unknown benchmark {', '.join(unknown)}; known are: {', '.join(known)}", file=sys.stderr)
        return 2
    if options.list:
        for name, question in known.items():
            print(f"{name:<22}{question}")
        return 0
    if options.platform:
        os.environ["JAX_PLATFORMS"] = options.platform  # read when JAX is imported, here and in further processes
    if len(options.names) == 1:
        name = options.names[0]
        report = importlib.import_module(f"benchmarks.{name}").main(options.quick)
        importlib.import_module("benchmarks.harness").publish(name, report, quick=options.quick)
        return 0
    failed = [name for name in options.names or standard if not _run_alone(name, known[name], options.quick)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _run_alone(name: str, question: str, quick: bool) -> bool:
    print(f"\n== {name}: {question}", flush=True)
    start = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks", name, *(["--quick"] if quick else [])]
    succeeded = subprocess.run(command, cwd=FOLDER.parent, check=False).returncode == 0
    print(f"== {name} took {time.perf_counter() - start:.0f} s", flush=True)
    return succeeded


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
