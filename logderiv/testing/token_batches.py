"""Batches of answers as a loss of one's own is given them, its derivatives, and what these must not depend on."""

import dataclasses
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core import check
from logderiv._core.arrays import refuse_complex
from logderiv._core.pytrees import jit
from logderiv.estimators.objectives.advantages import Centered, MaxAtK, advantages

SIZE = 2  # answers in a group
STACK = 225  # at most so many batches at a time: every pair of the 15 answers of a world
NUDGE = 1e-4  # inside every clip
MOVING = ("log_probs", "step_kl", "step_entropy")
TOKENS = (*MOVING, "old", "sampler", "reference", "mask")
REWARDS = ("rewards", "advantages")
WHOLE = ("num_groups", "group_size")
KNOWN = (*TOKENS, *REWARDS, "groups", "num_answers", "num_tokens", *WHOLE)
Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Loss:
    """A loss of someone else's, and how it is called.

    Attributes:
        function: It takes some of `KNOWN` by name.
        names: Which.
        kind: The advantages that it is given.
        derives: Whether it returns its derivative, too.
    """

    function: Callable[..., Any]
    names: tuple[str, ...]
    kind: Centered | MaxAtK
    derives: bool

    @property
    def moving(self) -> tuple[str, ...]:
        """What it is differentiated by."""
        return tuple(name for name in MOVING if name in self.names)

    def __call__(self, batch: Batch) -> np.ndarray:
        """The derivatives of a stack of batches, shape `(M, B, N, T)`: by `log_probs`, and by what else moves."""
        arrays, whole = self.arguments(batch)
        number, shape = len(batch["log_probs"]), batch["log_probs"].shape[1:]
        if not self.derives:  # in stacks of one length, for one program for each shape of a batch
            rows = np.resize(np.arange(number), STACK)
            found = _compiled(self.function, {name: x[rows] for name, x in arrays.items()}, whole)
            return np.stack([np.asarray(x)[:number] for x in found])
        found = []
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", RuntimeWarning)  # what is not finite is reported
            for i in range(number):
                value = self.function(**{name: x[i].copy() for name, x in arrays.items()}, **whole)
                fits = isinstance(value, tuple) and len(value) == 2 and np.shape(value[1]) == shape
                if not fits or np.shape(value[0]) != ():
                    raise ValueError(
                        f"loss: expected (value, derivative by log_probs of shape {shape}), {_kind(value)}."
                    )
                found.append(np.asarray(value[1], np.float64))
        return np.stack(found)[None]

    def arguments(self, batch: Batch) -> tuple[Batch, dict[str, int]]:
        """Arrays, each with an axis of batches, and whole numbers."""
        whole = {"num_groups": len(np.unique(batch["groups"])), "group_size": SIZE}
        return {name: batch[name] for name in self.names if name in batch}, {
            name: x for name, x in whole.items() if name in self.names
        }

    def batch(self, tokens: Batch, rewards: np.ndarray, groups: np.ndarray) -> Batch:
        """A stack of batches with all that a loss may ask for, shapes `(B, N, T)`, `(B, N)` and `(N,)`."""
        mask, number = tokens["mask"], len(rewards)
        found = {**tokens, "rewards": rewards, "groups": np.tile(groups, (number, 1))}
        if "advantages" in self.names:
            found["advantages"] = np.asarray(_advantages(rewards, mask, found["groups"], self.kind))
        counts = {"num_answers": np.full(number, groups.size), "num_tokens": mask.sum((1, 2))}
        return {**found, **{name: np.asarray(x, np.float64) for name, x in counts.items()}}


def loss_of(function: Callable[..., Any], kind: Centered | MaxAtK, batch: Callable[[Loss], Batch]) -> Loss:
    """The loss, looked at and tried on one batch.

    Args:
        function: The user's.
        kind: Of advantage.
        batch: From a loss to a stack of batches.

    Returns:
        A `Loss`.

    Raises:
        ValueError: It asks for something that nobody has, does not take `log_probs`, or takes what moves and gives no derivative by it.
        TypeError: It is no function.
    """
    check.made("loss", function, callable(function), "a function of arrays by name, such as log_probs, mask, rewards")
    parameters = inspect.signature(function).parameters.values()
    named = [x.name for x in parameters if x.kind in (x.POSITIONAL_OR_KEYWORD, x.KEYWORD_ONLY)]
    unknown = [x.name for x in parameters if x.name not in KNOWN and x.kind != x.VAR_KEYWORD and x.default is x.empty]
    names = KNOWN if any(x.kind == x.VAR_KEYWORD for x in parameters) else tuple(x for x in KNOWN if x in named)
    if unknown or "log_probs" not in names:
        raise ValueError(
            f"loss: expected log_probs and some of {', '.join(KNOWN[1:])} as names of its arguments, received "
            f"{', '.join(x.name for x in parameters) or 'none'}; bind others by functools.partial."
        )
    found = Loss(function, names, kind, derives=False)
    found = dataclasses.replace(found, derives=_derives(found, batch(found)))
    if found.derives and (moving := [x for x in MOVING[1:] if x in named]):
        raise ValueError(
            f"loss: expected one of JAX where it takes {' and '.join(moving)}, received one that returns its own derivative, which "
            "is by log_probs alone."
        )
    return dataclasses.replace(found, names=tuple(x for x in names if not found.derives or x not in MOVING[1:]))


