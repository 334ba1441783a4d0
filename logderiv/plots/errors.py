"""Errors against length, number or time, and both sides of the identity."""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from logderiv._core import check
from logderiv.likelihood.identity import Comparison
from logderiv.plots._figure import axes_or_current, line_style
from logderiv.types import SignedLog


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
    ax = axes_or_current(ax)
    lengths, floor = np.asarray(lengths), float(np.finfo(np.float64).eps) if floor is None else floor
    for index, (name, values) in enumerate(errors.items()):
        values = np.asarray(values, float)
        check.shape(lengths.shape, hint="one for each of lengths", **{f"errors[{name!r}]": values})
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
    for index, (label, values) in enumerate(
        {"product, differentiated (to the cross: then 0)": direct, "P times the score": score}.items()
    ):
        _line_to_cross(ax, lengths[order], values[order], index, label, linewidth=(3.5, 1.5)[index])
    ax.set(xlabel="number of factors", ylabel="$\\log_{10}$ of the largest entry of $|\\nabla P|$")
    ax.legend(frameon=False)
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
