"""Functions that read and write JAX's references, made pure; and marks in what JAX has traced of them.

The one module that uses what JAX does not promise to keep: `discharge_state`, which turns a function of references into a pure
one, the names of axes, of which a fresh one keeps JAX from reusing an older trace, and primitives with rules of their own.
"""

import contextlib
import functools
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
import numpy as np
from jax._src.core import extend_axis_env_nd, trace_ctx
from jax._src.state.discharge import discharge_state
from jax.extend.core import Primitive, jaxpr_as_fun, jaxprs_in_params
from jax.interpreters import batching, mlir

_MODEL: ContextVar[Any] = ContextVar("logderiv_model", default=None)
_PYTHON = str(Path(functools.__file__).parent / "functools.py"), str(Path(contextlib.__file__))
_JAX = str(Path(jax.__file__).parent)
_NUMPY = str(Path(np.__file__).parent)
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


# Called even where nothing of the mark is mapped, as nothing ever is.
batching.fancy_primitive_batchers[_mark] = _on_vmap


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
        pure = discharge_state(closed.replace(jaxpr=_sealed(closed.jaxpr)))
        self._run, self._structure = jaxpr_as_fun(pure), jax.tree.structure(like)

    def __call__(self, leaves: list[Any]) -> tuple[Any, list[Any]]:
        """The output, and what stands in the references at the end."""
        return jax.tree.unflatten(self._structure, self._run(*leaves))


def forget_traces() -> None:
    """Keep JAX from reusing, in the rest of a staged function, what it has traced before: what it traces again can be refused."""
    trace_ctx.set_axis_env(trace_ctx.axis_env.extend_pure([(object(), 1)]))


def _sealed(jaxpr: Any) -> Any:
    """A trace whose functions with derivative rules of their own are each compiled apart.

    `discharge_state` replaces them by their bodies, so that their rules are lost, wherever it looks; it does not look into a `jit`
    without references.
    """
    return jaxpr.replace(eqns=[_sealed_equation(eqn) for eqn in jaxpr.eqns])


def _sealed_equation(eqn: Any) -> Any:
    if eqn.primitive.name in ("custom_jvp_call", "custom_vjp_call"):

        def call(*xs: Any) -> Any:
            return eqn.primitive.bind(*xs, **eqn.primitive.get_bind_params(eqn.params))

        likes = [jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype) for x in eqn.invars]
        (apart,) = jax.make_jaxpr(jax.jit(call))(*likes).jaxpr.eqns
        return apart.replace(invars=eqn.invars, outvars=eqn.outvars)
    if not eqn.effects:  # nothing to be discharged
        return eqn
    return eqn.replace(params={name: _with_sealed(x) for name, x in eqn.params.items()})


def _with_sealed(x: Any) -> Any:
    """A parameter of an equation, with every trace in it sealed."""
    if hasattr(x, "jaxpr"):
        return x.replace(jaxpr=_sealed(x.jaxpr))
    if hasattr(x, "eqns"):
        return _sealed(x)
    return type(x)(map(_with_sealed, x)) if type(x) in (tuple, list) else x


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
                    return _shown(frame.file_name, frame.line_num)
    return ""


def enumerates_late(jaxpr: Any, scored: bool = False) -> tuple[bool, bool]:
    """Whether a choice is enumerated after a scored one, and whether one is scored by the end.

    Args:
        jaxpr: A trace with marks, whose sites have `num_outcomes`, `method` and `call`.
        scored: Whether a choice has been scored before.

    Returns:
        Two booleans; the turns of a loop come after each other.
    """
    late = False
    for eqn in jaxpr.eqns:
        if eqn.primitive is _mark:
            site = eqn.params["site"]
            late |= scored and site.num_outcomes > 1
            scored |= "score" in (site.method, site.call)
        inner = list(jaxprs_in_params(eqn.params))
        before = scored or (eqn.primitive.name in ("scan", "while") and any(enumerates_late(x)[1] for x in inner))
        found = [enumerates_late(x, before) for x in inner]
        late, scored = late or any(x for x, _ in found), scored or any(x for _, x in found)
    return late, scored


def frames(stop: Any = None) -> tuple[str, list[str]]:
    """Where the user called the library, "file.py:12", and which functions of JAX the call stands in, innermost first.

    Args:
        stop: Code object of the function of the library that functions of JAX are told up to; `None` for all.

    Returns:
        The place, and names such as `"api:vmap"`: module and outermost name.
    """
    frame, place, names, inside = sys._getframe(1), "", [], True
    while frame is not None and (inside or not place):
        module, file = frame.f_globals.get("__name__", ""), frame.f_code.co_filename
        inside = inside and frame.f_code is not stop
        if module.startswith("jax."):
            names += [f"{module.rpartition('.')[2]}:{frame.f_code.co_qualname.partition('.')[0]}"] if inside else []
        elif not place and not file.startswith((_LIBRARY, *_PYTHON)):
            place = _shown(file, frame.f_lineno)
        frame = frame.f_back
    return place, names


def place_of_error(error: BaseException) -> str:
    """Where the user's code raised it, "file.py:12"; empty where none of it did."""
    place, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith((_LIBRARY, _JAX, _NUMPY, *_PYTHON)):
            place = _shown(file, trace.tb_lineno)
        trace = trace.tb_next
    return place


def _shown(file: str, line: int) -> str:
    """A place in the user's code; cells of a notebook have files that nobody knows."""
    return f"{'notebook cell' if 'ipykernel' in file else Path(file).name}:{line}"


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
    return _shown(code.co_filename, next(lines, first))


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
