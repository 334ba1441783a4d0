"""Models: choices and costs as plain calls, anywhere in JAX code, without a tape in hand.

    def model(params):  # three flips; the expected number of ones is 3 p
        def step(ones, _):
            return ones + ld.sample(ld.Bernoulli(params)), None

        ones, _ = jax.lax.scan(step, 0, None, length=3)
        return ones

    objective = ld.expectation(model, num_samples=64, baseline="leave_one_out")

Each call takes the tape out of references that the model cannot see, lets it make a move, and puts it back. JAX itself turns that
into a program that hands the tape on (`logderiv._core.staging`), so a model may be made of whatever has rules for references:
`scan`, `cond`, `switch`, `fori_loop`, `while_loop`, `map`, `jit`, `checkpoint`, and helpers. What has none is refused, at the user's
line.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

from logderiv import distributions
from logderiv._core import check
from logderiv._core.staging import Staged, current, enclosed, entered, frames, log_worlds, mark, marks
from logderiv.distributions.finite import outcomes_of
from logderiv.expectations.methods import METHODS, once_differentiable
from logderiv.expectations.tape import Tape, settled

LIMIT = 2**20  # worlds that can be told apart

_REMEDIES = {
    "api:vmap": "run independent parts side by side by logderiv.plate(function)(xs), or by lax.map without batch_size",
    "loops:associative_scan": "use lax.scan",
    "while condition": "make the choice in its body, and carry the outcome",
    "bounded_while_loop condition": "make the choice in its body, and carry the outcome",
}
for _name in ("grad", "value_and_grad", "jvp", "vjp", "linearize", "jacfwd", "jacrev", "hessian"):
    _REMEDIES[f"api:{_name}"] = "differentiate the expectation, from outside of the model"
for _name in ("custom_derivatives:custom_jvp", "custom_derivatives:custom_vjp", "custom_jvp_call", "custom_vjp_call"):
    _REMEDIES[_name] = "make the choice before the call, and pass the outcome to it"
for _name in ("solves:custom_root", "solves:custom_linear_solve", "custom_linear_solve", "custom_batching:custom_vmap"):
    _REMEDIES[_name] = "make the choice before the call, and pass the outcome to it"
for _name in ("shard_map:shard_map", "shard_map:_shard_map", "pmap:pmap", "api:pmap", "shard_map", "pmap", "xla_pmap"):
    _REMEDIES[_name] = "shard the samples of the expectation instead: its keys and params"


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """One line of a model that makes a choice, or another call of the library there.

    Attributes:
        place: File and line.
        call: `"sample"`, `"cost"`, ...
        distribution: Kind of the distribution; empty where there is none.
        method: How the choice is made; empty where there is none.
        num_outcomes: How many outcomes the choice is enumerated over; 1 where it is not.
        order: The highest derivative that the method gives; `None` for any.
        scope: The run of the model that it was traced in.
    """

    place: str
    call: str
    distribution: str = ""
    method: str = ""
    num_outcomes: int = 1
    order: int | None = None
    scope: Any = dataclasses.field(default=None, repr=False)

    def on_vmap(self) -> None:
        """Refuse the call where the model itself maps over it."""
        if self.scope.open:
            raise self.refusal("api:vmap")

    def refusal(self, name: str) -> TypeError:
        """That the call stands in this function of JAX."""
        where = name.rpartition(":")[2]
        where = f"{where} (or lax.map with batch_size)" if where == "vmap" else where
        return TypeError(
            f"{self.place}: logderiv.{self.call} inside {where}, which cannot hand it on; {_REMEDIES[name]}."
        )


class _Scope:
    """A model, or a part of one, while it is traced."""

    def __init__(self, refs: list[Any], structure: Any) -> None:
        self.refs, self.structure = refs, structure
        self.open, self.pays, self.closed_to = True, False, ""


class Model:
    """A model, traced for one tape: a program."""

    def __init__(self, function: Callable[[], Any], tape: Tape) -> None:
        """Trace `function()`, which calls `sample` and `cost`, with a tape like this one."""
        leaves, self._structure = jax.tree.flatten(dataclasses.replace(tape))

        def on_refs(refs: list[Any]) -> Any:
            scope = _Scope(refs, self._structure)
            with entered(scope):
                try:
                    return function()
                finally:
                    scope.open, self.pays = False, scope.pays

        self.pays = False
        self._staged = Staged(on_refs, leaves)
        for name, site in enclosed(self._staged.jaxpr):
            if name in _REMEDIES:
                raise site.refusal(name)

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
                "model: expected to return None where it calls logderiv.cost, received a value, which would count twice; has_aux=True "
                "takes (None, aux)."
            )
        if not self.pays and output is None:
            raise TypeError("model: expected to return its cost, or to call logderiv.cost, received neither.")
        return tape if output is None else tape.cost(output)

    @property
    def sites(self) -> list[Site]:
        """Every line that makes a choice, in the order of the first visit."""
        return list({site.place: site for site in marks(self._staged.jaxpr) if site.method}.values())

    def worlds(self, limit: int) -> int:
        """How many worlds its enumerated choices have together.

        Raises:
            ValueError: More than `limit`; or there is no bound, in a `while_loop`.
        """
        logs = log_worlds(self._staged.jaxpr)
        if logs <= math.log(limit) + 1e-9:
            return round(math.exp(logs))
        lines = ", ".join(site.place for site in self.sites if site.num_outcomes > 1)
        if math.isinf(logs):
            raise ValueError(
                f"{lines}: a choice is enumerated inside a while_loop, which has no bound; use logderiv.bounded_while_loop."
            )
        raise ValueError(
            f"{lines}: the enumerated choices have about 10^{logs / math.log(10):.1f} worlds, more than {limit}; one world is a "
            "whole run. logderiv.expected averages over one choice at a time, and method='score' draws."
        )


def sample(distribution: Any, *, method: str = "score", baseline: Any = None, where: Any = None) -> Any:
    """Make a choice, inside a function that `expectation` is of.

    Args:
        distribution: Of this library, distrax, TFP or numpyro. One with batch axes makes independent choices at once.
        method: How derivatives pass through the choice.

            | method | derivatives | of the rest of the model |
            |---|---|---|
            | `"score"` | any order | nothing: its costs may jump |
            | `"pathwise"` | any order | costs continuous, and differentiable in the value |
            | `"enumerate"` | any order | a run for each outcome of each visit |
            | `"alternative"` | first | a second run, in which one choice is made otherwise |
            | `"straight_through_biased"`, `"reinmax_biased"` | first, **biased** | costs differentiable in a one-hot value |

        baseline: With `"score"`: what the rest of the run is thought to cost, a scalar known before the choice; detached.
        where: With `"score"`: False for padding, which draws 0 and scores nothing, whatever stands in `distribution` there.

    Returns:
        The value. Detached, but for `"pathwise"` and the biased methods.

    Raises:
        TypeError: Outside of an expectation, or inside something of JAX that cannot hand a choice on; no distribution; the
            method does not fit it.
        ValueError: An unknown method; a baseline or `where` that the method does not take.

    Gradients: flow into `distribution`, by the method.

    Example:
        >>> import jax, logderiv as ld
        >>> def two_flips(logit):
        ...     return ld.sample(ld.Bernoulli(logit), method="enumerate") * ld.sample(ld.Bernoulli(logit), method="enumerate")
        >>> value, slope = jax.value_and_grad(ld.expectation(two_flips))(0.0, jax.random.key(0))
        >>> float(value), float(slope)  # p² and 2 p · p (1 - p) at p = 1/2, exactly
        (0.25, 0.25)

    References:
        Schulman et al. (2015), arXiv:1506.05254 (score); Kingma & Welling (2014), arXiv:1312.6114 (pathwise); Arya et al. (2022),
        arXiv:2210.08572 (alternative paths); from memory.
    """
    if isinstance(distribution, str):
        raise TypeError(
            f"sample: expected a distribution, received the text {distribution!r}: choices of a model have no names here, as they do in "
            "numpyro. Write logderiv.sample(distribution)."
        )
    check.one_of(METHODS, method=method)
    distributions.check_distribution(distribution)
    made_by = METHODS[method]
    options = {name: x for name, x in (("baseline", baseline), ("where", where)) if x is not None}
    if options and method != "score":
        raise ValueError(f"{next(iter(options))}: expected with method='score' only, received with {method!r}.")
    about = made_by.about(f"sample(method={method!r})", distribution)
    kind = type(distribution).__name__
    return _turn(
        "sample", lambda tape: made_by.choose(tape, distribution, **options), distribution=kind, method=method, **about
    )


def cost(value: Any) -> None:
    """Incur a cost (or a reward), caused by every choice up to here.

    Args:
        value: A scalar.

    Raises:
        TypeError: Outside of an expectation, or inside something of JAX that cannot hand it on; no real number.
        ValueError: Not a scalar.

    Gradients: flow through `value`, with respect to parameters and pathwise values.
    """

    def pay(tape: Tape) -> tuple[Tape, None]:
        return tape.cost(value), None

    _turn("cost", pay)
    current().pays = True


def score(distribution: Any, value: Any, *, baseline: Any = 0.0) -> None:
    """Score a choice that was drawn elsewhere, from this very distribution, with a key from `key`.

    Not for data: what was not drawn at these parameters needs an importance weight.

    Args:
        distribution: Of this library, distrax, TFP or numpyro.
        value: What was drawn.
        baseline: What the rest of the run is thought to cost, a scalar; detached.

    Raises:
        TypeError: Outside of an expectation, or inside something of JAX that cannot hand it on; no distribution.
        ValueError: The baseline is not a scalar.

    Gradients: `value` is detached; `distribution` receives the score.
    """
    _turn("score", lambda tape: (tape.score(distribution, value, baseline=baseline), None))


def key() -> jax.Array:
    """A key for randomness that does not depend on the parameters.

    Returns:
        One key, another one at each call.

    Raises:
        TypeError: Outside of an expectation, or inside something of JAX that cannot hand it on.
    """

    def take(tape: Tape) -> tuple[Tape, jax.Array]:
        tape, keys = tape.split()
        return tape, keys[0]

    return _turn("key", take)


def plate(function: Callable[..., Any]) -> Callable[..., Any]:
    """Independent copies side by side: `jax.vmap` of a function that makes choices or incurs costs.

    A cost inside a copy is caused by the choices of this copy and those before, not by the other copies'.

    Args:
        function: Of one row of each argument.

    Returns:
        The function of arguments with a common leading axis; its outputs are stacked.

    Raises:
        TypeError: When called outside of an expectation, or inside something of JAX that cannot hand it on.
        ValueError: When called with arguments without a common leading axis.
    """

    def side_by_side(*xs: Any) -> Any:
        num = check.rows("xs", xs, at_least=0)

        def move(tape: Tape) -> tuple[Tape, Any]:
            worlds, rest, tapes, outputs = _parts(
                lambda xs: function(*xs), tape, xs, num, lambda _, tape, output: (tape, output)
            )
            joined = rest._join(tapes)
            if tape.world is not None:
                joined = dataclasses.replace(joined, world=tape.world.after(num, worlds, tapes.world))
            return joined, outputs

        return _turn("plate", move)

    return side_by_side


def expected(distribution: Any, function: Callable[[Any], Any]) -> None:
    """Incur the costs of `function` averaged over every outcome of one choice: Σ_x p(x) c(x), with nothing drawn.

    Only costs leave it: choices inside have no influence on what comes later. So it takes K runs of `function`, where a choice
    by `method="enumerate"` takes K runs of the whole model.

    Args:
        distribution: With finitely many outcomes: a `Bernoulli`, a `Categorical`, a `OneHotCategorical`, or another library's.
        function: `outcome -> cost`, or `outcome -> None` where it calls `cost`.

    Raises:
        TypeError: Outside of an expectation, or inside something of JAX that cannot hand it on; the outcomes of `distribution`
            cannot be counted.
        ValueError: A choice by `method="enumerate"` inside.

    Gradients: flow through p and the costs, at any order.
    """
    num = outcomes_of("expected", distribution)
    outcomes = jax.vmap(lambda i: distributions.outcome(distribution, i))(jnp.arange(num, dtype=jnp.int32))

    def pay(model: Model, tape: Tape, output: Any) -> tuple[Tape, Any]:
        tape = model.paid(tape, output)
        return tape, settled(tape)

    def move(tape: Tape) -> tuple[Tape, None]:
        worlds, rest, tapes, costs = _parts(function, tape, outcomes, num, pay)
        if worlds > 1:
            raise ValueError(
                "expected: contains a choice with method='enumerate', expected none; use expected for it, too."
            )
        probs = jax.vmap(lambda x: distributions.prob(distribution, x))(outcomes).astype(tape.total.dtype)
        return rest._take_in(tapes, probs * costs), None

    _turn("expected", move)
    current().pays = True


def _parts(
    function: Callable[[Any], Any], tape: Tape, xs: Any, num: int, end: Callable[..., tuple[Tape, Any]]
) -> tuple[int, Tape, Tape, Any]:
    """Run a function of the rows of `xs` side by side: worlds of one part, the tape to go on with, those of the parts, outputs."""
    models: list[Model] = []

    def part(tape: Tape, row: tuple[jax.Array, Any]) -> tuple[Tape, Any]:
        index, x = row
        model = Model(lambda: function(x), tape)
        models.append(model)
        if tape.world is not None:
            tape = dataclasses.replace(tape, world=tape.world.of_part(index, model.worlds(LIMIT)))
        return end(model, *model(tape))

    rest, tapes, outputs = tape._side_by_side(part, (jnp.arange(num, dtype=jnp.int32), xs), num)
    if not any(site.method == "alternative" for site in models[0].sites):
        tapes = dataclasses.replace(tapes, detour=None)
    if models[0].pays:
        current().pays = True
    return models[0].worlds(LIMIT), rest, tapes, outputs


def _turn(call: str, move: Callable[[Tape], tuple[Tape, Any]], **about: Any) -> Any:
    """Take the tape out of its references, let it make a move, and put it back."""
    scope = current()
    place, names = frames(_ENTRANCE)
    if scope is None:
        raise TypeError(
            f"{place}: logderiv.{call} outside of a model; call it inside a function that logderiv.expectation is given, which runs it."
        )
    site = Site(place, call, scope=scope, **about)
    for name in (*reversed(names), *([scope.closed_to] if scope.closed_to else [])):
        if name in _REMEDIES:
            raise site.refusal(name)
    mark(site)
    before = [ref[...] for ref in scope.refs]
    tape, output = move(jax.tree.unflatten(scope.structure, before))
    for ref, old, new in zip(scope.refs, before, jax.tree.leaves(tape), strict=True):
        if new is not old:
            ref[...] = new
    return output


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
