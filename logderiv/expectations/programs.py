"""Programs and models: the expected cost of your own JAX code, differentiable to any order.

A program makes random choices x₁, x₂, ..., each from a distribution that may depend on the parameters and on the
choices before, and incurs costs c₁, c₂, ... along the way. It threads a `Tape` through whatever it is made of
(`lax.scan`, `lax.cond`, `lax.while_loop`), as one threads a key, and `expectation` runs it:

    def program(params, tape):  # three flips; the expected number of ones is 3 p
        def step(carry, _):
            tape, ones = carry
            tape, flip = tape.sample(ld.Bernoulli(params))
            return (tape, ones + flip), None

        (tape, ones), _ = jax.lax.scan(step, (tape, 0), None, length=3)
        return tape.cost(ones)

    objective = ld.expectation(program, num_samples=64, baseline="leave_one_out")
    value, grads = jax.value_and_grad(objective)(params, key)

A model says the same by plain calls, `ld.sample` and `ld.cost`, without a tape in hand (`logderiv.expectations.calls`).

With ℓᵢ the log-probability of choice i, sums L_j of the ℓ of the choices made before cost j, Lᵢ of those made before choice i, and
□(x) = exp(x - stop_gradient(x)), which is 1 and has the derivatives of eˣ, the tape accumulates

    Σ_j c_j □(L_j) + Σᵢ bᵢ (□(Lᵢ) - □(Lᵢ + ℓᵢ)).

Its value is the cost. Its k-th derivative is an unbiased estimate of the k-th derivative of the expected cost, for every k: costs
may depend on the parameters, and the baseline bᵢ on anything known before choice i. A choice is credited with later costs only.
All of it is a running sum: a tape is a source of choices and two numbers, however long the program.

References:
    Schulman et al. (2015), arXiv:1506.05254, theorem 1 (stochastic computation graphs, order one); Foerster et al. (2018),
    arXiv:1802.05098, eqs. 5-6 (DiCE, every order); Mao et al. (2019), arXiv:1904.09664, eq. 9 (baselines at every order); Lew et al.
    (2023), arXiv:2212.06386 (ADEV, the same aim by program transformation).
"""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from logderiv._core import check
from logderiv._core.arrays import as_key, refuse_complex
from logderiv._core.fingerprint import globals_text
from logderiv._core.pytrees import TRACED, jit, pytree
from logderiv._core.staging import entered
from logderiv.expectations.forced import Detour, World
from logderiv.expectations.models import Model, Site, closes_over_tracers, is_program
from logderiv.expectations.tape import PAIRS, SAMPLES, Tape, check_tape, settled
from logderiv.types import Key, Params

Program = Callable[..., Any]


