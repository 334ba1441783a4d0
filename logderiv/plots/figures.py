"""Errors against length, number or time, both sides of the identity, and learning curves over seeds and tasks."""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from logderiv._core import check
from logderiv._core.optional import optional
from logderiv.diagnostics.mismatch import log_ratios
from logderiv.likelihood.identity import Comparison
from logderiv.training import Metrics
from logderiv.types import SignedLog

# Okabe & Ito's colors, which most color-blind readers can tell apart, and a grey; line styles for those who print in grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#888888")
_DOTS = 10_000  # more are drawn over each other
STYLES = ("-", "--", "-.", ":")


def axes_or_current(ax: Any) -> Any:
    """The axes given, or the current ones."""
    plt = optional("matplotlib.pyplot", "logderiv.plots needs matplotlib", "plots")
    return plt.gca() if ax is None else ax


def line_style(index: int) -> tuple[str, str]:
    """Color and style of the line with this number."""
    return COLORS[index % len(COLORS)], STYLES[index % len(STYLES)]


def relative_error(lengths: Any, errors: Mapping[str, Any], *, floor: float | None = None, ax: Any = None) -> Any:
    """Relative errors against the number of steps `T`, both axes logarithmic.

    An error that is infinite or NaN cannot be drawn, and must not look like an absent measurement: the line ends in a
    cross at the last length that has a finite one. Errors below `floor` (an exact zero among them) are drawn at it.

    Args:
        lengths: Increasing numbers of steps, shape `(L,)`.
        errors: Name to relative errors, each `(L,)`; infinite or NaN where the method gives no number.
        floor: Smallest error drawn; `None` for the rounding unit of float64.
        ax: Matplotlib axes; `None` for the current ones.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: `lengths` has not one axis; an array of errors does not have its shape, or holds a negative number.
    """
    floor = float(np.finfo(np.float64).eps) if floor is None else floor
    check.positive(finite=True, floor=floor)
    ax, lengths = axes_or_current(ax), np.asarray(lengths)
    check.shape((lengths.size,), hint="one axis (L,)", lengths=lengths)
    for index, (name, values) in enumerate(errors.items()):
        values = np.asarray(values, float)
        check.shape(lengths.shape, hint="one for each of lengths", **{f"errors[{name!r}]": values})
        if (values < 0).any():
            raise ValueError(f"errors[{name!r}]: expected magnitudes, from 0 on, received {values}; take np.abs.")
        drawn = np.where(np.isfinite(values), np.maximum(values, floor), np.nan)
        _line_to_cross(ax, lengths, drawn, index, name, marker=".")
    ax.set(xscale="log", yscale="log", xlabel="number of steps T", ylabel="relative error")
    ax.legend(frameon=False)
    return ax


def identity(comparison: Comparison, *, ax: Any = None) -> Any:
    """Both sides of ∇P = P ∇ log P against the number of factors, as `compare` has them.

    Drawn is the decimal logarithm of the largest entry of each. The score form is a sum of logarithms and goes on; the
    product's line ends in a cross at the last length at which its gradient is finite and not zero.

    Args:
        comparison: Of trajectories of several lengths, leading axis `(L,)`: `jax.vmap(lambda tau: compare(params, policy, tau))`.
        ax: Matplotlib axes; `None` for the current ones.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: There is not exactly one leading axis.
    """
    ax = axes_or_current(ax)
    lengths = np.asarray(comparison.num_factors)
    if lengths.ndim != 1:
        raise ValueError(f"comparison: expected one leading axis (L,), received {lengths.shape}; vmap compare.")
    forms = jax.tree.leaves(comparison.score_form, is_leaf=lambda x: isinstance(x, SignedLog))
    score = _largest([form.logabs for form in forms]) / np.log(10)
    with np.errstate(divide="ignore", invalid="ignore"):
        direct = np.log10(_largest([np.abs(leaf) for leaf in jax.tree.leaves(comparison.direct)]))
    order = np.argsort(lengths)
    lines = {"product, differentiated (to the cross: then 0)": direct, "P times the score": score}
    for index, (label, values) in enumerate(lines.items()):
        _line_to_cross(ax, lengths[order], values[order], index, label, linewidth=(3.5, 1.5)[index])
    ax.set(xlabel="number of factors", ylabel="$\\log_{10}$ of the largest entry of $|\\nabla P|$")
    ax.legend(frameon=False)
    return ax


