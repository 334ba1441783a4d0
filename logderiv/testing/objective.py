"""What does a loss of sequence models descend? Its expected gradient, exactly, held against gradients that have a name.

A batch of the expectation is one group of two answers to one prompt: every pair of answers in each of three worlds, weighted by
its probability. What must not matter (padding, prompt, order, the split into micro-batches) is tried on batches of two groups.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from logderiv._core import check
from logderiv._core.tables import table
from logderiv.estimators.declaration import RETURN
from logderiv.estimators.objectives.advantages import Centered, MaxAtK, check_kind
from logderiv.estimators.objectives.regularizers import ENTROPY, FORWARD, INVERSE, REVERSE
from logderiv.testing.token_batches import (
    SIZE,
    Batch,
    Loss,
    changed_by,
    differences,
    in_parts,
    loss_of,
    power_of_ratio,
    probe,
    variants,
)
from logderiv.testing.token_worlds import NAMES, WITHIN, TokenWorld, token_worlds

EXACT = 1e-9  # relative; float64 leaves about 1e-15
STEP, ASYMMETRY = 1e-3, 1e-5  # central differences are good to about 1e-7


class ExpectedGradient(NamedTuple):
    """What the expected gradient of a loss is, going down it, in all worlds together.

    Attributes:
        combination: Named gradients with their coefficients where they add up to it; empty where it is 0, `None` where none do.
        residual: What the nearest combination leaves, relative.
        nearest: The named gradient at the smallest angle, and its coefficient; `None` of a gradient that is 0.
        sizes: Length, relative to that of each named gradient.
        angles: To each named gradient, in degrees.
    """

    combination: dict[str, float] | None
    residual: float
    nearest: tuple[str, float] | None
    sizes: dict[str, float]
    angles: dict[str, float]

    def __str__(self) -> str:
        if self.combination is not None:
            return _sum_of(self.combination)
        if self.nearest is None:
            return "no finite number"
        name, factor = self.nearest
        near = f"nearest is {factor:.4g} * {name}, {self.angles[name]:.3g} degrees off"
        return f"no combination: the best leaves {self.residual:.2g} of it; {near}"


class ObjectiveReport(NamedTuple):
    """What `check_objective` found; print it.

    Attributes:
        on_policy: The expected gradient where the policy that is trained drew the answers.
        off_policy: Where the old policy did.
        without_rewards: On policy where all rewards are 0: what the loss regularizes.
        asymmetry: Of the Jacobian of the expected gradient on policy, relative; a gradient of something has 0.
        changes: By how much the derivative changes, relative, with what must not matter.
        failures: What is wrong, in sentences.
        notes: What is worth knowing.
    """

    on_policy: ExpectedGradient
    off_policy: ExpectedGradient
    without_rewards: ExpectedGradient
    asymmetry: float
    changes: dict[str, float]
    failures: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Nothing is wrong."""
        return not self.failures

    @property
    def is_gradient(self) -> bool:
        """Whether the expected gradient is that of any objective."""
        return self.asymmetry <= ASYMMETRY

    def __str__(self) -> str:
        verdict = "\n  ".join(["FAILED:", *self.failures]) if self.failures else "passed"
        is_one = "the gradient of an objective" if self.is_gradient else "the gradient of no objective"
        lines = [
            verdict,
            f"on policy        {self.on_policy}",
            f"off policy       {self.off_policy}",
            f"without rewards  {self.without_rewards}",
            f"on policy it is {is_one}: the asymmetry of its Jacobian is {self.asymmetry:.2g}",
            *(f"note: {note}" for note in self.notes),
        ]
        on, off = self.on_policy, self.off_policy
        rows = [(name, on.sizes[name], on.angles[name], off.sizes[name], off.angles[name]) for name in on.sizes]
        names = ("gradient of", "size", "angle", "off: size", "angle")
        return "\n".join(lines) + "\n" + table(names, "<32 >10.4f >10.2f >12.4f >10.2f", rows)


_FINDINGS = {
    "padding": "padding is let in: what stands behind an answer has a derivative, or changes that of tokens (by {:.2g}); "
    "apply the mask.",
    "width": "padding is counted: one more column of it changes the derivative by {:.2g}; divide by a constant, or by the tokens "
    "of the mask, in place of the width.",
    "prompt": "the prompt is counted as answer: it has a derivative, or its tokens or their number change that of others (by "
    "{:.2g}); use the mask for tokens and lengths.",
    "order": "groups are mixed up: another order of answers changes their derivatives by {:.2g}; a mean or a deviation is taken "
    "over the wrong axis, or the advantage of another answer is used.",
}
_HINTS = {
    INVERSE: "k1 in the loss, over the own length, moves the lengths of answers and knows no reference",
    WITHIN[REVERSE]: "k2, or k3 with its ratio, in the loss: what a token does to later ones is missing",
    WITHIN[FORWARD]: "k3 in the loss without its ratio: a forward divergence, of tokens alone",
    WITHIN[ENTROPY]: "an entropy bonus of steps: what a token does to later ones is missing",
    FORWARD: "k3 of whole answers in the loss without its ratio: the forward divergence",
}