def _derives(loss: Loss, batch: Batch) -> bool:
    """Whether it returns a pair: traced, or called with numpy's arrays where tracing fails."""
    arrays, whole = loss.arguments(batch)
    arrays = {name: x[0].copy() for name, x in arrays.items()}
    try:
        return isinstance(jax.eval_shape(lambda given: loss.function(**given, **whole), arrays), tuple)
    except Exception:
        return isinstance(loss.function(**arrays, **whole), tuple)


def _kind(value: Any) -> str:
    shapes = [np.shape(x) for x in value] if isinstance(value, tuple) else type(value).__name__
    return f"received {'shapes ' if isinstance(value, tuple) else ''}{shapes}"


@jit
def _compiled(function: Callable[..., Any], arrays: dict[str, Any], whole: dict[str, int]) -> list[jax.Array]:
    moving = {name: arrays[name] for name in MOVING if name in arrays}
    held = {name: x for name, x in arrays.items() if name not in moving}

    def value(moving: dict[str, jax.Array], held: dict[str, jax.Array]) -> jax.Array:
        loss = function(**moving, **held, **whole)
        refuse_complex(loss=loss)
        check.shape((), hint="a scalar, or a pair of numpy's with the derivative by log_probs", loss=loss)
        return jnp.asarray(loss).astype(jnp.float64)

    found = jax.vmap(jax.grad(value))(moving, held)
    return [found[name] for name in MOVING if name in found]  # a dictionary comes back sorted


@jit
def _advantages(rewards: Any, mask: Any, groups: Any, kind: Any) -> jax.Array:
    def one(rewards: jax.Array, mask: jax.Array, groups: jax.Array) -> jax.Array:
        return advantages(rewards, groups, num_groups=groups.size, kind=kind, mask=mask)

    return jax.vmap(one)(rewards, mask, groups)


def probe(loss: Loss) -> Batch:
    """Four batches of two groups, made up: prompts of one and of two tokens, half on policy."""
    rng, shape = np.random.default_rng(7), (4, 4, 7)
    begin, lengths = np.array([1, 1, 2, 2]), rng.integers(1, 4, (4, 4, 1))
    lengths[:2, 0], lengths[:, 2:] = 1, np.maximum(lengths[:, 2:], 2)  # one token less leaves one
    places = np.arange(7) - begin[:, None]
    tokens = {"log_probs": -rng.uniform(0.2, 2, shape), "mask": (places >= 0) & (places < lengths)}
    off = np.array([0.0, 0, 1, 1])[:, None, None]
    tokens["old"] = tokens["log_probs"] + 0.1 * off * rng.normal(size=shape)
    tokens["sampler"] = tokens["old"] + 0.1 * off * rng.normal(size=shape)
    tokens["reference"] = tokens["log_probs"] + 0.5 * rng.normal(size=shape)
    tokens |= {name: rng.uniform(0.1, 1, shape) for name in MOVING[1:]}
    return loss.batch(tokens, rng.normal(size=(4, 4)), np.array([0, 0, 1, 1]))


def changed_by(found: np.ndarray, expected: np.ndarray, where: Any = True) -> float:
    """The largest difference, relative to the largest number expected; infinite where something is no number."""
    found, expected = np.broadcast_arrays(np.where(where, found, 0), np.where(where, expected, 0))
    off, scale = np.max(np.abs(found - expected), initial=0), np.max(np.abs(expected), initial=0)
    if not np.isfinite(off):
        return np.inf
    return float(off / scale) if off and scale else float(off)


