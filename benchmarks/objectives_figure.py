"""The figure of `objectives`: how far each preset turns from the gradient of the return, and what one of its steps gains."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from benchmarks.harness import new_figure
from logderiv.plots.figures import COLORS

# Verdict to color, marker and words.
VERDICTS = {
    "return": (COLORS[2], "o", "the gradient of the return, times a positive constant"),
    "return and a divergence": (COLORS[0], "s", "the gradient of the return less a divergence from the reference"),
    "another objective": (COLORS[4], "D", "the gradient of another function"),
    "no objective": (COLORS[1], "X", "the gradient of no function at all (its Jacobian is not symmetric)"),
}
PANELS = {
    "angle": (
        "Bias: angle between the expected step\nand the gradient of the return",
        "degrees; exact is 0, better to the left",
    ),
    "gain": (
        "Bias and noise: gain of a sampled\nstep, beside that of an exact one",
        "ratio; exact is 1, better to the right",
    ),
}
KEY = "{} answers to a prompt, on policy. Marker: median of {} small worlds of tokens; bar: smallest to largest."


def draw(rows: Mapping[str, Any], column: str) -> Any:
    """One line for each preset: the median over worlds, and a bar from the smallest to the largest."""
    heights = _heights(rows)
    figure, axes = new_figure(figsize=(8.6, 8.2), ncols=2, sharey=True, width_ratios=(3, 2))
    for ax, (field, (title, label)) in zip(axes, PANELS.items(), strict=True):
        for verdict, (color, marker, words) in VERDICTS.items():
            chosen = {heights[name]: row.of(column, field) for name, row in rows.items() if row.verdict == verdict}
            chosen = {y: values for y, values in chosen.items() if values}
            if not chosen:
                continue
            low, high = ([pick(values) for values in chosen.values()] for pick in (min, max))
            ax.hlines(list(chosen), low, high, color=color, linewidth=4, alpha=0.35)
            middles = list(map(median, chosen.values()))
            ax.plot(middles, list(chosen), marker, color=color, markersize=6.5, label=words, zorder=3)
        ax.grid(visible=False, axis="y")
        ax.set(xlabel=label)
        ax.set_title(title, fontsize=10, loc="left")
    left, right = axes
    left.set_yticks(list(heights.values()), list(heights), fontsize=8)
    left.set(ylim=(max(heights.values()) + 1, -1), xlim=(-1, None))
    right.set(xlim=(0, None))
    number = max(len(row.effects) for row in rows.values())
    figure.suptitle(KEY.format(column, number), fontsize=9)
    legend = {"loc": "outside lower center", "fontsize": 9, "frameon": False, "title": "The expected step is"}
    figure.legend(*left.get_legend_handles_labels(), **legend)
    return figure


def _heights(rows: Mapping[str, Any]) -> dict[str, float]:
    """Where each preset stands, from above, with a gap before every framework."""
    heights: dict[str, float] = {}
    y, before = -1.0, None
    for name in rows:
        framework = name.partition("_")[0]
        y += 1.0 if before in (None, framework) else 1.8
        heights[name], before = y, framework
    return heights
