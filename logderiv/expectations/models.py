"""Models: functions of JAX code that make choices and incur costs by plain calls, and how they become programs.

Each call takes the tape out of references that the model cannot see, lets it make a move, and puts it back. JAX itself turns that
into a program that hands the tape on (`logderiv._core.staging`), so a model may be made of whatever has rules for references. What
has none is refused, at the user's line: some of it when the call is made, some of it in what JAX has traced.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
from jax.core import Tracer

from logderiv._core.pytrees import pytree
from logderiv._core.staging import (
    Staged,
    current,
    enclosed,
    entered,
    enumerates_late,
    forget_traces,
    frames,
    log_worlds,
    mark,
    marks,
    place_of,
    place_of_error,
)
from logderiv.expectations.methods import once_differentiable
from logderiv.expectations.tape import Tape

F = TypeVar("F", bound=Callable[..., Any])
LIMIT = 2**20  # worlds that can be told apart

_REMEDIES = {
    "api:vmap": "run independent parts side by side by logderiv.plate(function)(xs), or by lax.map without batch_size",
    "loops:associative_scan": "use lax.scan",
    "while condition": "make the choice in its body, and carry the outcome",
    "bounded_while_loop condition": "make the choice in its body, and carry the outcome",
}
for _name in ("grad", "value_and_grad", "jvp", "vjp", "linearize", "jacfwd", "jacrev", "hessian"):
    _REMEDIES[f"api:{_name}"] = (
        "differentiate the expectation, from outside of the model; or make the choice first, and differentiate a function of its value"
    )
for _name in ("custom_derivatives:custom_jvp", "custom_derivatives:custom_vjp", "custom_jvp_call", "custom_vjp_call"):
    _REMEDIES[_name] = "make the choice before the call, and pass the outcome to it"
for _name in ("solves:custom_root", "solves:custom_linear_solve", "custom_linear_solve", "custom_batching:custom_vmap"):
    _REMEDIES[_name] = "make the choice before the call, and pass the outcome to it"
for _name in ("shard_map:shard_map", "shard_map:_shard_map", "pmap:pmap", "api:pmap", "shard_map", "pmap", "xla_pmap"):
    _REMEDIES[_name] = "shard the samples of the expectation instead: its keys and params"


# What JAX raises where Python wants a value that is known in a run only, and what to write instead.
_CONVERSIONS: dict[type[Exception], str] = {
    jax.errors.TracerBoolConversionError: "a Python if, while, and, or, not or assert; use jax.lax.cond, jax.numpy.where or "
    "jax.numpy.logical_and, and logderiv.bounded_while_loop",
    jax.errors.TracerIntegerConversionError: "a Python range, or an index of a list; use jax.lax.fori_loop, and index an array",
    jax.errors.TracerArrayConversionError: "a function of numpy; use that of jax.numpy",
    jax.errors.ConcretizationTypeError: "a Python number or a shape; use x.astype(float), and a fixed size with a mask",
}
_KEYS = ("key", "keys", "rng", "rng_key", "prng_key", "seed")


@pytree(static=("place", "call", "distribution", "method", "num_outcomes", "order", "runs", "scope"), eq=False)
class Site:
    """One line of a model that makes a choice, or another call of the library there.

    Attributes:
        place: File and line.
        call: `"sample"`, `"cost"`, ...
        distribution: Kind of the distribution; empty where there is none.
        method: How the choice is made; empty where there is none.
        num_outcomes: How many outcomes the choice is enumerated over; 1 where it is not.
        order: The highest derivative that the method gives; `None` for any.
        runs: How many runs of the model the method takes for one sample, of enumerated choices in each world.
        scope: The run of the model that it was traced in; not printed.
    """

    place: str
    call: str
    distribution: str = ""
    method: str = ""
    num_outcomes: int = 1
    order: int | None = None
    runs: int = 1
    scope: Any = dataclasses.field(default=None, repr=False)

    def on_vmap(self) -> None:
        """Refuse the call where the model itself maps over it."""
        if self.scope.open:
            raise self._refusal("api:vmap")

    def _refusal(self, name: str) -> TypeError:
        """That the call stands in this function of JAX."""
        where = name.rpartition(":")[2].lstrip("_")
        where = f"{where} (or lax.map with batch_size)" if where == "vmap" else where
        told = f"logderiv.{self.call} inside {where}, which cannot hand it on; {_REMEDIES[name]}."
        return TypeError(f"{self.place}: {told}" if self.place else told)


class _Scope:
    """A model, or a part of one, while it is traced."""

    def __init__(self, refs: list[Any], structure: Any) -> None:
        self.refs, self.structure = refs, structure
        self.open, self.pays, self.closed_to = True, "", ""


class Model:
    """A model, traced for one tape: a program."""

    def __init__(self, function: Callable[..., Any], args: Sequence[Any], tape: Tape) -> None:
        """Trace `function(*args)`, which calls `sample` and `cost`, with a tape like this one."""
        self.place, self.pays = place_of(function), ""
        _check_arguments(function, args, self.place)
        leaves, self._structure = jax.tree.flatten(dataclasses.replace(tape))

        def on_refs(refs: list[Any]) -> Any:
            scope = _Scope(refs, self._structure)
            with entered(scope), _translated(self.place, scope):
                try:
                    return function(*args)
                finally:
                    self.pays = scope.pays
                    scope.open, scope.refs = False, []  # JAX keeps sites, and with them the scope

        self._staged = Staged(on_refs, leaves)
        for name, site in enclosed(self._staged.jaxpr):
            if name in _REMEDIES:
                raise site._refusal(name)

    def __call__(self, tape: Tape) -> tuple[Tape, Any]:
        """The tape at the end, and the output."""
        output, leaves = self._staged(jax.tree.leaves(tape))
        return jax.tree.unflatten(self._structure, leaves), output

    def ended(self, tape: Tape, has_aux: bool) -> tuple[Tape, Any]:
        """The tape at the end, its cost paid, and what the model returns beside its cost."""
        tape, output = self(tape)
        cost, aux = output if has_aux else (output, None)
        return self.paid(tape, cost), aux

    def limited(self, value: jax.Array) -> jax.Array:
        """The same value, which cannot be differentiated more often than the choices' methods allow."""
        places = [f"{site.place}: method={site.method!r}" for site in self.sites if site.order is not None]
        return once_differentiable(value, "; ".join(places)) if places else value

    def paid(self, tape: Tape, output: Any) -> Tape:
        """The tape after the cost that the model returns, where it calls no `cost`.

        Raises:
            TypeError: It returns one and calls `cost`, too, or neither.
        """
        if self.pays and output is not None:
            raise TypeError(
                f"{self.pays}: model: expected to return None where it calls logderiv.cost, received a value, which would count twice; "
                "pay all of it by logderiv.cost, or return all of it; has_aux=True takes (None, aux)."
            )
        if not self.pays and output is None:
            raise TypeError(
                f"{self.place}: model: expected to return its cost, or to call logderiv.cost, received neither."
            )
        with located(self.place):
            return tape if output is None else tape.cost(output)

    @property
    def sites(self) -> list[Site]:
        """Every line that makes a choice, in the order of the first visit; one that makes choices of several kinds several times."""
        found = [site for site in marks(self._staged.jaxpr) if site.method]
        return list({(x.place, x.distribution, x.method, x.num_outcomes): x for x in reversed(found)}.values())[::-1]

    @property
    def runs(self) -> int:
        """How many runs one sample takes, the most that a choice's method does."""
        return max((site.runs for site in self.sites), default=1)

    @property
    def _enumerated(self) -> str:
        """Where choices are enumerated."""
        return ", ".join(site.place for site in self.sites if site.num_outcomes > 1)

    def check_leave_one_out(self) -> None:
        """Raise where the others' remaining cost is no baseline: it would be that of one world, which a scored choice has influenced."""
        if enumerates_late(self._staged.jaxpr)[0]:
            raise ValueError(
                f"{self._enumerated}: baseline='leave_one_out' in a model that enumerates a choice after a scored one; enumerate first, take "
                "logderiv.expected, or give baselines at the choices."
            )

    def worlds(self, limit: int) -> int:
        """How many worlds its enumerated choices have together.

        Raises:
            ValueError: More than `limit`; or there is no bound, in a `while_loop`.
        """
        logs = log_worlds(self._staged.jaxpr)
        if logs <= math.log(limit) + 1e-9:
            return round(math.exp(logs))
        if math.isinf(logs):
            raise ValueError(
                f"{self._enumerated}: a choice is enumerated inside a while_loop, which has no bound; use logderiv.bounded_while_loop."
            )
        raise ValueError(
            f"{self._enumerated}: the enumerated choices have about 10^{logs / math.log(10):.1f} worlds, more than {limit}; one world is a "
            "whole run. logderiv.expected averages over one choice at a time, and method='score' draws."
        )


