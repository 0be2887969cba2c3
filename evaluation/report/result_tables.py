"""Tables and notes made from summary.json, for the terminal, report.md and report.html."""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from answering.rerank.candidate_scores import CORRECTED_SUFFIX
from answering.rerank.choose_answer import displayed_choice
from evaluation.metrics.short_answers import GAMEABLE_METRICS
from evaluation.report import rerank_tables
from evaluation.report.report_notes import remarks
from evaluation.schema.answer_figures import ChoiceFigures
from evaluation.schema.summary_file import Comparison, Summary

CHOICE_DESCRIPTIONS = {
    "first": "the first candidate: the system's most likely one",
    "majority": "the candidate that was generated most often",
    "likelihood": "the candidate with the highest mean log-probability per token",
    "self": "the candidate that the system itself rates most likely to be right",
    "reranked": "the candidate with the highest fused score of likelihood and image-text match",
    "learned": "the candidate that a logistic model over all scores, fitted on the validation split, prefers",
    "abstaining": 'the reranked answer, or "not sure" where its confidence is below the threshold',
    "random": "a random candidate; a lower bound, not a method",
    "oracle": "the candidate with the highest accuracy, chosen with the references; an upper bound, not a method",
}
"""Choice -> what it chooses."""

TERMS = {
    "candidate": "one of the answers that a system generates for a question; every choice picks one of them",
    "oracle": "the choice that picks the candidate with the highest accuracy, using the references: an upper bound, not a method",
    "control": "a run of the first checkpoint that should score worse, with shuffled images or with an untrained connector",
    "shown": "a difference is shown if its 95 % interval excludes 0 and p (Holm-corrected over all comparisons) is at most .05",
}
"""Terms that the reports define before or where they first use them."""

OTHER_METRICS = (("vqa_accuracy_m4c", "M4C"), ("exact", "exact"), ("anls", "ANLS"))
"""Metrics next to VQA accuracy, with their table headings."""
_GAMEABLE_HEADINGS = {"bidirectional": "contains, either way"}
GAMEABLE_TITLE = (
    "Metrics that can be gamed by saying more: the 30 most frequent answers of VQA v2 as one text get 74 % in each of them, 0 % officially"
)
"""Heading of the table of GAMEABLE_METRICS, which stand apart from the others."""

Row = Sequence[str]


def render_tables(summary: Summary) -> str:
    """All tables and notes as text for a terminal."""
    parts = [summary.note] if summary.note is not None else []
    parts.append("\n".join(f"{term}: {definition}." for term, definition in TERMS.items()))
    tables = {title: align_columns(*table) for title, table in all_tables(summary).items()}
    parts += [f"{title}:\n{table}" if title == GAMEABLE_TITLE else table for title, table in tables.items()]
    return "\n\n".join([*parts, "\n".join(remarks(summary))])


def all_tables(summary: Summary) -> dict[str, tuple[Row, list[Row]]]:
    """Title -> (header, rows) of every table that has rows."""
    by_title = {"Questions that choosing another candidate can affect": rerank_tables.can_change_table(summary)}
    by_title["Accuracy"] = accuracy_table(summary)
    if summary.groups is not None:
        by_title["Mean and spread over seeds"] = group_table(summary)
    if any(results.choices for results in summary.systems.values()):
        by_title["By category, language and source"] = category_table(summary)
    if summary.thresholds is not None:
        by_title["Thresholds"] = threshold_table(summary)
    by_title["Visual tokens per question"] = visual_token_table(summary)
    by_title["Comparisons"] = comparison_table(summary)
    by_title["Calibration of the confidence"] = rerank_tables.confidence_table(summary)
    by_title["Calibration of the confidence by kind of question"] = rerank_tables.confidence_by_kind_table(summary)
    by_title["Reranking on the validation split"] = rerank_tables.validation_table(summary)
    by_title["Captions and descriptions"] = caption_table(summary)
    by_title["Unanswerable questions"] = unanswerable_table(summary)
    by_title["Sensitivity to the answer format"] = format_table(summary)
    by_title["Corrupted images"] = robustness_table(summary)
    by_title[GAMEABLE_TITLE] = gameable_table(summary)
    return {title: table for title, table in by_title.items() if table[1]}


def choice_description(choice: str) -> str:
    """What a choice chooses; an unknown name is the choice of an image-text scorer."""
    if choice in CHOICE_DESCRIPTIONS:
        return CHOICE_DESCRIPTIONS[choice]
    scorer = choice.removesuffix(CORRECTED_SUFFIX)
    return f"the candidate that {scorer} scores highest on the image" + (
        "" if scorer == choice else ", minus its mean score on background images"
    )


