"""Tables made from summary.json, for the terminal, report.md and report.html."""

from itertools import chain
from typing import Any

from answering.rerank.candidate_scores import CORRECTED_SUFFIX
from answering.rerank.choose_answer import displayed_choice
from evaluation.metrics.short_answers import GAMEABLE_METRICS
from evaluation.report.grounding_tables import box_comparison_table, box_table
from evaluation.report.table_format import DIFFERENCE_HEADINGS, Row, Table, difference_cells, format_interval, percent, points
from evaluation.schema.answer_figures import ChoiceFigures
from evaluation.schema.summary_file import Summary

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

COVERAGES = (0.5, 0.8)
"""Coverages, fractions of the most confident answers, at which the accuracy is reported."""
_CAN_CHANGE = {
    "several_candidates": "% with several candidates",
    "score_can_change": "% whose score can change",
    "score_can_rise": "% whose score can rise",
    "skipped": "% skipped by reranking",
    "rerank_can_change": "% whose score reranking can change",
    "rerank_can_rise": "% whose score reranking can raise",
}


def all_tables(summary: Summary) -> dict[str, Table]:
    """Every table that has rows, by its title."""
    by_title = {
        "Questions that choosing another candidate can affect": can_change_table(summary),
        "Accuracy": accuracy_table(summary),
        "Mean and spread over seeds": group_table(summary),
        "By category, language and source": category_table(summary),
        "Thresholds": threshold_table(summary),
        "Visual tokens per question": visual_token_table(summary),
        "Comparisons": comparison_table(summary),
        "Calibration of the confidence": confidence_table(summary),
        "Calibration of the confidence by kind of question": confidence_by_kind_table(summary),
        "Reranking on the validation split": validation_table(summary),
        "Boxes": box_table(summary),
        "Comparisons of boxes": box_comparison_table(summary),
        "Captions and descriptions": caption_table(summary),
        "Unanswerable questions": unanswerable_table(summary),
        "Sensitivity to the answer format": format_table(summary),
        "Corrupted images": robustness_table(summary),
        GAMEABLE_TITLE: gameable_table(summary),
    }
    return {title: table for title, table in by_title.items() if table[1]}


def choice_description(choice: str) -> str:
    """What a choice chooses; an unknown name is the choice of an image-text scorer."""
    if choice in CHOICE_DESCRIPTIONS:
        return CHOICE_DESCRIPTIONS[choice]
    scorer = choice.removesuffix(CORRECTED_SUFFIX)
    return f"the candidate that {scorer} scores highest on the image" + (
        "" if scorer == choice else ", minus its mean score on background images"
    )


def can_change_table(summary: Summary) -> Table:
    """Percentage of questions on which choosing another candidate can change or raise the score, by system."""
    by_system = {name: vars(results.can_change) for name, results in summary.systems.items() if results.can_change is not None}
    keys = [key for key in _CAN_CHANGE if any(values[key] is not None for values in by_system.values())]
    return ("system", *(_CAN_CHANGE[key] for key in keys)), [
        (name, *("" if values[key] is None else percent(values[key]) for key in keys)) for name, values in by_system.items()
    ]


def accuracy_table(summary: Summary) -> Table:
    """Accuracy by system and choice, then of the control runs."""
    return ("system", "choice", "questions", "VQA accuracy", "95 % interval", *(label for _, label in OTHER_METRICS)), [
        (
            name,
            choice,
            f"{measures.questions:,}",
            percent(measures.vqa_accuracy),
            format_interval(measures.vqa_accuracy_ci95),
            *(percent(measures.metric(metric)) for metric, _ in OTHER_METRICS),
        )
        for name, choice, measures in _measured(summary)
    ]


def gameable_table(summary: Summary) -> Table:
    """GAMEABLE_METRICS by system and choice, then of the control runs."""
    header = ("system", "choice", *(_GAMEABLE_HEADINGS.get(metric, metric) for metric in GAMEABLE_METRICS))
    return header, [(name, choice, *(percent(m.metric(metric)) for metric in GAMEABLE_METRICS)) for name, choice, m in _measured(summary)]