def check_objective(
    loss: Callable[..., Any],
    claim: Mapping[str, float] | None = None,
    *,
    accumulate: str = "mean",
    advantage: Centered | MaxAtK = Centered(),  # noqa: B008
    off_policy: bool = False,
    raises: bool = True,
) -> ObjectiveReport:
    """Assert that a loss of sequence models, written by someone else, descends what it claims.

    The loss takes those of these arrays that it wants, by their names, and returns a scalar that JAX can differentiate; or, of numpy
    arrays, the pair `(value, derivative by log_probs)`, as from torch. Everything is in float64.

    | name | |
    |---|---|
    | `log_probs`, `old`, `sampler`, `reference` | of the drawn tokens: now, at the start of the update, of what drew, of the reference; `(N, T)` |
    | `step_kl`, `step_entropy` | of each step over the full vocabulary, differentiable; `(N, T)` |
    | `mask` | True for tokens of answers; prompts stand before them, padding behind; `(N, T)` |
    | `rewards`, `groups`, `advantages` | of each answer; the two answers to a prompt stand side by side; `(N,)` |
    | `num_groups`, `group_size` | whole numbers: prompts in this micro-batch, and 2 |
    | `num_answers`, `num_tokens` | in all micro-batches together |

    A batch of the expectation has two answers to one prompt. Off policy the old policy draws them: `sampler` is `old`. Without a
    claim only what must not matter decides: padding, prompt, the order of answers, and the split into micro-batches (of whole
    groups; of single answers where the loss does not take `rewards`).

    Example, of a loss that is right:

        def loss(log_probs, mask, advantages):
            return -jnp.mean(jnp.sum(jnp.where(mask, advantages[:, None] * log_probs, 0), axis=1))

        print(ld.testing.check_objective(loss, {"return": 1}))

    Args:
        loss: It descends, so that the gradient in question is that of its negative.
        claim: What that gradient is on policy: "return", "reverse KL", "forward KL", "sequence entropy", "mean length" and
            "mean inverse length" with their factors, such as `{"return": 1, "reverse KL": -0.04}`.
        accumulate: How micro-batches are put together: "mean" or "sum".
        advantage: The `advantages` that the loss is given, taken on the whole batch.
        off_policy: Whether the claim is held off policy, too.
        raises: `False` returns the report whatever it says.

    Returns:
        An `ObjectiveReport`.

    Raises:
        AssertionError: The claim is wrong, something matters that must not, or the gradient is not finite; the message is the
            report.
        ValueError: An unknown name, in the claim or among the arguments of the loss; the loss returns another shape; `advantage`
            needs more than two answers.
        TypeError: The loss is no function, or complex; the claim is no dictionary of numbers; the advantage is none.
    """
    check.one_of(("mean", "sum"), accumulate=accumulate)
    check.made("claim", claim, claim is None or isinstance(claim, Mapping), "a dictionary such as {'return': 1}")
    check_kind(advantage, "advantage")
    if advantage.min_answers > SIZE or getattr(advantage, "baseline", None) == "greedy":
        raise ValueError(f"advantage: expected one of {SIZE} answers and nothing else, received {advantage}.")
    for name, factor in (claim or {}).items():
        check.one_of(NAMES, **{"claim": name})
        check.finite(**{f"claim[{name!r}]": factor})
    with jax.enable_x64(True):
        known = loss_of(loss, advantage, probe)
        on, off, none = (_vectors(known, **how) for how in ({}, {"off": True}, {"rewarded": False}))
        asymmetry = _asymmetry(known, token_worlds()[0])
        batch = probe(known)
        found = variants(known, batch)
        changes = differences(known, batch, found)
        changes["micro-batches"], cause = _split(known, batch, found, accumulate)
    named = [world.named() for world in token_worlds()]
    failures = []
    if not all(np.isfinite(x).all() for x in (*on, *off)):
        failures.append(_NOT_FINITE)
    elif claim is not None:
        failures += _wrong(claim, {"on policy": on, **({"off policy": off} if off_policy else {})}, named)
    failures += [text.format(changes[name]) for name, text in _FINDINGS.items() if changes[name] > EXACT]
    failures += [cause] if changes["micro-batches"] > EXACT else []
    read = {"on_policy": _read(on, named), "off_policy": _read(off, named), "without_rewards": _read(none, named)}
    notes = [
        *_hints(claim or {}, read["on_policy"], read["without_rewards"]),
        *_notes(known, found, batch["mask"], changes["order"] <= EXACT),
    ]
    report = ObjectiveReport(**read, asymmetry=asymmetry, changes=changes, failures=tuple(failures), notes=tuple(notes))
    if raises and not report.passed:
        raise AssertionError(f"check_objective: {report}")
    return report


