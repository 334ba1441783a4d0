"""Choices and costs as plain calls, anywhere in JAX code, without a tape in hand.

    def model(params):  # three flips; the expected number of ones is 3 p
        def step(ones, _):
            return ones + ld.sample(ld.Bernoulli(params)), None

        ones, _ = jax.lax.scan(step, 0, None, length=3)
        return ones

    objective = ld.expectation(model, num_samples=64, baseline="leave_one_out")

They work inside `scan`, `cond`, `switch`, `fori_loop`, `while_loop`, `map`, `jit`, `checkpoint`, helpers, and each in the other.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from logderiv import distributions
from logderiv._core import check
from logderiv._core.staging import current
from logderiv.distributions.finite import outcome, outcomes_of
from logderiv.expectations.methods import METHODS
from logderiv.expectations.models import LIMIT, Model, called, turn
from logderiv.expectations.tape import Tape, settled


@called
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
            | `"alternative"` | first | a second run, in which one choice is made otherwise; with a `Normal` a third |
            | `"straight_through_biased"`, `"reinmax_biased"` | first, **biased** | costs differentiable in a one-hot value |

            The alternative path takes one choice of finitely many outcomes, a `Normal` or a `distributions.Poisson`, and no derivative
            of the costs in it, so that they may jump: for a Normal of mean μ and scale σ, with M = √(Z² + 2 E), Z standard Normal and E
            exponential, it is that of E f in μ by (f(μ + σ M) - f(μ - σ M)) / (2 σ M), and in σ by
            ((f(μ + σ M) + f(μ - σ M)) / 2 - f(μ + σ Z)) / σ; for a Poisson in its rate by f(x + 1) - f(x).

        baseline: With `"score"`: what the rest of the run is thought to cost, a scalar known before the choice; detached.
        where: False for padding, which gives 0 and no derivative, whatever stands in `distribution` there. Enumerated choices are
            one, and not a batch; where the mask has a value only in the run, its worlds are counted, as those of a branch are.

    Returns:
        The value. Detached, but for `"pathwise"` and the biased methods.

    Raises:
        TypeError: Outside of an expectation, or inside something of JAX that cannot hand a choice on; no distribution; the
            method does not fit it.
        ValueError: An unknown method; a baseline that the method does not take; `where` of a shape that does not fit.

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
        arXiv:2210.08572 (alternative paths); Mohamed et al. (2020), JMLR 21(132), table 1 (measures; that in the mean is drawn by the
        Maxwell law here, as `logderiv.expectations.measures` derives it); from memory.
    """
    check.one_of(METHODS, method=method)
    distributions.check_distribution(distribution)
    made_by = METHODS[method]
    if baseline is not None and method != "score":
        raise ValueError(f"baseline: expected with method='score' only, received with {method!r}.")
    options = {} if baseline is None else {"baseline": baseline}
    about = made_by.about(f"sample(method={method!r})", distribution, where)

    def move(tape: Tape) -> tuple[Tape, Any]:
        return made_by.choose(tape, distribution, where=where, **options)

    return turn("sample", move, distribution=type(distribution).__name__, method=method, **about)


@called
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

    turn("cost", pay)


@called
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
    turn("score", lambda tape: (tape.score(distribution, value, baseline=baseline), None))


@called
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

    return turn("key", take)


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

    @called
    def plate(*xs: Any) -> Any:
        if not xs or any(jnp.ndim(x) == 0 for x in jax.tree.leaves(xs)):
            raise ValueError(
                "plate: expected arguments with a common leading axis, the copies, received none, or one without axes."
            )
        num = check.rows("xs", xs, at_least=0)

        def move(tape: Tape) -> tuple[Tape, Any]:
            worlds, rest, tapes, outputs = _parts(function, tape, xs, num, lambda _, tape, output: (tape, output))
            joined = rest._join(tapes)
            if tape.world is not None:
                joined = dataclasses.replace(joined, world=tape.world.after(num, worlds, tapes.world))
            return joined, outputs

        return turn("plate", move)

    return plate


@called
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
    outcomes = jax.vmap(lambda i: outcome(distribution, i))(jnp.arange(num, dtype=jnp.int32))

    def pay(model: Model, tape: Tape, output: Any) -> tuple[Tape, Any]:
        tape = model.paid(tape, output)
        return tape, settled(tape)

    def move(tape: Tape) -> tuple[Tape, None]:
        worlds, rest, tapes, costs = _parts(function, tape, (outcomes,), num, pay)
        if worlds > 1:
            raise ValueError(
                "expected: contains a choice with method='enumerate', expected none; use expected for it, too."
            )
        probs = jax.vmap(lambda x: distributions.prob(distribution, x))(outcomes).astype(tape.total.dtype)
        return rest._take_in(tapes, probs * costs), None

    turn("expected", move)


def _parts(
    function: Callable[..., Any], tape: Tape, xs: Sequence[Any], num: int, end: Callable[..., tuple[Tape, Any]]
) -> tuple[int, Tape, Tape, Any]:
    """Run a function of the rows of all `xs` side by side: worlds of one part, the tape to go on with, those of the parts, outputs."""
    models: list[Model] = []

    def part(tape: Tape, row: tuple[jax.Array, Any]) -> tuple[Tape, Any]:
        index, x = row
        model = Model(function, x, tape)
        models.append(model)
        if tape.world is not None:
            tape = dataclasses.replace(tape, world=tape.world.of_part(index, model.worlds(LIMIT)))
        return end(model, *model(tape))

    rest, tapes, outputs = tape._side_by_side(part, (jnp.arange(num, dtype=jnp.int32), xs), num)
    if not any(site.method == "alternative" for site in models[0].sites):
        tapes = dataclasses.replace(tapes, detour=None)
    current().pays = current().pays or models[0].pays
    return models[0].worlds(LIMIT), rest, tapes, outputs
