"""The reproductions of published figures: their closed forms, their updates by hand, and that a wrong number is noticed."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from benchmarks import harness, short_corridor, three_estimators, variance_laws

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")


@pytest.fixture
def results(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    yield tmp_path
    plt.close("all")


def saved(results, name):
    assert {p.name for p in results.iterdir()} == {f"{name}.jsonl", f"{name}.png"}
    return json.loads((results / f"{name}.jsonl").read_text())


# Three estimators


@pytest.mark.parametrize("point", three_estimators.INDEPENDENT, ids=str)
def test_closed_forms_equal_independent_quadrature(point):
    known = np.reshape(three_estimators.INDEPENDENT[point], (2, 4))
    ours = three_estimators.closed_forms(*point)
    where = ~np.isnan(known)
    assert where.sum() >= 7
    np.testing.assert_allclose(ours[where], known[where], rtol=1e-13)


def test_three_estimators_hold_computed_and_sampled_variances_to_closed_forms(results, monkeypatch, capsys):
    monkeypatch.setattr(three_estimators, "COSTS", {"cos": three_estimators.COSTS["cos"]})
    monkeypatch.setattr(three_estimators, "POINTS", {"cos": (-3.0, 0.0, 2.0)})
    monkeypatch.setattr(three_estimators, "CURVES", {"cos": np.array([0.3, 3.0])})
    monkeypatch.setattr(three_estimators, "NUM_SAMPLES", {"quick": 4000})
    three_estimators.main(quick=True)
    assert "MISSED" not in capsys.readouterr().out
    found = saved(results, "three_estimators")["figures"]
    assert len(found["rows"]) == 3 * 2 * 4
    rows = [three_estimators.Row(**row | {"independent": math.nan}) for row in found["rows"]]
    wrong = [row._replace(exact=1.2 * row.exact) for row in rows]
    assert max(abs(row.z) for row in rows) < 4 < max(abs(row.z) for row in wrong)
    mirrored = {row.estimator: (row.k, row.computed) for row in rows if row.k == 0 and row.parameter == "mu"}
    assert mirrored["pathwise"] == (0.0, 0.0)  # a constant cost: only the score without a baseline has a variance
    assert mirrored["score"][1] == pytest.approx(1, rel=1e-12)


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
    fill = jnp.where(live, 1.0, jnp.nan)
    states = jnp.zeros(live.size, jnp.int32)
    tau = ld.Trajectory(
        states,
        jnp.array(actions + [7] * padded, jnp.int32),
        jnp.where(live, -1.0, 0.0),
        jnp.where(jnp.arange(live.size) == len(actions) - 1, 0.0, 1.0),
        live,
        fill,
        states[0],
    )
    learner = short_corridor.Learner(jnp.array(start), jnp.array(-2.0))
    ours = jax.jit(short_corridor.learn)(learner, tau, jnp.array(0.125), jnp.array(baseline_step))
    logits, value = by_the_book(start, -2.0, actions, 0.125, baseline_step)
    np.testing.assert_allclose(ours.logits, logits, rtol=1e-12)
    np.testing.assert_allclose(ours.value, value, rtol=1e-12)
    score = jax.grad(ld.log_prob)(learner.logits, short_corridor.POLICY, tau)
    assert np.abs(ours.logits - learner.logits - 0.125 * (-5 - -2.0) * score).max() > 0.01  # one update for the whole


def test_a_longer_horizon_changes_nothing_but_what_was_cut():
    learners = short_corridor.Learner(jnp.zeros((6, 2)), jnp.zeros(6))
    keys = jax.random.split(jax.random.key(3), 6)
    steps = jnp.array(2.0**-6), jnp.array(2.0**-6)

    @jax.jit
    def run(keys):
        same = [jax.random.clone(keys) for _ in range(3)]
        return [
            short_corridor.episode(learners, k, steps, horizons)
            for k, horizons in zip(same, ((4, 128), (128,), (4,)), strict=True)
        ]

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


def test_short_corridor_prints_and_saves(results, monkeypatch, capsys):
    monkeypatch.setattr(short_corridor, "SIZES", {"quick": (32, 12)})
    monkeypatch.setattr(short_corridor, "HORIZONS", (128, 1024))
    short_corridor.main(quick=True)
    assert "MISSED" not in capsys.readouterr().out
    figures = saved(results, "short_corridor")["figures"]
    assert [row["window"] for row in figures["rows"]] == ["first 10"] * 4
    assert all(-300 < row["ours"] < -20 for row in figures["rows"])


# Variance laws


@pytest.mark.parametrize(
    ("p", "horizon", "variances"),
    [
        (0.3, 1000, (19038545.4, 88145.4, 6356739.9, 22061.55)),
        (0.8, 5, (10.272, 1.312, 3.872, 0.544)),
        (0.5, 50, (8118.75, 306.25, 2759.375, 76.5625)),
    ],
)
def test_laws_have_the_enumerated_values(p, horizon, variances):
    """The project's shared truths, horizon_laws."""
    np.testing.assert_allclose(list(variance_laws.laws(p, horizon).values()), variances, rtol=1e-13)


def test_variance_laws_hold_computed_and_sampled_variances_to_closed_forms(results, monkeypatch, capsys):
    monkeypatch.setattr(variance_laws, "HORIZONS", {"quick": (1, 3, 6)})
    monkeypatch.setattr(variance_laws, "NUM_SAMPLES", {"quick": 1000})
    variance_laws.main(quick=True)
    assert "MISSED" not in capsys.readouterr().out
    figures = saved(results, "variance_laws")["figures"]
    rows = [variance_laws.Row(**row) for row in figures["rows"]]
    assert len(rows) == 2 * 3 * 4
    wrong = [row._replace(exact=1.3 * row.exact) for row in rows]
    assert max(abs(row.z) for row in rows) < 4 < max(abs(row.z) for row in wrong)
    expected = math.log(figures["rows"][11]["exact"] / figures["rows"][7]["exact"]) / math.log(2)
    assert figures["slopes"]["0.3"]["reward-to-go, value subtracted"] == pytest.approx(expected, rel=1e-9)
