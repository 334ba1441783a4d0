"""The reproductions of published figures: their closed forms, their updates by hand, and that a wrong number is noticed."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import logderiv as ld
from benchmarks import short_corridor, three_estimators, variance_laws
from tests.mostly import slow
from tests.worlds import trajectory

# Three estimators


def quadrature(name, k):
    """Variances in the order of `COLUMNS`, in mu and then in sigma, at mu = sigma = 1: mpmath, 25 digits, from the definitions."""
    half_log_2pi, oo = mpmath.log(2 * mpmath.pi) / 2, mpmath.inf
    k, pieces = mpmath.mpf(k), [-oo, -3, -1, 0, 1, 3, oo]
    f, slope = {
        "square": (lambda x: (x - k) ** 2, lambda x: 2 * (x - k)),
        "exp": (lambda x: mpmath.exp(-k * x**2), lambda x: -2 * k * x * mpmath.exp(-k * x**2)),
        "cos": (lambda x: mpmath.cos(k * x), lambda x: -k * mpmath.sin(k * x)),
    }[name]

    def mean(g) -> Any:
        return mpmath.quad(lambda z: g(z) * mpmath.exp(-(z**2) / 2 - half_log_2pi), pieces)

    def in_one(score, through):
        gradient = mean(lambda z: f(1 + z) * score(z))
        best = mean(lambda z: f(1 + z) * score(z) ** 2) / mean(lambda z: score(z) ** 2)
        squares = [mean(lambda z, b=b: ((f(1 + z) - b) * score(z)) ** 2) for b in (0, best)]
        squares.append(mean(lambda z: (slope(1 + z) * through(z)) ** 2))
        return [x - gradient**2 for x in squares]

    found = in_one(lambda z: z, lambda z: 1) + in_one(lambda z: z**2 - 1, lambda z: z)
    # the two halves of the derivative in mu, W of a Rayleigh distribution, weighed by 1 / sqrt(2 pi)
    both: Any = mpmath.quad(lambda w: (f(1 + w) - f(1 - w)) ** 2 * w * mpmath.exp(-(w**2) / 2), [0, 1, 3, oo])
    found.insert(3, both / (2 * mpmath.pi) - mean(lambda z: f(1 + z) * z) ** 2)
    return [float(x) for x in found]


@pytest.mark.parametrize(
    "point", [slow((point,)) if point[1] > 0 else point for point in three_estimators.INDEPENDENT], ids=str
)
def test_closed_forms_equal_independent_quadrature(point):
    known = np.reshape(three_estimators.INDEPENDENT[point], (2, 4))
    with mpmath.workdps(25):
        np.testing.assert_allclose(np.ravel(known)[:7], quadrature(*point), rtol=1e-13)
    ours = three_estimators.closed_forms(*point)
    where = ~np.isnan(known)
    assert where.sum() >= 7
    np.testing.assert_allclose(ours[where], known[where], rtol=1e-13)


@pytest.mark.slow
def test_variances_that_are_a_fifth_too_large_are_noticed(monkeypatch):
    monkeypatch.setattr(three_estimators, "POINTS", {"cos": (-3.0, 0.0, 2.0)})
    rows = three_estimators.table("cos", jax.random.key(0), 4000)
    assert len(rows) == 3 * 2 * 4
    wrong = [row._replace(exact=1.2 * row.exact) for row in rows]
    assert max(abs(row.z) for row in rows) < 4 < max(abs(row.z) for row in wrong)
    mirrored = {row.estimator: row.computed for row in rows if row.k == 0 and row.parameter == "mu"}
    assert mirrored["pathwise"] == 0  # a constant cost: only the score without a baseline has a variance
    assert mirrored["score"] == pytest.approx(1, rel=1e-12)


# Short corridor


def by_the_book(logits, value, actions, step, baseline_step):
    """Section 13.3 and 13.4 of Sutton & Barto, in numpy: every reward is -1."""
    logits = np.array(logits)
    for t, action in enumerate(actions):
        probs = np.exp(logits) / np.exp(logits).sum()
        probs = np.clip(probs, 0.05, 0.95)
        error = -(len(actions) - t) - value
        value += baseline_step * error
        logits = logits + step * error * (np.eye(2)[action] - probs)
    return logits, value


@pytest.mark.parametrize(("start", "baseline_step"), [((0.3, -0.2), 0.0), ((0.3, -0.2), 0.25), ((2.0, -2.0), 0.25)])
def test_updates_are_those_of_the_book_one_after_the_other(start, baseline_step):
    """The last start is where the rarer action is held at 0.05."""
    actions, padded = [1, 0, 0, 1, 1], 3
    live = jnp.arange(len(actions) + padded) < len(actions)
    tau = trajectory(
        observations=jnp.zeros(live.size, jnp.int32),
        actions=jnp.array(actions + [7] * padded, jnp.int32),
        rewards=jnp.where(live, -1.0, 0.0),
        discounts=jnp.where(jnp.arange(live.size) == len(actions) - 1, 0.0, 1.0),
        valid=live,
        behavior_log_probs=jnp.where(live, 1.0, jnp.nan),
    )
    learner = short_corridor.Learner(jnp.array(start), jnp.array(-2.0))
    ours = jax.jit(short_corridor.learn)(learner, tau, jnp.array(0.125), jnp.array(baseline_step))
    logits, value = by_the_book(start, -2.0, actions, 0.125, baseline_step)
    np.testing.assert_allclose(ours.logits, logits, rtol=1e-12)
    np.testing.assert_allclose(ours.value, value, rtol=1e-12)
    score = jax.grad(ld.log_prob)(learner.logits, short_corridor.POLICY, tau)
    assert np.abs(ours.logits - learner.logits - 0.125 * (-5 - -2.0) * score).max() > 0.01  # one update for the whole


@pytest.mark.slow
def test_a_longer_horizon_changes_nothing_but_what_was_cut():
    learners = short_corridor.Learner(jnp.zeros((6, 2)), jnp.zeros(6))
    keys = jax.random.split(jax.random.key(3), 6)
    steps = jnp.array(2.0**-6), jnp.array(2.0**-6)

    @jax.jit
    def run(keys):
        horizons = ((4, 128), (128,), (4,))
        return [short_corridor.episode(learners, jax.random.clone(keys), steps, h) for h in horizons]

    stepwise, at_once, cut = run(keys)
    for ours, expected in zip(jax.tree.leaves(stepwise), jax.tree.leaves(at_once), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-12)
    assert (stepwise[2], cut[2] > 0) == (0, True)
    assert np.any(cut[1] != stepwise[1])


def test_windows_and_their_errors_by_hand():
    name = "alpha = 2^-12"
    returns = np.tile(np.array([[-60.0], [-80.0], [-70.0], [-70.0]]), (1, 120))
    (first,) = short_corridor.compare({name: returns})
    assert (first.window, first.ours) == ("first 10", -70)
    sem = math.sqrt(200 / 3 / 4)
    assert first.sem == pytest.approx(sem)
    assert first.z == pytest.approx((-70 + 68.97075) / (sem * math.sqrt(1 + 4 / 400)))
    last = short_corridor.compare({name: np.tile(returns, (1, 10))})[-1]
    assert (last.window, last.expected_sem) == ("last 100", 0.11389475075014432)


# Variance laws


def listed(p, horizon):
    """Variances in the order of `laws`, every outcome of the coins listed, in numpy."""
    coins = np.array(list(itertools.product((0, 1), repeat=horizon)))
    chance = np.prod(np.where(coins == 1, p, 1 - p), axis=1)
    to_go = np.cumsum(coins[:, ::-1], axis=1)[:, ::-1]
    left = np.arange(horizon, 0, -1)
    weights = (to_go[:, :1], to_go[:, :1] - horizon * p, to_go, to_go - left * p)
    estimates = [np.sum((coins - p) * w, axis=1) for w in weights]
    return [chance @ x**2 - (chance @ x) ** 2 for x in estimates]


@pytest.mark.parametrize("p", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("horizon", [1, 2, 5, 8])
def test_laws_are_those_of_all_outcomes(p, horizon):
    found = list(variance_laws.laws(p, horizon).values())
    np.testing.assert_allclose(found, listed(p, horizon), rtol=1e-12, atol=1e-15)


def test_laws_of_a_thousand_coins():
    """p = 0.3: the polynomials of the derivation in `laws`, worked out by hand."""
    expected = (19038545.4, 88145.4, 6356739.9, 22061.55)
    np.testing.assert_allclose(list(variance_laws.laws(0.3, 1000).values()), expected, rtol=1e-13)


@pytest.mark.slow
def test_laws_that_are_a_third_too_large_are_noticed():
    rows = variance_laws.table(0.3, (1, 3, 6), 1000, jax.random.key(0))
    assert len(rows) == 3 * 4
    wrong = [row._replace(exact=1.3 * row.exact) for row in rows]
    assert max(abs(row.z) for row in rows) < 4 < max(abs(row.z) for row in wrong)
    expected = math.log(rows[11].exact / rows[7].exact) / math.log(2)
    assert variance_laws.slope(rows, 0.3, "reward-to-go, value subtracted") == pytest.approx(expected, rel=1e-9)
