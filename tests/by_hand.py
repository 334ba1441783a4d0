"""Estimators without a factor, written out in NumPy with loops over steps; shares no code with the library's estimators.

What an estimate is: 1/N Σ_n Σ_t c_{n,t} w_{n,t} s_{n,t} with the weights w, the score s, and what the step counts, c. Each
function below returns `(w, c)` of one batch, a list of `Row`s.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import oracle
from .zoo import DISCOUNT, SPREAD

VALUES = np.array([0.7, -0.3])  # zoo.wrong_values


class Row(NamedTuple):
    """One trajectory without its padding: rewards, continuation, values, next values, scores `(T, 2)`, ratios."""

    r: np.ndarray
    d: np.ndarray
    v: np.ndarray
    v_next: np.ndarray
    score: np.ndarray
    ratio: np.ndarray

    @property
    def t(self) -> np.ndarray:
        return np.arange(len(self.r))


def _rows(world: oracle.World, off_policy: bool) -> tuple[list[Row], np.ndarray]:
    every: Any
    every, probabilities = oracle.trajectories(world, off_policy=off_policy)
    rows = []
    for n, valid in enumerate(every.valid):
        steps = np.nonzero(valid)[0]
        states, actions = np.minimum(every.observations[n][steps], 1), every.actions[n][steps]
        up = 1 / (1 + np.exp(-np.asarray(world.params)[states]))
        drawn = 1 / (1 + np.exp(-np.asarray(world.behavior if off_policy else world.params)[states]))
        score = np.zeros((len(steps), 2))
        score[np.arange(len(steps)), states] = actions - up
        ratio = np.where(actions == 1, up, 1 - up) / np.where(actions == 1, drawn, 1 - drawn)
        v_next = np.append(VALUES[states][1:], VALUES[min(int(every.final_observation[n]), 1)])
        rows.append(Row(every.rewards[n][steps], every.discounts[n][steps], VALUES[states], v_next, score, ratio))
    return rows, probabilities


def _backward(terms: np.ndarray, factors: np.ndarray) -> np.ndarray:
    out, y = np.zeros(len(terms)), 0.0
    for t in reversed(range(len(terms))):
        y = terms[t] + factors[t] * y
        out[t] = y
    return out


def _to_go(row: Row, ratios: Any = 1.0) -> np.ndarray:
    """Σ_{s >= t} γ^s ρ_s r_s."""
    return _backward(DISCOUNT**row.t * row.r * ratios, row.d)


def _gae(row: Row, lambda_: float) -> np.ndarray:
    delta = row.r + DISCOUNT * row.d * row.v_next - row.v
    return DISCOUNT**row.t * _backward(delta, DISCOUNT * row.d * lambda_)


def _whole(row: Row, ratios: Any = 1.0) -> np.ndarray:
    return np.full(len(row.r), _to_go(row, ratios)[0])


def _each(weigh: Callable[[Row], np.ndarray]) -> Any:
    return lambda rows: ([weigh(row) for row in rows], None)


def _standardized(weigh: Callable[[Row], np.ndarray]) -> Any:
    def of(rows: list[Row]) -> Any:
        weights = [weigh(row) for row in rows]
        together = np.concatenate(weights)
        return [(w - together.mean()) / (together.std() + 1e-8) for w in weights], None

    return of


def _group_normalized(normalizer: str) -> Any:
    def of(rows: list[Row]) -> Any:
        returns = np.array([_whole(row)[0] for row in rows])
        standard = (returns - returns.mean()) / (returns.std(ddof=1) + 1e-4)
        counts = [np.ones(len(row.r)) / (len(row.r) if normalizer == "own" else 1) for row in rows]
        return [np.full(len(row.r), a) for row, a in zip(rows, standard, strict=True)], counts

    return of


def _per_step_of_batch(rows: list[Row]) -> Any:
    steps = sum(len(row.r) for row in rows)
    return [_to_go(row) for row in rows], [np.full(len(row.r), len(rows) / steps) for row in rows]


def _mean_per_step(rows: list[Row]) -> Any:
    credit = [_to_go(row) for row in rows]
    alive = lambda t: [c[t] for c in credit if len(c) > t]  # noqa: E731
    return [np.array([x - np.mean(alive(t)) for t, x in enumerate(c)]) for c in credit], None


def _mean_off_policy(rows: list[Row]) -> Any:
    products = [np.cumprod(row.ratio) for row in rows]
    credit = [_to_go(row, p) for row, p in zip(rows, products, strict=True)]
    mean = np.mean([c[0] for c in credit])
    return [c - p * mean for c, p in zip(credit, products, strict=True)], None


def _fitted_in_sample(per_parameter: bool) -> Any:
    def of(rows: list[Row]) -> Any:
        h = np.array([_to_go(row) @ row.score for row in rows])
        d = np.array([row.score.sum(axis=0) for row in rows])
        axis = 0 if per_parameter else None
        square = np.sum(d * d, axis=axis)
        b = np.where(square == 0, 0, np.sum(h * d, axis=axis) / np.where(square == 0, 1, square))
        return [_to_go(row)[:, None] - b for row in rows], None

    return of


def _normalized(per: str) -> Any:
    """Products up to each step over their mean; a trajectory that has ended keeps its last."""

    def of(rows: list[Row]) -> Any:
        products = np.ones((len(rows), 3))
        for n, row in enumerate(rows):
            up_to = np.cumprod(row.ratio)
            products[n] = up_to[-1] if per == "trajectory" else np.append(up_to, np.full(3 - len(up_to), up_to[-1]))
        normal = products / products.mean(axis=0)
        return [_to_go(row, normal[n, : len(row.r)]) for n, row in enumerate(rows)], None

    return of


def _vtrace(row: Row) -> np.ndarray:
    clipped, going = np.minimum(row.ratio, 1), DISCOUNT * row.d
    delta = row.r + going * row.v_next - row.v
    errors = _backward(clipped * delta, going * clipped)
    return DISCOUNT**row.t * clipped * (delta + going * np.append(errors[1:], 0))


def _without_gamma_t(row: Row) -> np.ndarray:
    return _backward(row.r, DISCOUNT * row.d)


BIASED: dict[str, Any] = {
    "reward-to-go, gamma^t left out": _each(_without_gamma_t),
    "PPO, gamma^t left out": _each(_without_gamma_t),
    "gae(0.5), given value": _each(lambda row: _gae(row, 0.5)),
    "gae(0), learned value": _each(lambda row: _gae(row, 0.0)),
    "biased: batch mean per step": _mean_per_step,
    "biased: optimal in sample": _fitted_in_sample(per_parameter=False),
    "biased: optimal per parameter in sample": _fitted_in_sample(per_parameter=True),
    "biased: standardized": _standardized(_to_go),
    "biased: standardized gae": _standardized(lambda row: _gae(row, 0.9)),
    "biased: rewards over a running scale": _each(lambda row: _to_go(row) / SPREAD),
    "biased: group-normalized": _group_normalized("none"),
    "GRPO": _group_normalized("own"),
    "PPO per step of the batch": _per_step_of_batch,
    "biased: per decision, total return": _each(lambda row: _whole(row, np.cumprod(row.ratio))),
    "biased: per decision, batch mean": _mean_off_policy,
    "biased: self-normalized": _normalized("step"),
    "biased: self-normalized trajectory": _normalized("trajectory"),
    "biased: truncated": _each(lambda row: _to_go(row, np.minimum(np.cumprod(row.ratio), 1.1))),
    "biased: V-trace": _each(_vtrace),
}
_OFF_POLICY = ("decision", "self-normalized", "truncated", "V-trace")


def expected(name: str, number: int) -> np.ndarray:
    """E of the estimate from `number` trajectories in the world in which some are cut, T = 3."""
    rows, probabilities = _rows(oracle.cut(3), any(word in name for word in _OFF_POLICY))
    total = np.zeros(2)
    for chosen in itertools.product(range(len(rows)), repeat=number):
        batch = [rows[k] for k in chosen]
        weights, counts = BIASED[name](batch)
        for n, row in enumerate(batch):
            w = weights[n] if weights[n].ndim == 2 else weights[n][:, None]
            c = 1.0 if counts is None else counts[n][:, None]
            total += np.prod(probabilities[list(chosen)]) * np.sum(c * w * row.score, axis=0) / number
    return total
