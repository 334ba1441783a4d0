"""Learning curves over seeds and tasks."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from logderiv._core import check
from logderiv.plots._figure import axes_or_current, line_style
from logderiv.training import Metrics


def learning_curves(
    curves: Mapping[str, Any],
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
        curves: Name to returns, shape `(seeds, updates)` or `(tasks, seeds, updates)`; or to what `train` returned, or its metrics.
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
        ValueError: An array has other axes, shapes of a curve and its steps differ, a seed has no return at all, or
            `level` is out of range.

    References:
        Agarwal et al. (2021), arXiv:2108.13264, on intervals over few seeds and their stratified form.
    """
    ax = axes_or_current(ax)
    check.between(0, 1, open_left=True, open_right=True, level=level)
    metrics = {name: getattr(curve, "metrics", curve) for name, curve in curves.items()}
    metrics = {name: found for name, found in metrics.items() if isinstance(found, Metrics)}
    if steps is None and metrics.keys() == curves.keys():
        steps = {name: np.cumsum(np.atleast_2d(found.num_steps), axis=-1) for name, found in metrics.items()}
    curves = dict(curves) | {name: np.atleast_2d(found.mean_return) for name, found in metrics.items()}
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


def _common_grid(name: str, values: np.ndarray, positions: np.ndarray, *, interpolate: bool) -> tuple[Any, Any]:
    """The horizontal axis, from where every seed has a value, and all values on it, gaps filled by what lies before."""
    there = ~np.isnan(values)
    if not there.any(axis=1).all():
        raise ValueError(f"curves[{name!r}]: expected a return in every row, received one that is NaN throughout.")
    last = np.maximum.accumulate(np.where(there, np.arange(values.shape[1]), 0), axis=1)
    filled, first = np.take_along_axis(values, last, axis=1), there.argmax(axis=1)
    if not interpolate:
        return positions[0, first.max() :], filled[:, first.max() :]
    begin = np.take_along_axis(positions, first[:, None], axis=1).max()
    ends, going = positions[:, -1], positions[:, -1] > positions[:, -2:].min(axis=1)
    grid = np.linspace(begin, ends[going].min() if going.any() else ends.max(), 200)
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
