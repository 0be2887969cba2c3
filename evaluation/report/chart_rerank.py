"""Charts of reranking: accuracy before and after, by category, and numbers of changed answers."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.report.chart_style import COLORS, ERROR_BAR_STYLE, GREY, INK, RIGHT, WRONG, legend_below, percent_axis
from evaluation.schema.summary_file import Summary, SystemFigures

BEFORE, AFTER = ("first", GREY, "before: first"), ("reranked", COLORS[0], "after: reranked")
"""Choice, color and label of the answers before and after reranking."""
_EQUAL, _ON_GREY = "#c9c9c4", "#222222"
"""Bars of answers that changed without effect, and the numbers on them, in light and dark pages."""


def before_and_after(summary: Summary) -> Figure:
    """Accuracy of first candidate, reranked answer and oracle (upper bound) by system, with 95 % intervals."""
    systems = {name: results.choices for name, results in reranked_systems(summary).items()}
    kinds = [("first", GREY, "before: first"), ("reranked", COLORS[0], "after: reranked"), ("oracle", "none", "upper bound: oracle")]
    figure = Figure(figsize=(max(5.0, 1.6 + 1.8 * len(systems)), 4.2), layout="constrained")
    axes = figure.subplots()
    for i, (kind, color, label) in enumerate(kinds):
        positions = [position + (i - 1) * 0.26 for position in range(len(systems))]
        measures = [choices[kind] for choices in systems.values()]
        values = [100 * m.vqa_accuracy for m in measures]
        error_bars = [[100 * abs(m.vqa_accuracy - m.vqa_accuracy_ci95[side]) for m in measures] for side in (0, 1)]
        edge = GREY if color == "none" else color
        line = "--" if color == "none" else "-"
        bars = axes.bar(
            positions, values, 0.24, yerr=error_bars, error_kw=ERROR_BAR_STYLE, color=color, edgecolor=edge, linestyle=line, label=label
        )
        # Above the interval: inside the bar its line would cross the number, and a bar of height 0 has no room.
        axes.bar_label(bars, labels=[f"{value:.1f}" for value in values], padding=2, fontsize=8, color=INK)
    axes.set_xticks(range(len(systems)))
    axes.set_xticklabels(list(systems))
    axes.grid(visible=False, axis="x")
    percent_axis(axes, "y")
    axes.set_title("Before and after reranking", loc="left")
    legend_below(figure)
    return figure


def reranked_systems(summary: Summary) -> dict[str, SystemFigures]:
    """System -> its figures, for the systems with reranked answers."""
    return {name: results for name, results in summary.systems.items() if "reranked" in results.choices}


def by_category(summary: Summary) -> Figure:
    """Accuracy before and after reranking by category, one panel per system."""
    systems = reranked_systems(summary)
    categories = list(next(iter(systems.values())).choices["first"].by_category)
    figure = Figure(figsize=(max(6.0, len(categories)), 0.6 + 2.6 * len(systems)), layout="constrained")
    for axes, (name, results) in zip(figure.subplots(len(systems), 1, squeeze=False).flat, systems.items(), strict=True):
        for i, (choice, color, label) in enumerate((BEFORE, AFTER)):
            parts = results.choices[choice].by_category
            values = [100 * parts[category].vqa_accuracy for category in categories]
            bars = axes.bar([row + (i - 0.5) * 0.4 for row in range(len(categories))], values, 0.38, color=color, label=label)
            axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8, color=INK)
        counts = results.choices["first"].by_category
        axes.set_xticks(range(len(categories)), [f"{category}\n({counts[category].questions:,})" for category in categories], fontsize=9)
        axes.grid(visible=False, axis="x")
        percent_axis(axes, "y")
        axes.set_ylabel("VQA accuracy, %")
        axes.set_title(f"{name}: before and after reranking by category (questions)", loc="left")
    legend_below(figure)
    return figure


def overview(summary: Summary) -> Figure:
    """VQA accuracy, M4C accuracy and number of changed answers, before and after reranking."""
    systems = reranked_systems(summary)
    figure = Figure(figsize=(max(9.0, 3.0 + 3.0 * len(systems)), 3.8), layout="constrained")
    overall, m4c, changed = figure.subplots(1, 3)
    for axes, metric, title in ((overall, "vqa_accuracy", "VQA accuracy, %"), (m4c, "vqa_accuracy_m4c", "M4C accuracy, %")):
        for i, (choice, color, label) in enumerate((BEFORE, AFTER)):
            values = [100 * results.choices[choice].metric(metric) for results in systems.values()]
            bars = axes.bar([position + (i - 0.5) * 0.4 for position in range(len(systems))], values, 0.38, color=color, label=label)
            axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8, color=INK)
        axes.set_ylim(0, 105)
        axes.set_title(title, loc="left", fontsize=11)
    _changed(changed, systems)
    for axes in (overall, m4c, changed):
        axes.set_xticks(range(len(systems)), list(systems))
        axes.grid(visible=False, axis="x")
    legend_below(figure)
    return figure


def _changed(axes: Axes, systems: dict[str, SystemFigures]) -> None:
    """Stacked bars of the changed answers: better, worse, equal."""
    bottom = [0] * len(systems)
    parts = [results.changed for results in systems.values() if results.changed is not None]
    kinds = (("better", RIGHT, "better"), ("worse", WRONG, "worse"), ("equal", _EQUAL, "equal"))
    for kind, color, label in kinds:
        counts = [getattr(part, kind) for part in parts]
        bars = axes.bar(range(len(systems)), counts, 0.5, bottom=bottom, color=color, label=label)
        labels = [f"{count:,}" if count else "" for count in counts]
        axes.bar_label(bars, labels=labels, label_type="center", fontsize=8, color="white" if kind != "equal" else _ON_GREY)
        bottom = [below + count for below, count in zip(bottom, counts, strict=True)]
    axes.set_ylim(0, max(1, *bottom) * 1.05)
    axes.set_title("Answers changed by reranking", loc="left", fontsize=11)
