"""All that the runs of an expectation may draw, with probabilities: choices of each world, and of a first and a second run."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core.pytrees import jit
from logderiv.estimators.surrogates import box
from logderiv.exact.pairs import Cells, joint
from logderiv.expectations.forced import Detour
from logderiv.expectations.models import is_program
from logderiv.expectations.programs import Expectation, end_of, in_world
from logderiv.expectations.sources import Given
from logderiv.expectations.tape import Tape
from logderiv.types import Params

_SAME = 1e-12  # between log-probabilities of one law, computed twice


class Draws(NamedTuple):
    """Everything that one run may draw.

    Attributes:
        tapes: One for each possibility, stacked; two for each of antithetic runs.
        probabilities: Of the possibilities, float64.
        world: The world that they are of; `None` for all worlds together.
        joint: Whether they are drawn together as they are listed, so that they have a covariance, too.
    """

    tapes: Tape
    probabilities: np.ndarray
    world: int | None = None
    joint: bool = True


def all_draws(expectation: Expectation, params: Params, args: tuple[Any, ...], choices: np.ndarray) -> list[Draws]:
    """What is drawn on common keys in several worlds, or in two runs, is the same where it has the same law there.

    Elsewhere each world is listed for itself, which gives the mean alone; and the second run of an alternative path draws
    independently after the choice that is made otherwise.
    """
    peers = expectation.peers
    model = None if is_program(expectation.program) else expectation._traced(params, args)
    worlds = 1 if model is None else model.worlds(expectation.max_worlds)
    laws = [_paths(_laws(expectation, params, args, choices, np.int32(world)), choices) for world in range(worlds)]
    if model is not None and "alternative" in {site.method for site in model.sites}:
        return [_detours(expectation, params, args, laws[0])]
    one_law = all(_equal(law, laws[0]) for law in laws)
    draws = []
    for world, law in enumerate(laws[:1] if one_law else laws):
        rows, probabilities = np.arange(len(law.choices)), law.probabilities
        if expectation.together == 2:
            cells = _cells(expectation, params, args, law.choices, np.int32(world))
            both = joint(np.exp(law.log_probs), *(np.asarray(x) for x in cells))
            rows, probabilities = np.argwhere(both), both[both > 0]
        tapes = tapes_of(law.choices[rows], peers=peers)
        draws.append(Draws(tapes, probabilities, None if one_law else world, joint=one_law))
    return draws


class _Paths(NamedTuple):
    choices: np.ndarray
    log_probs: np.ndarray  # of each choice

    @property
    def probabilities(self) -> np.ndarray:
        return np.exp(np.sum(self.log_probs, axis=1))


def _paths(law: tuple[jax.Array, jax.Array], choices: np.ndarray) -> _Paths:
    """The sequences that happen; of those that differ in choices not made, the one with zeros counts."""
    log_probs, used = (np.asarray(x) for x in law)
    happens = np.all(used | (choices == 0), axis=1) & np.all(log_probs > -np.inf, axis=1)
    return _Paths(choices[happens], np.asarray(log_probs[happens, :-1], np.float64))


def _equal(a: _Paths, b: _Paths) -> bool:
    same = a.choices.shape == b.choices.shape and np.array_equal(a.choices, b.choices)
    return same and np.allclose(a.log_probs, b.log_probs, rtol=0, atol=_SAME)


def _detours(expectation: Expectation, params: Params, args: tuple[Any, ...], paths: _Paths) -> Draws:
    """First runs, each with every choice that may be picked, and every second run."""
    num = paths.choices.shape[1]
    first = np.repeat(np.arange(len(paths.choices)), num + 1)
    picked = np.tile(np.arange(-1, num), len(paths.choices))
    slots, chances = (np.asarray(x) for x in _picks(expectation, params, args, paths.choices[first], picked))
    pairs: list[Any] = []
    joint = True
    for i, k, slot, chance in zip(first.tolist(), picked.tolist(), slots.tolist(), chances.tolist(), strict=True):
        prob = float(paths.probabilities[i])
        if k < 0 and chance == 0:
            pairs.append((i, k, i, prob))
        elif k >= 0 and slot >= 0:
            others, after = _others(paths, i, slot)
            same = np.all(paths.choices[others, slot + 1 :] == paths.choices[i, slot + 1 :], axis=1)
            ours = paths.log_probs[i, slot + 1 :]
            joint &= bool(np.allclose(paths.log_probs[others[same], slot + 1 :], ours, rtol=0, atol=_SAME)) and np.any(
                same
            )
            pairs += [(i, k, j, prob / chance * p) for j, p in zip(others, after, strict=True)]
    if joint:  # what comes later is not influenced, so that both runs draw the same
        pairs = _coupled(
            paths, pairs, dict(zip(zip(first.tolist(), picked.tolist(), strict=True), slots.tolist(), strict=True))
        )
    rows, picks, again = (np.array([pair[n] for pair in pairs]) for n in range(3))
    tapes = tapes_of(paths.choices[rows], paths.choices[again], picks, peers=expectation.peers)
    return Draws(tapes, np.array([pair[3] for pair in pairs]), joint=bool(joint))


def _others(paths: _Paths, i: int, slot: int) -> tuple[np.ndarray, np.ndarray]:
    """Paths that first differ from this one at `slot`, and the probability of all that they choose from there on."""
    before = np.all(paths.choices[:, :slot] == paths.choices[i, :slot], axis=1)
    others = np.flatnonzero(before & (paths.choices[:, slot] != paths.choices[i, slot]))
    return others, np.exp(np.sum(paths.log_probs[others, slot:], axis=1))


def _coupled(paths: _Paths, pairs: list[Any], slots: dict[Any, int]) -> list[Any]:
    kept = []
    for i, k, j, prob in pairs:
        if k < 0:
            kept.append((i, k, j, prob))
        elif np.array_equal(paths.choices[i, slots[i, k] + 1 :], paths.choices[j, slots[i, k] + 1 :]):
            kept.append((i, k, j, prob / np.exp(np.sum(paths.log_probs[j, slots[i, k] + 1 :]))))
    return kept


def tapes_of(choices: Any, second: Any = None, picked: Any = None, *, peers: Any = None, box: Any = box) -> Tape:
    """Tapes whose choices are given, one for each row."""
    zeros = jnp.zeros(choices.shape[:-1])
    detour = None if picked is None else jax.vmap(Detour.start)(jnp.asarray(picked))
    return Tape(Given.of(choices, second), zeros, zeros, detour=detour, peers=peers, box=box)


@jit
def _laws(expectation: Expectation, params: Params, args: Any, choices: Any, world: Any) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each choice of each sequence in one world, and whether it is made."""

    def one(tape: Tape) -> tuple[jax.Array, jax.Array]:
        source = end_of(expectation.program, params, in_world(tape, world), args, expectation.has_aux).source
        return source.log_probs, source.used

    return jax.vmap(one)(tapes_of(choices))


@jit
def _cells(expectation: Expectation, params: Params, args: Any, choices: Any, world: Any) -> tuple[jax.Array, ...]:
    """Which choices each sequence makes in one world, the lower ends of their intervals, and their keys."""

    def one(tape: Tape, choices: jax.Array) -> tuple[jax.Array, ...]:
        tape = dataclasses.replace(tape, source=Cells.of(choices))
        source = end_of(expectation.program, params, in_world(tape, world), args, expectation.has_aux).source
        return source.given.used, source.below, source.labels

    return jax.vmap(one)(tapes_of(choices), choices)


@jit
def _picks(
    expectation: Expectation, params: Params, args: Any, choices: Any, picked: Any
) -> tuple[jax.Array, jax.Array]:
    """The place in its list of the choice that is picked, and the sum of all chances, in each first run."""

    def one(tape: Tape) -> tuple[jax.Array, jax.Array]:
        detour = end_of(expectation.program, params, in_world(tape, 0), args, expectation.has_aux).detour
        return detour.slot, detour.chance

    return jax.vmap(one)(tapes_of(choices, picked=picked))
