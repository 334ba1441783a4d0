"""What is published: wheel and source archive build, and the wheel runs the README's quick start beside the core packages alone."""

import os
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.pasted import ROOT, blocks

CORE = ("jax", "jaxlib", "optax", "chex")


def needed(names: tuple[str, ...]) -> set[str]:
    """These distributions and all that they require here, without extras."""
    found: set[str] = set()
    names_left = list(names)
    while names_left:
        name = names_left.pop()
        if name not in found:
            found.add(name)
            requirements = map(Requirement, distribution(name).requires or ())
            names_left += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,), (source,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, source


@pytest.fixture(scope="module")
def bare(built, tmp_path_factory):
    """A folder with the wheel and links to the core packages; an interpreter that skips `site` sees nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    zipfile.ZipFile(built[0]).extractall(folder)
    for name in needed(CORE):
        files = distribution(name).files or ()
        for top in {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(str(distribution(name).locate_file(top)))
    return folder


def run(bare: Path, code: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(bare)}
    command = [sys.executable, "-S", "-c", code]
    return subprocess.run(command, cwd=bare, env=environment, capture_output=True, text=True, check=False)


def test_the_quick_start_runs_beside_the_core_packages_alone(bare):
    done = run(bare, blocks(ROOT / "README.md")[0])
    assert done.returncode == 0, done.stderr
    assert "grad P = P * grad log P" in done.stdout


def test_the_wheel_says_that_it_is_typed_and_brings_nothing_else_in_sight(bare):
    code = "import importlib.resources, logderiv; print(importlib.resources.files(logderiv).joinpath('py.typed').is_file())"
    assert run(bare, code).stdout == "True\n"
    missing = run(bare, "import matplotlib")
    assert "ModuleNotFoundError" in missing.stderr


def test_what_the_archives_hold(built):
    wheel, source = built
    assert {name.split("/")[0].partition("-")[0] for name in zipfile.ZipFile(wheel).namelist()} == {"logderiv"}
    with tarfile.open(source) as archive:
        tops = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert tops >= {"logderiv", "tests", "benchmarks", "notebooks", "pyproject.toml", "README.md", "LICENSE"}
