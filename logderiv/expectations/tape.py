"""The tape: what a program threads through itself, and one line for each thing that it may do.

`logderiv.expectations.programs` has an example and the formula that a tape accumulates.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import lax

from logderiv import distributions
from logderiv._core import check
from logderiv._core.arrays import as_key, expand, scalar_cost, summable
from logderiv._core.keys import KeyBits
from logderiv._core.pytrees import pytree
from logderiv._core.staging import frames, inside_a_model
from logderiv.distributions.finite import with_padding, zero_padding
from logderiv.estimators.surrogates import box
from logderiv.expectations.sources import Keys
from logderiv.types import Key

SAMPLES = "logderiv_samples"  # the axis of the samples of an expectation
PAIRS = (SAMPLES, "logderiv_pair")  # the axes of pairs that are drawn independently, and of the two samples of each


@pytree(static=("peers", "box"), eq=False, visit=lambda tape: tape._hand_on())
class Tape:
    """What a program threads through itself: the source of its randomness, and what it has cost so far.

    Every method returns a new tape and spends the old one; so does handing it to `scan`, `cond`, `while_loop`, `vmap` or `jit`.
    Go on with the tape that comes back: using a spent one again raises, and so does returning it from a program, a loop's body or
    a branch. (Only a tape handed on twice escapes.) Give a tape to the branches of a `lax.cond` as an operand: two closures
    around one tape are two uses. Parts side by side are run by `plate`: a plain `jax.vmap` would give all of them one key, and the
    tapes that it returns are refused.

    Attributes:
        source: Where choices come from, `Keys` or `Given`.
        log_prob: Sum of the log-probabilities of the scored choices so far. Shape `()`.
        total: Costs so far; their sum in value, the surrogate in its derivatives. Shape `()`.
        world: A `World`: of enumerated choices, which outcomes are made; `None` where none can be enumerated.
        detour: A `Detour`: of choices by the alternative path, which is made otherwise; `None` where none can be.
        peers: Axis of the other samples of the expectation, where each choice has them as its baseline; or several axes, of which
            the samples along all but the first are drawn jointly, and are no baseline for each other; static.
        box: What a cost is multiplied by, a function of `log_prob` whose value is 1; static. `jax.numpy.ones_like` leaves the
            costs alone: no score, and no baseline.
    """

    source: Any
    log_prob: jax.Array
    total: jax.Array
    world: Any = None
    detour: Any = None
    peers: str | tuple[str, ...] | None = None
    box: Callable[[jax.Array], jax.Array] = box

    _spent = False
    _handed_on = False

    @classmethod
    def start(cls, key: Key, *, peers: str | tuple[str, ...] | None = None) -> Self:
        """A tape without choices and costs, in the default floating dtype, as `expectation` makes it.

        Args:
            key: Consumed.
            peers: Axis of `jax.vmap` over the other samples, for a program whose choices have them as their baseline; or several
                axes, of which the samples along all but the first are drawn jointly, and are no baseline for each other.

        Returns:
            The tape.

        Raises:
            TypeError: `key` is no key, or the call stands in a model, whose tape is there already.
            ValueError: It is several.
        """
        if inside_a_model():
            raise TypeError(
                f"{frames()[0]}: Tape.start inside a model of plain calls, which has a tape of its own; use logderiv.sample and "
                "logderiv.cost."
            )
        return cls._of(key, peers)

    @classmethod
    def _of(cls, key: Key, peers: str | tuple[str, ...] | None, mirrored: Any = None) -> Self:
        return cls(Keys(KeyBits.of(as_key(key)), mirrored), jnp.zeros(()), jnp.zeros(()), peers=peers)

    def sample(self, distribution: Any, *, baseline: Any = 0.0, where: Any = None) -> tuple[Self, Any]:
        """Make a choice, and score it.

        Args:
            distribution: Of this library, distrax, TFP or numpyro. One with batch axes makes independent choices at once.
            baseline: What the rest of the program is thought to cost, a scalar. It is detached, and may depend on everything
                before this choice: any such number leaves every derivative unbiased.
            where: False for padding: 0 is drawn, nothing is scored, and whatever stands in `distribution` there has no
                influence, NaN neither. A boolean, or one for each of the choices that are made at once.

        Returns:
            `(tape, value)`.

        Raises:
            ValueError: The tape is spent, or was split by a plain `jax.vmap`; the baseline is not a scalar.
            TypeError: `distribution` has no `log_prob`; `where` is not boolean.

        Gradients: the value is detached; `distribution` receives the score.
        """
        distributions.check_distribution(distribution)
        self._use()
        distribution, where = with_padding(distribution, where)
        source, value = self.source.choose(distribution, True if where is None else where)
        tape = dataclasses.replace(self, source=source)._score(distribution, value, baseline, where)
        return tape, zero_padding(value, where)

    def sample_pathwise(self, distribution: Any, *, where: Any = None) -> tuple[Self, Any]:
        """Make a choice whose value carries the derivative: through the sampler (reparameterized), and no score.

        Everything computed from the value must be differentiable in it, and continuous: what jumps contributes nothing, silently.

        Args:
            distribution: Of this library, distrax, TFP or numpyro, with a sampler that is differentiable in its parameters.
            where: False for padding: the value is 0, and whatever stands in `distribution` there has no influence, NaN neither. A
                boolean, or one for each of the choices that are made at once.

        Returns:
            `(tape, value)`.

        Raises:
            ValueError: The tape is spent; `where` has a shape that does not fit.
            TypeError: The distribution is discrete, or its library says that it is not reparameterized; `where` is not boolean.

        Gradients: flow from the value into `distribution`.
        """
        self._use()
        distribution, where = with_padding(distribution, where)
        source, value = self.source.draw(distribution)
        _check_reparameterized(distribution, value)
        return dataclasses.replace(self, source=source), zero_padding(value, where)

    def score(self, distribution: Any, value: Any, *, baseline: Any = 0.0) -> Self:
        """Score a choice that was drawn elsewhere, from this very distribution: by a rollout, or with a key from `split`.

        Not for data: what was not drawn at these parameters needs an importance weight.

        Args:
            distribution: Of this library, distrax, TFP or numpyro. One with batch axes scores independent choices at once.
            value: What was drawn.
            baseline: What the rest of the program is thought to cost, a scalar; detached. It may depend on everything before
                this choice.

        Returns:
            The new tape.

        Raises:
            ValueError: The tape is spent, or was split by a plain `jax.vmap`; the baseline is not a scalar.
            TypeError: `distribution` has no `log_prob`.

        Gradients: `value` is detached; `distribution` receives the score.
        """
        self._use()
        # Only to be refused where the choices are given: the key stays as it is.
        self.source.keys(0, f"a choice of {type(distribution).__name__} that was drawn elsewhere")
        return self._score(distribution, lax.stop_gradient(value), baseline)

    def cost(self, value: Any) -> Self:
        """Incur a cost (or a reward), caused by every choice up to here.

        Args:
            value: A scalar.

        Returns:
            The new tape.

        Raises:
            ValueError: Not a scalar, or the tape is spent, or was split by a plain `jax.vmap`.
            TypeError: Not a real number.

        Gradients: flow through `value`, with respect to parameters and pathwise values.
        """
        self._use()
        value = scalar_cost(value).astype(self.total.dtype)
        return dataclasses.replace(self, total=self.total + value * self.box(self.log_prob))

    def split(self, num: int = 1) -> tuple[Self, jax.Array]:
        """Take keys for randomness that does not depend on the parameters: `tape, (key,) = tape.split()`.

        Args:
            num: How many.

        Returns:
            `(tape, keys)`, the keys of shape `(num,)`.

        Raises:
            ValueError: The tape is spent; `num` is below 1.
        """
        num = check.whole(num=num)
        self._use()
        source, keys = self.source.keys(num, f"{num} keys from split")
        return dataclasses.replace(self, source=source), keys

    def plate(self, function: Callable[[Self, Any], tuple[Self, Any]], xs: Any) -> tuple[Self, Any]:
        """Run independent parts side by side: `jax.vmap` over the rows of `xs`, each with a tape of its own.

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
        num = check.rows("xs", xs, at_least=0)
        self._use()
        rest, tapes, outputs = self._side_by_side(function, xs, num)
        return rest._join(tapes), outputs

    def _side_by_side(self, function: Any, xs: Any, num: int) -> tuple[Self, Self, Any]:
        """The tape to go on with, those of the parts, stacked, and their outputs."""
        rest, sources = self.source.fork(num)
        detours, zeros = None if self.detour is None else self.detour.fork(num), jnp.zeros(num, self.total.dtype)
        worlds = jax.tree.map(lambda x: jnp.broadcast_to(x, num), self.world)

        def part(tape: Self, x: Any) -> tuple[Self, Any]:
            tape, output = function(tape, x)
            check_tape(tape, "the function of a plate, as the first of a pair")
            return dataclasses.replace(tape), output

        tapes = dataclasses.replace(self, source=sources, log_prob=zeros, total=zeros, world=worlds, detour=detours)
        tapes, outputs = jax.vmap(part)(tapes, xs)
        return dataclasses.replace(self, source=rest), tapes, outputs

    def _score(self, distribution: Any, value: Any, baseline: Any, where: Any = None) -> Self:
        logs = distributions.log_probs(distribution, value)
        if where is not None:
            logs = jnp.where(expand(where, logs), logs, jnp.zeros_like(logs))
        log_prob = self.log_prob + jnp.sum(summable(logs)).astype(self.log_prob.dtype)
        expected = scalar_cost(baseline, "baseline").astype(self.total.dtype)
        if self.peers is not None:  # what the others still have to pay; `expectation` adds their whole cost
            expected = expected - others_mean(self.total, self.peers)
        control = lax.stop_gradient(expected) * (self.box(self.log_prob) - self.box(log_prob))
        return dataclasses.replace(self, log_prob=log_prob, total=self.total + control)

    def _join(self, tapes: Self) -> Self:
        """Take parts in that have started from nothing: a box of a sum is a product of boxes."""
        totals = tapes.total
        if self.peers is not None:  # the others' cost so far, seen by a part: before the plate, and in its other parts
            costs = others_mean(tapes.total, self.peers)
            elsewhere = others_mean(self.total, self.peers) + jnp.sum(costs) - costs
            totals = totals - elsewhere * (1 - self.box(tapes.log_prob))
        log_prob = self.log_prob + jnp.sum(tapes.log_prob)
        return dataclasses.replace(self._take_in(tapes, totals), log_prob=log_prob)

    def _take_in(self, tapes: Self, totals: jax.Array) -> Self:
        """What parts have cost, and where their sources and detours stand."""
        total, source = self.total + self.box(self.log_prob) * jnp.sum(totals), self.source.join(tapes.source)
        detour = self.detour
        if tapes.detour is not None:
            source, detour = detour.join(source, tapes.detour)
        return dataclasses.replace(self, source=source, total=total, detour=detour)

    def _use(self) -> None:
        """Spend the tape of one run."""
        if jnp.shape(self.total) != ():
            raise ValueError(
                f"tape: expected that of one run, received one whose total has shape {jnp.shape(self.total)}: it was split by a plain "
                "jax.vmap (or lax.map), so that all parts have one key and nothing adds their costs up. Run the parts by "
                "tape, outputs = tape.plate(function, xs)."
            )
        self._spend()

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


