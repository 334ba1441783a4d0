"""Figures: what is drawn, by its data, and what cannot be."""

import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt

import logderiv as ld
from logderiv import plots
from logderiv.plots.figures import _bootstrap_interval
from tests.worlds import trajectory


@pytest.fixture
def ax():
    yield plt.subplots()[1]
    plt.close("all")


def labels(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def drawn(line: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def test_learning_curves_draw_the_mean_and_a_band_around_it(ax):
    curves = {"same": np.ones((5, 3)), "spread": np.array([[0.0, 1, 2], [4.0, 5, 6]])}
    plots.learning_curves(curves, threshold=3.0, ax=ax)
    same, spread, line = map(drawn, ax.lines)
    np.testing.assert_array_equal(same[1], np.ones(3))
    np.testing.assert_array_equal(spread, [[1, 2, 3], [2, 3, 4]])
    np.testing.assert_array_equal(line[1], [3.0, 3.0])
    flat, band = (collection.get_paths()[0].vertices[:, 1] for collection in ax.collections)
    np.testing.assert_array_equal(flat, np.ones_like(flat))
    # of two seeds, a resample is twice the first or twice the second with probability 1/4 each: the band reaches both
    assert (band.min(), band.max()) == (0.0, 6.0)
    assert labels(ax) == ["same", "spread"]


def test_bootstrap_interval_is_that_of_the_mean_and_over_tasks_is_stratified():
    """Tasks a thousand apart: their distance is no error of the mean. Resampling all seeds together would take it for one."""
    for tasks, share in ((1, 0.1), (2, 0.15)):
        noise = np.random.default_rng(0).normal(size=(tasks, 400 // tasks, 1))
        apart = noise + 1000.0 * np.arange(tasks)[:, None, None]
        low, high = _bootstrap_interval(apart, 0.95)
        half = 1.96 * noise.std() / 20
        np.testing.assert_allclose([low[0], high[0]], apart.mean() + np.array([-half, half]), atol=share * half)
    low, high = _bootstrap_interval(apart.reshape(1, 400, 1), 0.95)
    assert high[0] - low[0] > 50


def test_learning_curves_compare_at_equal_steps(ax):
    steps = np.array([[10.0, 20, 30], [20.0, 40, 60]])  # both seeds return twice their steps
    plots.learning_curves({"a": 2 * steps}, steps={"a": steps}, ax=ax)
    x, y = drawn(ax.lines[0])
    assert (x[0], x[-1]) == (20, 30)
    np.testing.assert_allclose(y, 2 * x, rtol=1e-14)


def test_several_tasks_are_averaged_and_every_seed_can_be_drawn_as_well(ax):
    plots.learning_curves({"a": np.arange(24.0).reshape(2, 3, 4)}, ax=ax)
    np.testing.assert_array_equal(drawn(ax.lines[0]), [[1, 2, 3, 4], [10, 11, 12, 13]])
    ax.clear()
    plots.learning_curves({"a": np.array([[0.0, 1, 2], [4.0, 5, 6]])}, individual=True, ax=ax)
    np.testing.assert_array_equal([drawn(line)[1] for line in ax.lines], [[0, 1, 2], [4, 5, 6], [2, 3, 4]])
    assert labels(ax) == ["a"]


def test_results_of_training_are_drawn_against_their_own_steps(ax):
    rows = jnp.array([[1.0, 2, 3], [3.0, 4, 5]])
    metrics = ld.training.Metrics(rows, 10 * jnp.ones((2, 3)), rows, rows, rows, rows)
    plots.learning_curves({"run": ld.training.Training(None, metrics), "metrics": metrics}, ax=ax)  # pyright: ignore[reportArgumentType]
    for line in ax.lines:
        x, y = drawn(line)
        assert (x[0], x[-1], y[0], y[-1]) == (10, 30, 2, 4)


NAN, ONES = np.nan, np.ones((2, 3))
LATE, APART = np.array([[1, 2, 3], [NAN, 2, 3]]), np.array([[1.0, 2, 3], [10, 20, 30]])
GAPS = np.array([[NAN, 1, NAN, NAN, 4, 5, NAN], [10, 20, 30, NAN, NAN, NAN, NAN]])


@pytest.mark.parametrize("steps", [None, 100.0 * np.arange(1, 8)])
def test_an_update_in_which_no_episode_ended_keeps_the_last_return(ax, steps):
    """The first seed begins at update 2 and pauses; the second stops at 3, which is shown, where a pause is not."""
    given = None if steps is None else {"a": np.tile(steps, (2, 1))}
    plots.learning_curves({"a": GAPS}, steps=given, ax=ax)
    mean, cross = map(drawn, ax.lines)
    filled = np.array([[1, 1, 1, 4, 5, 5], [20, 30, 30, 30, 30, 30]]).mean(axis=0)
    at = np.arange(2, 8) if steps is None else steps[1:]
    np.testing.assert_allclose(np.interp(at, *mean), filled, atol=0.2)
    np.testing.assert_array_equal((mean[0][0], mean[0][-1]), at[[0, -1]])
    assert ax.lines[1].get_marker() == "x"
    np.testing.assert_array_equal(cross, [[3 if steps is None else 300], [30]])


def test_the_identity_is_drawn_as_compare_finds_it(ax):
    """Fair coins in float32: the product's gradient is zero from T = 128 on, the score form goes on; by the closed form."""
    lengths = np.array([200, 1, 10, 100, 120, 1000])
    ones = jnp.ones(1000, jnp.float32)

    @jax.jit
    @jax.vmap
    def compared(num):
        tau = trajectory(rewards=ones, actions=jnp.ones(1000, jnp.int32), valid=jnp.arange(1000) < num)
        return ld.compare(jnp.zeros(2, jnp.float32), ld.shared_softmax, tau)

    comparison = compared(jnp.asarray(lengths))
    plots.identity(comparison, ax=ax)
    product, cross, score = map(drawn, ax.lines)
    exact = np.log10(lengths / 2) - lengths * np.log10(2)  # P = 2^-T, its gradient (-T/2, T/2) P
    order = np.argsort(lengths)
    np.testing.assert_array_equal(score[0], lengths[order])
    np.testing.assert_allclose(score[1], exact[order], rtol=1e-5)
    np.testing.assert_allclose(product[1], [*exact[order][:4], NAN, NAN], rtol=1e-5)
    np.testing.assert_allclose(cross, [[120], [exact[4]]], rtol=1e-5)
    with pytest.raises(ValueError, match=r"expected one leading axis \(L,\), received \(\)"):
        plots.identity(jax.tree.map(lambda x: x[0], comparison), ax=ax)


def test_the_frontier_has_lines_bands_and_what_was_computed(ax):
    work = {"a": [1, 4, 16], "b": [2.0, 8.0], "c": [1.0]}
    errors = {"c": [9.0], "a": [1.0, 0.5, 0.25], "b": [2.0, 1.0]}
    sems = {"a": [0.1, 0.3, 0.05]}
    plots.frontier(work, errors, sems=sems, exact={"a": [1.1, 0.55, 0.275]}, background={"c"}, xlabel="cost", ax=ax)
    grey, a, exact, b = ax.lines
    np.testing.assert_array_equal(drawn(a), [work["a"], errors["a"]])
    np.testing.assert_array_equal(drawn(exact), [work["a"], [1.1, 0.55, 0.275]])
    np.testing.assert_array_equal(drawn(b), [work["b"], errors["b"]])
    assert grey.get_color() == "0.85"
    (band,) = ax.collections
    corners = {tuple(np.round(corner, 9)) for corner in band.get_paths()[0].vertices}
    # two standard errors; a tenth of the error where that is less than 0
    assert corners == {(1, 0.8), (4, 0.05), (16, 0.15), (1, 1.2), (4, 1.1), (16, 0.35)}
    assert labels(ax) == ["a", "b"]
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_xlabel()) == ("log", "log", "cost")


def test_relative_error_marks_where_a_method_gives_no_number(ax):
    plots.relative_error([1, 10, 100], {"breaks": [0.0, 1e-3, np.inf], "goes on": [1e-8] * 3}, floor=1e-9, ax=ax)
    breaks, cross, goes_on = map(drawn, ax.lines)
    np.testing.assert_array_equal(breaks[1], [1e-9, 1e-3, np.nan])
    np.testing.assert_array_equal(cross, [[10], [1e-3]])
    assert ax.lines[1].get_marker() == "x"
    np.testing.assert_array_equal(goes_on[1], [1e-8] * 3)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_sampler_mismatch_shows_each_counted_token(ax):
    trainer, sampler = np.log([[0.5, 0.25, 0.1]]), np.log([[0.5, 0.5, 0.2]])
    plots.sampler_mismatch(trainer, sampler, np.array([[True, True, False]]), ax=ax)
    zero, dots = map(drawn, ax.lines)
    np.testing.assert_array_equal(zero[1], [0, 0])
    np.testing.assert_allclose(dots, [np.log([0.5, 0.5]), [0, np.log(0.5)]], rtol=1e-15)
    many = np.zeros((3, 10_000))
    plots.sampler_mismatch(many, many - 1, ax=ax)
    assert drawn(ax.lines[-1])[0].size == 10_000
    plots.sampler_mismatch(many, many, many > 0, ax=ax)
    assert drawn(ax.lines[-1])[0].size == 0


CURVES, ERRORS, FRONTIER = plots.learning_curves, plots.relative_error, plots.frontier


@pytest.mark.parametrize(
    ("plot", "given", "options", "message"),
    [
        (CURVES, [{"a": np.ones(3)}], {}, r"curves\['a'\]: expected shape \(seeds, updates\)"),
        (CURVES, [{"a": ONES}], {"steps": {"a": ONES[:, 1:]}}, r"steps\['a'\]: expected shape \(2, 3\)"),
        (CURVES, [{}], {"level": 95}, r"level: expected a number in \(0, 1\), received 95"),
        (CURVES, [{"a": NAN * ONES}], {}, r"curves\['a'\]: expected a return in every row"),
        (
            CURVES,
            [{"a": ONES, "b": ONES}],
            {"steps": {"a": ONES}},
            r"steps: expected .*\['a', 'b'\], received .*\['b'\]",
        ),
        (CURVES, [{"a": ONES}], {"steps": {"a": ONES * [1, 3, 2]}}, r"steps\['a'\]: .* which do not decrease"),
        (CURVES, [{"a": LATE}], {"steps": {"a": APART}}, r"curves\['a'\]: .*ends at 3 and .*first return is at 20"),
        (CURVES, [{"a": ONES}], {"threshold": [1.0, 2.0]}, r"threshold: expected shape \(\), received .*\(2,\)"),
        (ERRORS, [[1, 2], {"a": [1.0]}], {}, r"errors\['a'\]: expected shape \(2,\)"),
        (ERRORS, [[[1, 2]], {"a": [[1.0, 1.0]]}], {}, r"lengths: expected shape \(2,\), received .*\(1, 2\)"),
        (ERRORS, [[1, 2, 3], {"a": [1.0, -0.1, NAN]}], {}, r"errors\['a'\]: expected magnitudes"),
        (FRONTIER, [{"a": [1]}, {"a": [0.0]}], {}, r"errors\['a'\]: expected positive numbers"),
        (FRONTIER, [{"a": [1, 2]}, {"a": [1.0]}], {}, r"work\['a'\]: expected positive numbers, shape \(1,\)"),
        (FRONTIER, [{}, {"a": [1.0]}], {}, r"work\['a'\]: expected positive numbers"),
        (FRONTIER, [{"a": [1]}, {"a": [1]}], {"exact": {"b": [1]}}, r"exact: expected names of errors, \['a'\]"),
    ],
)
def test_plots_say_what_was_expected(plot, given, options, message, ax):
    with pytest.raises(ValueError, match=message):
        plot(*given, ax=ax, **options)


def test_plots_name_the_extra_when_matplotlib_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for call in (lambda: plots.learning_curves({}), lambda: plots.relative_error([], {})):
        with pytest.raises(ImportError, match=r"logderiv\[plots\]"):
            call()


def test_importing_plots_does_not_import_matplotlib():
    code = "import sys, logderiv.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_seed_that_stopped_early_does_not_end_the_others(ax):
    """It keeps its last return; the grid ends with the first seed that goes on."""
    returns = np.array([[10.0, 20, 480, np.nan, np.nan], [10, 20, 30, 40, 50], [10, 30, 50, 70, 90]])
    steps = np.array([[1.0, 2, 3, 3, 3], [1, 2, 3, 4, 5], [2, 4, 6, 8, 10]])
    plots.learning_curves({"all": returns}, steps={"all": steps}, ax=ax)
    x, y = drawn(ax.lines[0])
    assert x[-1] == 5
    np.testing.assert_allclose(y[-1], (480 + 50 + 40) / 3)
    ax.clear()
    plots.learning_curves({"stopped": returns[:1]}, steps={"stopped": steps[:1]}, ax=ax)
    assert drawn(ax.lines[0])[0][-1] == 3
