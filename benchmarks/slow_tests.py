"""Do the tests that `python -m tests` leaves out pass, and how long does each file of them take?

They are long reproductions, most quick runs of benchmarks, and the rest of tables of which every kind is checked by default.

Run by name only: `python -m benchmarks slow_tests`; with `--quick` those of one file.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.harness import ROOT, Report, Table, at_least, at_most

COMMAND = (sys.executable, "-m", "pytest", "-q", "-m", "slow", "-n", "2", "--dist", "loadfile")
VERDICTS = {"failure": "failed", "error": "failed", "skipped": "skipped"}


def by_file(report: Path) -> list[dict[str, float]]:
    """Of each file of a JUnit report its tests that passed, failed and were skipped, and their seconds; the slowest first."""
    rows = {}
    for case in ElementTree.parse(report).iter("testcase"):
        start = {"file": case.get("classname"), "passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0}
        row = rows.setdefault(case.get("classname"), start)
        row[next((VERDICTS[child.tag] for child in case if child.tag in VERDICTS), "passed")] += 1
        row["seconds"] += float(case.get("time", 0))
    return sorted(rows.values(), key=lambda row: -row["seconds"])


def main(quick: bool) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        where = ["tests/test_core_blocks.py"] if quick else []
        subprocess.run([*COMMAND, f"--junitxml={report}", *where], cwd=ROOT, check=False)
        rows = by_file(report)
    total = {name: sum(row[name] for row in rows) for name in ("passed", "failed", "skipped", "seconds")}
    cells = "{r[file]} | {r[passed]} | {r[failed]} | {r[skipped]} | {r[seconds]:.1f}"
    table = Table(
        "Slow tests", "file | passed | failed | skipped | seconds", cells, [*rows, {"file": "all of them", **total}]
    )
    return Report([table], [at_most("failed", total["failed"], 0), at_least("passed", total["passed"], 1)], total)
