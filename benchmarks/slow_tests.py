"""Do the tests that `python -m tests` leaves out pass, and how long does each file of them take?

They are long reproductions, most quick runs of benchmarks, and the rest of tables of which every kind is checked by default.

Run by name only: `python -m benchmarks slow_tests`; with `--quick` those of one file.
"""

import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.harness import ROOT, Report, Table, at_least, at_most

COMMAND = (sys.executable, "-m", "pytest", "-q", "-m", "slow", "-n", "2", "--dist", "loadfile")
VERDICTS = {"failure": "failed", "error": "failed", "skipped": "skipped"}  # by the tag in a JUnit report


def by_file(report: Path) -> dict[str, Any]:
    """Of each file of a JUnit report how many tests passed, failed and were skipped, and their seconds."""
    rows: dict[str, Any] = defaultdict(Counter)
    for case in ElementTree.parse(report).iter("testcase"):
        verdict = next((VERDICTS[child.tag] for child in case if child.tag in VERDICTS), "passed")
        rows[case.attrib["classname"]].update({verdict: 1, "seconds": float(case.attrib["time"])})
    return rows


def main(quick: bool) -> Report:
    where = ["tests/test_core_blocks.py"] if quick else []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        subprocess.run([*COMMAND, f"--junitxml={report}", *where], cwd=ROOT, check=False)
        rows = by_file(report)
    total = sum(rows.values(), Counter())
    cells = "{r[0]} | {r[1][passed]} | {r[1][failed]} | {r[1][skipped]} | {r[1][seconds]:.1f}"
    shown = [*sorted(rows.items(), key=lambda row: -row[1]["seconds"]), ("all of them", total)]
    bounds = [at_most("failed", total["failed"], 0), at_least("passed", total["passed"], 1)]
    return Report([Table("Slow tests", "file | passed | failed | skipped | seconds", cells, shown)], bounds, rows)
