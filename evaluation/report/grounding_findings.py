"""The findings about answers that are boxes, as sentences."""

from evaluation.report.table_format import format_interval, percent
from evaluation.schema.summary_file import GroundingComparison, Summary


def box_headline(summary: Summary) -> str:
    """The best system in Acc@0.5, and whether it uses the images; empty if there are no questions for boxes."""
    figures = {name: results.grounding["first"] for name, results in summary.systems.items() if results.grounding}
    if not figures:
        return ""
    top = max(figures, key=lambda name: figures[name].acc_50)
    best = figures[top]
    share = f"{percent(best.acc_50)} % of {best.questions:,} boxes right ({format_interval(best.acc_50_ci95)}; IoU of at least .5)"
    sentence = f"{top} places {share}, with a mean IoU of {percent(best.mean_iou)} %."
    return sentence + _image_use(summary)


def _image_use(summary: Summary) -> str:
    """Whether the system of the control runs uses the images for its boxes; empty without a run with shuffled images."""
    grounding = summary.grounding
    row = next((row for row in grounding.comparisons if row.b == "controls/shuffled_images"), None) if grounding is not None else None
    if grounding is None or row is None:
        return ""
    shuffled, name = percent((grounding.controls or {})["shuffled_images"].acc_50), grounding.controlled_system
    if row.verdict == "a":
        return f" {name} uses the images: with shuffled images {shuffled} % are right."
    return f" {name} is not shown to use the images: with shuffled images {shuffled} % are right."


def box_sentences(summary: Summary) -> list[str]:
    """One sentence per difference in Acc@0.5 that is shown, and the number of those that are not."""
    rows = [] if summary.grounding is None else summary.grounding.comparisons
    shown = [row for row in rows if row.verdict != "not shown"]
    lines = [_sentence(row) for row in shown]
    if left := len(rows) - len(shown):
        lines.append(f"Boxes: {left} difference{'s' if left > 1 else ''} in Acc@0.5 {'are' if left > 1 else 'is'} not shown.")
    return lines


def _sentence(row: GroundingComparison) -> str:
    better, worse = (row.a, row.b) if row.verdict == "a" else (row.b, row.a)
    ends = sorted(100 * abs(end) for end in row.ci95)
    points = f"{100 * abs(row.difference):.1f} points (interval {ends[0]:.1f} to {ends[1]:.1f})"
    return f"Boxes: {better} is better than {worse} in Acc@0.5 by {points}."
