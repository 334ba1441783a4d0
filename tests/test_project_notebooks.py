"""Every notebook runs from top to bottom in a fresh kernel, and the committed outputs are clean and up to date."""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
assert {"01_the_identity", "02_reinforce_with_optax", "06_any_order", "07_sequences"} <= {path.stem for path in PATHS}
MACHINE_PATH = re.compile(r"(?<![\w.:/-])(?:/(?:home|root|tmp|work|usr|opt|var|mnt|Users|private)/|[A-Z]:\\)")
SECONDS_PER_CELL = 300  # a hang, not a limit on speed: the machine may be busy

each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def _fresh_kernel(monkeypatch, tmp_path):
    """The kernel inherits the environment: this tree, JAX on the CPU with its default types, no user's profile or figure backend."""
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOKS.parent))
    monkeypatch.setenv("LOGDERIV_SHORT", "true")  # a notebook that trains for minutes trains for seconds
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")  # compiling is what costs
    startup = tmp_path / "ipython/profile_default/startup"
    startup.mkdir(parents=True)
    (startup / "rarely.py").write_text("import gc\ngc.set_threshold(100_000, 20, 50)\n")  # as in `conftest.py`
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    for name in ("JAX_ENABLE_X64", "JAX_DEBUG_NANS", "MPLBACKEND"):
        monkeypatch.delenv(name, raising=False)


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Run all cells in `folder`, in place; `CellExecutionError` at the first one that raises."""
    how = {"timeout": SECONDS_PER_CELL, "kernel_name": "python3", "record_timing": False}
    place = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook, resources=place, extra_arguments=["--log-level=ERROR"], **how).execute()


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shows(source: str) -> bool:
    """Whether a cell prints, shows a figure, or ends in a value (a call may return None, so it does not count)."""
    tree = ast.parse(source)
    names = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    last = tree.body[-1] if tree.body else None
    ends_in_value = isinstance(last, ast.Expr) and not isinstance(last.value, ast.Call)
    return ends_in_value or bool(names & {"print", "display", "plt.show"})


def kinds(cell: NotebookNode) -> list[str]:
    """What a cell shows, without what depends on the machine: `stdout`, `image/png`, ... in order, runs of text as one."""
    found = []
    for output in cell.outputs:
        names = [output.name] if output.output_type == "stream" else sorted(output.get("data", {"error": None}))
        found += [name for name in names if [name] != found[-1:]]
    return found


def without_images(notebook: NotebookNode) -> str:
    """All text of a notebook; base64 may spell anything."""
    texts: list[str] = []
    note = lambda pairs: texts.extend(str(value) for key, value in pairs if key != "image/png")  # noqa: E731
    json.loads(json.dumps(notebook), object_pairs_hook=note)
    return "\n".join(texts)


def problems(notebook: NotebookNode) -> list[str]:
    """What is wrong with a notebook as it was committed."""
    cells = code_cells(notebook)
    found = [f"a path of some machine: {match.group()}" for match in MACHINE_PATH.finditer(without_images(notebook))]
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        found.append("not executed once from top to bottom")
    if not cells or "assert " not in cells[-1].source:
        found.append("does not end in an assert")
    for number, cell in enumerate(cells, 1):
        wrong = []
        if shows(cell.source) != bool(cell.outputs):
            wrong.append("unexpected output" if cell.outputs else "shows something but has no output")
        if {"stderr", "error"} & set(kinds(cell)):
            wrong.append("a warning or an error in the outputs")
        if "image/png" in kinds(cell) and not cell.metadata.get("mystnb", {}).get("image", {}).get("alt"):
            wrong.append("a figure without an alternative text")
        if "execution" in cell.metadata:
            wrong.append("time stamps in its metadata")
        found += [f"code cell {number}: {text}" for text in wrong]
    return found


def small(*sources: str) -> NotebookNode:
    cells = [nbformat.v4.new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(sources)]
    return nbformat.v4.new_notebook(cells=cells)


@each_notebook
def test_notebook_runs_and_what_is_committed_is_clean_and_up_to_date(path):
    committed = read(path)
    nbformat.validate(committed)
    executed = execute(read(path), NOTEBOOKS)
    assert [kinds(cell) for cell in code_cells(executed)] == [kinds(cell) for cell in code_cells(committed)]
    assert problems(committed) == problems(executed) == []


def test_problems_of_a_notebook_that_was_not_run():
    found = ["not executed once from top to bottom", "code cell 1: shows something but has no output"]
    assert problems(small("print(1)", "assert True")) == found
    assert problems(small("print(1)")) == [found[0], "does not end in an assert", found[1]]
    drawn = small("plt.show()", "assert True")
    drawn.cells[0].outputs = [nbformat.v4.new_output("display_data", {"image/png": ""})]
    assert problems(drawn) == [found[0], "code cell 1: a figure without an alternative text"]


def test_problems_after_a_run_in_a_fresh_kernel_in_the_folder(tmp_path):
    """One cell is right, one warns, one shows a path of the machine; a cell that raises ends it."""
    folder = "os.path.samefile(os.getcwd(), os.path.dirname(os.environ['IPYTHONDIR']))"
    right = f"import os, sys, jax\nprint({folder}, jax.default_backend(), jax.config.jax_enable_x64)"
    warns, private = "sys.stderr.write('careful'); None", "print('/' + 'home/me/x')"
    notebook = execute(small(right, warns, private, "assert True"), tmp_path)
    assert notebook.cells[0].outputs[0].text == "True cpu False\n"
    wrong = ["a path of some machine: /home/", "code cell 2: a warning or an error in the outputs"]
    assert problems(notebook) == wrong
    with pytest.raises(CellExecutionError, match="AssertionError"):
        execute(small("x = 1 + 1", "assert x == 3", "print('never reached')"), tmp_path)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("File /root/.venv/lib/x.py", True),
        ("'/tmp/a'", True),
        ("C:\\Users\\me", True),
        ("https://example.org/home/page", False),
        ("a/tmp/b and and/or", False),
        ("d J / d logit, (*batch, T)", False),
    ],
)
def test_machine_paths(text, found):
    assert bool(MACHINE_PATH.search(text)) == found