_HOLD = "needs jax.lax.stop_gradient"
_NOT_FINITE = "the gradient is not finite: where the rewards of a group are equal, a deviation is 0; add an epsilon to what is divided by."


def _vectors(loss: Loss, *, off: bool = False, rewarded: bool = True) -> list[np.ndarray]:
    """The expected gradient in each world."""
    return [
        _expected(loss, world, world.policy, world.behavior if off else world.policy, rewarded)
        for world in token_worlds()
    ]


def _expected(
    loss: Loss, world: TokenWorld, policy: np.ndarray, behavior: np.ndarray, rewarded: bool = True
) -> np.ndarray:
    """E[−∇ loss] over every pair of answers that the behavior draws."""
    pairs = np.array(list(itertools.product(range(len(world.rewards)), repeat=SIZE)))
    old = world.logs(behavior)
    logs = {"log_probs": world.logs(policy), "old": old, "sampler": old, "reference": world.logs(world.reference)}
    tokens = {name: x[pairs] for name, x in {**logs, **world.steps(policy), "mask": world.mask}.items()}
    rewards = world.rewards[pairs] * float(rewarded)
    derivatives = loss(loss.batch(tokens, rewards, np.zeros(SIZE, int)))
    chances = np.prod(world.chances(behavior)[pairs], axis=1)[:, None, None]
    total = np.zeros(policy.size)
    for name, derivative in zip(loss.moving, derivatives, strict=True):
        weights = np.zeros(world.mask.shape)
        np.add.at(weights, pairs, chances * derivative)
        total -= world.back(policy, name, weights)
    return total


def _asymmetry(loss: Loss, world: TokenWorld) -> float:
    """|J − Jᵀ| / |J| of the Jacobian of the expected gradient on policy, by central differences; 0 where J is."""
    size = world.policy.size
    columns = []
    for direction in STEP * np.eye(size):
        ahead, behind = (world.policy + sign * direction.reshape(world.policy.shape) for sign in (1, -1))
        columns.append((_expected(loss, world, ahead, ahead) - _expected(loss, world, behind, behind)) / (2 * STEP))
    jacobian = np.stack(columns, axis=1)
    norm = np.linalg.norm(jacobian)
    return 0.0 if norm <= EXACT else float(np.linalg.norm(jacobian - jacobian.T) / norm)


def _read(found: list[np.ndarray], named: list[dict[str, np.ndarray]]) -> ExpectedGradient:
    """One set of coefficients for all worlds, by least squares; those that are 0 to rounding are left out."""
    target = np.concatenate(found)
    columns = {name: np.concatenate([world[name] for world in named]) for name in NAMES}
    lengths = {name: float(np.linalg.norm(x)) for name, x in columns.items()}
    size = float(np.linalg.norm(target))
    if not math.isfinite(size):
        return ExpectedGradient(None, math.nan, None, dict.fromkeys(NAMES, math.nan), dict.fromkeys(NAMES, math.nan))
    sizes = {name: size / length for name, length in lengths.items()}
    if size <= EXACT * max(lengths.values()):
        return ExpectedGradient({}, 0.0, None, sizes, dict.fromkeys(NAMES, math.nan))
    matrix = np.stack(list(columns.values()), axis=1)
    coefficients = np.linalg.lstsq(matrix, target, rcond=None)[0]
    kept = np.abs(coefficients) * np.array(list(lengths.values())) > EXACT * size
    residual = float(np.linalg.norm(matrix @ np.where(kept, coefficients, 0) - target)) / size
    combination = {name: float(x) for name, x, keep in zip(NAMES, coefficients, kept, strict=True) if keep}
    cosines = {name: float(target @ x) / size / lengths[name] for name, x in columns.items()}
    best = max(NAMES, key=lambda name: abs(cosines[name]))
    angles = {name: math.degrees(math.acos(max(-1.0, min(1.0, x)))) for name, x in cosines.items()}
    nearest = best, cosines[best] * sizes[best]
    return ExpectedGradient(combination if residual <= EXACT else None, residual, nearest, sizes, angles)


