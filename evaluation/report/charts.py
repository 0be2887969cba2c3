"""Draw the report's charts, and write them as PNG files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from answering.rerank.choose_answer import displayed_choice
from dataset.loading.sample_store import SampleStore
from evaluation.report.chart_style import (
    COLORS,
    ERROR_BAR_STYLE,
    GREY,
    INK,
    RIGHT,
    WRONG,
    legend_below,
    page_svg,
    percent_axis,
    save,
    style,
)
from evaluation.report.examples import Example
from evaluation.report.image_grids import write_grids
from evaluation.schema.answer_figures import ChoiceFigures, ConfidenceFigures, Reliability
from evaluation.schema.summary_file import CorruptionPoint, Summary, SystemFigures

CAPTIONS = {
    "learning_curve": "Accuracy over the training steps of a run",
    "overview": "VQA accuracy, M4C accuracy, and number of answers changed by reranking",
    "rerank": "Accuracy before and after reranking, with the oracle as upper bound",
    "rerank_by_category": "Accuracy before and after reranking by category",
    "accuracy_by_category": "Accuracy by category",
    "fused_calibration": "Calibration of the fused score",
    "confidence": "Calibration of the confidence",
    "coverage": "Accuracy when only confident answers are given",
    "robustness": "Accuracy on corrupted images",
    "right_cases": "Right answers, sampled at random",
    "wrong_cases": "Wrong answers, sampled at random",
}
"""File name without suffix -> caption, in display order."""
_BEFORE_AND_AFTER = (("first", GREY, "before: first"), ("reranked", COLORS[0], "after: reranked"))
"""Choice, color and label of the answers before and after reranking."""
_EQUAL, _ON_GREY = "#c9c9c4", "#222222"
"""Bars of answers that changed without effect, and the numbers on them, in light and dark pages."""
_MARKERS = "osD^v<"


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart's PNG file, and the same for report.html as an SVG element of `width` CSS pixels; "" for a grid of images."""

    path: Path
    svg: str = ""
    width: int = 0

    @property
    def caption(self) -> str:
        """What it shows."""
        return CAPTIONS[self.path.stem]


def write_charts(summary: Summary, examples: Sequence[Example], store: SampleStore, out: Path, seed: int) -> list[Chart]:
    """Write <name>.png for every chart of CAPTIONS that has data, in that order; charts of an earlier run are deleted.

    Args:
        summary: content of summary.json
        examples: all short questions with their answers
        store: merged data with the images
        out: folder of the charts
        seed: seed of the sampled examples
    """
    for name in CAPTIONS:
        (out / f"{name}.png").unlink(missing_ok=True)
    if not examples:
        return []
    charts: dict[str, Callable[[Summary], Figure]] = {"accuracy_by_category": accuracy_by_category}
    if _reranked_systems(summary):
        charts |= {"overview": overview, "rerank": before_and_after, "rerank_by_category": reranking_by_category}
    if any(results.fused_calibration is not None for results in summary.systems.values()):
        charts["fused_calibration"] = fused_score_calibration
    if _systems_with_confidence(summary):
        charts |= {"confidence": confidence, "coverage": coverage}
    if summary.curve is not None:
        charts["learning_curve"] = learning_curve
    if summary.robustness is not None:
        charts["robustness"] = robustness
    whole_run_charts, last = ("learning_curve", "robustness"), _without_early_checkpoints(summary)
    with style():
        written = [_write(draw(summary if name in whole_run_charts else last), out / f"{name}.png") for name, draw in charts.items()]
        written += [Chart(path) for path in write_grids(examples, store, out, seed)]
    order = list(CAPTIONS)
    return sorted(written, key=lambda chart: order.index(chart.path.stem))


def _write(figure: Figure, path: Path) -> Chart:
    return Chart(save(figure, path), *page_svg(figure, path.stem, CAPTIONS[path.stem]))


def _without_early_checkpoints(summary: Summary) -> Summary:
    """The summary with only the last checkpoint, if it is a learning curve; any other summary unchanged."""
    if summary.curve is None:
        return summary
    last = max(summary.curve, key=summary.curve.__getitem__)
    return replace(summary, systems={last: summary.systems[last]})


def _reranked_systems(summary: Summary) -> dict[str, SystemFigures]:
    return {name: results for name, results in summary.systems.items() if "reranked" in results.choices}


def _systems_with_confidence(summary: Summary) -> dict[str, ConfidenceFigures]:
    return {name: results.confidence for name, results in summary.systems.items() if results.confidence is not None}


