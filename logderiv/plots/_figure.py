"""What the figures share: axes, colors and line styles."""

from typing import Any

from logderiv._core.optional import optional

# Okabe & Ito's colors, which most color-blind readers can tell apart, and line styles for those who print in grey.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":")


def axes_or_current(ax: Any) -> Any:
    """The axes given, or the current ones."""
    plt = optional("matplotlib.pyplot", "logderiv.plots needs matplotlib", "plots")
    return plt.gca() if ax is None else ax


def line_style(index: int) -> tuple[str, str]:
    """Color and style of the line with this number."""
    return _COLORS[index % len(_COLORS)], _STYLES[index % len(_STYLES)]
