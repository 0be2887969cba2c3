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
from dataset.loading.sample_store import Store
from evaluation.report import rerank_tables, result_tables
from evaluation.report.charts import CAPTIONS, write_charts
from evaluation.report.examples import RIGHT, Example, data_url, examples, selection, thumbnail
from evaluation.report.findings import headline, sentences
from evaluation.report.image_grids import write_changed
from evaluation.run.evaluation_run import Outcome
from evaluation.run.evaluation_setup import Experiment
from evaluation.scoring.question_categories import names

CHANGED = "changed"
"""Folder of the pictures whose answers the rerank changed."""
NATIVE = ("rerank", "accuracy_by_category")
"""Charts whose figures the page draws itself, for any width and in the dark too."""


LETTERS = 0.55
"""On a narrow page a chart is never smaller than this: its smallest letters, of 8 points, are then 9 pixels."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart as a data URL; least: its least width in pixels, below which it is pushed sideways."""

    caption: str
    url: str
    least: int


@dataclass(frozen=True, slots=True)
class Bar:
    """A row of a bar chart: fractions 0..1. `kind`: honest, bound (floor or ceiling) or control."""

    label: str
    note: str
    value: float
    low: float
    high: float
    kind: str


def write_report(outcome: Outcome, experiment: Experiment) -> Path:
    """Write report.html, report.md, *.png and changed/ below `experiment.out`; returns the path of report.html."""
    every = examples(outcome)
    settings, store, out = experiment.settings, experiment.store, experiment.out
    shown = selection(every, settings.examples)
    charts = write_charts(outcome.summary, every, store, out, settings.seed)
    changed = write_changed(every, store, out / CHANGED, settings.changed_pictures) if "rerank" in outcome.summary else 0
    page = _template("template.html").render(**_page(outcome.summary, every, shown, store), charts=_embedded(charts))
    write_text(out / "report.html", page)
    text = _template("template.md", escape=False).render(
        summary=outcome.summary,
        headline=headline(outcome.summary),
        sentences=sentences(outcome.summary),
        remarks=result_tables.remarks(outcome.summary),
        tables={title: result_tables.markdown(*table) for title, table in result_tables.all_tables(outcome.summary).items()},
        charts={path.name: CAPTIONS[path.stem] for path in charts},
        changed=changed,
    )
    write_text(out / "report.md", text)
    return out / "report.html"


def _embedded(charts: Sequence[Path]) -> list[Chart]:
    """The charts' files as data URLs, but for those that the page draws itself."""
    return [_chart(path) for path in charts if path.stem not in NATIVE]


def _chart(path: Path) -> Chart:
    with Image.open(path) as picture:
        least = round(LETTERS * picture.width)
    return Chart(CAPTIONS[path.stem], "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii"), least)


def _template(name: str, escape: bool = True) -> Any:
    environment = Environment(autoescape=escape, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = result_tables.percent
    return environment.from_string(resources.files("evaluation.report").joinpath(name).read_text(encoding="utf-8"))


def _page(summary: dict[str, Any], every: list[Example], shown: list[Example], store: Store) -> dict[str, Any]:
    pictures = {image: thumbnail(image, store) for example in shown for image in example.question.image_ids}
    return {
        "summary": summary,
        "headline": headline(summary),
        "sentences": sentences(summary),
        "remarks": result_tables.remarks(summary),
        "bars": {name: _bars(figures) for name, figures in summary["systems"].items() if figures["choices"]},
        "controls": [_bar(name, "control", measures, "control") for name, measures in summary.get("controls", {}).items()],
        "meanings": result_tables.MEANINGS,
        "right": RIGHT,
        "tables": result_tables.all_tables(summary),
        "examples": shown,
        "total": len(every),
        "pictures": {image: None if picture is None else data_url(picture) for image, picture in pictures.items()},
        "categories": [name for name in names() if any(example.question.category == name for example in shown)],
        "languages": sorted({example.question.request.language for example in shown}),
        "can_change": {name: rerank_tables.can_change_sentence(figures) for name, figures in summary["systems"].items()},
        "effects": {name: figures["changed"] for name, figures in summary["systems"].items() if "changed" in figures},
    }


def _bars(figures: dict[str, Any]) -> list[Bar]:
    kinds = {"random": "bound", "oracle": "bound"}
    return [_bar(name, result_tables.meaning(name), measures, kinds.get(name, "honest")) for name, measures in figures["choices"].items()]


def _bar(label: str, note: str, measures: dict[str, Any], kind: str) -> Bar:
    low, high = measures["vqa_accuracy_ci95"]
    return Bar(label, note, measures["vqa_accuracy"], low, high, kind)
