"""Draw the report's charts, and write them as PNG files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure

from answering.rerank.choose_answer import displayed_choice
from dataset.loading.sample_store import SampleStore
from evaluation.report import chart_calibration, chart_curves, chart_rerank
from evaluation.report.chart_style import COLORS, INK, PageChart, legend_below, page_chart, percent_axis, save, style
from evaluation.report.examples import Example
from evaluation.report.image_grids import write_grids
from evaluation.schema.summary_file import Summary

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


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart.

    Args:
        path: its PNG file
        on_page: the same for report.html; None for a grid of images
    """

    path: Path
    on_page: PageChart | None = None

    @property
    def caption(self) -> str:
        """What it shows."""
        return CAPTIONS[self.path.stem]


def write_charts(summary: Summary, examples: Sequence[Example], store: SampleStore, out: Path, seed: int) -> list[Chart]:
    """Write <name>.png for every chart of CAPTIONS that has data; charts of an earlier run are deleted.

    Args:
        summary: content of summary.json
        examples: all short questions with their answers
        store: merged data with the images
        out: folder of the charts
        seed: seed of the sampled examples

    Returns:
        The charts, in the order of CAPTIONS.
    """
    for name in CAPTIONS:
        (out / f"{name}.png").unlink(missing_ok=True)
    if not examples:
        return []
    charts: dict[str, Callable[[Summary], Figure]] = {"accuracy_by_category": _by_category}
    if chart_rerank.reranked_systems(summary):
        charts |= {
            "overview": chart_rerank.overview,
            "rerank": chart_rerank.before_and_after,
            "rerank_by_category": chart_rerank.by_category,
        }
    if any(results.fused_calibration is not None for results in summary.systems.values()):
        charts["fused_calibration"] = chart_calibration.fused_score_calibration
    if chart_calibration.systems_with_confidence(summary):
        charts |= {"confidence": chart_calibration.confidence, "coverage": chart_calibration.coverage}
    if summary.curve is not None:
        charts["learning_curve"] = chart_curves.learning_curve
    if summary.robustness is not None:
        charts["robustness"] = chart_curves.robustness
    whole_run_charts, last = ("learning_curve", "robustness"), _without_early_checkpoints(summary)
    with style():
        written = [_write(draw(summary if name in whole_run_charts else last), out / f"{name}.png") for name, draw in charts.items()]
        written += [Chart(path) for path in write_grids(examples, store, out, seed)]
    order = list(CAPTIONS)
    return sorted(written, key=lambda chart: order.index(chart.path.stem))


def _write(figure: Figure, path: Path) -> Chart:
    return Chart(save(figure, path), page_chart(figure, path.stem, CAPTIONS[path.stem]))


def _without_early_checkpoints(summary: Summary) -> Summary:
    """The summary with only the last checkpoint, if it is a learning curve; any other summary unchanged."""
    if summary.curve is None:
        return summary
    last = max(summary.curve.items(), key=lambda item: item[1])[0]
    return replace(summary, systems={last: summary.systems[last]})


def _by_category(summary: Summary) -> Figure:
    """Accuracy by category, one bar per system, with the number of questions next to the category."""
    shown = {name: displayed_choice(results.choices) for name, results in summary.systems.items()}
    parts = {name: summary.systems[name].choices[choice].by_category for name, choice in shown.items()}
    categories = list(next(iter(parts.values())))
    height = 0.8 / len(parts)
    figure = Figure(figsize=(8, 1.4 + len(categories) * (0.35 + 0.22 * len(parts))), layout="constrained")
    axes = figure.subplots()
    for i, (name, by_category) in enumerate(parts.items()):
        positions = [row + i * height for row in range(len(categories))]
        values = [100 * by_category[category].vqa_accuracy for category in categories]
        bars = axes.barh(positions, values, height * 0.92, color=COLORS[i % len(COLORS)], label=f"{name} ({shown[name]})")
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8, color=INK)
    counts = next(iter(parts.values()))
    axes.set_yticks([row + (0.8 - height) / 2 for row in range(len(categories))])
    axes.set_yticklabels([f"{category}\n({counts[category].questions:,})" for category in categories])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    percent_axis(axes, "x")
    axes.set_title("VQA accuracy by category (questions)", loc="left")
    if len(parts) > 1:
        legend_below(figure)
    return figure