def _check_arguments(function: Callable[..., Any], args: Sequence[Any], place: str) -> None:
    """Raise `TypeError` where the function cannot be called with these arguments."""
    try:
        signature = inspect.signature(function, follow_wrapped=False)  # a decorator may pass other arguments on
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*args)
    except TypeError as error:
        hint = (
            "an expectation keeps its key for its choices; a model has no parameter for it, and takes other keys by logderiv.key()"
            if any(name in _KEYS for name in signature.parameters)
            else "a model gets the params, and what the expectation is called with after its key"
        )
        name = getattr(function, "__name__", type(function).__name__)
        raise _told(TypeError, place, f"{name}: received {len(args)} argument(s), {error}; {hint}.") from error


@contextmanager
def _translated(place: str, scope: _Scope) -> Iterator[None]:
    """Tell errors of JAX and Python, which a choice or a cost has caused, with the user's line and a remedy."""
    try:
        yield
    except tuple(_CONVERSIONS) as error:
        remedy = next(text for kind, text in _CONVERSIONS.items() if isinstance(error, kind))
        raise _told(
            TypeError,
            place_of_error(error) or place,
            f"a choice, or a parameter, has a value only when the model is run, and cannot be in {remedy}.",
        ) from error
    except TypeError as error:
        if "NoneType" not in str(error) or not scope.pays or hasattr(error, "_place"):
            raise
        raise _told(
            TypeError,
            place_of_error(error) or place,
            f"{str(error).rstrip('.')}. logderiv.cost and logderiv.expected (at {scope.pays}) incur costs and return None; scale what they are given, as in "
            "logderiv.expected(distribution, lambda x: 2 * cost(x)).",
        ) from error