def sampler_mismatch(trainer: Any, sampler: Any, mask: Any = None, *, segments: Any = None, ax: Any = None) -> Any:
    """Log-ratio log π − log μ of each drawn token against log μ: where trainer and sampler differ, and in which direction.

    Rounding shows as a cloud around 0, a temperature as a slope, a truncated sampler as points below 0, at the logarithm of the
    mass that is kept. At most 10 000 tokens are drawn, evenly spaced among those that count.

    Args:
        trainer: As of `logderiv.diagnostics.sampler_mismatch`.
        sampler: As there.
        mask: As there.
        segments: As there.
        ax: Matplotlib axes; `None` for the current ones.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: Shapes disagree.
        TypeError: The mask is not boolean, segments are no integers, complex numbers.
    """
    logs, of_sampler, counted, _ = log_ratios(trainer, sampler, mask, segments)
    ax, counted = axes_or_current(ax), np.asarray(counted)
    x, y = (np.asarray(values, float)[counted] for values in (of_sampler, logs))
    some = np.unique(np.linspace(0, max(x.size - 1, 0), min(x.size, _DOTS)).astype(int))
    ax.axhline(0, color=COLORS[-1], linewidth=1)
    ax.plot(x[some], y[some], ".", color=COLORS[0], markersize=3, alpha=0.4)
    ax.set(xlabel="log-probability by the sampler", ylabel="trainer minus sampler")
    return ax


def frontier(
    work: Mapping[str, Any],
    errors: Mapping[str, Any],
    *,
    sems: Mapping[str, Any] | None = None,
    exact: Mapping[str, Any] | None = None,
    background: Collection[str] = (),
    xlabel: str = "trajectories in a batch, N",
    legend: bool = True,
    ax: Any = None,
) -> Any:
    """Error of one estimate against what it costs, a line for each estimator, both axes logarithmic.

    Lower and further left is better. An unbiased estimator's line falls with slope -1/2; where it levels off, the bias is
    what is left.

    Args:
        work: Name to costs, such as numbers of trajectories or seconds, shape `(points,)`.
        errors: Name to root-mean-square errors, same shapes.
        sems: Name to standard errors of `errors`: a band of two on each side. Not every name needs one.
        exact: Name to computed errors: a thin line of dots that the sampled one should lie on. Not every name needs one.
        background: Names drawn in grey, behind the others and without a label.
        xlabel: What `work` is.
        legend: Whether to draw one.
        ax: Matplotlib axes; `None` for the current ones.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: Names or shapes do not match, or a cost or an error is not positive.
    """
    ax = axes_or_current(ax)
    sems, exact, index = sems or {}, exact or {}, 0
    for what, names in {"work": work, "sems": sems, "exact": exact, "background": background}.items():
        if unknown := sorted(set(names) - set(errors)):
            raise ValueError(f"{what}: expected names of errors, {sorted(errors)}, received {unknown}.")
    for name in errors:
        y = _positive("errors", name, errors)
        x = _positive("work", name, work, y.shape)
        if name in background:
            ax.plot(x, y, color="0.85", zorder=1)
            continue
        color, style = line_style(index)
        index += 1
        ax.plot(x, y, style, color=color, marker="o", markersize=5, label=name)
        if name in sems:
            spread = 2 * np.asarray(sems[name], float)
            ax.fill_between(x, np.maximum(y - spread, 0.1 * y), y + spread, color=color, alpha=0.2, linewidth=0)
        if name in exact:
            ax.plot(x, _positive("exact", name, exact, y.shape), ":", color="0.2", linewidth=1, zorder=3)
    ax.set(xscale="log", yscale="log", xlabel=xlabel, ylabel="error relative to the exact gradient (rms)")
    _ticks_at_125(ax)
    if legend:
        ax.legend(frameon=False)
    return ax


