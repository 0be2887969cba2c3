"""Write report.html (self-contained), report.md and the charts of an evaluation."""

import re
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from atomic_io import write_text
from dataset.loading.sample_store import SampleStore
from evaluation.report import report_notes, result_tables, table_format
from evaluation.report.box_examples import BoxExample, question_boxes, select_box_examples
from evaluation.report.charts import write_charts
from evaluation.report.examples import RIGHT, Example, data_url, examples, select_examples, thumbnail
from evaluation.report.findings import headline, sentences
from evaluation.report.image_grids import write_changed_answers
from evaluation.report.report_notes import accuracy_definition, accuracy_name
from evaluation.run.evaluation_run import EvaluationResult
from evaluation.run.evaluation_setup import Experiment
from evaluation.schema.summary_file import Summary
from evaluation.scoring.answer_scores import BOUND_CHOICES
from evaluation.scoring.question_categories import category_names

CHANGED_FOLDER = "changed"
"""Folder of the images whose answers reranking changed."""
HTML_CHARTS = ("rerank", "accuracy_by_category")
"""Charts that report.html draws itself as HTML bars, for any page width."""
BOXES_AT_ONCE = 8
"""Questions for boxes that report.html shows unfolded."""
OPEN_TABLES = ("Accuracy", "Comparisons", "Boxes", "Captions and descriptions")
"""Tables that report.html shows unfolded."""


def write_report(evaluation_result: EvaluationResult, experiment: Experiment) -> Path:
    """Write report.html, report.md, *.png and changed/ to `experiment.out`. Returns the path of report.html."""
    all_examples, summary = examples(evaluation_result), evaluation_result.summary
    settings, store, out = experiment.settings, experiment.store, experiment.out
    boxes = select_box_examples(evaluation_result.results, evaluation_result.references, settings.max_examples)
    charts = write_charts(summary, all_examples, store, out, settings.seed)
    changed = write_changed_answers(all_examples, store, out / CHANGED_FOLDER, settings.max_changed_images) if summary.rerank else 0
    shared = {
        "summary": summary,
        "headline": headline(summary),
        "accuracy_definition": accuracy_definition(summary),
        "sentences": sentences(summary),
        "remarks": report_notes.remarks(summary),
        "terms": result_tables.TERMS,
    }
    tables = result_tables.all_tables(summary)
    page = _template("template.html").render(
        **shared,
        **_page_context(summary, all_examples, select_examples(all_examples, settings.max_examples), boxes, store),
        tables=tables,
        # The page shows questions itself, so it has no grids of images.
        charts=[chart for chart in charts if chart.svg and chart.path.stem not in HTML_CHARTS],
    )
    write_text(out / "report.html", page)
    text = _template("template.md", escape=False).render(
        **shared,
        tables={title: table_format.markdown(*table) for title, table in tables.items()},
        charts={chart.path.name: chart.caption for chart in charts},
        changed=changed,
    )
    write_text(out / "report.md", text)
    return out / "report.html"


def _template(name: str, escape: bool = True) -> Any:
    environment = Environment(autoescape=escape, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = table_format.percent
    environment.filters["breakable"] = _breakable
    environment.tests["figure"] = _is_figure
    return environment.from_string(resources.files("evaluation.report").joinpath(name).read_text(encoding="utf-8"))


def _is_figure(cell: str) -> bool:
    """Whether a table's cell holds numbers alone, which are not broken into lines."""
    return not any(character.isalpha() for character in cell)


def _breakable(cell: str) -> Markup:
    """The cell as HTML in which names such as `controls/shuffled_images` may be broken into lines after / and _."""
    return Markup(re.sub("([/_])", r"\1<wbr>", str(escape(cell))))


def _page_context(
    summary: Summary, all_examples: list[Example], selected: list[Example], boxes: list[BoxExample], store: SampleStore
) -> dict[str, Any]:
    """Variables of template.html alone. `selected`, `boxes`: the examples on the page."""
    shown = [example.question for example in selected] + [example.question for example in boxes]
    images = {image_id: thumbnail(image_id, store) for question in shown for image_id in question.image_ids}
    return {
        "missing_font": report_notes.missing_font(summary),
        "accuracy_name": accuracy_name(summary),
        "meanings": result_tables.CHOICE_DESCRIPTIONS,
        "describe": result_tables.choice_description,
        "bounds": BOUND_CHOICES,
        "scored": {name: results.choices for name, results in summary.systems.items() if results.choices},
        "right": RIGHT,
        "open_tables": OPEN_TABLES,
        "examples": selected,
        "total": len(all_examples),
        "box_examples": boxes,
        "boxes_at_once": BOXES_AT_ONCE,
        "total_boxes": max(
            (figures.questions for one in summary.systems.values() for figures in (one.grounding or {}).values()), default=0
        ),
        "question_boxes": question_boxes,
        "image_urls": {image_id: None if image is None else data_url(image) for image_id, image in images.items()},
        "categories": [name for name in category_names() if any(example.question.category == name for example in selected)],
        "languages": sorted({example.question.request.language for example in selected}),
        "can_change": {name: report_notes.can_change_sentence(results.can_change) for name, results in summary.systems.items()},
        "effects": {name: results.changed for name, results in summary.systems.items() if results.changed is not None},
    }