def settled(tape: Tape) -> jax.Array:
    """The total at the end of a run, where the others' whole cost is what its choices had as their baseline."""
    if tape.peers is None:
        return tape.total
    return tape.total + others_mean(tape.total, tape.peers) * (1 - tape.box(tape.log_prob))


def others_mean(values: jax.Array, peers: str | tuple[str, ...]) -> jax.Array:
    """The mean over the samples of an expectation that are drawn independently of this one, detached."""
    values, axes = lax.stop_gradient(values), (peers,) if isinstance(peers, str) else peers
    jointly, all_axes = partial(lax.psum, axis_name=axes[1:]), partial(lax.psum, axis_name=axes)
    return (all_axes(values) - jointly(values)) / (all_axes(1) - jointly(1))


def check_tape(tape: Any, source: str) -> None:
    """Raise unless `tape` is one that has not been used; now it has."""
    if not isinstance(tape, Tape):
        raise TypeError(
            f"{source}: expected to return its tape, received {type(tape).__name__}; a cost is reported by tape = tape.cost(value)."
        )
    tape._use()


def _check_reparameterized(distribution: Any, x: Any) -> None:
    """Refuse samples without a derivative: integers, or where the library says so (numpyro, TFP)."""
    discrete = any(not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in jax.tree.leaves(x))
    declared = getattr(distribution, "has_rsample", True)
    kind = str(getattr(distribution, "reparameterization_type", ""))
    if discrete or declared is False or "NOT_REPARAMETERIZED" in kind:
        raise TypeError(
            f"distribution: expected one whose samples are differentiable in its parameters, received "
            f"{type(distribution).__name__}, whose samples are discrete or not reparameterized: the pathwise gradient would be "
            "zero or undefined. Take method='score', 'enumerate' or 'alternative' in a model, tape.sample in a program, or "
            "logderiv.expectations.gradients_score or logderiv.expectations.gradients_measure_valued for one choice."
        )