def variants(loss: Loss, batch: Batch) -> dict[str, np.ndarray]:
    """The derivatives of the batch as given, and of others that differ from it in one thing."""
    mask, rng = batch["mask"], np.random.default_rng(11)
    begun = np.cumsum(mask, -1) > 0

    def tokens(change: Callable[[np.ndarray], np.ndarray], names: tuple[str, ...] = TOKENS) -> Batch:
        return {**batch, **{name: change(batch[name]) for name in names}}

    def ordered(*order: int) -> Batch:
        return {name: x if x.ndim == 1 else x[:, list(order)] for name, x in batch.items()}

    def rewarded(rewards: np.ndarray, of: Batch) -> Batch:
        return loss.batch({name: of[name] for name in TOKENS}, rewards, np.array([0, 0, 1, 1]))

    logs = ("log_probs", "old", "sampler", "reference")
    higher = tokens(lambda x: x + 0.3, logs)
    nudged = tokens(lambda x: x + NUDGE, ("log_probs",))
    none = np.zeros_like(batch["rewards"])
    elsewhere = np.arange(4) >= SIZE
    others = elsewhere * rng.normal(size=(4, 4))
    last = mask & (np.cumsum(mask[..., ::-1], -1)[..., ::-1] == 1)
    cases = {
        "given": batch,
        "padding": tokens(lambda x: np.where(begun & ~mask, 3 * rng.normal(size=x.shape), x), TOKENS[:-1]),
        "prompt": tokens(lambda x: np.where(begun, x, 3 * rng.normal(size=x.shape)), TOKENS[:-1]),
        "longer prompt": tokens(lambda x: np.roll(x, 1, -1)),
        "swapped": ordered(1, 0, 2, 3),
        "groups swapped": ordered(2, 3, 0, 1),
        "interleaved": ordered(0, 2, 1, 3),
        "rewards elsewhere": {**batch, **{name: batch[name] + others for name in REWARDS if name in batch}},
        "lengths elsewhere": {**batch, "mask": mask & ~(last & elsewhere[:, None])},
        "reference": tokens(lambda x: x + 0.5 * rng.normal(size=x.shape), ("reference", "step_kl")),
        "higher": higher,
        "no rewards": rewarded(none, batch),
        "no rewards, higher": rewarded(none, higher),
        "nudged": nudged,
        "no rewards, nudged": rewarded(none, nudged),
    }
    stack = {name: np.concatenate([case[name] for case in cases.values()]) for name in batch}
    return dict(zip(cases, np.split(loss(stack), len(cases), axis=1), strict=True))


def differences(loss: Loss, batch: Batch, found: dict[str, np.ndarray]) -> dict[str, float]:
    """By how much the derivative depends on what must not matter: padding, its width, the prompt, the order."""
    mask, given = batch["mask"], found["given"]
    begun = np.cumsum(mask, -1) > 0
    wider = {name: np.pad(x, ((0, 0), (0, 0), (0, 1)), mode="edge") if x.ndim == 3 else x for name, x in batch.items()}
    return {
        "padding": changed_by(found["padding"], np.where(mask, given, 0), begun),
        "width": changed_by(loss(wider)[..., :-1], given, mask),
        "prompt": max(
            changed_by(found["prompt"], np.where(mask, given, 0), mask | ~begun),
            changed_by(found["longer prompt"], np.roll(given, 1, -1), np.roll(mask, 1, -1)),
        ),
        "order": max(
            changed_by(found["swapped"], given[:, :, [1, 0, 2, 3]], mask[:, [1, 0, 2, 3]]),
            changed_by(found["groups swapped"], given[:, :, [2, 3, 0, 1]], mask[:, [2, 3, 0, 1]]),
        ),
    }


def in_parts(loss: Loss, batch: Batch, size: int) -> np.ndarray:
    """The derivatives by micro-batches of so many answers, side by side; groups are counted from 0 in each."""
    starts = range(0, batch["rewards"].shape[1], size)
    parts = [{name: x if x.ndim == 1 else x[:, start : start + size] for name, x in batch.items()} for start in starts]
    for part in parts:
        part["groups"] = part["groups"] - part["groups"][:, :1]
    stack = {name: np.concatenate([part[name] for part in parts]) for name in batch}
    return np.concatenate(np.split(loss(stack), len(parts), axis=1), axis=2)


def power_of_ratio(found: dict[str, np.ndarray]) -> float:
    """As which power of a token's ratio its derivative grows: of an answer of one token, on policy, by the rewards alone."""
    answer = np.s_[0, 0, 0]
    before = found["given"][answer] - found["no rewards"][answer]
    after = found["nudged"][answer] - found["no rewards, nudged"][answer]
    place = np.argmax(np.abs(before))
    return float(np.log(after[place] / before[place])) / NUDGE if after[place] * before[place] > 0 else 0.0