def align_columns(header: Row, rows: Iterable[Row]) -> str:
    """A table with aligned columns; a wide (Chinese) character takes two columns."""
    lines = [header, *rows]
    widths = [max(_width(line[i]) for line in lines) for i in range(len(header))]
    rendered = ["  ".join(cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([rendered[0], "-" * max(map(_width, rendered)), *rendered[1:]])


def markdown(header: Row, rows: Iterable[Row]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def accuracy_table(summary: Summary) -> tuple[Row, list[Row]]:
    """Header and rows: accuracy by system and choice, then of the control runs."""
    header = ("system", "choice", "questions", "VQA accuracy", "95 % interval", *(label for _, label in OTHER_METRICS))
    return header, [_accuracy_row(*row) for row in _measured(summary)]


def gameable_table(summary: Summary) -> tuple[Row, list[Row]]:
    """Header and rows: GAMEABLE_METRICS by system and choice, then of the control runs."""
    header = ("system", "choice", *(_GAMEABLE_HEADINGS.get(metric, metric) for metric in GAMEABLE_METRICS))
    return header, [(name, choice, *(percent(m.metric(metric)) for metric in GAMEABLE_METRICS)) for name, choice, m in _measured(summary)]


def _measured(summary: Summary) -> list[tuple[str, str, ChoiceFigures]]:
    """Name, choice and figures of every choice of every system, then of the control runs."""
    systems = [(name, choice, measures) for name, results in summary.systems.items() for choice, measures in results.choices.items()]
    controls = summary.controls or {}
    return [*systems, *((name, f"control of {summary.controlled_system}", controls[name]) for name in controls)]


def _accuracy_row(name: str, choice: str, measures: ChoiceFigures) -> Row:
    others = (percent(measures.metric(metric)) for metric, _ in OTHER_METRICS)
    interval = format_interval(measures.vqa_accuracy_ci95)
    return (name, choice, f"{measures.questions:,}", percent(measures.vqa_accuracy), interval, *others)


def category_table(summary: Summary) -> tuple[Row, list[Row]]:
    """Header and rows: accuracy by category, language and source of each system's displayed choice (reranked, else first)."""
    displayed = {name: displayed_choice(results.choices) for name, results in summary.systems.items() if results.choices}
    header = ("VQA accuracy by", "questions", *(f"{name}/{choice}" for name, choice in displayed.items()))
    measures = [summary.systems[name].choices[choice] for name, choice in displayed.items()]
    rows: list[Row] = []
    for parts in zip(*((m.by_category, m.by_language, m.by_source) for m in measures), strict=True):
        for label, part in parts[0].items():
            rows.append((label, f"{part.questions:,}", *(percent(own[label].vqa_accuracy) for own in parts)))
    return header, rows


def visual_token_table(summary: Summary) -> tuple[Row, list[Row]]:
    """Header and rows: what each system sees of the images of a question, as the mean number of tokens in its language model's input."""
    rows: list[Row] = [
        (
            name,
            describe_image_limit(results.model),
            f"{tokens:,.1f}" if (tokens := results.visual_tokens) is not None else "unknown",
        )
        for name, results in summary.systems.items()
    ]
    return ("system", "images", "visual tokens, mean"), rows


def describe_image_limit(model: dict[str, Any]) -> str:
    """The size at which a system is given images; a system without the setting has one resolution of its own."""
    if "max_image_side" not in model:
        return "at its own resolution"
    side = model["max_image_side"]
    return "within its own limits" if side is None else f"at most {side:,} pixels a side"


def caption_table(summary: Summary) -> tuple[Row, list[Row]]:
    """Header and rows: caption metrics before and after reranking."""
    header = ("system", "choice", "captions", "texts", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D", "CLIPScore")
    rows: list[Row] = [
        (
            name,
            choice,
            kind,
            f"{scores.questions:,}",
            *map(percent, (scores.bleu_1, scores.bleu_2, scores.bleu_3, scores.bleu_4)),
            percent(scores.rouge_l),
            f"{scores.cider_d:.2f}",
            f"{scores.clip_score:.3f}" if scores.clip_score is not None else "",
        )
        for name, results in summary.systems.items()
        for choice, kinds in (results.captions or {}).items()
        if choice in ("first", "reranked")
        for kind, scores in kinds.items()
    ]
    return header, rows


def comparison_table(summary: Summary) -> tuple[Row, list[Row]]:
    """Header and rows: all comparisons with their verdicts."""
    tested = ("a - b (points)", "95 % interval", "p", "p (Holm)", "better")
    header = ("a", "b", *tested, "detectable", "exact: only a / only b", "McNemar p (Holm)")
    rows: list[Row] = [
        (
            row.a,
            row.b,
            f"{100 * row.difference:+.1f}",
            f"{100 * row.ci95[0]:+.1f} .. {100 * row.ci95[1]:+.1f}",
            f"{row.p_value:.4f}",
            f"{row.p_holm:.4f}",
            {"a": row.a, "b": row.b}.get(row.verdict, "not shown"),
            f"{100 * row.minimum_detectable_effect:.1f}" if row.minimum_detectable_effect is not None else "nothing",
            *_mcnemar_cells(row),
        )
        for row in summary.comparisons
    ]
    return header, rows


def _mcnemar_cells(row: Comparison) -> Row:
    if row.mcnemar is None:
        return "", ""
    test = row.mcnemar
    return f"{test.only_a:,} / {test.only_b:,}", f"{test.p_holm:.4f}"


def group_table(summary: Summary) -> tuple[Row, list[Row]]:
    """Header and rows: mean and spread of the VQA accuracy over seeds of one configuration."""
    header = ("group", "choice", "systems", "VQA accuracy", "standard deviation", "lowest .. highest", "M4C")
    rows: list[Row] = [
        (
            name,
            choice,
            str(len(group.systems)),
            percent(scores["vqa_accuracy"].mean),
            f"{100 * scores['vqa_accuracy'].sd:.2f}",
            format_interval([scores["vqa_accuracy"].lowest, scores["vqa_accuracy"].highest]),
            percent(scores["vqa_accuracy_m4c"].mean),
        )
        for name, group in (summary.groups or {}).items()
        for choice, scores in group.choices.items()
    ]
    return header, rows


def format_table(summary: Summary) -> tuple[Row, list[Row]]:
    """Header and rows: change in accuracy when only the format of the answers changes."""
    header = ("system", "choice", "format", "VQA accuracy", "change", "M4C", "change", "exact", "change")
    rows: list[Row] = []
    for name, results in summary.systems.items():
        for choice, forms in (results.format_sensitivity or {}).items():
            plain = results.choices[choice]
            for form, label in (("capitalised", "capitalised"), ("full_stop", "with a full stop")):
                cells = [(percent(value), f"{100 * (value - plain.metric(metric)):+.1f}") for metric, value in forms[form].items()]
                rows.append((name, choice, label, *(cell for pair in cells for cell in pair)))
    return header, rows


def unanswerable_table(summary: Summary) -> tuple[Row, list[Row]]:
    """Header and rows: detection of unanswerable questions by system."""
    rows: list[Row] = [
        (name, f"{values.questions:,}", percent(values.average_precision), percent(values.f1))
        for name, results in summary.systems.items()
        if (values := results.unanswerable) is not None
    ]
    return ("system", "unanswerable questions", "average precision", "F1"), rows


def robustness_table(summary: Summary) -> tuple[Row, list[Row]]:
    """Header and rows: accuracy on corrupted images, with the difference from the clean ones."""
    rows: list[Row] = [
        (
            name,
            kind,
            str(point.strength),
            f"{robust.questions:,}",
            percent(point.vqa_accuracy),
            format_interval(point.vqa_accuracy_ci95),
            f"{100 * (point.vqa_accuracy - robust.clean.vqa_accuracy):+.1f}",
        )
        for name, robust in (summary.robustness or {}).items()
        for kind, points in robust.corrupted.items()
        for point in points
    ]
    return ("system", "corruption", "strength", "questions", "VQA accuracy", "95 % interval", "minus clean"), rows


def threshold_table(summary: Summary) -> tuple[Row, list[Row]]:
    """Header and rows: thresholds, measured values, and whether they are met."""
    rows: list[Row] = [
        (
            threshold.what,
            percent(threshold.value),
            f"{threshold.kind} {percent(threshold.limit)}",
            "yes" if threshold.met else "NO",
        )
        for threshold in summary.thresholds or []
    ]
    return ("measured", "VQA accuracy", "threshold", "met"), rows


def percent(value: float) -> str:
    """A fraction in percent."""
    return f"{100 * value:.1f}"


def format_interval(interval: Sequence[float]) -> str:
    """An interval of fractions in percent."""
    return f"{100 * interval[0]:.1f} .. {100 * interval[1]:.1f}"


def _width(text: str) -> int:
    """Width of a text in terminal columns."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
