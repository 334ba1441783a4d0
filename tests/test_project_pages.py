"""The pages: every block of Python runs as pasted, links lead somewhere, and the site builds without a warning and without a network."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import logderiv as ld
from tests.pasted import ROOT, blocks, run

NOTEBOOKS = ROOT / "notebooks"
PAGES = [ROOT / "README.md", *sorted(NOTEBOOKS.glob("*.md"))]
OPTIONAL = ("equinox", "flax", "gymnax")  # what a block may import beside the core


def links(page: Path) -> list[str]:
    """Targets of links and images that are files of the tree."""
    text = re.sub(r"^(`{3,}).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target for target in found if not re.match(r"[a-z]+:|#", target)]


# The two blocks of the README are run, and what they print is read, by `tests/test_training_run.py`.
def without_numbers(text: str) -> str:
    """Numbers differ in their last digits between machines, and with them the white space around."""
    return re.sub(r"[-+]?\d[\d.e+-]*|\s", "", text)


@pytest.mark.parametrize("page", [page for page in PAGES[1:] if blocks(page)], ids=lambda page: page.stem)
def test_every_block_of_a_page_runs_as_pasted_and_prints_what_the_page_shows(page, tmp_path):
    source = "\n".join(blocks(page))
    for module in OPTIONAL:
        if re.search(rf"^import {module}\b", source, re.M):
            pytest.importorskip(module)
    assert without_numbers(run(source, tmp_path)) == without_numbers("".join(blocks(page, "text")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files(page):
    assert not [target for target in links(page) if not (page.parent / target.partition("#")[0]).exists()]


def spans(page: Path) -> list[str]:
    """Code in the prose of a page."""
    return re.findall(r"`([^`]+)`", re.sub(r"^(`{3,}).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.M | re.S))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_names_in_the_prose_exist(page):
    """`ld.x.y`, files of the tree, and benchmarks."""
    text = "\n".join(spans(page))
    missing = []
    for name in set(re.findall(r"\bld\.([A-Za-z_][\w.]*)", text)):
        found = ld
        for part in name.rstrip(".").split("."):
            found = getattr(found, part, None)
        if found is None:
            missing.append(f"ld.{name}")
    for path in set(re.findall(r"(?:tests|benchmarks|logderiv|notebooks)/[\w/]+\.(?:py|md|ipynb)", text)):
        if not (ROOT / path).exists():
            missing.append(path)
    for name in set(re.findall(r"python -m benchmarks ([a-z_]+)", text)):
        if not (ROOT / "benchmarks" / f"{name}.py").exists():
            missing.append(f"benchmark {name}")
    assert not missing


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 900


class Loaded(HTMLParser):
    """What a browser fetches on its own account, formulas, and images that say nothing to who cannot see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.formulas = self.silent = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.formulas += tag == "math"
        self.silent += tag == "img" and not values.get("alt")
        if tag in ("script", "img", "iframe", "source", "video", "audio"):
            self.found.append(values.get("src") or "")
        if tag == "link" and (values.get("rel") or "") in ("stylesheet", "icon", "preload"):
            self.found.append(values.get("href") or "")


def test_what_a_page_loads_is_found():
    page = Loaded(
        '<script src="https://host/x.js"></script><a href="https://host/">a link is not loaded</a><math></math>'
        '<img src="x.png"><img src="y.png" alt="A line">'
    )
    assert page.found == ["https://host/x.js", "x.png", "y.png"]
    assert page.formulas == page.silent == 1


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for name in ("sphinx", "myst_nb", "furo", "latex2mathml"):
        pytest.importorskip(name)
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html", NOTEBOOKS, out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def test_the_site_builds_with_every_notebook_a_page(site):
    sources = [*NOTEBOOKS.glob("*.ipynb"), *NOTEBOOKS.glob("*.md"), *NOTEBOOKS.glob("reference/*.md")]
    pages = [site / path.relative_to(NOTEBOOKS).with_suffix(".html") for path in sources]
    assert not [page for page in pages if not page.exists()]


def test_formulas_and_all_that_a_page_loads_come_with_it(site):
    pages = {path: Loaded(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert not [(path.name, x) for path, page in pages.items() for x in page.found if re.match(r"(https?:)?//", x)]
    assert not [
        x for css in site.rglob("*.css") for x in re.findall(r"url\(['\"]?((?:https?:)?//[^)]*)", css.read_text())
    ]
    assert pages[site / "01_the_identity.html"].formulas > 20
    assert not [path.name for path, page in pages.items() if page.silent]


def test_the_reference_shows_every_public_name(site):
    import importlib
    import pkgutil

    shown = "".join(path.read_text(encoding="utf-8") for path in site.glob("reference/*.html"))
    package = importlib.import_module("logderiv")
    missing = []
    for info in pkgutil.iter_modules(package.__path__):
        room = importlib.import_module(f"logderiv.{info.name}")
        missing += [
            f"{info.name}.{name}"
            for name in getattr(room, "__all__", ())
            if not re.search(rf'id="logderiv\.\w+\.{name}"', shown)
        ]
    assert not missing
