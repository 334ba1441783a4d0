"""`python -m benchmarks` runs the main job; with names the benchmarks that are named, with `--all` every one.

The main job, `overview`, says at each step what it does. A benchmark is a module of this folder that defines `main(quick)`; the
first line of its docstring is its question. Several run in processes of their own, so that the peak memory of each is
its own and one that fails does not stop the others, and end in one table.
"""

import argparse
import ast
import importlib
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import RESULTS

FOLDER = Path(__file__).resolve().parent
MAIN_JOB = "overview"
BY_NAME = ("mutation", "slow_tests")  # run only when named: long, and about the tests rather than the library
INSTALL = "pip install -e '.[all]'"


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
    """The command line.

    Returns the exit code: 1 if a benchmark failed or missed a bound other than those on times, 2 if one is not known, a
    package is missing or the folder of results cannot be written, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run benchmarks.")
    parser.add_argument("names", nargs="*", help=f"which to run; none means the main job, {MAIN_JOB}")
    parser.add_argument("--all", action="store_true", help=f"run all but {', '.join(BY_NAME)}")
    parser.add_argument("--quick", action="store_true", help="smaller runs, all of them in a few minutes")
    parser.add_argument("--peers", action="store_true", help="train other libraries beside, in benchmarks that can")
    parser.add_argument("--platform", help="cpu, gpu (NVIDIA's), rocm or tpu: run there instead of where JAX would")
    parser.add_argument("--list", action="store_true", help="only list them")
    options = parser.parse_args(arguments)

    standard = questions()
    known = standard | questions(by_name=True)
    names = list(standard) if options.all else options.names or [MAIN_JOB]
    unknown = [name for name in options.names if name not in known]
    if unknown:
        print(f"unknown benchmark {', '.join(unknown)}; known are: {', '.join(known)}", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(f"{name:<22}{question}" for name, question in known.items()))
        return 0
    try:
        RESULTS.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=RESULTS).close()
    except OSError as error:
        print(f"cannot write to {RESULTS}: {error.strerror}; name another: LOGDERIV_RESULTS=FOLDER", file=sys.stderr)
        return 2
    if (
        options.platform
    ):  # read when JAX is imported, here and in further processes; "gpu" would ask for every kind of GPU
        kind = "cuda" if options.platform == "gpu" else options.platform
        os.environ["JAX_PLATFORMS"] = ",".join(dict.fromkeys((kind, "cpu")))
    if len(names) == 1:
        return _run_here(names[0], options.quick, options.peers)
    flags = [flag for flag, given in (("--quick", options.quick), ("--peers", options.peers)) if given]
    return _conclude([_run_alone(name, known[name], flags) for name in names])


def _run_here(name: str, quick: bool, peers: bool) -> int:
    try:
        run = importlib.import_module(f"benchmarks.{name}").main
        beside = {"peers": True} if peers and "peers" in inspect.signature(run).parameters else {}
        report = run(quick, **beside)
        missed = importlib.import_module("benchmarks.harness").publish(name, report, quick=quick)
    except ImportError as error:
        print(f"{name} cannot run: {str(error).rstrip('.')}; {INSTALL} installs what they all need.", file=sys.stderr)
        return 2
    return 1 if missed else 0


def _run_alone(name: str, question: str, flags: list[str]) -> dict[str, Any]:
    """Run it in a process of its own. Returns its row of the last table; one that failed has kept nothing."""
    print(f"\n== {name}: {question}", flush=True)
    start, path = time.time(), RESULTS / f"{name}.jsonl"
    before = path.stat().st_size if path.exists() else 0
    subprocess.run([sys.executable, "-m", "benchmarks", name, *flags], cwd=FOLDER.parent, check=False)
    row = {"name": name, "seconds": time.time() - start}
    if not path.exists() or path.stat().st_size == before:
        return row | {"outcome": "failed"}
    saved = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    missed = {kind: [bound["name"] for bound in saved[kind] if not bound["holds"]] for kind in ("bounds", "timings")}
    counts = {f"{kind} missed": len(names) for kind, names in missed.items()}
    counts["kept"] = len(saved["bounds"]) - len(missed["bounds"])
    return row | counts | {"outcome": "missed a bound" if missed["bounds"] else "", "figure": saved["figure"]}


def _conclude(rows: list[dict[str, Any]]) -> int:
    """Print one table of all; whether each ran and kept its bounds, those on times apart."""
    heads = "benchmark | bounds kept | missed | times missed | seconds | figure | "
    counts = "{r[kept]} | {r[bounds missed]} | {r[timings missed]}"
    cells = f"{{r[name]}} | {counts} | {{r[seconds]:.0f}} | {{r[figure]}} | {{r[outcome]}}"
    print(importlib.import_module("benchmarks.harness").Table("All of them", heads, cells, rows))
    return 1 if any(row["outcome"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
