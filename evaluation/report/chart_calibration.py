"""Charts of calibration: is a score in 0..1 a probability of being right, and what does answering only when confident gain?"""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.report.chart_style import COLORS, GREY, legend_below
from evaluation.schema.answer_figures import ConfidenceFigures, Reliability
from evaluation.schema.summary_file import Summary


def fused_score_calibration(summary: Summary) -> Figure:
    """Reliability diagram of the fused score of the reranked answers, with a histogram."""
    systems = {name: results.fused_calibration for name, results in summary.systems.items() if results.fused_calibration is not None}
    return _reliability_diagram(systems, "Can the fused score be read as a probability?", "fused score of the reranked answer")


def confidence(summary: Summary) -> Figure:
    """Reliability diagram of the confidence, with a histogram."""
    return _reliability_diagram(systems_with_confidence(summary), "Is the confidence calibrated?", "confidence")


def coverage(summary: Summary) -> Figure:
    """Accuracy over the share of the answers that are given, the most confident first (risk-coverage curve)."""
    figure = Figure(figsize=(6.0, 5.6), layout="constrained")
    axes = figure.subplots()
    for i, (name, figures) in enumerate(systems_with_confidence(summary).items()):
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


def systems_with_confidence(summary: Summary) -> dict[str, ConfidenceFigures]:
    """System -> figures of its confidence, for the systems that have one."""
    return {name: results.confidence for name, results in summary.systems.items() if results.confidence is not None}


def _reliability_diagram(systems: Mapping[str, Reliability | ConfidenceFigures], title: str, score: str) -> Figure:
    figure = Figure(figsize=(6.0, 5.6), layout="constrained")
    axes, counts = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    _calibration(axes, counts, systems)
    axes.set_title(title, loc="left")
    counts.set_xlabel(score)
    legend_below(figure)
    return figure


def _calibration(axes: Axes, counts: Axes, systems: Mapping[str, Reliability | ConfidenceFigures]) -> None:
    """Draw accuracy over score into `axes` and the number of answers per bin into `counts`."""
    axes.plot([0, 1], [0, 100], linestyle=":", color=GREY, label="perfectly calibrated")
    width = 0.08 / len(systems)
    for i, (name, figures) in enumerate(systems.items()):
        color, bins = COLORS[i % len(COLORS)], figures.bins
        label = f"{name} (calibration error {100 * figures.ece:.1f})"
        axes.plot([b.score for b in bins], [100 * b.vqa_accuracy for b in bins], marker="o", color=color, label=label)
        positions = [b.low + 0.01 + (i + 0.5) * width for b in bins]
        counts.bar(positions, [b.questions for b in bins], width, color=color)
    axes.set_ylim(0, 105)
    axes.set_ylabel("VQA accuracy, %")
    counts.set_ylabel("answers")
    counts.set_xlim(0, 1)
