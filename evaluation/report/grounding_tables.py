"""Tables about answers that are boxes."""

from evaluation.report.table_format import DIFFERENCE_HEADINGS, Row, Table, difference_cells, format_interval, percent, points
from evaluation.schema.answer_figures import GroundingFigures
from evaluation.schema.summary_file import Summary

BOX_CHOICES = ("first", "reranked")
"""Choices that the table shows."""


def box_table(summary: Summary) -> Table:
    """Acc@0.5 and mean IoU by system, language and source, then of the control runs."""
    rows: list[Row] = []
    for name, results in summary.systems.items():
        for choice, figures in (results.grounding or {}).items():
            if choice == BOX_CHOICES[0] or (choice in BOX_CHOICES and figures != (results.grounding or {})[BOX_CHOICES[0]]):
                rows += _rows(name, choice, figures)
    if summary.grounding is not None:
        for name, figures in (summary.grounding.controls or {}).items():
            rows += _rows(name, f"control of {summary.grounding.controlled_system}", figures)[:1]
    return ("system", "choice", "boxes", "questions", "Acc@0.5", "95 % interval", "mean IoU", "95 % interval", "without a box"), rows


def _rows(name: str, choice: str, figures: GroundingFigures) -> list[Row]:
    """All boxes, and where there are several languages or sources each of them."""
    intervals = format_interval(figures.acc_50_ci95), format_interval(figures.mean_iou_ci95)
    number = f"{figures.malformed:,}"
    rows: list[Row] = [
        (
            *(name, choice, "all", f"{figures.questions:,}", percent(figures.acc_50), intervals[0]),
            *(percent(figures.mean_iou), intervals[1], number),
        )
    ]
    for parts in (figures.by_language, figures.by_source):
        if len(parts) > 1:
            rows += [
                (name, choice, label, f"{part.questions:,}", percent(part.acc_50), "", percent(part.mean_iou), "", "")
                for label, part in parts.items()
            ]
    return rows


def box_comparison_table(summary: Summary) -> Table:
    """All comparisons in Acc@0.5 with their verdicts, and the differences in the mean IoU."""
    return ("a", "b", *DIFFERENCE_HEADINGS, "better", "detectable", "IoU: a - b (points)", "IoU: p (Holm)"), [
        (
            row.a,
            row.b,
            *difference_cells(row),
            {"a": row.a, "b": row.b}.get(row.verdict, "not shown"),
            "nothing" if row.minimum_detectable_effect is None else percent(row.minimum_detectable_effect),
            points(row.mean_iou.difference),
            f"{row.mean_iou.p_holm:.4f}",
        )
        for row in (summary.grounding.comparisons if summary.grounding is not None else [])
    ]