def _told(kind: type[Exception], place: str, message: str) -> Exception:
    """An error that has its place."""
    told = kind(f"{place}: {message}")
    told._place = place  # pyright: ignore[reportAttributeAccessIssue]
    return told


@contextmanager
def located(place: str) -> Iterator[None]:
    """Put the place of a call before the message of an error that has none."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if type(error) not in (TypeError, ValueError) or hasattr(error, "_place"):
            raise
        raise _told(type(error), place, str(error)) from error


def turn(call: str, move: Callable[[Tape], tuple[Tape, Any]], **about: Any) -> Any:
    """Take the tape out of its references, let it make a move, and put it back."""
    scope, place = current(), frames(_ENTRANCE)[0]
    mark(Site(place, call, scope=scope, **about))
    if call in ("cost", "expected"):
        scope.pays = scope.pays or place
    before = [ref[...] for ref in scope.refs]
    tape, output = move(jax.tree.unflatten(scope.structure, before))
    for ref, old, new in zip(scope.refs, before, jax.tree.leaves(tape), strict=True):
        if new is not old:
            ref[...] = new
    forget_traces()  # a jitted function that has made a choice is looked into again where none may be made
    return output


def called(function: F) -> F:
    """A call of a model: refused where JAX cannot hand it on, and its errors are told with the user's line."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        place, names = frames(_ENTRANCE)
        with located(place):
            scope = current()
            if scope is None:
                raise TypeError(
                    f"logderiv.{function.__name__} outside of a model; call it inside a function that logderiv.expectation is given, and "
                    "that has no parameter named tape (one that has makes its choices by tape.sample)."
                )
            for name in (*reversed(names), scope.closed_to):
                if name in _REMEDIES:
                    raise Site("", function.__name__)._refusal(name)
            if args and isinstance(args[0], str):
                raise TypeError(
                    f"{function.__name__}: expected a distribution, received the name {args[0]!r}; choices of a model have no names here, "
                    "as they do in numpyro."
                )
            return function(*args, **kwargs)

    return call  # pyright: ignore[reportReturnType]


_ENTRANCE: Any = Staged.__init__.__code__


@contextmanager
def closed_to(name: str) -> Iterator[None]:
    """Refuse choices and costs while a function of this name runs."""
    scope = current() or _Scope([], None)
    before, scope.closed_to = scope.closed_to, name
    try:
        yield
    finally:
        scope.closed_to = before


def is_program(function: Callable[..., Any]) -> bool:
    """Whether a function takes its tape by hand: it has a parameter named `tape`."""
    try:
        return "tape" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def closes_over_tracers(function: Callable[..., Any]) -> bool:
    """Whether a function refers to values of a transformation that it was made in."""
    cells = getattr(function, "__closure__", None) or ()
    return any(isinstance(x, Tracer) for cell in cells for x in jax.tree.leaves(_contents(cell)))


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled: a function that refers to itself
        return None
