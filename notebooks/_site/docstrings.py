"""The library's docstrings, which are written for `help()`, as reStructuredText; and one address for each public name.

In a docstring code stands in single backticks, and a formula is an indented block of Unicode. The first become links where they
name something public and literals elsewhere, the second literal blocks. A type in a signature is defined in some module of a room
and links to where the room shows it.
"""

import functools
import importlib
import inspect
import pkgutil
import re
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.application import Sphinx

CODE = re.compile(r"(`[^`]+`)")
SECTION = re.compile(r"(Args|Arguments|Attributes|Returns|Yields|Raises|Examples?|References|Notes?|Gradients|Warns):")


@functools.cache
def public() -> dict[str, Any]:
    """Address to object, of every name in an `__all__` below `logderiv`; `logderiv.types` lists what it defines."""
    found = {}
    package = importlib.import_module("logderiv")
    for module in sorted(info.name for info in pkgutil.iter_modules(package.__path__) if info.name[0] != "_"):
        room = importlib.import_module(f"logderiv.{module}")
        for name in getattr(room, "__all__", [n for n in vars(room) if n[0] != "_"]):
            obj = getattr(room, name)
            if hasattr(room, "__all__") or getattr(obj, "__module__", "") == room.__name__:
                found[f"logderiv.{module}.{name}"] = obj
    return found


@functools.cache
def addresses() -> dict[int, str]:
    """The address of a public object: in the room that defines it, where several show it."""
    found: dict[int, str] = {}
    for address, obj in public().items():
        at_home = getattr(obj, "__module__", "").startswith(address.rpartition(".")[0])
        if at_home or id(obj) not in found:
            found[id(obj)] = address
    return found


@functools.cache
def short_names() -> dict[str, str]:
    """`room.Name` and `Name` to the address."""
    known = {address.removeprefix("logderiv."): address for address in public()}
    for address, obj in public().items():
        known.setdefault(address.rpartition(".")[2], addresses().get(id(obj), address))
    return known


def resolve(text: str) -> str | None:
    """The address of what `logderiv.room.module.Name`, `ld.Name`, `room.Name`, `Name` or `Name.method` means."""
    text = text.removesuffix("()")
    name = text.removeprefix("logderiv.").removeprefix("ld.")
    owner, _, method = name.rpartition(".")
    known = short_names()
    if name in known:
        return known[name]
    if owner in known and hasattr(public()[known[owner]], method):
        obj = public()[known[owner]]
        member = inspect.getattr_static(obj, method, None)
        documented = getattr(member, "__doc__", None) and (inspect.isroutine(member) or isinstance(member, property))
        return f"{known[owner]}.{method}" if documented and method in vars(obj) and method[0] != "_" else None
    return None


def span(code: str) -> str:
    address = resolve(code.strip("`"))
    return f":py:obj:`{code.strip('`')} <{address}>`" if address else f"``{code.strip('`')}``"


def line_to_rst(line: str) -> str:
    """Code spans as links or literals; what reStructuredText would take for markup, escaped."""
    parts = []
    for part in CODE.split(line):
        if CODE.fullmatch(part):
            parts.append(span(part))
            continue
        part = part.replace("\\", "\\\\").replace("|", r"\|")
        part = re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", part)
        part = (
            re.sub(r"(?<![\w*])\*(\w[^*]*?)\*(?![\w*])", "\x00\\1\x00", part).replace("*", r"\*").replace("\x00", "*")
        )
        parts.append(part)
    return "".join(parts)


def to_rst(lines: list[str]) -> list[str]:
    """A docstring, its indentation removed, as napoleon reads it."""
    found: list[str] = []
    section, literal, table, previous = "", None, False, ""
    for line in lines:
        indent = len(line) - len(line.lstrip())
        text = line.strip()
        if literal is not None and (indent >= literal or not text):
            found.append(line)
            previous = line
            continue
        literal = None
        if text.startswith("|") and text.endswith("|") and text.count("|") > 2:  # a table, as it stands
            found += [] if table else [" " * indent + "::", ""]
            found.append("    " + line)
            table, previous = True, line
            continue
        found += [""] if table else []
        table = False
        if text and not indent:
            section = text if SECTION.match(text) and text.endswith(":") else ""
            if match := re.match(r"(Gradients|References|Example): +(\S.*)", text):
                found.append("**" + match[1] + ":** " + line_to_rst(match[2]))
                previous = line
                continue
        starts_block = text and indent and not previous.strip() and not text.startswith((">>>", "- ", "* "))
        if starts_block and (not section or indent > 4):
            base = 4 if section else 0
            found += [" " * base + "::", ""]
            literal = indent
            found.append(line)
        elif text.startswith((">>>", "...")) or (section and previous.strip().startswith(">>>")):
            found.append(line)
        elif text.startswith("- ") and previous.strip() and not previous.strip().startswith("- ") and indent == 0:
            found += ["", line_to_rst(line)]
        elif section == "Returns:" and previous == section and ":" in text:
            found.append(f"{' ' * indent}: {line_to_rst(text)}")  # no type, though a colon follows
        else:
            found.append(line_to_rst(line))
        previous = line
    return found


def on_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    del app, name, obj, options
    lines[:] = to_rst(lines)
    if what == "property" and lines and ":" in lines[0]:
        lines[0] = f": {lines[0]}"  # no type, though a colon follows


def on_skip(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """A field of a named tuple is described in its class's text."""
    del app, what, name, options
    return True if type(obj).__name__ == "_tuplegetter" else skip or None


def on_missing(app: Sphinx, env: Any, node: addnodes.pending_xref, contnode: nodes.Node) -> nodes.Node | None:
    """A name by the module that defines it: link to where its room shows it."""
    target = node.get("reftarget", "")
    if not target.startswith("logderiv."):
        return None
    module, _, name = target.rpartition(".")
    try:
        obj = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return None
    address = addresses().get(id(obj))
    if address is None or address == target:
        return None
    domain = env.domains["py"]
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", address, node, contnode)


class TopLevel(Directive):
    """Every name of `logderiv.__all__` that is no module, with the first sentence about it."""

    def run(self) -> list[nodes.Node]:
        package = importlib.import_module("logderiv")
        lines = []
        for name in package.__all__:
            obj = getattr(package, name)
            if not inspect.ismodule(obj):
                address = addresses()[id(obj)]
                first = " ".join((inspect.getdoc(obj) or "").split("\n\n")[0].split())
                lines += [f"* :py:obj:`ld.{name} <{address}>`: {line_to_rst(first)}"]
        node = nodes.section()
        node.document = self.state.document
        self.state.nested_parse(StringList(lines, "logderiv"), 0, node)
        return node.children


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", on_docstring, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", on_skip)
    app.connect("missing-reference", on_missing)
    app.add_directive("top-level", TopLevel)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
