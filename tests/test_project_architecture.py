"""The rooms: a module imports only from rooms before its own, never in a circle, and no name hides a module."""

import ast
import graphlib
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import logderiv

PACKAGE = Path(__file__).resolve().parent.parent / "logderiv"

ROOMS = (
    "_core < types < distributions < environments < policies < likelihood < sampling < estimators < expectations < exact"
    " < processes < diagnostics < training < testing < plots"
)
RANK = {room.strip(): i for i, rooms in enumerate(ROOMS.split("<")) for room in rooms.split(",")}
# Families that live inside a room, reachable one level higher.
FAMILIES: dict[str, str] = {"advantages": "estimators", "baselines": "estimators", "importance": "estimators"}
FAMILIES |= {"objectives": "estimators", "reporting": "training"}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {name_of(p): p for p in sorted(PACKAGE.rglob("*.py"))}
MODULES = [name for name in SOURCES if name != "logderiv"]
PACKAGES = {name for name in SOURCES if SOURCES[name].name == "__init__.py"}


def room_of(module: str) -> str:
    room = module.split(".")[1]
    return FAMILIES.get(room, room)


def defining(module: str, name: str) -> str:
    """The module that an imported name comes from, re-exports of packages resolved."""
    if f"{module}.{name}" in SOURCES:
        return f"{module}.{name}"
    for node in ast.parse(SOURCES[module].read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module in SOURCES:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return defining(node.module, alias.name)
    return module


def imports(source: str) -> set[str]:
    """Modules of the library that a source takes names from, where those are defined; not under `TYPE_CHECKING`."""
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(source)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        todo.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.ImportFrom) and node.module in SOURCES:
            found |= {defining(node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in SOURCES}
    return found


GRAPH = {name: imports(SOURCES[name].read_text()) - {name} for name in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_rooms_before_its_own(module):
    rank = RANK[room_of(module)]
    assert not {o for o in GRAPH[module] if RANK[room_of(o)] >= rank and room_of(o) != room_of(module)}


def test_no_module_is_imported_in_a_circle():
    graph = {name: others - PACKAGES for name, others in GRAPH.items() if name not in PACKAGES}
    graphlib.TopologicalSorter(graph).prepare()


def test_the_check_sees_an_upward_import():
    found = imports("from logderiv.training import train\nfrom logderiv import exact\n")
    assert found == {defining("logderiv.training", "train"), "logderiv.exact"}


@pytest.mark.parametrize("module", MODULES)
def test_no_attribute_hides_a_module(module):
    parent, _, name = module.rpartition(".")
    assert getattr(importlib.import_module(parent), name) is importlib.import_module(module)


@pytest.mark.parametrize("module", sorted(name for name in PACKAGES if "._" not in name))
def test_a_package_lists_what_is_public(module):
    package = importlib.import_module(module)
    assert set(package.__all__) <= set(dir(package))
    assert all((getattr(package, name).__doc__ or "").strip() for name in package.__all__)


def test_a_first_hour_has_at_most_fifty_names():
    names = [name for name in logderiv.__all__ if not inspect.ismodule(getattr(logderiv, name))]
    assert len(names) <= 50, names


def test_the_core_imports_without_any_extra_and_starts_no_device():
    """Whoever imports it may still choose devices, or join other processes."""
    code = (
        "import sys\n"
        "for name in ('matplotlib', 'gymnax', 'gymnasium', 'numpyro', 'flax', 'equinox', 'tqdm', 'orbax'):\n"
        "    sys.modules[name] = None\n"
        "import logderiv as ld, jax\n"
        "jax.config.update('jax_num_cpu_devices', 2)\n"
        "corridor = ld.environments.short_corridor(horizon=4)\n"
        "tau = ld.rollout(jax.numpy.zeros(2), jax.random.key(0), ld.shared_softmax, corridor)\n"
        "print(float(ld.log_prob(jax.numpy.zeros(2), ld.shared_softmax, tau)) < 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr


KINDS = {"logderiv.policies.stepwise", "logderiv.likelihood.steps"}


def asked_of_a_policy(source: str) -> list[str]:
    """Where a source reads what tells one kind of policy from another. Environments have `log_factors`, too."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            name, owner = node.attr, ast.unparse(node.value)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            owner, name = ast.unparse(node.args[0]), getattr(node.args[1], "value", None)
        else:
            continue
        if name in ("initial_carry", "table") or (name == "log_factors" and "policy" in owner):
            found.append(f"{owner}.{name}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_two_modules_alone_know_what_kinds_of_policy_there_are(module):
    found = asked_of_a_policy(SOURCES[module].read_text())
    assert bool(found) == (module in KINDS), found