def _line_to_cross(ax: Any, x: np.ndarray, y: np.ndarray, index: int, label: str, **options: Any) -> None:
    """A line whose values that are not finite are not drawn, and a cross at the last one that is, if others follow."""
    finite = np.isfinite(y)
    color, style = line_style(index)
    ax.plot(x, np.where(finite, y, np.nan), style, color=color, label=label, **options)
    if finite.any() and not finite[-1]:
        last = np.flatnonzero(finite)[-1]
        ax.plot(x[last], y[last], "x", color=color, markersize=10, markeredgewidth=2)


def _largest(leaves: list[Any]) -> np.ndarray:
    """Over all entries, one for each length."""
    return np.max(np.concatenate([np.asarray(x).reshape(len(x), -1) for x in leaves], axis=1), axis=1).astype(float)


def _positive(what: str, name: str, values: Mapping[str, Any], shape: tuple[int, ...] | None = None) -> np.ndarray:
    array = np.asarray(values.get(name), float)
    if array.ndim != 1 or not (array > 0).all() or array.shape != (shape or array.shape):
        raise ValueError(f"{what}[{name!r}]: expected positive numbers, shape {shape or '(N,)'}, received {array}.")
    return array


def _ticks_at_125(ax: Any) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    for axis in (ax.xaxis, ax.yaxis):
        axis.set(major_locator=LogLocator(10, subs=(1, 2, 5)), major_formatter="{x:g}", minor_locator=NullLocator())


def learning_curves(
    curves: Any,
    *,
    steps: Mapping[str, Any] | None = None,
    level: float = 0.95,
    individual: bool = False,
    threshold: float | None = None,
    ax: Any = None,
) -> Any:
    """Mean over seeds of the return, with a band for the error of that mean.

    The band is the percentile bootstrap interval of the mean over seeds, from 2000 resamples with a fixed seed; with
    one seed it has no width. Several tasks are averaged, and resampled each for itself (stratified); scale their returns
    first. Seeds of different speed are compared at equal numbers of steps: each curve is interpolated onto a common
    grid, which ends where the first seed's data end. A seed that took no further steps, an early stop, does not end it.

    NaN stands for an update in which no episode ended. There a seed keeps its last return; the curve begins where every
    seed has one. A seed whose returns stop, for longer than they ever paused, is marked by a cross where they do: it was
    stopped early, or may have diverged, and the mean goes on with its last return.

    Args:
        curves: Name to returns, shape `(seeds, updates)` or `(tasks, seeds, updates)`; or to what `train` returned, or its metrics;
            these may also stand alone.
        steps: Name to the cumulative environment steps of each update, same shapes; `None` draws against updates, and results
            of `train`, if `curves` holds nothing else, against their own steps.
        level: Coverage of the band, in (0, 1).
        individual: Draw every seed as well, faintly.
        threshold: Height of a horizontal reference line; `None` for none.
        ax: Matplotlib axes; `None` for the current ones.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: An array has other axes, shapes of a curve and its steps differ, a curve has no steps or some that decrease, a seed
            has no return at all, or its first one after another seed's end, or `level` is out of range.
        TypeError: `curves` is something else.

    References:
        Agarwal et al. (2021), arXiv:2108.13264, on intervals over few seeds and their stratified form.
    """
    ax = axes_or_current(ax)
    check.between(0, 1, open_left=True, open_right=True, level=level)
    check.finite(or_none=True, threshold=threshold)
    check.shape((), hint="one height", threshold=np.asarray(threshold))
    curves, steps = _returns_and_steps(curves, steps)
    for index, (name, values) in enumerate(curves.items()):
        values = np.asarray(values, float)
        if values.ndim not in (2, 3):
            raise ValueError(
                f"curves[{name!r}]: expected shape (seeds, updates) or (tasks, seeds, updates), received {values.shape}; "
                "one seed is values[None]."
            )
        updates = np.broadcast_to(np.arange(1, values.shape[-1] + 1), values.shape)
        positions = updates if steps is None else np.asarray(steps[name], float)
        check.shape(values.shape, hint="that of the curve", **{f"steps[{name!r}]": positions})
        rows = (values.reshape(-1, values.shape[-1]), positions.reshape(-1, values.shape[-1]))
        x, filled = _common_grid(name, *rows, interpolate=steps is not None)
        low, high = _bootstrap_interval(filled.reshape(-1, values.shape[-2], len(x)), level)
        color, style = line_style(index)
        if individual:
            ax.plot(x, filled.T, color=color, linewidth=0.6, alpha=0.35)
        ax.plot(x, filled.mean(axis=0), style, color=color, linewidth=1.8, label=name)
        ax.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
        for seed, position in zip(*rows, strict=True):
            if (last := _stops(seed)) is not None:
                ax.plot(position[last], seed[last], "x", color=color, markersize=8, markeredgewidth=2)
    if threshold is not None:
        ax.axhline(threshold, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)))
    ax.set(xlabel="update" if steps is None else "environment steps", ylabel="mean return")
    ax.legend(frameon=False)
    return ax


