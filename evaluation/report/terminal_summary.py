"""What a finished evaluation prints: the finding in words, one table, and where the rest is, in at most 25 lines of 100 columns; and, when
asked, all tables."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from answering.rerank.choose_answer import displayed_choice
from evaluation.report.findings import headline
from evaluation.report.grounding_findings import box_headline
from evaluation.report.grounding_tables import box_table
from evaluation.report.report_notes import CURVE_REMARK, failure_count, missing_font, remarks
from evaluation.report.result_tables import GAMEABLE_TITLE, TERMS, all_tables, caption_table
from evaluation.report.table_format import Row, align_columns, format_interval, percent
from evaluation.schema.answer_figures import ChoiceFigures
from evaluation.schema.summary_file import Summary

WIDTH = 100
MOST_ROWS = 7
"""Rows of the table; more stand in report.md."""
MOST_FINDING_LINES, MOST_NOTE_LINES = 5, 2
_NAME_WIDTH = 40


def terminal_summary(summary: Summary, report: Path) -> str:
    """The text. report: path of report.html."""
    parts = [*_wrapped(headline(summary), MOST_FINDING_LINES), ""]
    header, rows = _table(summary)
    if rows:
        more = len(rows) - MOST_ROWS
        parts += [*align_columns(header, rows[:MOST_ROWS]).splitlines()]
        parts += [f"{more} more rows: {report.with_name('report.md')}"] if more > 0 else []
        parts.append("")
    parts += _wrapped(box_headline(summary) if any(results.choices for results in summary.systems.values()) else "", MOST_NOTE_LINES)
    failed = sum(results.errors for results in summary.systems.values())
    parts += [failure_count(failed)] if failed else []
    missed = [threshold.what for threshold in (summary.thresholds or []) if not threshold.met]
    parts += _wrapped(f"thresholds missed: {', '.join(missed)}" if missed else "", MOST_NOTE_LINES)
    parts += _wrapped(CURVE_REMARK if summary.curve else "", MOST_NOTE_LINES)
    parts += _wrapped(summary.note or "", MOST_NOTE_LINES)
    parts += [] if missing_font(summary) is None else ["no font with Chinese characters is installed: see the warning above"]
    parts.append("all tables, with verdicts and categories: report.md beside it, or --tables")
    return "\n".join([*parts, f"report: {report}"])


def render_tables(summary: Summary) -> str:
    """All tables and notes as text for a terminal."""
    parts = [summary.note] if summary.note is not None else []
    parts.append("\n".join(f"{term}: {definition}." for term, definition in TERMS.items()))
    tables = {title: align_columns(*table) for title, table in all_tables(summary).items()}
    parts += [f"{title}:\n{table}" if title == GAMEABLE_TITLE else table for title, table in tables.items()]
    return "\n\n".join([*parts, "\n".join(remarks(summary))])


def _table(summary: Summary) -> tuple[Row, list[Row]]:
    """Header and rows: the first and the displayed choice of each system, groups of seeds and controls; boxes, or else captions, where no
    question is short."""
    header = ("system", "answer", "questions", "VQA accuracy", "95 % interval", "M4C")
    rows: list[Row] = []
    for name, results in summary.systems.items():
        choices = results.choices
        shown = dict.fromkeys(["first", displayed_choice(choices)] if choices else [])
        rows += [_row(name, choice, choices[choice]) for choice in shown]
    rows += [_row(name, "control", measures) for name, measures in (summary.controls or {}).items()]
    if rows:
        return header, rows
    boxes, box_rows = box_table(summary)
    if box_rows:
        kept = [boxes.index(column) for column in ("system", "choice", "boxes", "questions", "Acc@0.5", "mean IoU", "without a box")]
        return tuple(boxes[i] for i in kept), [tuple(_clipped(row[i]) for i in kept) for row in box_rows]
    captions, caption_rows = caption_table(summary)
    kept = [captions.index(column) for column in ("system", "choice", "captions", "texts", "BLEU-4", "ROUGE-L", "CIDEr-D")]
    return tuple(captions[i] for i in kept), [tuple(_clipped(row[i]) for i in kept) for row in caption_rows]


def _row(name: str, choice: str, measures: ChoiceFigures) -> Row:
    accuracy, interval = percent(measures.vqa_accuracy), format_interval(measures.vqa_accuracy_ci95)
    return _clipped(name), choice, f"{measures.questions:,}", accuracy, interval, percent(measures.vqa_accuracy_m4c)


def _clipped(text: str) -> str:
    return text if len(text) <= _NAME_WIDTH else text[: _NAME_WIDTH - 1] + "…"


def _wrapped(text: str, most: int) -> Sequence[str]:
    """Lines of a text; what is more than `most` lines ends in an ellipsis."""
    lines = textwrap.wrap(text, WIDTH)
    return lines if len(lines) <= most else [*lines[: most - 1], lines[most - 1][: WIDTH - 2] + " …"]
