"""Every public callable says what it takes, what it returns and what it raises.

Public is what stands in an `__all__`, and the methods of those classes. A method that implements a documented one of a base class
inherits its text.
"""

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from typing import Any

import pytest

from logderiv import types
from tests.test_project_architecture import SOURCES

PACKAGES = [name for name in SOURCES if "._" not in name and hasattr(importlib.import_module(name), "__all__")]


def public() -> dict[str, Any]:
    """Qualified name to object: functions, classes, and the methods that a class defines itself."""
    found: dict[str, Any] = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            obj = getattr(module, name)
            if not (inspect.isfunction(obj) or inspect.isclass(obj)) or not obj.__module__.startswith("logderiv"):
                continue
            address = f"{obj.__module__}.{obj.__qualname__}"
            found[address] = obj
            for key, member in vars(obj).items() if inspect.isclass(obj) else ():
                member = getattr(member, "__func__", member)
                own = inspect.isfunction(member) and member.__module__ == obj.__module__
                if not key.startswith("_") and (own or isinstance(member, property)):
                    found[f"{address}.{key}"] = member
    return found


PUBLIC = public()
ENVIRONMENT = ("reset", "step", "log_initial", "log_factors")  # documented once, by `logderiv.types.Environment`


def implements_environment(name: str) -> bool:
    """Whether a method is one of an environment's."""
    owner, _, method = name.rpartition(".")
    return method in ENVIRONMENT and inspect.isclass(PUBLIC.get(owner)) and hasattr(PUBLIC[owner], "step")


def overrides(name: str) -> bool:
    """Whether a method without a text of its own implements one that has it."""
    owner, _, method = name.rpartition(".")
    obj = PUBLIC.get(owner)
    return obj is not None and any((vars(b).get(method).__doc__ or "") for b in obj.__mro__[1:] if method in vars(b))


def exceptions(function: Any, seen: frozenset = frozenset()) -> set[str]:
    """What the body raises, and the checks that it calls."""
    function = inspect.unwrap(function)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return set()
    found, scope = set(), getattr(function, "__globals__", {})
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            found.add(node.exc.func.id)
        if isinstance(node, ast.Call):
            owner, _, name = ast.unparse(node.func).rpartition(".")
            called = scope.get(name) if re.fullmatch(r"_?check\w*", name) and not owner else None
            called = getattr(scope.get("check"), name, None) if owner == "check" else called
            if inspect.isfunction(called) and called not in seen:
                found |= exceptions(called, seen | {called})
    return {name for name in found if re.fullmatch(r"[^_]\w*Error", name)} - {"NotImplementedError"}


def gaps_of_function(function: Any) -> list[str]:
    doc, gaps = inspect.getdoc(function) or "", []
    if not doc:
        return ["no docstring"]
    signature = inspect.signature(inspect.unwrap(function))
    for parameter in signature.parameters.values():
        documented = re.search(rf"^\s+\*{{0,2}}{parameter.name}: \S", doc, re.M)
        if parameter.name not in ("self", "cls") and not parameter.name.startswith("_") and not documented:
            gaps.append(f"argument {parameter.name}")
    returns = signature.return_annotation
    if returns not in (None, "None", inspect.Signature.empty) and "Returns:" not in doc and "Yields:" not in doc:
        gaps.append("what it returns")
    raised = doc.partition("Raises:")[2]
    gaps += [f"raises {name}" for name in sorted(exceptions(function)) if name not in raised]
    return gaps


def gaps_of_class(cls: Any) -> list[str]:
    doc = vars(cls).get("__doc__") or ""
    if not doc.strip() or doc.startswith(f"{cls.__name__}("):
        return ["no docstring"]
    names = list(getattr(cls, "_fields", ()))
    if dataclasses.is_dataclass(cls):
        names += [field.name for field in dataclasses.fields(cls) if not field.name.startswith("_")]
    elif "__init__" in vars(cls) and not names:
        names += [name for name in inspect.signature(cls.__init__).parameters if name not in ("self", "args", "kwargs")]
    gaps = [f"field {name}" for name in names if not re.search(rf"^\s+{name}: \S", doc, re.M)]
    raised = doc.partition("Raises:")[2]
    checks = vars(cls).get("__post_init__")
    return gaps + [f"raises {name}" for name in sorted(exceptions(checks) if checks else ()) if name not in raised]


def gaps(name: str) -> list[str]:
    obj = PUBLIC[name]
    if inspect.isclass(obj):
        return gaps_of_class(obj)
    if isinstance(obj, property):
        return [] if obj.__doc__ or overrides(name) else ["no docstring"]
    if implements_environment(name) or (not obj.__doc__ and overrides(name)):
        return []
    return gaps_of_function(obj)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_callable_says_all(name):
    assert not gaps(name)


def test_the_check_sees_what_is_missing():
    def function(a: int, b: int) -> int:
        """Adds.

        Args:
            a: One number.
        """
        if a < 0:
            raise ValueError("negative")
        return a + b

    assert gaps_of_function(function) == ["argument b", "what it returns", "raises ValueError"]

    for name in ("reset", "step"):  # where the other environments inherit it
        assert not gaps_of_function(getattr(types.Environment, name))
