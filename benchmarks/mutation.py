"""Would the tests notice if a formula were wrong: what share of deliberate small errors do they catch?

Mutation testing of credit, advantages, importance, surrogates, baselines and declarations: one operator, number or truth value of the source is
changed at a time, in a copy of the tree, and the module's own test files are run, the fastest test first, until one
fails. A mutant that none of them notices is a survivor: it is printed, with the reason if it computes the same.

The changes are cosmic-ray's. An arithmetic operator becomes each of `+ - * /`, an ordering each other ordering, `==` and
`is` their negations; a sign, `not` or `~` goes; a condition is negated, `and` and `or`, `True` and `False` trade places; a
number is one more and one less; a loop body never runs. To keep the run under an hour nothing becomes `//`, `%`, `**`, a
shift or a bit operator, no `==` an ordering, and decorators stay. A mutant that differs from the source in docstrings,
annotations, error texts or the markers of keyword-only arguments alone is not counted, nor is one that does not parse. Every
survivor counts as one, also where it computes the same.

Run by name only: `python -m benchmarks mutation`, some three hours of a core; with `--quick` on a fixed random sample.

Found (2 x86-64 cores, shared; jax 0.10.2, cosmic-ray 8.7), in two runs. In the first, of 1085 mutants 472, all of credit and
importance and random ones of the rest: 405 were noticed, credit 180 of 217, importance 55 of 55, surrogates 52 of 60, baselines
71 of 80, advantages 37 of 46, declarations 10 of 14. With the tests that were added then, 35 more of credit, 7 of baselines
and the 4 of declarations are; what survived of the others was not run again.

The second, of 181 mutants, all 112 of surrogates and random ones of three parts: 171 were noticed, surrogates 107 of 112,
advantages 27 of 28, baselines 19 of 20, declarations 18 of 21. With the tests that were added then, and the files that were
missing in the lists below, 8 more are. Two are left, of surrogates, and compute the same. Of the three parts the fastest files
were run without slow tests, and of their other files what a survivor touches.
"""

import ast
import difflib
import itertools
import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent  # harness is imported late: it imports the library, and a worker must not
REQUIRED, SAMPLE = 0.9, 24

# Part: the modules of `logderiv/estimators` that are changed, and the tests `tests/test_*NAME.py` that are to notice, beside
# the tables of refusals.
REFUSALS = "test_project_messages.py test_project_messages_of_parts.py"
PARTS: dict[str, tuple[str, str]] = {
    "credit": ("returns.py", "credit importance zeros"),
    "advantages": (
        "advantages.py bootstrapped.py batch.py",
        "credit baselines importance declaration compositions actor_critic settings zeros extremes",
    ),
    "importance": ("importance.py", "importance"),
    "surrogates": ("surrogates.py", "surrogates zeros"),
    "baselines": ("baselines.py least_variance.py", "baselines declaration"),
    "declarations": (
        "declaration.py policy_gradient.py",
        "declaration expectations compositions baselines actor_critic",
    ),
}
OPERATORS = (
    *(
        f"ReplaceBinaryOperator_{old}_{new}"
        for old in ("Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow")
        for new in ("Add", "Sub", "Mul", "Div")
        if new != old
    ),
    *(f"ReplaceComparisonOperator_{old}_{new}" for old, new in itertools.permutations(("Lt", "LtE", "Gt", "GtE"), 2)),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is")),
    *(f"ReplaceUnaryOperator_Delete_{name}" for name in ("USub", "Not", "Invert")),
    *("AddNot", "ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue"),
    *("NumberReplacer", "ZeroIterationForLoop", "ReplaceBreakWithContinue", "ReplaceContinueWithBreak"),
)
# Survivors that compute the same, by the line after the change, so that the reason stays true when lines move.
EQUIVALENT = {
    "clip, up = jnp.asarray(clip, log_ratio.dtype), weight > 0": "a weight of 0 gives 0 on both sides",
    "average = state.total / jnp.where(state.weight == 0, 2, state.weight)": "the sum is 0 wherever its weight is",
    "return jnp.where(unseen, 0, numerator / jnp.where(unseen, 2, denominator))": "masked; it only must not be 0",
    **{
        f"errors = jnp.where(valid, values - targets.astype(values.dtype), {number})": "a constant has no gradient"
        for number in (1, -1)
    },
    "weighted, plain = (pullback(w.astype(logs.dtype))[ -1] for w in (credit, ratios))": "a tuple of one",
    "return jnp.sum(jnp.square(errors)) / jnp.maximum(jnp.sum(valid), 0).astype(values.dtype)": (
        "without a valid step every error is masked, and so is its gradient"
    ),
    "sums = jnp.sum(terms, axis=1)": "of shape (N, T): the same axis",
    "lengths = jnp.sum(valid, axis=1).astype(terms.dtype)": "of shape (N, T): the same axis",
    "num, lengths = math.prod(valid.shape[:-1]), jnp.sum(valid, axis=1, keepdims=True).astype(dtype)": "(N, T): the same",
    **{
        f"return jnp.where((factor == 0) & ~jnp.isfinite(values), {number}, values)": "it is multiplied by 0"
        for number in (1, -1)
    },
}


