"""report.html (self-contained), report.md and the charts, from an evaluation's outcome."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

from atomic_io import write_text
from dataset.loading.sample_store import SampleStore
from evaluation.report import rerank_tables, result_tables
from evaluation.report.charts import CAPTIONS, write_charts
from evaluation.report.examples import RIGHT, Example, data_url, examples, select_examples, thumbnail
from evaluation.report.findings import headline, sentences
from evaluation.report.image_grids import write_changed_answers
from evaluation.run.evaluation_run import EvaluationResult
from evaluation.run.evaluation_setup import Experiment
from evaluation.scoring.question_categories import category_names

CHANGED_FOLDER = "changed"
"""Folder of the pictures whose answers the rerank changed."""
HTML_CHARTS = ("rerank", "accuracy_by_category")
"""Charts whose figures the page draws itself, for any width and in the dark too."""


MIN_CHART_SCALE = 0.55
"""On a narrow page a chart is never smaller than this: its smallest letters, of 8 points, are then 9 pixels."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart as a data URL; least: its least width in pixels, below which it is pushed sideways."""

    caption: str
    url: str
    min_width: int


@dataclass(frozen=True, slots=True)
class Bar:
    """A row of a bar chart: fractions 0..1. `kind`: honest, bound (floor or ceiling) or control."""

    label: str
    note: str
    value: float
    low: float
    high: float
    kind: str


def write_report(evaluation_result: EvaluationResult, experiment: Experiment) -> Path:
    """Write report.html, report.md, *.png and changed/ below `experiment.out`; returns the path of report.html."""
    all_examples = examples(evaluation_result)
    settings, store, out = experiment.settings, experiment.store, experiment.out
    shown = select_examples(all_examples, settings.max_examples)
    charts = write_charts(evaluation_result.summary, all_examples, store, out, settings.seed)
    changed = (
        write_changed_answers(all_examples, store, out / CHANGED_FOLDER, settings.max_changed_images)
        if "rerank" in evaluation_result.summary
        else 0
    )
    page = _template("template.html").render(
        **_page_context(evaluation_result.summary, all_examples, shown, store), charts=_embed_charts(charts)
    )
    write_text(out / "report.html", page)
    text = _template("template.md", escape=False).render(
        summary=evaluation_result.summary,
        headline=headline(evaluation_result.summary),
        sentences=sentences(evaluation_result.summary),
        remarks=result_tables.remarks(evaluation_result.summary),
        tables={title: result_tables.markdown(*table) for title, table in result_tables.all_tables(evaluation_result.summary).items()},
        charts={path.name: CAPTIONS[path.stem] for path in charts},
        changed=changed,
    )
    write_text(out / "report.md", text)
    return out / "report.html"


def _embed_charts(charts: Sequence[Path]) -> list[Chart]:
    """The charts' files as data URLs, but for those that the page draws itself."""
    return [_chart(path) for path in charts if path.stem not in HTML_CHARTS]


def _chart(path: Path) -> Chart:
    with Image.open(path) as image:
        min_width = round(MIN_CHART_SCALE * image.width)
    return Chart(CAPTIONS[path.stem], "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii"), min_width)


def _template(name: str, escape: bool = True) -> Any:
    environment = Environment(autoescape=escape, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = result_tables.percent
    return environment.from_string(resources.files("evaluation.report").joinpath(name).read_text(encoding="utf-8"))


def _page_context(summary: dict[str, Any], all_examples: list[Example], shown: list[Example], store: SampleStore) -> dict[str, Any]:
    images = {image_id: thumbnail(image_id, store) for example in shown for image_id in example.question.image_ids}
    return {
        "summary": summary,
        "headline": headline(summary),
        "sentences": sentences(summary),
        "remarks": result_tables.remarks(summary),
        "thresholds": {name: _bars(results) for name, results in summary["systems"].items() if results["choices"]},
        "controls": [_bar(name, "control", measures, "control") for name, measures in summary.get("controls", {}).items()],
        "meanings": result_tables.CHOICE_DESCRIPTIONS,
        "right": RIGHT,
        "tables": result_tables.all_tables(summary),
        "examples": shown,
        "total": len(all_examples),
        "pictures": {image_id: None if image is None else data_url(image) for image_id, image in images.items()},
        "categories": [name for name in category_names() if any(example.question.category == name for example in shown)],
        "languages": sorted({example.question.request.language for example in shown}),
        "can_change": {name: rerank_tables.can_change_sentence(results) for name, results in summary["systems"].items()},
        "effects": {name: results["changed"] for name, results in summary["systems"].items() if "changed" in results},
    }


def _bars(results: dict[str, Any]) -> list[Bar]:
    kinds = {"random": "bound", "oracle": "bound"}
    return [
        _bar(name, result_tables.choice_description(name), measures, kinds.get(name, "honest"))
        for name, measures in results["choices"].items()
    ]


def _bar(label: str, note: str, measures: dict[str, Any], kind: str) -> Bar:
    low, high = measures["vqa_accuracy_ci95"]
    return Bar(label, note, measures["vqa_accuracy"], low, high, kind)
