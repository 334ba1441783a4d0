"""Functions that read and write JAX's references, made pure; and marks in what JAX has traced of them.

The one module that uses what JAX does not promise to keep: `discharge_state`, which turns a function of references into a pure
one, `extend_axis_env_nd`, a fresh name that keeps JAX from reusing traces of an earlier call, and primitives with rules of their own.
"""

import inspect
import linecache
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import jax
from jax._src.core import extend_axis_env_nd
from jax._src.state.discharge import discharge_state
from jax.extend.core import Primitive, jaxpr_as_fun, jaxprs_in_params
from jax.interpreters import batching, mlir

_MODEL: ContextVar[Any] = ContextVar("logderiv_model", default=None)
_JAX = str(Path(jax.__file__).parent)
_LIBRARY = str(Path(__file__).parent.parent)

_mark = Primitive("logderiv_mark")
_mark.multiple_results = True
_mark.def_impl(lambda **_: [])
_mark.def_abstract_eval(lambda **_: [])
mlir.register_lowering(_mark, lambda _, **__: [])


def mark(site: Any, copies: int = 1) -> None:
    """Leave a mark in the trace: it computes nothing, and tells `marks` and `log_worlds` where it stands.

    Args:
        site: What stands there: an object with `on_vmap`, called when `jax.vmap` meets the mark, and `num_outcomes`.
        copies: How many of it there are side by side.
    """
    _mark.bind(site=site, copies=copies)


def _on_vmap(axis_data: Any, values: Any, dims: Any, *, site: Any, copies: int) -> tuple[list[Any], list[Any]]:
    del values, dims
    site.on_vmap()
    mark(site, copies * axis_data.size)
    return [], []


batching.fancy_primitive_batchers[_mark] = (
    _on_vmap  # called even where nothing of the mark is mapped, as nothing ever is
)


class Staged:
    """A pure function that has been traced: from leaves to leaves.

    Attributes:
        jaxpr: As it was traced, with its marks.
    """

    def __init__(self, function: Callable[[Any], Any], leaves: list[Any]) -> None:
        """Trace `function(refs)`, which reads and writes references that begin with these leaves.

        Args:
            function: From a list of references to any pytree of arrays.
            leaves: Arrays.

        Raises:
            TypeError: The function reads or writes a reference from outside.
        """

        def on_refs(leaves: list[Any]) -> tuple[Any, list[Any]]:
            refs = [jax.new_ref(x) for x in leaves]
            output = function(refs)
            return output, [ref[...] for ref in refs]

        with extend_axis_env_nd([(object(), 1)]):
            closed, like = jax.make_jaxpr(on_refs, return_shape=True)(leaves)
        outside = [v for v, x in zip(closed.jaxpr.constvars, closed.consts, strict=True) if _is_ref(x)]
        if outside:
            raise TypeError(
                f"{_place_of_use(closed.jaxpr, outside)}: model: reads or writes a jax.Ref from outside, expected none; make it inside the "
                "model, or carry its value."
            )
        self.jaxpr = closed.jaxpr
        self._run, self._structure = jaxpr_as_fun(discharge_state(closed)), jax.tree.structure(like)

    def __call__(self, leaves: list[Any]) -> tuple[Any, list[Any]]:
        """The output, and what stands in the references at the end."""
        return jax.tree.unflatten(self._structure, self._run(*leaves))


def marks(jaxpr: Any) -> Iterator[Any]:
    """The site of every mark in a trace, at any depth."""
    for eqn in jaxpr.eqns:
        if eqn.primitive is _mark:
            yield eqn.params["site"]
        for inner in jaxprs_in_params(eqn.params):
            yield from marks(inner)


def enclosed(jaxpr: Any) -> Iterator[tuple[str, Any]]:
    """`(name, site)` for every mark inside a primitive of this name, and "while condition" for a loop's condition."""
    for eqn in jaxpr.eqns:
        inners = list(jaxprs_in_params(eqn.params))
        if eqn.primitive.name == "while":
            yield from (("while condition", site) for site in marks(eqn.params["cond_jaxpr"].jaxpr))
        for inner in inners:
            yield from ((eqn.primitive.name, site) for site in marks(inner))
            yield from enclosed(inner)


def log_worlds(jaxpr: Any) -> float:
    """The logarithm of the number of worlds: a product over what a run visits, of the branches of a condition the largest.

    Args:
        jaxpr: A trace with marks, whose sites have `num_outcomes`.

    Returns:
        log of the number; infinite where a `while_loop` has no bound.
    """
    total = 0.0
    for eqn in jaxpr.eqns:
        inner = [log_worlds(x) for x in jaxprs_in_params(eqn.params)]
        if eqn.primitive is _mark:
            total += eqn.params["copies"] * math.log(eqn.params["site"].num_outcomes)
        elif eqn.primitive.name == "cond":
            total += max(inner)
        elif eqn.primitive.name == "scan":
            total += sum(inner) * eqn.params["length"]
        elif eqn.primitive.name == "while":
            total += math.inf if sum(inner) else 0.0
        else:
            total += sum(inner)
    return total


def _is_ref(x: Any) -> bool:
    return "Ref" in type(jax.typeof(x)).__name__


def _place_of_use(jaxpr: Any, variables: list[Any]) -> str:
    """Where the user first uses one of these variables, "file.py:12"."""
    for eqn in jaxpr.eqns:
        if any(x is v for x in eqn.invars for v in variables):
            for frame in eqn.source_info.traceback.frames:
                if not frame.file_name.startswith((_LIBRARY, _JAX)):
                    return f"{Path(frame.file_name).name}:{frame.line_num}"
    return ""


def frames(stop: Any = None) -> tuple[str, list[str]]:
    """Where the user called the library, "file.py:12", and which functions of JAX the call stands in, innermost first.

    Args:
        stop: Code object of the function of the library that the search ends at; `None` for the beginning.

    Returns:
        The place, and names such as `"api:vmap"`: module and outermost name.
    """
    frame, place, names = sys._getframe(1), "", []
    while frame is not None and frame.f_code is not stop:
        module, file = frame.f_globals.get("__name__", ""), frame.f_code.co_filename
        if module.startswith("jax."):
            names.append(f"{module.rpartition('.')[2]}:{frame.f_code.co_qualname.partition('.')[0]}")
        elif not place and not file.startswith(_LIBRARY):
            place = f"{Path(file).name}:{frame.f_lineno}"
        frame = frame.f_back
    return place, names


def place_of(function: Any) -> str:
    """Where a function of the user begins, "file.py:12"."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        return type(function).__name__
    first = code.co_firstlineno  # of its decorators, where it has some
    lines = (
        line
        for line in range(first, first + 20)
        if linecache.getline(code.co_filename, line).lstrip().startswith("def ")
    )
    return f"{Path(code.co_filename).name}:{next(lines, first)}"


def current() -> Any:
    """What `entered` was given last, in this thread; `None` outside of a model."""
    return _MODEL.get()


def inside_a_model() -> bool:
    """Whether a model of plain calls is being traced."""
    return _MODEL.get() is not None


@contextmanager
def entered(scope: Any) -> Iterator[None]:
    """Make this the `current` scope."""
    token = _MODEL.set(scope)
    try:
        yield
    finally:
        _MODEL.reset(token)
