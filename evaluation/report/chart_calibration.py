"""What a score between 0 and 1 is worth: as a probability of being right, and to decide which answers to give."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.report.chart_style import COLORS, GREY

Summary = dict[str, Any]


def fused_score_calibration(summary: Summary) -> Figure:
    """Accuracy of the reranked answers by the fused score that chose them, and how many answers have each score."""
    systems = _systems(summary, "fused_calibration")
    figure = Figure(figsize=(6.0, 5.6), layout="constrained")
    axes, counts = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    _calibration(axes, counts, systems)
    axes.set_title("Can the fused score be read as a probability?", loc="left")
    counts.set_xlabel("fused score of the reranked answer")
    return figure


def confidence(summary: Summary) -> Figure:
    """The same of the credibility that was fitted on the validation split, and the accuracy of the most credible answers."""
    systems = systems_with_confidence(summary)
    figure = Figure(figsize=(11.0, 5.6), layout="constrained")
    left, right = figure.subplots(2, 2, height_ratios=[3, 1], squeeze=False).T
    left[1].sharex(left[0])
    _calibration(left[0], left[1], systems)
    left[0].set_title("Can the credibility be believed?", loc="left")
    left[1].set_xlabel("confidence")
    right[1].axis("off")
    for i, (name, found) in enumerate(systems.items()):
        points = found["risk_coverage"]
        color = COLORS[i % len(COLORS)]
        right[0].plot([100 * p["coverage"] for p in points], [100 * p["vqa_accuracy"] for p in points], marker=".", color=color, label=name)
    right[0].set_xlim(0, 102)
    right[0].set_ylim(0, 105)
    right[0].set_xlabel("the most credible answers given, %")
    right[0].set_ylabel("their official VQA accuracy, %")
    right[0].set_title("What is gained by saying less (risk and coverage)", loc="left")
    right[0].legend(frameon=False, fontsize=9, loc="lower left")
    return figure


def systems_with_confidence(summary: Summary) -> dict[str, Any]:
    """What is known of the credibility of each system that has one."""
    return _systems(summary, "confidence")


def _systems(summary: Summary, key: str) -> dict[str, Any]:
    return {name: results[key] for name, results in summary["systems"].items() if key in results}


def _calibration(axes: Axes, counts: Axes, systems: dict[str, Any]) -> None:
    """Accuracy by score above, how many answers have it below."""
    axes.plot([0, 1], [0, 100], linestyle=":", color=GREY, label="a score that is a probability")
    width = 0.08 / len(systems)
    for i, (name, found) in enumerate(systems.items()):
        color, bins = COLORS[i % len(COLORS)], found["bins"]
        label = f"{name} (calibration error {100 * found['ece']:.1f})"
        axes.plot([b["score"] for b in bins], [100 * b["vqa_accuracy"] for b in bins], marker="o", color=color, label=label)
        positions = [b["from"] + 0.01 + (i + 0.5) * width for b in bins]
        counts.bar(positions, [b["questions"] for b in bins], width, color=color)
    axes.set_ylim(0, 105)
    axes.set_ylabel("official VQA accuracy, %")
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    counts.set_ylabel("answers")
    counts.set_xlim(0, 1)