def files(folder: str, patterns: str) -> list[str]:
    """Paths in the tree, relative to its root, of what matches one of the patterns."""
    return [str(path.relative_to(ROOT)) for glob in patterns.split() for path in sorted((ROOT / folder).glob(glob))]


def of_part(part: str) -> tuple[list[str], list[str]]:
    """The modules of a part, and the test files that are to notice its mutants."""
    modules, tests = PARTS[part]
    patterns = " ".join((*(f"test_*{x}.py" for x in tests.split()), REFUSALS))
    return files("logderiv/estimators", modules), files("tests", patterns)


class Mutant(NamedTuple):
    """One change of one file.

    Attributes:
        path: The file, relative to the root of the tree.
        line: Where, counted from 1.
        old: The changed line before, stripped.
        new: And after.
        source: The whole file after the change.
    """

    path: str
    line: int
    old: str
    new: str
    source: str


class Outcome(NamedTuple):
    """What the tests made of a tree.

    Attributes:
        verdict: 'killed', 'timed out', 'crashed' (the process died before the tests could report) or 'survived'.
        by: The test that failed, or 'import'.
        seconds: Seconds of each test that ran, by name.
    """

    verdict: str
    by: str
    seconds: dict[str, float]


_NEGATED = {ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is}


class _Bare(ast.NodeTransformer):
    """Takes out what says nothing about the result: docstrings, annotations, error texts, keyword-only markers."""

    def visit(self, node: ast.AST) -> Any:
        self.generic_visit(node)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        for field in ("returns", "annotation"):
            if hasattr(node, field):
                setattr(node, field, ast.Constant(None))
        if isinstance(node, ast.arguments):
            node.args = [*node.posonlyargs, *node.args, *node.kwonlyargs]
            node.defaults += [default for default in node.kw_defaults if default is not None]
            node.posonlyargs, node.kwonlyargs, node.kw_defaults = [], [], []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Error"):
            node.args = []
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not) and isinstance(node.operand, ast.Compare):
            negated = _NEGATED.get(type(node.operand.ops[0]))
            if negated is not None and len(node.operand.ops) == 1:
                return ast.Compare(node.operand.left, [negated()], node.operand.comparators)
        return node


def bare(source: str) -> str | None:
    """The program without what says nothing about its result; `None` where it does not parse."""
    try:
        return ast.dump(_Bare().visit(ast.parse(source)))
    except SyntaxError:
        return None


def mutants(path: str, source: str) -> list[Mutant]:
    """Every change of a file that counts, each once, in the order of its lines."""
    seen, found = {bare(source), None}, []
    for changed in _changed(source):
        program = bare(changed)
        if program not in seen:
            seen.add(program)
            found.append(Mutant(path, *_first_difference(source, changed), changed))
    return sorted(found, key=lambda mutant: mutant.line)


def _changed(source: str) -> Iterator[str]:
    try:
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator
    except ImportError as error:
        raise SystemExit('mutation: needs cosmic-ray: pip install -e ".[mutation]"') from error
    for name in OPERATORS:
        for occurrence in itertools.count():
            changed = mutate_code(source, get_operator(f"core/{name}")(), occurrence)
            if changed is None:
                break
            yield changed


def _first_difference(source: str, changed: str) -> tuple[int, str, str]:
    old, new = source.splitlines(), changed.splitlines()
    blocks = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    _, i, i_end, j, j_end = next(block for block in blocks if block[0] != "equal")
    return i + 1, " ".join(old[i:i_end]).strip(), " ".join(new[j:j_end]).strip()