def _wrong(
    claim: Mapping[str, float], found: dict[str, list[np.ndarray]], named: list[dict[str, np.ndarray]]
) -> list[str]:
    """One sentence for each regime in which the gradient is another than the claim says."""
    failures = []
    claimed = [sum((float(x) * world[name] for name, x in claim.items()), np.zeros(1)) for world in named]
    for where, vectors in found.items():
        off = [
            np.linalg.norm(v - c) / max(np.linalg.norm(v), np.linalg.norm(c), EXACT)
            for v, c in zip(vectors, claimed, strict=True)
        ]
        if not max(off) <= EXACT:
            failures.append(
                f"{where} the gradient is not that of {_sum_of(claim)}, but off by {max(off):.2g} of its size."
            )
    return failures


def _sum_of(factors: Mapping[str, float]) -> str:
    return " + ".join(f"{factor:.6g} * {name}" for name, factor in factors.items()).replace("+ -", "- ") or "0"


def _split(loss: Loss, batch: Batch, found: dict[str, np.ndarray], accumulate: str) -> tuple[float, str]:
    """The largest change by a split into micro-batches, and a sentence on where it comes from."""
    given, largest, cause = found["given"], 0.0, ""
    for size in (SIZE,) if "rewards" in loss.names else (SIZE, 1):
        parts = in_parts(loss, batch, size)
        parts = parts * (size / given.shape[2]) if accumulate == "mean" else parts
        change = changed_by(parts, given)
        if change > largest:
            largest, factor = change, float(np.vdot(given, parts) / max(np.vdot(given, given), EXACT))
            cause = f"a split of 4 answers into micro-batches of {size} changes the gradient by {change:.2g}: "
            cause += _reason(found, factor if factor and changed_by(parts, factor * given) <= EXACT else None)
    return largest, cause


def _reason(found: dict[str, np.ndarray], factor: float | None) -> str:
    if factor is not None:
        return f"put together, the parts are {factor:.4g} times the whole; is accumulate right, or what is divided by?"
    own = np.s_[:, :, :SIZE]
    if changed_by(found["rewards elsewhere"][own], found["given"][own]) > EXACT:
        return "rewards of one group change the derivatives of another: groups are mixed up, or a mean or a deviation runs over both."
    if changed_by(found["lengths elsewhere"][own], found["given"][own]) > EXACT:
        return "a normalizer counts the tokens of the micro-batch alone; divide by num_tokens, or a constant."
    return "something is taken over the micro-batch alone that belongs to more answers than that."


def _hints(claim: Mapping[str, float], on: ExpectedGradient, none: ExpectedGradient) -> list[str]:
    """What the expectations suggest, with rewards and without."""
    hints = []
    doubled = (on.combination or {}).get(RETURN, 0.0) / 2
    if doubled and math.isclose(doubled, claim.get(RETURN, 0), rel_tol=EXACT):
        hints.append(f"the return counts twice: of two factors that hold log_probs, one {_HOLD}.")
    for name, hint in _HINTS.items():
        if none.combination is None and none.nearest is not None and none.nearest[0] == name:
            hints.append(f"without rewards it is nearest to the gradient of the {name}: {hint}.")
        elif none.combination and name in none.combination:
            hints.append(f"the {name}: {hint}.")
    if on.combination == {}:
        hints.append(f"the gradient is 0: a ratio of log_probs to themselves {_HOLD} in its denominator.")
    return hints


def _notes(loss: Loss, found: dict[str, np.ndarray], mask: np.ndarray, in_order: bool) -> list[str]:
    """What the probes suggest."""
    notes = []
    if "reference" in loss.names and changed_by(found["reference"], found["given"], mask) <= EXACT:
        notes.append("the reference does not change the gradient, as with k1 in the loss.")
    level = changed_by(found["higher"] - found["no rewards, higher"], found["given"] - found["no rewards"], mask)
    if EXACT < level < math.inf:
        notes.append(
            "the gradient of the rewards depends on log_probs themselves, not only on ratios: a ratio that multiplies "
            f"log_probs {_HOLD}."
        )
    elif power_of_ratio(found) > 1.5:
        notes.append(
            f"the ratio enters squared: of two that hold log_probs, one {_HOLD}, or is that of old to sampler."
        )
    order = [0, 2, 1, 3]
    if in_order and changed_by(found["interleaved"], found["given"][:, :, order], mask[:, order]) > EXACT:
        notes.append("answers of a group must stand side by side; groups are not looked at.")
    return notes
