r"""Programs: the expected cost of your own JAX code, differentiable to any order.

A program makes random choices $x_1, x_2, \ldots$, each from a distribution that may depend on the parameters and on the
choices before, and incurs costs $c_1, c_2, \ldots$ along the way. It threads a `Tape` through whatever it is made of
(`lax.scan`, `lax.cond`, `lax.while_loop`), as one threads a key, and `expectation` runs it:

    def program(params, tape):  # three flips; the expected number of ones is 3 p
        def step(carry, _):
            tape, ones = carry
            tape, flip = tape.sample(ld.Bernoulli(params))
            return (tape, ones + flip), None

        (tape, ones), _ = jax.lax.scan(step, (tape, 0), None, length=3)
        return tape.cost(ones)

    objective = ld.expectation(program, num_samples=64, baseline=ld.baseline_leave_one_out())
    value, grads = jax.value_and_grad(objective)(params, key)

With $\ell_i$ the log-probability of choice `i`, sums $\ell_{\le j}$ over the choices made before cost `j`, and
$\square(x) = \exp(x - \bot(x))$, which is 1 and has the derivatives of $e^x$, the tape accumulates

$\sum_j c_j\, \square(\ell_{\le j}) + \sum_i b_i\, (\square(\ell_{<i}) - \square(\ell_{\le i}))$.

Its value is the cost. Its k-th derivative is an unbiased estimate of the k-th derivative of the expected cost, for every k: costs
may depend on the parameters, and `b_i` on anything known before choice `i`. A choice is credited with later costs only. All
of it is a running sum: a tape is a key and two numbers, however long the program.

References:
    Schulman et al. (2015), arXiv:1506.05254, theorem 1 (stochastic computation graphs, order one); Foerster et al. (2018),
    arXiv:1802.05098, eqs. 5-6 (DiCE, every order); Mao et al. (2019), arXiv:1904.09664, eq. 9 (baselines at every order); Lew et al.
    (2023), arXiv:2212.06386 (ADEV, the same aim by program transformation).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import lax

from logderiv import distributions
from logderiv._arrays import as_keys, register_dataclass
from logderiv.baselines import Baseline, baseline_leave_one_out
from logderiv.pathwise import check_reparameterised, scalar_cost
from logderiv.surrogates import box

Program = Callable[..., "Tape"]

_AXIS = "logderiv_samples"  # the samples of an expectation


@dataclasses.dataclass(frozen=True, eq=False)
class Tape:
    """What a program threads through itself: the source of its randomness, and what it has cost so far.

    Every method returns a new tape and spends the old one; so does handing it to `scan`, `cond`, `while_loop`, `vmap` or `jit`.
    Go on with the tape that comes back: using a spent one again raises, and so does returning it from a program, a loop's body or
    a branch. (Only a tape handed on twice escapes.) Give a tape to the branches of a `lax.cond` as an operand: two closures
    around one tape are two uses.

    Attributes:
        bits: Data of a key, raw: JAX's checker of key reuse would take a `lax.cond` under `jax.vmap` for one.
        log_prob: Sum of the log-probabilities of the scored choices so far. Shape `()`.
        total: Costs so far; their sum in value, the surrogate in its derivatives. Shape `()`.
        impl: Of the key; static.
        peers: Axis of the other samples of the expectation, where each choice has them as its baseline. Static.
    """

    bits: jax.Array
    log_prob: jax.Array
    total: jax.Array
    impl: Any
    peers: str | None = None

    _spent = False
    _handed_on = False

    @classmethod
    def start(cls, key: jax.Array, *, peers: str | None = None) -> Self:
        """A tape without choices and costs, in the default floating dtype; `key` is consumed. `expectation` does this."""
        key, zero = as_keys(key), jnp.zeros(())
        return cls(jax.random.key_data(key), zero, zero, jax.random.key_impl(key), peers)

    def sample(self, distribution: Any, *, baseline: Any = 0.0) -> tuple[Self, Any]:
        """Make a choice, and score it.

        Args:
            distribution: Of this library, distrax, TFP or numpyro. One with batch axes makes independent choices at once.
            baseline: What the rest of the program is thought to cost, a scalar; it may depend on everything before this choice,
                and its own derivatives are held. Any such number leaves every derivative unbiased.

        Returns:
            `(tape, value)`, the value held (`stop_gradient`).

        Raises:
            ValueError: The tape is spent.
            TypeError: `distribution` has no `log_prob`.
        """
        tape, (key,) = self.split()
        # Held before as well as after: the sampler may be a loop that reverse mode cannot pass.
        value = lax.stop_gradient(distributions.sample(_held(distribution), key))
        return tape._score(distribution, value, baseline), value

    def sample_pathwise(self, distribution: Any) -> tuple[Self, Any]:
        """Make a choice whose value carries the derivative: through the sampler (reparameterised), and no score.

        Everything computed from the value must be differentiable in it, and continuous: what jumps contributes nothing, silently.

        Returns:
            `(tape, value)`.

        Raises:
            ValueError: The tape is spent.
            TypeError: The distribution is discrete, or its library says that it is not reparameterised.
        """
        tape, (key,) = self.split()
        value = distributions.sample(distribution, key)
        check_reparameterised(distribution, value)
        return tape, value

    def score(self, distribution: Any, value: Any, *, baseline: Any = 0.0) -> Self:
        """Score a choice that was drawn elsewhere, from this very distribution: by a rollout, or with a key from `split`.

        Not for data: what was not drawn at these parameters needs an importance weight.

        Args:
            distribution: As in `sample`.
            value: Held.
            baseline: As in `sample`.

        Returns:
            The new tape.

        Raises:
            ValueError, TypeError: As `sample`.
        """
        self._spend()
        return self._score(distribution, lax.stop_gradient(value), baseline)

    def cost(self, value: Any) -> Self:
        """Incur a cost (or a reward), caused by every choice up to here.

        Args:
            value: A scalar; derivatives with respect to parameters and pathwise values flow through it.

        Returns:
            The new tape.

        Raises:
            ValueError: Not a scalar, or the tape is spent.
        """
        self._spend()
        value = scalar_cost(value).astype(self.total.dtype)
        return dataclasses.replace(self, total=self.total + value * self._box(self.log_prob))

    def split(self, num: int = 1) -> tuple[Self, jax.Array]:
        """Take `num` keys for randomness that does not depend on the parameters: `tape, (key,) = tape.split()`.

        Raises:
            ValueError: The tape is spent.
        """
        self._spend()
        return self._keys(num)

    def plate(self, function: Callable[[Self, Any], tuple[Self, Any]], xs: Any) -> tuple[Self, Any]:
        r"""Run independent parts side by side: `jax.vmap` over the rows of `xs`, each with a tape of its own.

        The parts' log-probabilities and costs are summed. A cost inside a part is caused by this part's choices and by
        those before the plate, not by the other parts', which it cannot depend on.

        Args:
            function: `(tape, x) -> (tape, output)` for one row.
            xs: Pytree with a common leading axis.

        Returns:
            `(tape, outputs)`, the outputs stacked.

        Raises:
            ValueError: The tape is spent, or `xs` has no leading axis.
            TypeError: `function` does not return a pair that begins with a tape.
        """
        sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(xs)}
        if len(sizes) != 1 or () in sizes:
            raise ValueError(
                f"xs: expected leaves with one common leading axis, received leading axes {sorted(sizes)}."
            )
        self._spend()
        rest, tapes = self._fork(sizes.pop()[0])

        def part(tape: Self, x: Any) -> tuple[Self, Any]:
            tape, output = function(tape, x)
            check_tape(tape, "the function of a plate, as the first of a pair")
            return dataclasses.replace(tape), output

        tapes, outputs = jax.vmap(part)(tapes, xs)
        return rest._join(tapes), outputs

    def _score(self, distribution: Any, value: Any, baseline: Any) -> Self:
        logs = distributions.log_probs(distribution, value)
        log_prob = self.log_prob + jnp.sum(logs).astype(self.log_prob.dtype)
        expected = jnp.asarray(baseline).astype(self.total.dtype)
        if self.peers is not None:  # what the others still have to pay; `expectation` adds their whole cost
            expected = expected - others_mean(self.total)
        control = lax.stop_gradient(expected) * (self._box(self.log_prob) - self._box(log_prob))
        return dataclasses.replace(self, log_prob=log_prob, total=self.total + control)

    def _fork(self, num: int) -> tuple[Self, Self]:
        """The tape to go on with, and `num` tapes, stacked, that start from nothing."""
        rest, keys = self._keys(num)
        zeros = jnp.zeros(num, self.total.dtype)
        return rest, dataclasses.replace(self, bits=jax.random.key_data(keys), log_prob=zeros, total=zeros)

    def _keys(self, num: int) -> tuple[Self, jax.Array]:
        keys = jax.random.split(jax.random.wrap_key_data(self.bits, impl=self.impl), num + 1)
        return dataclasses.replace(self, bits=jax.random.key_data(keys[0])), keys[1:]

    def _join(self, tapes: Self) -> Self:
        """Take parts in that have started from nothing: a box of a sum is a product of boxes."""
        before, totals = self._box(self.log_prob), tapes.total
        if (
            self.peers is not None
        ):  # the others' cost so far, as seen by a part: before the plate, and in its other parts
            costs = others_mean(tapes.total)
            elsewhere = others_mean(self.total) + jnp.sum(costs) - costs
            totals = totals - elsewhere * (1 - self._box(tapes.log_prob))
        log_prob, total = self.log_prob + jnp.sum(tapes.log_prob), self.total + before * jnp.sum(totals)
        return dataclasses.replace(self, log_prob=log_prob, total=total)

    def _spend(self) -> None:
        if self._spent:
            raise ValueError(
                "tape: used twice, expected each tape to be used once; its key is consumed and its costs have moved on. Go on with, "
                "and return, the tape that sample, cost, scan and the others give; pass it to both branches of a lax.cond as an operand."
            )
        object.__setattr__(self, "_spent", True)

    def _hand_on(self) -> None:
        """JAX takes a tape apart: the first time it is spent, and may be taken apart again within the same call."""
        if not self._handed_on:
            self._spend()
            object.__setattr__(self, "_handed_on", True)

    @staticmethod
    def _box(log_prob: jax.Array) -> jax.Array:
        return box(log_prob)


register_dataclass(Tape, ("bits", "log_prob", "total"), ("impl", "peers"), visit=Tape._hand_on)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Expectation:
    """See `expectation`."""

    program: Program
    num_samples: int = 1
    baseline: Baseline | None = None

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"num_samples: expected a whole number >= 1, received {self.num_samples}.")
        if self.baseline is None:
            return
        if self.baseline != baseline_leave_one_out():
            raise TypeError(
                f"baseline: expected baseline_leave_one_out() or None, received {self.baseline!r}. A constant, an average of earlier "
                "runs or a value of the state is given at the choice: tape.sample(distribution, baseline=...)."
            )
        self.baseline.bias.check(self.num_samples)

    def __call__(self, params: Any, key: jax.Array, *args: Any) -> jax.Array:
        """The mean cost of `num_samples` runs; `key` is consumed."""
        keys = jax.random.split(as_keys(key), self.num_samples)
        return self.on_tapes(params, jax.vmap(lambda key: Tape.start(key, peers=self.peers))(keys), *args)

    @property
    def peers(self) -> str | None:
        """The axis that the baseline is taken over."""
        return None if self.baseline is None else _AXIS

    def on_tapes(self, params: Any, tapes: Tape, *args: Any) -> jax.Array:
        """As a call, on given tapes, stacked."""

        def run(tape: Tape) -> jax.Array:
            end = self.program(params, tape, *args)
            check_tape(end, "the program")
            if end.peers is None:
                return end.total
            return end.total + others_mean(end.total) * (1 - end._box(end.log_prob))

        return jnp.mean(jax.vmap(run, axis_name=_AXIS)(tapes))


def expectation(program: Program, *, num_samples: int = 1, baseline: Baseline | None = None) -> Expectation:
    r"""The expected cost of a program, as a function `(params, key, *args) -> scalar` that can be differentiated.

    The value is the mean cost of `num_samples` runs. Its derivatives in `params` and `args`, of any order and by any mix of
    `jax.grad`, `jax.jvp`, `jax.hessian`, are unbiased estimates of those of the expected cost: scores of the sampled
    choices, derivatives through pathwise ones, and those of the costs themselves. `jax.jit` and `jax.vmap` apply.

    **Loops.** JAX differentiates `lax.while_loop` in forward mode only. So do derivatives of a program that samples in one:
    `jax.jvp`, `jax.jacfwd`, `jax.jacfwd(jax.jacfwd(...))`; `jax.grad` raises. With `logderiv.bounded_while_loop` in its place,
    and with `lax.scan` and `lax.cond`, both modes work.

    **Higher orders** want float64, and many samples: the k-th derivative carries products of k scores.

    Args:
        program: `(params, tape, *args) -> tape`; see `logderiv.programs` for one.
        num_samples: `N` independent runs, side by side by `jax.vmap` (which runs both branches of a `lax.cond`).
        baseline: `baseline_leave_one_out()`: each choice's later costs are compared with what the *other* runs still had to pay when
            they were at this point of the program, 0 where they had finished. Other baselines are given at the choice.

    Returns:
        A function, also an object that `jax.jit` takes as an argument.

    Raises:
        ValueError: `num_samples` below 1, or below 2 with a baseline.
        TypeError: Another baseline; when called, a program that does not return its tape.

    Example:
        >>> import jax, jax.numpy as jnp, logderiv as ld
        >>> def two_flips(logit, tape):
        ...     tape, first = tape.sample(ld.Bernoulli(logit))
        ...     tape, second = tape.sample(ld.Bernoulli(logit))
        ...     return tape.cost(first * second)
        >>> objective = ld.expectation(two_flips, num_samples=20_000)
        >>> value, slope = jax.value_and_grad(objective)(0.0, jax.random.key(0))
        >>> bool(abs(value - 0.25) < 0.02), bool(abs(slope - 0.25) < 0.03)  # p**2 and 2 p * p (1 - p) at p = 1/2
        (True, True)

    References:
        As in `logderiv.programs`.
    """
    return Expectation(program, num_samples, baseline)


def bounded_while_loop(
    cond_fun: Callable[[Any], Any], body_fun: Callable[[Any], Any], init: Any, *, max_steps: int
) -> tuple[Any, jax.Array]:
    """`lax.while_loop` that ends after `max_steps` at the latest, and that reverse mode can differentiate.

    A scan of `max_steps` steps, each of which runs the body while the condition holds. Under `jax.vmap` (and so under
    `expectation`) the body runs in every step and its result is dropped where the loop has ended: it must be
    differentiable there too.

    Args:
        cond_fun: `carry -> bool`.
        body_fun: `carry -> carry`.
        init: The first carry, tapes and all.
        max_steps: At least 1.

    Returns:
        `(carry, finished)`; where `finished` is false the loop was cut, and the expectation is another one.

    Raises:
        ValueError: `max_steps` below 1.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps: expected a whole number >= 1, received {max_steps}.")

    def step(carry: Any, _: None) -> tuple[Any, None]:
        return lax.cond(cond_fun(carry), body_fun, lambda carry: carry, carry), None

    carry, _ = lax.scan(step, init, None, length=max_steps)
    return carry, ~jnp.asarray(cond_fun(carry))


def others_mean(values: jax.Array) -> jax.Array:
    """The mean over the other samples of an expectation, held."""
    values = lax.stop_gradient(values)
    return (lax.psum(values, _AXIS) - values) / (lax.psum(1, _AXIS) - 1)


def check_tape(tape: Any, source: str) -> None:
    """Raise unless `tape` is one that has not been used; now it has."""
    if not isinstance(tape, Tape):
        raise TypeError(
            f"{source}: expected to return its tape, received {type(tape).__name__}; a cost is reported by tape = tape.cost(value)."
        )
    tape._spend()


def _held(distribution: Any) -> Any:
    """The distribution with held parameters; unchanged if it is no pytree."""
    return jax.tree.map(lambda x: lax.stop_gradient(x) if isinstance(x, jax.Array) else x, distribution)
