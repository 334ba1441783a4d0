"""The benchmark that runs the slow tests: what a JUnit report says of each file, and that a failure is a missed bound."""

import subprocess

import pytest

from benchmarks import slow_tests

PASSED, FAILED = '<testcase classname="{}" time="1.5"/>', '<testcase classname="{}" time="2"><failure/></testcase>'
SKIPPED = '<testcase classname="{}" time="0"><skipped/></testcase>'


@pytest.mark.parametrize(("last", "failed"), [(FAILED, 1), (PASSED, 0)], ids=["one fails", "none fails"])
def test_tests_are_counted_by_file_and_one_that_fails_misses_a_bound(last, failed, monkeypatch):
    def run(command, **_):
        (path,) = (word.partition("=")[2] for word in command if word.startswith("--junitxml="))
        cases = [PASSED.format("tests.a"), PASSED.format("tests.b"), SKIPPED.format("tests.b"), last.format("tests.b")]
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(slow_tests.subprocess, "run", run)
    report = slow_tests.main(quick=False)
    assert [bound.holds for bound in report.bounds] == [not failed, True]
    first, second, total = str(report.tables[0]).splitlines()[-3:]
    assert first.split() == ["tests.b", str(2 - failed), str(failed), "1", "3.5" if failed else "3.0"]
    assert second.split() == ["tests.a", "1", "0", "0", "1.5"]
    assert total.split()[:6] == ["all", "of", "them", str(3 - failed), str(failed), "1"]