def _measured(summary: Summary) -> list[tuple[str, str, ChoiceFigures]]:
    """Name, choice and figures of every choice of every system, then of the control runs."""
    systems = [(name, choice, measures) for name, results in summary.systems.items() for choice, measures in results.choices.items()]
    return [*systems, *((name, f"control of {summary.controlled_system}", control) for name, control in (summary.controls or {}).items())]


def category_table(summary: Summary) -> Table:
    """Accuracy by category, language and source of each system's displayed choice (reranked, else first)."""
    displayed = {name: displayed_choice(results.choices) for name, results in summary.systems.items() if results.choices}
    measures = [summary.systems[name].choices[choice] for name, choice in displayed.items()]
    return ("VQA accuracy by", "questions", *(f"{name}/{choice}" for name, choice in displayed.items())), [
        (label, f"{part.questions:,}", *(percent(own[label].vqa_accuracy) for own in parts))
        for parts in zip(*((m.by_category, m.by_language, m.by_source) for m in measures), strict=True)
        for label, part in parts[0].items()
    ]


def visual_token_table(summary: Summary) -> Table:
    """What each system sees of the images of a question, as the mean number of tokens in its language model's input."""
    return ("system", "images", "visual tokens, mean"), [
        (name, describe_image_limit(results.model), "unknown" if results.visual_tokens is None else f"{results.visual_tokens:,.1f}")
        for name, results in summary.systems.items()
    ]


def describe_image_limit(model: dict[str, Any]) -> str:
    """The size at which a system is given images; a system without the setting has one resolution of its own."""
    if "max_image_side" not in model:
        return "at its own resolution"
    side = model["max_image_side"]
    return "within its own limits" if side is None else f"at most {side:,} pixels a side"