def accuracy_by_category(summary: Summary) -> Figure:
    """Accuracy by category, one bar per system, with the number of questions next to the category."""
    shown = {name: displayed_choice(results.choices) for name, results in summary.systems.items()}
    parts = {name: summary.systems[name].choices[choice].by_category for name, choice in shown.items()}
    counts = next(iter(parts.values()))
    height = 0.8 / len(parts)
    figure = Figure(figsize=(8, 1.4 + len(counts) * (0.35 + 0.22 * len(parts))), layout="constrained")
    axes = figure.subplots()
    for i, (name, by_category) in enumerate(parts.items()):
        positions = [row + i * height for row in range(len(counts))]
        values = [100 * by_category[category].vqa_accuracy for category in counts]
        bars = axes.barh(positions, values, height * 0.92, color=COLORS[i % len(COLORS)], label=f"{name} ({shown[name]})")
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8, color=INK)
    labels = [f"{category}\n({part.questions:,})" for category, part in counts.items()]
    axes.set_yticks([row + (0.8 - height) / 2 for row in range(len(counts))], labels)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    percent_axis(axes, "x")
    axes.set_title("VQA accuracy by category (questions)", loc="left")
    if len(parts) > 1:
        legend_below(figure)
    return figure


def before_and_after(summary: Summary) -> Figure:
    """Accuracy of first candidate, reranked answer and oracle (upper bound) by system, with 95 % intervals."""
    systems = _reranked_systems(summary)
    figure = Figure(figsize=(max(5.0, 1.6 + 1.8 * len(systems)), 4.2), layout="constrained")
    axes = figure.subplots()
    for i, (choice, color, label) in enumerate((*_BEFORE_AND_AFTER, ("oracle", "none", "upper bound: oracle"))):
        positions = [position + (i - 1) * 0.26 for position in range(len(systems))]
        values, error_bars = _with_error_bars([results.choices[choice] for results in systems.values()])
        edge, line = (GREY, "--") if color == "none" else (color, "-")
        bars = axes.bar(
            positions, values, 0.24, yerr=error_bars, error_kw=ERROR_BAR_STYLE, color=color, edgecolor=edge, linestyle=line, label=label
        )
        # Above the interval: inside the bar its line would cross the number, and a bar of height 0 has no room.
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8, color=INK)
    axes.set_xticks(range(len(systems)), list(systems))
    axes.grid(visible=False, axis="x")
    percent_axis(axes, "y")
    axes.set_title("Before and after reranking", loc="left")
    legend_below(figure)
    return figure


def _with_error_bars(measured: Sequence[ChoiceFigures | CorruptionPoint]) -> tuple[list[float], list[list[float]]]:
    """Accuracies in percent, and the distances of their intervals' lower and upper ends."""
    values = [100 * figures.vqa_accuracy for figures in measured]
    return values, [[100 * abs(figures.vqa_accuracy - figures.vqa_accuracy_ci95[side]) for figures in measured] for side in (0, 1)]


def _draw_pairs_of_bars(axes: Axes, before: Sequence[float], after: Sequence[float]) -> None:
    """Bars of accuracies 0..1 before and after reranking, side by side, in percent."""
    for i, ((_, color, label), values) in enumerate(zip(_BEFORE_AND_AFTER, (before, after), strict=True)):
        positions = [position + (i - 0.5) * 0.4 for position in range(len(values))]
        bars = axes.bar(positions, [100 * value for value in values], 0.38, color=color, label=label)
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8, color=INK)


def reranking_by_category(summary: Summary) -> Figure:
    """Accuracy before and after reranking by category, one panel per system."""
    systems = _reranked_systems(summary)
    categories = list(next(iter(systems.values())).choices["first"].by_category)
    figure = Figure(figsize=(max(6.0, len(categories)), 0.6 + 2.6 * len(systems)), layout="constrained")
    for axes, (name, results) in zip(figure.subplots(len(systems), 1, squeeze=False).flat, systems.items(), strict=True):
        counts, after = results.choices["first"].by_category, results.choices["reranked"].by_category
        _draw_pairs_of_bars(axes, *([parts[category].vqa_accuracy for category in categories] for parts in (counts, after)))
        axes.set_xticks(range(len(categories)), [f"{category}\n({counts[category].questions:,})" for category in categories], fontsize=9)
        axes.grid(visible=False, axis="x")
        percent_axis(axes, "y")
        axes.set_ylabel("VQA accuracy, %")
        axes.set_title(f"{name}: before and after reranking by category (questions)", loc="left")
    legend_below(figure)
    return figure


def overview(summary: Summary) -> Figure:
    """VQA accuracy, M4C accuracy and number of changed answers, before and after reranking."""
    systems = _reranked_systems(summary)
    figure = Figure(figsize=(max(9.0, 3.0 + 3.0 * len(systems)), 3.8), layout="constrained")
    overall, m4c, changed = figure.subplots(1, 3)
    for axes, metric, title in ((overall, "vqa_accuracy", "VQA accuracy, %"), (m4c, "vqa_accuracy_m4c", "M4C accuracy, %")):
        by_choice = ([results.choices[choice].metric(metric) for results in systems.values()] for choice in ("first", "reranked"))
        _draw_pairs_of_bars(axes, *by_choice)
        axes.set_ylim(0, 105)
        axes.set_title(title, loc="left", fontsize=11)
    _draw_changed_answers(changed, systems)
    for axes in (overall, m4c, changed):
        axes.set_xticks(range(len(systems)), list(systems))
        axes.grid(visible=False, axis="x")
    legend_below(figure)
    return figure