@pytree(static=("program", "num_samples", "baseline", "draws", "has_aux", "max_worlds", "reads"))
class Expectation:
    """The expected cost of a model, or of a program, as a function `(params, key, *args) -> scalar` that can be differentiated.

    A *model* is a function `(params, *args)` that makes choices by `logderiv.sample`; it returns its cost, or reports costs by
    `logderiv.cost`. A *program*, `(params, tape, *args) -> tape`, has a parameter named `tape`, and makes its choices there.

    The value is the mean cost of `num_samples` runs. Its derivatives in `params` and `args`, by any mix of `jax.grad`,
    `jax.jvp`, `jax.hessian`, are unbiased estimates of those of the expected cost: scores of the sampled choices, derivatives
    through pathwise ones, and those of the costs themselves; of any order, unless a choice's method has one. Two things are up
    to the model: all that depends on chance is drawn by `logderiv.sample`, or with keys from `logderiv.key` (what `jax.random` draws
    with another key is a constant, the same in all runs), and what follows a pathwise value is continuous in it: a jump
    contributes nothing, silently. Methods with *biased* in their name are. `jax.jit` and `jax.vmap` apply; an expectation is a pytree, and may be an argument.

    **Loops.** JAX differentiates `lax.while_loop` in forward mode only. So do derivatives of a program that samples in one:
    `jax.jvp`, `jax.jacfwd`, `jax.jacfwd(jax.jacfwd(...))`; `jax.grad` raises. With `logderiv.bounded_while_loop` in its place,
    and with `lax.scan` and `lax.cond`, both modes work.

    **Higher orders** want float64, and many samples: the k-th derivative carries products of k scores.

    Attributes:
        program: The model, or the program.
        num_samples: `N` independent runs, side by side by `jax.vmap` (which runs both branches of a `lax.cond`).
        baseline: `"leave_one_out"` compares the costs after a choice with what the *other* runs still had to pay when they
            were at this point of the program: for run n and choice i, b = 1/(N-1) Σ_{m≠n} (C_m - C_m,<i). A run that has
            finished counts 0; a branch that a run does not take must yet have finite costs there. `None` takes the baselines
            that are given at the choices alone. Not with a choice that is enumerated after a scored one.
        draws: `"antithetic"` draws runs in pairs: where one makes a choice by the quantile function of a uniform number U, the
            other takes 1 - U. Each has the law that it has alone, so every derivative stays unbiased, and where a cost is
            monotone in the choices the pair's mean varies less than that of two independent runs. Leave-one-out then leaves the
            whole pair out. Every choice needs a quantile function. Not with the alternative path.
        has_aux: Whether the model returns `(cost, aux)`, or `(None, aux)` where it calls `cost`; then so does the expectation, with
            `aux` of all runs, stacked.
        max_worlds: Refuse to run more than so many worlds of enumerated choices for one sample.
        reads: What the program refers to beside its arguments, as it is now, in words; set by itself. Where something has changed,
            a call compiles anew; where something is traced it is `None`, and no call is compiled.

    Raises:
        ValueError: `num_samples` below 1, or below 2 with a baseline; antithetic and odd, or below 4 with a baseline; another baseline;
            other draws; `has_aux` of a program; `max_worlds` below 1.

    Gradients: flow through `params` and `args`; sampled values are detached and scored.

    Example:
        >>> import jax, jax.numpy as jnp, logderiv as ld
        >>> def two_flips(logit):
        ...     return ld.sample(ld.Bernoulli(logit)) * ld.sample(ld.Bernoulli(logit))
        >>> objective = ld.expectation(two_flips, num_samples=20_000)
        >>> value, slope = jax.value_and_grad(objective)(0.0, jax.random.key(0))
        >>> bool(abs(value - 0.25) < 0.02), bool(abs(slope - 0.25) < 0.03)  # p**2 and 2 p * p (1 - p) at p = 1/2
        (True, True)

    References:
        Schulman et al. (2015), arXiv:1506.05254, theorem 1; Foerster et al. (2018), arXiv:1802.05098, eqs. 5-6; Mao et al. (2019),
        arXiv:1904.09664, eq. 9.
    """

    program: Program
    _: dataclasses.KW_ONLY
    num_samples: int = 1
    baseline: Literal["leave_one_out"] | None = None
    draws: Literal["independent", "antithetic"] = "independent"
    has_aux: bool = False
    max_worlds: int = 4096
    reads: str | None = dataclasses.field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reads", globals_text(self.program))
        if self.baseline not in (None, "leave_one_out"):
            raise ValueError(
                f"baseline: expected 'leave_one_out' or None, received {self.baseline!r}. A constant, an average of earlier "
                "runs or a value of the state is given at the choice: tape.sample, or logderiv.sample, (distribution, baseline=...)."
            )
        check.one_of(("independent", "antithetic"), draws=self.draws)
        least, hint = self.together, ""
        if self.baseline is not None:
            least, hint = 2 * least, "baseline='leave_one_out' is the mean of other runs; take more, or baseline=None"
        check.whole(at_least=least, num_samples=self.num_samples, hint=hint)
        if self.num_samples % self.together:
            raise ValueError(
                f"num_samples: expected an even number where draws='antithetic' makes pairs, received {self.num_samples}."
            )
        if self.has_aux and is_program(self.program):
            raise ValueError(
                "has_aux: expected with a model of plain calls, received with a program that takes its tape."
            )

    def __call__(self, params: Params, key: Key, *args: Any) -> Any:
        """The mean cost of `num_samples` runs.

        Args:
            params: Parameters of the program.
            key: Consumed.
            *args: Further arguments of the program.

        Returns:
            A scalar; with `has_aux` `(scalar, aux)`, what the model returns beside its cost, stacked over the runs.

        Raises:
            TypeError: The program does not return its tape, or a parameter or a cost is no real number.
            ValueError: The program uses a tape twice.
        """
        runs = self.runs(params, key, *args)
        mean = jnp.mean(runs.values)
        return (mean, runs.aux) if self.has_aux else mean

    def runs(self, params: Params, key: Key, *args: Any) -> "Runs":
        """The single runs that `__call__` takes the mean of.

        Args:
            params: Parameters of the program.
            key: Consumed.
            *args: Further arguments of the program.

        Returns:
            `Runs`: the cost of each, with its derivatives, a standard error, and what the model returns beside it.

        Raises:
            TypeError: The program does not return its tape, or a parameter or a cost is no real number.
            ValueError: The program uses a tape twice.
        """
        refuse_complex(params=params)
        # A method's object may change between calls, and what a closure holds of a transformation must not be kept.
        now = self.up_to_date()
        compiled = inspect.isfunction(self.program) and now.reads is not None and not closes_over_tracers(self.program)
        return (_runs if compiled else inspect.unwrap(_runs))(now, params, as_key(key), args)

    def up_to_date(self) -> "Expectation":
        """The same expectation, with the globals that its program refers to as they are now.

        Returns:
            An `Expectation`.
        """
        return dataclasses.replace(self)

    def sites(self, params: Params, *args: Any) -> list[Site]:
        """Every line of a model that makes a choice: its place, distribution, method, number of outcomes and order.

        Args:
            params: Parameters of the model.
            *args: Further arguments of the model.

        Returns:
            A list of `Site`, in the order of the first visit. Nothing is run.

        Raises:
            TypeError: The expectation is of a program that takes its tape, whose choices are not known.
        """
        if is_program(self.program):
            raise TypeError(
                "sites: expected an expectation of a model of plain calls, received one of a program that takes its tape."
            )
        return self._traced(params, args).sites

    def num_worlds(self, params: Params, *args: Any) -> int:
        """How many runs one sample takes: the product of the numbers of outcomes over all visits of enumerated choices.

        Args:
            params: Parameters of the model.
            *args: Further arguments of the model.

        Returns:
            A whole number; 1 where nothing is enumerated. Nothing is run.

        Raises:
            ValueError: More than `max_worlds`, or no bound.
        """
        return 1 if is_program(self.program) else self._traced(params, args).worlds(self.max_worlds)

    def _traced(self, params: Params, args: tuple[Any, ...]) -> Model:
        found: list[Model] = []
        leaves, structure = jax.tree.flatten((params, *args))

        def trace(arrays: list[Any]) -> None:  # of what is traced in a run, too
            rest = iter(arrays)
            given = structure.unflatten([next(rest) if isinstance(x, TRACED) else x for x in leaves])
            found.append(Model(self.program, given, in_world(Tape._of(jax.random.key(0), None))))

        jax.eval_shape(trace, [x for x in leaves if isinstance(x, TRACED)])
        return found[0]

    @property
    def together(self) -> int:
        """How many runs are drawn jointly."""
        return 2 if self.draws == "antithetic" else 1

    @property
    def peers(self) -> str | tuple[str, ...] | None:
        """The axes that the baseline is taken over."""
        return None if self.baseline is None else SAMPLES if self.together == 1 else PAIRS

    def on_tapes(self, params: Params, tapes: Tape, *args: Any, world: Any = None) -> "Runs":
        """Runs on given tapes.

        Args:
            params: Parameters of the program.
            tapes: Tapes without choices and costs, one for each run, stacked; of antithetic runs `(N / 2, 2)`.
            *args: Further arguments of the program.
            world: Number of the only world of the enumerated choices to run in; `None` for the sum over all.

        Returns:
            `Runs`.

        Raises:
            TypeError: The program does not return its tape.
            ValueError: The program uses a tape twice.
        """

        def run(tape: Tape) -> Runs:
            if is_program(self.program):
                return Runs(settled(end_of(self.program, params, tape, args)), None)
            return self._of_model((params, *args), tape, world)

        if self.together == 1:
            return jax.vmap(run, axis_name=SAMPLES)(tapes)
        pairs = jax.vmap(jax.vmap(run, axis_name=PAIRS[1]), axis_name=PAIRS[0])(tapes)
        runs = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), pairs)
        return dataclasses.replace(runs, together=self.together)

    def _of_model(self, args: tuple[Any, ...], tape: Tape, world: Any) -> "Runs":
        """One run of a model: in each world, and where a choice is made by the alternative path a second or a third time."""
        tape = in_world(tape)
        model = Model(self.program, args, tape)
        value, aux = self._over_worlds(model, tape, world)
        return Runs(model.limited(value), aux)

    def _over_worlds(self, model: Model, tape: Tape, world: Any) -> tuple[jax.Array, Any]:
        number = model.worlds(self.max_worlds)
        if number > 1 and tape.peers is not None:
            model.check_leave_one_out()
        again = [site for site in model.sites if site.method == "alternative"]
        if again and self.together > 1:
            raise ValueError(
                f"{again[0].place}: method='alternative' with draws='antithetic', whose runs are paired otherwise; take independent draws."
            )
        if number == 1:
            return (self._and_again if again else self._once)(model, tape)
        if again:
            raise ValueError(
                f"{again[0].place}: method='alternative' in a model that enumerates another choice; enumerate none, or both."
            )
        if self.has_aux:
            raise ValueError("has_aux: expected in a model that enumerates no choice; it would be that of many worlds.")

        def one(number: Any) -> jax.Array:
            end, _ = model.ended(in_world(tape, number), False)
            return end.world.final() * settled(end)

        return jnp.sum(jax.vmap(one)(jnp.arange(number))) if world is None else one(world), None

    def _once(self, model: Model, tape: Tape) -> tuple[jax.Array, Any]:
        end, aux = model.ended(tape, self.has_aux)
        return settled(end), aux

    def _and_again(self, model: Model, tape: Tape) -> tuple[jax.Array, Any]:
        first, aux = model.ended(tape, self.has_aux)

        def again(side: jax.Array) -> Tape:
            further = dataclasses.replace(tape, source=tape.source.again(), detour=first.detour.again(side))
            return model.ended(further, self.has_aux)[0]

        ends = jax.vmap(again)(jnp.array([1, -1][: model.runs - 1], jnp.int32))
        aside = jnp.mean(ends.total) - first.total, ends.total[0] - ends.total[-1]
        value = settled(first)
        for difference, slope in zip(aside, (ends.detour.even[0], ends.detour.odd[0]), strict=True):
            difference = lax.stop_gradient(first.detour.chance * difference)
            value = value + difference * (slope - lax.stop_gradient(slope))
        return value, aux