def caption_table(summary: Summary) -> Table:
    """Caption metrics before and after reranking."""
    header = ("system", "choice", "captions", "texts", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D", "CLIPScore")
    return header, [
        (
            name,
            choice,
            kind,
            f"{scores.questions:,}",
            *map(percent, (scores.bleu_1, scores.bleu_2, scores.bleu_3, scores.bleu_4, scores.rouge_l)),
            f"{scores.cider_d:.2f}",
            f"{scores.clip_score:.3f}" if scores.clip_score is not None else "",
        )
        for name, results in summary.systems.items()
        for choice, kinds in (results.captions or {}).items()
        if choice in ("first", "reranked")
        for kind, scores in kinds.items()
    ]


def comparison_table(summary: Summary) -> Table:
    """All comparisons with their verdicts."""
    return ("a", "b", *DIFFERENCE_HEADINGS, "better", "detectable", "exact: only a / only b", "McNemar p (Holm)"), [
        (
            row.a,
            row.b,
            *difference_cells(row),
            {"a": row.a, "b": row.b}.get(row.verdict, "not shown"),
            "nothing" if row.minimum_detectable_effect is None else percent(row.minimum_detectable_effect),
            *(("", "") if row.mcnemar is None else (f"{row.mcnemar.only_a:,} / {row.mcnemar.only_b:,}", f"{row.mcnemar.p_holm:.4f}")),
        )
        for row in summary.comparisons
    ]


def confidence_table(summary: Summary) -> Table:
    """Calibration of the confidence, and accuracy of the most confident answers."""
    coverages = (f"accuracy of the most confident {fraction:.0%}" for fraction in COVERAGES)
    rows: list[Row] = []
    for name, results in summary.systems.items():
        if (values := results.confidence) is not None:
            curve = {point.coverage: point.vqa_accuracy for point in values.risk_coverage}
            selective = (percent(curve[fraction]) if fraction in curve else "" for fraction in COVERAGES)
            rows.append((name, f"{values.questions:,}", percent(values.ece), f"{values.brier:.3f}", f"{values.aurc:.3f}", *selective))
    return ("system", "answers", "calibration error", "Brier", "AURC", *coverages), rows


def confidence_by_kind_table(summary: Summary) -> Table:
    """Calibration of the confidence by category, language and source, and where questions are unlike the calibration's."""
    header = ("system", "questions", "answers", "mean confidence", "VQA accuracy", "calibration error", "right at 90 % or more")
    return header, [
        (
            name,
            label,
            f"{part.questions:,}",
            *map(percent, (part.confidence, part.vqa_accuracy, part.ece)),
            "" if part.confident is None else f"{percent(part.confident.vqa_accuracy)} ({part.confident.questions:,})",
        )
        for name, results in summary.systems.items()
        if results.confidence is not None
        for label, part in [*results.confidence.parts(), ("unlike the calibration", results.confidence.unlike)]
        if part is not None
    ]


def validation_table(summary: Summary) -> Table:
    """Accuracy on the validation split; tuned weights and learned fusions are measured on held-out folds."""
    header = ("validation split, all systems pooled", "answers", "VQA accuracy")
    validation = None if summary.rerank is None else summary.rerank.validation
    if validation is None:
        return header, []
    measured = [
        ("first candidates", validation.questions, validation.first),
        ("reranked as configured", validation.questions, validation.configured),
        ("reranked, weights chosen on the other folds", validation.questions, validation.tuned_held_out),
        ("oracle", validation.questions, validation.oracle),
    ]
    measured += [
        (f"{name}: learned fusion, fitted on the other folds", values.questions, values.learned_held_out)
        for name, values in (validation.systems or {}).items()
    ]
    return header, [(label, f"{questions:,}", percent(value)) for label, questions, value in measured if value is not None]


def group_table(summary: Summary) -> Table:
    """Mean and spread of the VQA accuracy over seeds of one configuration."""
    return ("group", "choice", "systems", "VQA accuracy", "standard deviation", "lowest .. highest", "M4C"), [
        (
            name,
            choice,
            str(len(group.systems)),
            percent((accuracy := scores["vqa_accuracy"]).mean),
            f"{100 * accuracy.sd:.2f}",
            format_interval([accuracy.lowest, accuracy.highest]),
            percent(scores["vqa_accuracy_m4c"].mean),
        )
        for name, group in (summary.groups or {}).items()
        for choice, scores in group.choices.items()
    ]


def format_table(summary: Summary) -> Table:
    """Change in accuracy when only the format of the answers changes."""
    rows: list[Row] = []
    for name, results in summary.systems.items():
        for choice, forms in (results.format_sensitivity or {}).items():
            plain = results.choices[choice]
            for form, label in (("capitalised", "capitalised"), ("full_stop", "with a full stop")):
                cells = [(percent(value), points(value - plain.metric(metric))) for metric, value in forms[form].items()]
                rows.append((name, choice, label, *chain.from_iterable(cells)))
    return ("system", "choice", "format", "VQA accuracy", "change", "M4C", "change", "exact", "change"), rows


def unanswerable_table(summary: Summary) -> Table:
    """Detection of unanswerable questions by system."""
    return ("system", "unanswerable questions", "average precision", "F1"), [
        (name, f"{values.questions:,}", percent(values.average_precision), percent(values.f1))
        for name, results in summary.systems.items()
        if (values := results.unanswerable) is not None
    ]


def robustness_table(summary: Summary) -> Table:
    """Accuracy on corrupted images, with the difference from the clean ones."""
    return ("system", "corruption", "strength", "questions", "VQA accuracy", "95 % interval", "minus clean"), [
        (
            name,
            kind,
            str(point.strength),
            f"{robust.questions:,}",
            percent(point.vqa_accuracy),
            format_interval(point.vqa_accuracy_ci95),
            points(point.vqa_accuracy - robust.clean.vqa_accuracy),
        )
        for name, robust in (summary.robustness or {}).items()
        for kind, corrupted in robust.corrupted.items()
        for point in corrupted
    ]


def threshold_table(summary: Summary) -> Table:
    """Thresholds, measured values, and whether they are met."""
    return ("measured", "VQA accuracy", "threshold", "met"), [
        (row.what, percent(row.value), f"{row.kind} {percent(row.limit)}", "yes" if row.met else "NO") for row in summary.thresholds or []
    ]
