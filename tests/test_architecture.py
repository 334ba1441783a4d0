"""The map: modules import only those before them; the core imports without extras."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "logderiv"

# From the first that everything may import to the last that nothing does. A name stands for a module or a folder.
ORDER = [
    "_arrays",
    "_static_text",
    "devices",
    "bias",
    "types",
    "distributions",
    "squashed",
    "environments",
    "policies",
    "rollout",
    "streams",
    "parameter_space",
    "blocks",
    "factors",
    "visits",
    "likelihood",
    "tokens",
    "identity",
    "importance",
    "credit",
    "baselines",
    "surrogates",
    "estimators",
    "fisher",
    "pathwise",
    "measure_valued",
    "tape",
    "programs",
    "exact",
    "processes",
    "diagnostics",
    "reports",
    "progress",
    "evaluation",
    "updates",
    "writers",
    "checkpoints",
    "loop",
    "training",
    "testing",
    "plots",
]


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "logderiv":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("logderiv.")}
    return found


MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_import_only_what_comes_before_them(path):
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert name in ORDER, f"{name} is not on the map"
    later = {other for other in _imports(path) if ORDER.index(other) > ORDER.index(name)}
    assert not later


def test_the_direction_check_sees_an_upward_import(tmp_path):
    bad = tmp_path / "credit.py"
    bad.write_text("from logderiv.training import train\nfrom logderiv import exact\n")
    assert _imports(bad) == {"training", "exact"}


def test_the_core_imports_without_any_extra():
    code = (
        "import sys\n"
        "for name in ('matplotlib', 'gymnax', 'gymnasium', 'numpyro', 'flax', 'equinox', 'tqdm', 'orbax', 'scipy.stats'):\n"
        "    if name != 'scipy.stats': sys.modules[name] = None\n"
        "import logderiv as ld, jax\n"
        "tau = ld.rollout(jax.numpy.zeros(2), jax.random.key(0), ld.shared_softmax, ld.short_corridor(), horizon=4)\n"
        "print(float(ld.log_prob(jax.numpy.zeros(2), ld.shared_softmax, tau)) < 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr


def test_every_public_name_has_a_docstring():
    import logderiv as ld

    missing = [
        name for name, value in vars(ld).items() if not name.startswith("_") and not (value.__doc__ or "").strip()
    ]
    assert not missing
