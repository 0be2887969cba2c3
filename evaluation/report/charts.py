"""The report's charts as PNG files: those that there is something to show in."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from answering.rerank.choose_answer import displayed_choice
from dataset.loading.sample_store import SampleStore
from evaluation.report import chart_calibration, chart_curves, chart_rerank
from evaluation.report.chart_style import COLORS, legend_above, percent_axis, save, style
from evaluation.report.examples import Example
from evaluation.report.image_grids import write_grids

CAPTIONS = {
    "learning_curve": "Accuracy over the training steps of one run",
    "overview": "Accuracy, fuzzy accuracy, and how many answers the rerank changed",
    "rerank": "Before and after the rerank, and what a perfect choice could reach",
    "rerank_by_category": "What the rerank did in each category",
    "accuracy_by_category": "Accuracy by category",
    "fused_calibration": "What the fused score is worth as a probability",
    "confidence": "How far an answer's credibility can be believed, and what giving only credible answers gains",
    "robustness": "Accuracy on worse and worse pictures",
    "right_cases": "Right answers, drawn at random",
    "wrong_cases": "Wrong answers, drawn at random",
}
"""Every chart by the name of its file, in the order in which they are shown, with what it shows."""


def write_charts(summary: dict[str, Any], examples: Sequence[Example], store: SampleStore, out: Path, seed: int) -> list[Path]:
    """Write <name>.png for the charts of CAPTIONS that have something to show; those of an earlier run go. Returns their paths."""
    for name in CAPTIONS:
        (out / f"{name}.png").unlink(missing_ok=True)
    if not examples:
        return []
    charts: dict[str, Callable[[dict[str, Any]], Figure]] = {"accuracy_by_category": _by_category}
    if chart_rerank.reranked_systems(summary):
        charts |= {
            "overview": chart_rerank.overview,
            "rerank": chart_rerank.before_and_after,
            "rerank_by_category": chart_rerank.by_category,
        }
    if any("fused_calibration" in results for results in summary["systems"].values()):
        charts["fused_calibration"] = chart_calibration.fused_score_calibration
    if chart_calibration.systems_with_confidence(summary):
        charts["confidence"] = chart_calibration.confidence
    if "curve" in summary:
        charts["learning_curve"] = chart_curves.learning_curve
    if "robustness" in summary:
        charts["robustness"] = chart_curves.robustness
    whole_run_charts, shown = ("learning_curve", "robustness"), _without_early_checkpoints(summary)
    with style():
        written = [save(chart(summary if name in whole_run_charts else shown), out / f"{name}.png") for name, chart in charts.items()]
        written += write_grids(examples, store, out, seed)
    order = list(CAPTIONS)
    return sorted(written, key=lambda path: order.index(path.stem))


def _without_early_checkpoints(summary: dict[str, Any]) -> dict[str, Any]:
    """Of a learning curve the last checkpoint only; any other summary as it is."""
    if "curve" not in summary:
        return summary
    last = max(summary["curve"], key=summary["curve"].get)
    return {**summary, "systems": {last: summary["systems"][last]}}


def _by_category(summary: dict[str, Any]) -> Figure:
    """Bars by category, one for each system, with the number of questions beside the name."""
    shown = {name: displayed_choice(results["choices"]) for name, results in summary["systems"].items()}
    parts = {name: summary["systems"][name]["choices"][choice]["by_category"] for name, choice in shown.items()}
    categories = list(next(iter(parts.values())))
    height = 0.8 / len(parts)
    figure = Figure(figsize=(8, 1.4 + len(categories) * (0.35 + 0.22 * len(parts))))
    axes = figure.subplots()
    for i, (name, by_category) in enumerate(parts.items()):
        positions = [row + i * height for row in range(len(categories))]
        values = [100 * by_category[category]["vqa_accuracy"] for category in categories]
        bars = axes.barh(positions, values, height * 0.92, color=COLORS[i % len(COLORS)], label=f"{name} ({shown[name]})")
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8, color="#444444")
    counts = next(iter(parts.values()))
    axes.set_yticks([row + (0.8 - height) / 2 for row in range(len(categories))])
    axes.set_yticklabels([f"{category}\n({counts[category]['questions']:,})" for category in categories])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    percent_axis(axes, "x")
    axes.set_title("Official VQA accuracy by category (questions)", loc="left", pad=30 if len(parts) > 1 else 12)
    if len(parts) > 1:
        legend_above(axes)
    return figure