@pytree(static=("together",))
class Runs:
    """Single runs of an expectation.

    Attributes:
        values: Cost of each, with its derivatives. Shape `(N,)`.
        aux: What the model returns beside its cost, stacked; `None` without `has_aux`.
        together: So many runs in a row are drawn jointly; static.
    """

    values: jax.Array
    aux: Any
    together: int = 1

    @property
    def mean(self) -> jax.Array:
        """What the expectation returns."""
        return jnp.mean(self.values)

    @property
    def standard_error(self) -> jax.Array:
        """Of the mean's value: the costs' standard deviation over √N; NaN for a single run. Of antithetic runs that of the pairs' means.

        For one of the gradient, take derivatives of `values` by `jax.jacfwd` (in reverse mode they take memory N²), of independent draws
        and without a baseline; else take it between several keys, since the runs of one call are not independent.
        """
        means = jnp.mean(self.values.reshape(-1, self.together), axis=1)
        return jnp.std(means, ddof=1) / math.sqrt(means.shape[0])


@jit
def _runs(expectation: Expectation, params: Params, key: Key, args: tuple[Any, ...]) -> Runs:
    keys = jax.random.split(key, expectation.num_samples // expectation.together)
    if expectation.together == 1:
        tapes = jax.vmap(lambda key: Tape._of(key, expectation.peers))(keys)
    else:
        pair = jax.vmap(lambda key, mirrored: Tape._of(key, expectation.peers, mirrored), (None, 0))
        tapes = jax.vmap(pair, (0, None))(keys, jnp.array([False, True]))
    return expectation.on_tapes(params, tapes, *args)


def in_world(tape: Tape, number: Any = 0) -> Tape:
    """The tape of a run in this world, which may be one that makes a detour."""
    detour = Detour.start() if tape.detour is None else tape.detour
    return dataclasses.replace(tape, world=World.of(number), detour=detour)


def end_of(program: Program, params: Params, tape: Tape, args: tuple[Any, ...], has_aux: bool = False) -> Tape:
    """The tape at the end of one run of a program, or of a model."""
    if not is_program(program):
        return Model(program, (params, *args), tape).ended(tape, has_aux)[0]
    with entered(None):
        end = program(params, tape, *args)
    check_tape(end, "the program")
    return end


expectation = Expectation  # written like the function that its instances are made to be
