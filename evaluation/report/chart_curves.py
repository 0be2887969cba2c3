"""Charts of accuracy over training steps, and on corrupted images."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from evaluation.report.chart_style import COLORS, ERROR_BAR_STYLE, GREY, legend_below, percent_axis
from evaluation.schema.summary_file import CorruptionPoint, RobustnessFigures, Summary

_MARKERS = "osD^v<"


def learning_curve(summary: Summary) -> Figure:
    """VQA accuracy over the steps of a run, with 95 % intervals: first candidates, and reranked answers if there are any."""
    steps = dict(sorted((summary.curve or {}).items(), key=lambda item: item[1]))
    choices = [summary.systems[name].choices for name in steps]
    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axes = figure.subplots()
    kinds = [("first", COLORS[0], "first candidate"), ("reranked", COLORS[1], "reranked")]
    for choice, color, label in kinds:
        if not all(choice in by_choice for by_choice in choices):
            continue
        low, high = ([100 * by_choice[choice].vqa_accuracy_ci95[side] for by_choice in choices] for side in (0, 1))
        values = [100 * by_choice[choice].vqa_accuracy for by_choice in choices]
        axes.fill_between(list(steps.values()), low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(list(steps.values()), values, marker="o", color=color, label=label)
    axes.set_xlabel("training step")
    percent_axis(axes, "y")
    axes.set_title(f"Learning curve: {len(steps)} checkpoints, split {summary.dataset.split}", loc="left")
    legend_below(figure)
    return figure


def robustness(summary: Summary) -> Figure:
    """VQA accuracy over corruption strength, one panel per corruption, one line per system; strength 0 is the clean image."""
    systems = summary.robustness or {}
    kinds = list(next(iter(systems.values())).corrupted)
    columns = min(3, len(kinds))
    rows = -(-len(kinds) // columns)
    figure = Figure(figsize=(3.4 * columns + 0.6, 3.1 * rows + 0.8), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(kinds) :]:
        axes.axis("off")
    for axes, kind in zip(grid.flat, kinds, strict=False):
        for i, (name, robust) in enumerate(systems.items()):
            points = [robust.clean, *robust.corrupted[kind]]
            values, error_bars = _with_error_bars(points)
            # Shift the systems horizontally so that their intervals do not overlap.
            positions = [(point.strength or 0) + 0.06 * (i - (len(systems) - 1) / 2) for point in points]
            line_style = {"color": COLORS[i % len(COLORS)], "marker": _MARKERS[i % len(_MARKERS)], "markersize": 5}
            axes.errorbar(positions, values, yerr=error_bars, label=name, **{**ERROR_BAR_STYLE, "ecolor": GREY, "capsize": 2}, **line_style)
        axes.set_xticks(sorted({0, *(point.strength or 0 for robust in systems.values() for point in robust.corrupted[kind])}))
        axes.set_title(kind, loc="left", fontsize=11)
        axes.set_ylim(0, 105)
    for axes in grid[:, 0]:
        axes.set_ylabel("VQA accuracy, %")
    for axes in grid[-1]:
        axes.set_xlabel("strength (0: clean image)")
    legend_below(figure)
    figure.suptitle(f"First candidates on corrupted images ({_questions(systems)} questions)", x=0.01, ha="left", fontsize=12)
    return figure


def _with_error_bars(points: Sequence[CorruptionPoint]) -> tuple[list[float], list[list[float]]]:
    """Accuracies in percent, and the distances of their intervals' lower and upper ends."""
    values = [100 * point.vqa_accuracy for point in points]
    error_bars = [[100 * abs(point.vqa_accuracy - point.vqa_accuracy_ci95[side]) for point in points] for side in (0, 1)]
    return values, error_bars


def _questions(systems: dict[str, RobustnessFigures]) -> str:
    return f"{next(iter(systems.values())).questions:,}"