def _returns_and_steps(curves: Any, steps: Mapping[str, Any] | None) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """Each name's returns, and the steps of all: those given, or, of training alone, its own; `None` for none."""
    if isinstance(getattr(curves, "metrics", curves), Metrics):
        curves = {"training": curves}
    if not isinstance(curves, Mapping):
        received = type(curves).__name__
        raise TypeError(f"curves: expected names and their returns, or what train returned, received {received}.")
    metrics = {name: getattr(curve, "metrics", curve) for name, curve in curves.items()}
    metrics = {name: found for name, found in metrics.items() if isinstance(found, Metrics)}
    if steps is None and metrics.keys() == curves.keys():
        steps = {name: np.cumsum(np.atleast_2d(found.num_steps), axis=-1) for name, found in metrics.items()}
    if steps is not None and (missing := sorted(set(curves) - set(steps))):
        raise ValueError(f"steps: expected those of every curve, {sorted(curves)}, received none of {missing}.")
    return dict(curves) | {name: np.atleast_2d(found.mean_return) for name, found in metrics.items()}, steps


def _common_grid(name: str, values: np.ndarray, positions: np.ndarray, *, interpolate: bool) -> tuple[Any, Any]:
    """The horizontal axis, from where every seed has a value, and all values on it, gaps filled by what lies before."""
    there = ~np.isnan(values)
    if not there.any(axis=1).all():
        raise ValueError(f"curves[{name!r}]: expected a return in every row, received one that is NaN throughout.")
    last = np.maximum.accumulate(np.where(there, np.arange(values.shape[1]), 0), axis=1)
    filled, first = np.take_along_axis(values, last, axis=1), there.argmax(axis=1)
    if not interpolate:
        return positions[0, first.max() :], filled[:, first.max() :]
    if not (np.diff(positions, axis=1) >= 0).all():
        raise ValueError(f"steps[{name!r}]: expected cumulative numbers, which do not decrease, received {positions}.")
    begin = np.take_along_axis(positions, first[:, None], axis=1).max()
    ends, going = positions[:, -1], positions[:, -1] > positions[:, -2:].min(axis=1)
    end = ends[going].min() if going.any() else ends.max()
    if end < begin:
        raise ValueError(
            f"curves[{name!r}]: expected seeds with steps in common, received one that ends at {end:g} and one whose first "
            f"return is at {begin:g}; leave that seed out."
        )
    grid = np.linspace(begin, end, 200)
    return grid, np.stack([np.interp(grid, x[i:], y[i:]) for x, y, i in zip(positions, filled, first, strict=True)])


def _stops(values: np.ndarray) -> int | None:
    """The last return of a seed, if more NaN follow it than ever stood between two."""
    there = np.flatnonzero(~np.isnan(values))
    after, pauses = len(values) - 1 - there[-1], np.diff(there) - 1
    return int(there[-1]) if after > pauses.max(initial=0) else None


def _bootstrap_interval(values: np.ndarray, level: float) -> tuple[Any, ...]:
    """Percentile bootstrap interval, pointwise, of the mean over the first two axes `(tasks, seeds)`, stratified by the first."""
    tasks, seeds = values.shape[:2]
    drawn = np.random.default_rng(0).integers(seeds, size=(tasks, 2000, seeds))
    means = np.zeros((2000, values.shape[2]))
    for task, rows in zip(values, drawn, strict=True):
        weights = np.stack([np.bincount(row, minlength=seeds) for row in rows]) / seeds
        means += weights @ task / tasks
    return tuple(np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0))
