"""`python -m tests`: what is run for a room."""

import subprocess
import sys

import pytest

from tests import __main__ as command


@pytest.fixture
def ran(monkeypatch):
    """What is started; it fails with `-k nothing`."""
    calls = []

    class Process:
        def __init__(self, arguments, **_):
            calls.append(arguments[2:])
            self.returncode = int("-k nothing" in " ".join(arguments))

        def wait(self):
            return self.returncode

        def communicate(self):
            return "0 errors", None

    monkeypatch.setattr(command.subprocess, "Popen", Process)
    return calls


def test_without_a_room_every_check_is_run_and_the_rest_goes_to_pytest(ran):
    assert command.main(["-k", "padding"]) == 0
    assert [name for name, *_ in ran] == ["basedpyright", "ruff", "ruff", "pytest"]
    assert ran[-1][-2:] == ["-k", "padding"]
    assert not any("-k" in arguments for arguments in ran[:-1])


def test_an_error_of_types_fails_the_whole_check(ran, monkeypatch, capsys):
    assert command.main([]) == 0
    assert capsys.readouterr().out.endswith("== basedpyright --warnings\n0 errors\n")
    monkeypatch.setattr(command, "TYPES", ("basedpyright", "-k", "nothing"))
    assert command.main([]) == 1
    assert capsys.readouterr().err == "failed: basedpyright\n"


def test_a_room_is_its_tests_and_its_doctests(ran):
    assert command.main(["project", "-q"]) == 0
    assert command.main(["policies", "-k", "nothing"]) == 1
    (tool, *project), (_, *policies) = ran
    assert tool == "pytest"
    assert "tests/test_project_command.py" in project
    assert project[-1] == "-q"
    assert "logderiv/policies" in policies
    assert all(name.startswith(("tests/test_policies", "logderiv/policies", "-k", "nothing")) for name in policies)


def test_every_room_of_the_architecture_has_a_name():
    from tests.test_project_architecture import RANK

    assert {room.strip("_") for room in RANK} <= set(command.rooms())


def test_it_is_a_command_and_an_unknown_room_is_an_error_that_names_the_known_ones():
    options = {"cwd": command.ROOT, "capture_output": True, "text": True, "check": False}
    done = subprocess.run([sys.executable, "-m", "tests", "attic"], **options)
    assert done.returncode == 2
    assert done.stderr.startswith("unknown room attic; known are: ")
    assert {"likelihood", "training"} <= set(done.stderr.replace(",", " ").split())