class Runner:
    """Runs tests of a tree, each time in a fresh process forked from one that has imported JAX and pytest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["jax", "optax", "chex", "pytest"])
        self._writes = 0

    def write(self, path: str, source: str) -> None:
        """Replace a file; each time with another date, by which Python knows compiled code that is out of date."""
        self._writes += 1
        (self.folder / path).write_text(source, encoding="utf-8")
        os.utime(self.folder / path, (self._writes, self._writes))

    def run(self, tests: Sequence[str], seconds: Mapping[str, float], timeout: float | None) -> Outcome:
        """The tests of some files, those that took the fewest `seconds` first, until one fails.

        What takes more than `timeout` seconds of a processor, which a busy machine does not lengthen, has timed out; so has what
        takes ten times as long by the clock.
        """
        report = self.folder / "report.json"
        report.unlink(missing_ok=True)
        given = (str(self.folder), list(tests), dict(seconds), timeout)
        process = self._context.Process(target=_run_tests, args=given)
        process.start()
        process.join(None if timeout is None else 10 * timeout)
        if process.is_alive():
            process.kill()
            process.join()
            return Outcome("timed out", "", {})
        if process.exitcode == -signal.SIGXCPU:
            return Outcome("timed out", "", {})
        if not report.exists():
            return Outcome("crashed", "", {})
        if process.exitcode == 5:
            raise RuntimeError(f"no tests found in {', '.join(tests)}")
        found = json.loads(report.read_text(encoding="utf-8"))
        if process.exitcode == 0:
            return Outcome("survived", "", found["seconds"])
        return Outcome("killed", (found["failed"] or ["import"])[0], found["seconds"])

    def judge(self, mutant: Mutant, tests: Sequence[str], seconds: Mapping[str, float], timeout: float) -> Outcome:
        """What the tests make of a mutant; the file is as before afterwards."""
        original = (self.folder / mutant.path).read_text(encoding="utf-8")
        self.write(mutant.path, mutant.source)
        try:
            return self.run(tests, seconds, timeout)
        finally:
            self.write(mutant.path, original)


def _run_tests(folder: str, tests: list[str], expected: dict[str, float], timeout: float | None) -> None:
    """In the forked process: run the tests, write which failed and how long each took."""
    import jax
    import pytest

    if timeout is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(timeout), resource.RLIM_INFINITY))
    os.chdir(folder)
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = False  # compiled tests save a second each time
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", f"{folder}/compiled")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    seconds: dict[str, float] = {}
    failed: list[str] = []

    class Plugin:
        @pytest.hookimpl(trylast=True)
        def pytest_collection_modifyitems(self, items: list[Any]) -> None:
            items.sort(key=lambda item: expected.get(item.nodeid, 0.0))

        def pytest_runtest_logreport(self, report: Any) -> None:
            seconds[report.nodeid] = seconds.get(report.nodeid, 0.0) + report.duration
            if report.failed:
                failed.append(report.nodeid)

    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests], plugins=[Plugin()])
    Path("report.json").write_text(json.dumps({"failed": failed, "seconds": seconds}), encoding="utf-8")
    os._exit(code)


def tally(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Mutants by verdict, and the share noticed: one that hangs is noticed, one whose process died may not be."""
    verdicts = [outcome.verdict for outcome in outcomes]
    counts = {name: verdicts.count(name) for name in ("killed", "timed out", "crashed", "survived")}
    noticed = counts["killed"] + counts["timed out"]
    return {"mutants": len(verdicts), **counts, "share": noticed / max(len(verdicts), 1)}


def main(quick: bool) -> Any:
    from benchmarks.harness import Report, Table, at_least

    start = time.perf_counter()
    parts = {name: [m for path in of_part(name)[0] for m in mutants(path, (ROOT / path).read_text())] for name in PARTS}
    if quick:
        chosen = set(random.Random(0).sample([m for part in parts.values() for m in part], SAMPLE))
        parts = {name: kept for name, part in parts.items() if (kept := [m for m in part if m in chosen])}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("logderiv", "tests"):
            shutil.copytree(ROOT / name, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        runner = Runner(Path(folder))
        outcomes = {name: _examine(runner, part, of_part(name)[1]) for name, part in parts.items()}

    everything = [pair for pairs in outcomes.values() for pair in pairs]
    counts = {name: tally([o for _, o in pairs]) for name, pairs in (*outcomes.items(), ("all", everything))}
    survivors = [
        (f"{m.path}:{m.line}", m.old, m.new, EQUIVALENT.get(m.new, ""))
        for m, outcome in everything
        if outcome.verdict in ("survived", "crashed")
    ]
    tables = [
        Table(
            "Mutants that the module's own tests notice",
            "part | mutants | killed | timed out | crashed | survived | share noticed",
            "{r[0]} | {r[1][mutants]} | {r[1][killed]} | {r[1][timed out]} | {r[1][crashed]} | {r[1][survived]}"
            " | {r[1][share]:.3f}",
            list(counts.items()),
        ),
        Table("Survivors", "where | from | to | computes the same", "{r[0]} | {r[1]} | {r[2]} | {r[3]}", survivors),
    ]
    bounds = [at_least(f"share noticed, {name}", row["share"], REQUIRED) for name, row in counts.items()]
    numbers = {"parts": counts, "survivors": survivors, "seconds": time.perf_counter() - start}
    return Report(tables, bounds, numbers)


def _examine(runner: Runner, part: Sequence[Mutant], tests: Sequence[str]) -> list[tuple[Mutant, Outcome]]:
    """Each mutant's outcome, after the unchanged tree has passed and shown how long each test takes."""
    runner.run(tests, {}, None)  # fills the compilation cache
    start = time.perf_counter()
    unchanged = runner.run(tests, {}, None)
    elapsed = time.perf_counter() - start
    if unchanged.verdict != "survived":
        raise RuntimeError(f"{unchanged.by or 'a test'} fails on the unchanged tree")
    print(f"{', '.join(tests)}: {elapsed:.0f} s unchanged; {len(part)} mutants", flush=True)
    found = []
    for mutant in part:
        found.append((mutant, outcome := runner.judge(mutant, tests, unchanged.seconds, 60 + 4 * elapsed)))
        print(f"{outcome.verdict:<10}{mutant.path}:{mutant.line}  {mutant.new}  {outcome.by}", flush=True)
    return found
