"""report.html (self-contained), report.md and the charts, from an evaluation's outcome."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from atomic import write_text
from dataset.store import Store
from evaluation import tables
from evaluation.categories import names
from evaluation.charts import write_charts
from evaluation.examples import RIGHT, Example, data_url, examples, selection, thumbnail
from evaluation.run import Experiment, Outcome
from evaluation.scoring import CHOICES


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
    """Write report.html, report.md and *.png below `experiment.out`; returns the path of report.html."""
    every = examples(outcome)
    shown = selection(every, experiment.settings.examples)
    out = experiment.out
    charts = write_charts(outcome.summary, shown, experiment.store, out)
    page = _template("report_template.html").render(**_page(outcome.summary, every, shown, experiment.store))
    write_text(out / "report.html", page)
    text = _template("report_template.md", escape=False).render(
        summary=outcome.summary,
        sentences=sentences(outcome.summary),
        remarks=tables.remarks(outcome.summary),
        tables=_markdown_tables(outcome.summary),
        charts=[path.name for path in charts],
    )
    write_text(out / "report.md", text)
    return out / "report.html"


def sentences(summary: dict[str, Any]) -> list[str]:
    """What was found, in words: differences that are shown first, then how many are not."""
    found = []
    for row in summary["comparisons"]:
        if row["verdict"] == "not shown":
            continue
        better, worse = (row["a"], row["b"]) if row["verdict"] == "a" else (row["b"], row["a"])
        ends = sorted(100 * abs(end) for end in row["ci95"])
        found.append(f"{better} is better than {worse} by {100 * abs(row['difference']):.1f} points ({ends[0]:.1f} to {ends[1]:.1f}).")
    open_ = len(summary["comparisons"]) - len(found)
    if open_:
        what = "No difference is" if not found else f"{open_} other difference{'s are' if open_ > 1 else ' is'} not"
        found.append(f"{what} shown: with this many questions, chance alone could have made {'them' if open_ > 1 else 'it'}.")
    return found


def _template(name: str, escape: bool = True) -> Any:
    environment = Environment(autoescape=escape, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = tables.percent
    return environment.from_string(resources.files("evaluation").joinpath(name).read_text(encoding="utf-8"))


def _page(summary: dict[str, Any], every: list[Example], shown: list[Example], store: Store) -> dict[str, Any]:
    pictures = {image: thumbnail(image, store) for example in shown for image in example.question.image_ids}
    return {
        "summary": summary,
        "sentences": sentences(summary),
        "remarks": tables.remarks(summary),
        "bars": {name: _bars(figures) for name, figures in summary["systems"].items() if figures["choices"]},
        "controls": [_bar(name, "control", measures, "control") for name, measures in summary.get("controls", {}).items()],
        "meanings": tables.MEANINGS,
        "right": RIGHT,
        "tables": _all_tables(summary),
        "examples": shown,
        "total": len(every),
        "pictures": {image: None if picture is None else data_url(picture) for image, picture in pictures.items()},
        "categories": [name for name in names() if any(example.question.category == name for example in shown)],
        "languages": sorted({example.question.request.language for example in shown}),
        "effects": {name: _effects(every, i) for i, name in enumerate(summary["systems"])} if "rerank" in summary else {},
    }


def _bars(figures: dict[str, Any]) -> list[Bar]:
    kinds = {"random": "bound", "oracle": "bound"}
    present = [choice for choice in CHOICES if choice in figures["choices"]]
    return [_bar(choice, tables.MEANINGS[choice], figures["choices"][choice], kinds.get(choice, "honest")) for choice in present]


def _bar(label: str, note: str, measures: dict[str, Any], kind: str) -> Bar:
    low, high = measures["vqa_accuracy_ci95"]
    return Bar(label, note, measures["vqa_accuracy"], low, high, kind)


def _effects(every: list[Example], system: int) -> dict[str, int]:
    """How many answers the rerank changed, fixed and broke."""
    statuses = [example.answers[system].statuses for example in every]
    return {name: sum(name in found for found in statuses) for name in ("changed", "fixed", "broken")}


def _all_tables(summary: dict[str, Any]) -> dict[str, tuple[tables.Row, list[tables.Row]]]:
    made = {"All figures": tables.accuracy_table(summary)}
    if any(figures["choices"] for figures in summary["systems"].values()):
        made["By category, language and source"] = tables.category_table(summary)
    if "bars" in summary:
        made["What must hold"] = tables.bar_table(summary)
    if summary["comparisons"]:
        made["Comparisons"] = tables.comparison_table(summary)
    if any("captions" in figures for figures in summary["systems"].values()):
        made["Captions and descriptions"] = tables.caption_table(summary)
    return {title: table for title, table in made.items() if table[1]}


def _markdown_tables(summary: dict[str, Any]) -> dict[str, str]:
    return {title: tables.markdown(*table) for title, table in _all_tables(summary).items()}
