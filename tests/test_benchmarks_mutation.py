"""The mutation benchmark: which changes count, and that tests which notice them are told from tests which do not."""

import sys

import pytest

from benchmarks import mutation
from benchmarks.mutation import Mutant, Outcome, Runner, bare, mutants, tally

SAYS_NOTHING = '''
"""A module of 1 + 1 lines."""
from typing import Any


def area(side: "Any | None", *, margin: "int | None" = None) -> "int | None":
    """Side * side."""
    if margin:
        raise ValueError(f"expected no margin, received {side - 1}")
    size: "int | None" = side
    return size
'''
AREA = "def area(side):\n    return side * side\n"
CHECKS = "from area import area\n\n\ndef test_area():\n    assert area({}) == {}\n"


def test_docstrings_annotations_and_error_texts_say_nothing():
    changes = {"1 + 1 lines": "2 lines", "Side * side": "Twice", '"Any | None"': '"Any & None"', ' -> "int | None"': ""}
    changes |= {"side - 1": "side + 1", "*, margin": "/, margin", 'size: "int | None"': "size: int"}
    for old, new in changes.items():
        changed = SAYS_NOTHING.replace(old, new)
        assert changed != SAYS_NOTHING
        assert bare(changed) == bare(SAYS_NOTHING), old
    assert bare(SAYS_NOTHING.replace("if margin", "if not margin")) != bare(SAYS_NOTHING)
    assert bare("not x == y") == bare("x != y")
    assert bare("not x < y") != bare("x >= y")  # NaN
    assert bare("x +") is None


def test_mutants_are_the_changes_that_count_each_once():
    pytest.importorskip("cosmic_ray")
    assert [m.new for m in mutants("area.py", SAYS_NOTHING)] == ["if not margin:"]
    found = mutants("area.py", AREA)
    assert [m.new for m in found] == [f"return side {operator} side" for operator in "+-/"]
    assert {(m.path, m.line, m.old) for m in found} == {("area.py", 2, "return side * side")}
    assert [m.new for m in mutants("f.py", "if not x == y:\n    f()\n")] == ["if not x != y:"]


def test_a_missing_tool_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cosmic_ray.mutating", None)
    with pytest.raises(SystemExit, match=r"needs cosmic-ray.*\[mutation\]"):
        mutants("area.py", AREA)


@pytest.mark.slow
def test_killed_survived_and_timed_out_are_told_apart(tmp_path):
    """2 * 2 = 2 + 2: the test of 2 is blind to it, the test of 3 is not. The file is as before afterwards."""
    (tmp_path / "test_blind.py").write_text(CHECKS.format(2, 4))
    (tmp_path / "test_sharp.py").write_text(CHECKS.format(3, 9))
    runner = Runner(tmp_path)
    runner.write("area.py", AREA)
    plus = Mutant("area.py", 2, "return side * side", "return side + side", AREA.replace("*", "+"))
    unchanged = runner.run(["test_blind.py", "test_sharp.py"], {}, None)
    assert unchanged.verdict == "survived"
    assert set(unchanged.seconds) == {"test_blind.py::test_area", "test_sharp.py::test_area"}
    blind = runner.judge(plus, ["test_blind.py"], {}, 60)
    both = runner.judge(plus, ["test_blind.py", "test_sharp.py"], {"test_blind.py::test_area": 9.0}, 60)
    broken = runner.judge(plus._replace(source="nothing"), ["test_blind.py"], {}, 60)
    assert (blind.verdict, both.verdict, broken.verdict) == ("survived", "killed", "killed")
    assert both.by == "test_sharp.py::test_area"
    assert set(both.seconds) == {"test_sharp.py::test_area"}  # the fastest first, and no other after it
    endless = plus._replace(source="while True:\n    pass\n")
    assert runner.judge(endless, ["test_blind.py"], {}, 2.0).verdict == "timed out"
    asleep = plus._replace(source="import time\n\ntime.sleep(1e6)\n")
    assert runner.judge(asleep, ["test_blind.py"], {}, 0.0).verdict == "timed out"
    assert (tmp_path / "area.py").read_text() == AREA
    with pytest.raises(RuntimeError, match="no tests found"):
        runner.run(["area.py"], {}, None)


def test_counts():
    outcomes = [Outcome(verdict, "", {}) for verdict in ("killed", "survived", "timed out", "killed")]
    assert tally(outcomes) == {"mutants": 4, "killed": 2, "timed out": 1, "crashed": 0, "survived": 1, "share": 0.75}
    assert tally([])["share"] == 0.0


def test_every_part_has_sources_and_tests():
    assert all(modules and tests for modules, tests in map(mutation.of_part, mutation.PARTS))