def _draw_changed_answers(axes: Axes, systems: dict[str, SystemFigures]) -> None:
    """Stacked bars of the changed answers: better, worse, equal."""
    bottom = [0] * len(systems)
    parts = [results.changed for results in systems.values() if results.changed is not None]
    for kind, color, on_bar in (("better", RIGHT, "white"), ("worse", WRONG, "white"), ("equal", _EQUAL, _ON_GREY)):
        counts = [getattr(part, kind) for part in parts]
        bars = axes.bar(range(len(systems)), counts, 0.5, bottom=bottom, color=color, label=kind)
        axes.bar_label(bars, labels=[f"{count:,}" if count else "" for count in counts], label_type="center", fontsize=8, color=on_bar)
        bottom = [below + count for below, count in zip(bottom, counts, strict=True)]
    axes.set_ylim(0, max(1, *bottom) * 1.05)
    axes.set_title("Answers changed by reranking", loc="left", fontsize=11)


def fused_score_calibration(summary: Summary) -> Figure:
    """Reliability diagram of the fused score of the reranked answers, with a histogram."""
    systems = {name: results.fused_calibration for name, results in summary.systems.items() if results.fused_calibration is not None}
    return _reliability_diagram(systems, "Can the fused score be read as a probability?", "fused score of the reranked answer")


def confidence(summary: Summary) -> Figure:
    """Reliability diagram of the confidence, with a histogram."""
    return _reliability_diagram(_systems_with_confidence(summary), "Is the confidence calibrated?", "confidence")


def _reliability_diagram(systems: Mapping[str, Reliability], title: str, score: str) -> Figure:
    """Accuracy over the score, and below it the number of answers in each bin."""
    figure = Figure(figsize=(6.0, 5.6), layout="constrained")
    axes, counts = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    axes.plot([0, 1], [0, 100], linestyle=":", color=GREY, label="perfectly calibrated")
    width = 0.08 / len(systems)
    for i, (name, figures) in enumerate(systems.items()):
        color, bins = COLORS[i % len(COLORS)], figures.bins
        label = f"{name} (calibration error {100 * figures.ece:.1f})"
        axes.plot([b.score for b in bins], [100 * b.vqa_accuracy for b in bins], marker="o", color=color, label=label)
        counts.bar([b.low + 0.01 + (i + 0.5) * width for b in bins], [b.questions for b in bins], width, color=color)
    axes.set_ylim(0, 105)
    axes.set_ylabel("VQA accuracy, %")
    axes.set_title(title, loc="left")
    counts.set_ylabel("answers")
    counts.set_xlim(0, 1)
    counts.set_xlabel(score)
    legend_below(figure)
    return figure


def coverage(summary: Summary) -> Figure:
    """Accuracy over the share of the answers that are given, the most confident first (risk-coverage curve)."""
    figure = Figure(figsize=(6.0, 5.6), layout="constrained")
    axes = figure.subplots()
    for i, (name, figures) in enumerate(_systems_with_confidence(summary).items()):
        points = figures.risk_coverage
        color = COLORS[i % len(COLORS)]
        axes.plot([100 * p.coverage for p in points], [100 * p.vqa_accuracy for p in points], marker=".", color=color, label=name)
    axes.set_xlim(0, 102)
    axes.set_ylim(0, 105)
    axes.set_xlabel("coverage: most confident answers given, %")
    axes.set_ylabel("their VQA accuracy, %")
    axes.set_title("Accuracy when only confident answers are given", loc="left")
    legend_below(figure)
    return figure


def learning_curve(summary: Summary) -> Figure:
    """VQA accuracy over the steps of a run, with 95 % intervals: first candidates, and reranked answers if there are any."""
    steps = dict(sorted((summary.curve or {}).items(), key=lambda item: item[1]))
    choices = [summary.systems[name].choices for name in steps]
    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axes = figure.subplots()
    for choice, color, label in (("first", COLORS[0], "first candidate"), ("reranked", COLORS[1], "reranked")):
        if all(choice in by_choice for by_choice in choices):
            low, high = ([100 * by_choice[choice].vqa_accuracy_ci95[side] for by_choice in choices] for side in (0, 1))
            axes.fill_between(list(steps.values()), low, high, color=color, alpha=0.15, linewidth=0)
            values = [100 * by_choice[choice].vqa_accuracy for by_choice in choices]
            axes.plot(list(steps.values()), values, marker="o", color=color, label=label)
    axes.set_xlabel("training step")
    percent_axis(axes, "y")
    axes.set_title(f"Learning curve: {len(steps)} checkpoints, split {summary.dataset.split}", loc="left")
    legend_below(figure)
    return figure


def robustness(summary: Summary) -> Figure:
    """VQA accuracy over corruption strength, one panel per corruption, one line per system; strength 0 is the clean image."""
    systems = summary.robustness or {}
    any_system = next(iter(systems.values()))
    kinds = list(any_system.corrupted)
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
    figure.suptitle(f"First candidates on corrupted images ({any_system.questions:,} questions)", x=0.01, ha="left", fontsize=12)
    return figure
