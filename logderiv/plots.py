"""Figures: learning curves over seeds, and errors against the length of a trajectory.

matplotlib is imported inside the functions only, so that `import logderiv` does not need it. Each function draws into
`ax` and returns it; titles and limits are the caller's.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

# Okabe & Ito's colours, which most colour-blind readers can tell apart, and line styles for those who print in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":")


def learning_curves(
    curves: Mapping[str, Any],
    *,
    steps: Mapping[str, Any] | None = None,
    level: float = 0.95,
    threshold: float | None = None,
    ax: Any = None,
) -> Any:
    """Mean over seeds of the return, with a band for the error of that mean.

    The band is the percentile bootstrap interval of the mean over seeds, from 2000 resamples with a fixed seed; with
    one seed it has no width. Seeds of different speed are compared at equal numbers of steps: each curve is
    interpolated onto a common grid, which ends where the first seed's data end.

    Args:
        curves: Name to returns, shape `(seeds, updates)`.
        steps: Name to the cumulative environment steps of each update, same shapes; `None` draws against updates.
        level: Coverage of the band, in (0, 1).
        threshold: Height of a horizontal reference line; `None` for none.
        ax: Matplotlib axes; `None` for the current ones.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: An array is not `(seeds, updates)`, shapes of a curve and its steps differ, or `level` is out of range.

    References:
        Agarwal et al. (2021), arXiv:2108.13264, on intervals over few seeds.
    """
    ax = _axes(ax)
    if not 0.0 < level < 1.0:
        raise ValueError(f"level: expected a number in (0, 1), received {level}.")
    for index, (name, values) in enumerate(curves.items()):
        values = np.asarray(values, float)
        if values.ndim != 2:
            raise ValueError(
                f"curves[{name!r}]: expected shape (seeds, updates), received {values.shape}; one seed is values[None]."
            )
        x, values = _common_grid(name, values, None if steps is None else np.asarray(steps[name], float))
        low, high = _bootstrap_interval(values, level)
        colour, style = _look(index)
        ax.plot(x, values.mean(axis=0), style, color=colour, linewidth=1.8, label=name)
        ax.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    if threshold is not None:
        ax.axhline(threshold, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)))
    ax.set_xlabel("update" if steps is None else "environment steps")
    ax.set_ylabel("mean return")
    ax.legend(frameon=False)
    return ax


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
        ValueError: An array of errors does not have the shape of `lengths`.
    """
    ax = _axes(ax)
    lengths = np.asarray(lengths)
    floor = float(np.finfo(np.float64).eps) if floor is None else floor
    for index, (name, values) in enumerate(errors.items()):
        values = np.asarray(values, float)
        if values.shape != lengths.shape:
            raise ValueError(f"errors[{name!r}]: expected shape {lengths.shape} as lengths, received {values.shape}.")
        finite = np.isfinite(values)
        drawn = np.where(finite, np.maximum(values, floor), np.nan)
        colour, style = _look(index)
        ax.plot(lengths, drawn, style, color=colour, marker=".", label=name)
        if finite.any() and not finite.all():
            last = np.flatnonzero(finite)[-1]
            ax.plot(lengths[last], drawn[last], "x", color=colour, markersize=10, markeredgewidth=2)
    ax.set(xscale="log", yscale="log", xlabel="number of steps T", ylabel="relative error")
    ax.legend(frameon=False)
    return ax


def _axes(ax: Any) -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "logderiv.plots needs matplotlib; install it, or the extra: pip install 'logderiv[plots]'."
        ) from error
    return plt.gca() if ax is None else ax


def _look(index: int) -> tuple[str, str]:
    return _COLOURS[index % len(_COLOURS)], _STYLES[index % len(_STYLES)]


def _common_grid(name: str, values: np.ndarray, steps: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The horizontal axis, and every seed's values on it."""
    if steps is None:
        return np.arange(1, values.shape[1] + 1), values
    if steps.shape != values.shape:
        raise ValueError(f"steps[{name!r}]: expected shape {values.shape} as the curve, received {steps.shape}.")
    grid = np.linspace(steps[:, 0].max(), steps[:, -1].min(), 200)
    return grid, np.stack([np.interp(grid, s, v) for s, v in zip(steps, values, strict=True)])


def _bootstrap_interval(values: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of the mean over the first axis, pointwise."""
    seeds = values.shape[0]
    drawn = np.random.default_rng(0).integers(seeds, size=(2000, seeds))
    weights = np.stack([np.bincount(row, minlength=seeds) for row in drawn]) / seeds
    low, high = np.quantile(weights @ values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
