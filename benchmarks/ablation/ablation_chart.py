"""The chart of an ablation: the difference of every variant to the base, with intervals, one panel a category."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from matplotlib.figure import Figure

from evaluation.report.chart_style import ERROR_BAR_STYLE, GREY, INK, RIGHT, WRONG, save, style
from evaluation.statistics import Difference, TestedDifference

_COLUMNS = 3


class ShownDifference(Protocol):
    """A difference to the base; `tested` is None where there is no verdict."""

    @property
    def variant(self) -> str: ...
    @property
    def category(self) -> str: ...
    @property
    def unadjusted(self) -> Difference: ...
    @property
    def tested(self) -> TestedDifference | None: ...


def difference_chart(differences: Sequence[ShownDifference], path: Path) -> Path:
    """Write the chart as PNG: points in percent, green where better is shown, red where worse is, grey where nothing is."""
    variants = list(dict.fromkeys(difference.variant for difference in differences))
    categories = list(dict.fromkeys(difference.category for difference in differences))
    rows = -(-len(categories) // _COLUMNS)
    with style():
        figure = Figure(figsize=(11, rows * (1.1 + 0.3 * len(variants))), layout="constrained")
        panels = figure.subplots(rows, _COLUMNS, squeeze=False, sharey=True)
        for axes, category in zip(panels.flat, categories, strict=False):
            axes.axvline(0, color=INK, linewidth=1)
            for difference in (d for d in differences if d.category == category):
                points = 100 * difference.unadjusted.difference
                ends = [[abs(points - 100 * end)] for end in difference.unadjusted.ci95]
                color = {"a": RIGHT, "b": WRONG}.get(difference.tested.verdict if difference.tested else "", GREY)
                row = variants.index(difference.variant)
                axes.errorbar([points], [row], xerr=ends, fmt="o", color=color, **{**ERROR_BAR_STYLE, "ecolor": color})
            axes.set_yticks(range(len(variants)), variants)
            axes.set_title(category, loc="left", fontsize=11)
            axes.grid(visible=False, axis="y")
        for axes in panels.flat[len(categories) :]:
            axes.axis("off")
        panels[0, 0].invert_yaxis()
        figure.supxlabel("points of VQA accuracy more than the base, with 95 % interval", fontsize=10)
        return save(figure, path)
