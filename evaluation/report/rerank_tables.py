"""Tables and sentences about reranking: how many questions it can affect, where its weights come from, confidence of its answers."""

from collections.abc import Sequence

from answering.rerank.calibration_range import UNLIKE_CONFIDENCE
from evaluation.schema.answer_figures import CanChange, ConfidenceFigures
from evaluation.schema.summary_file import RerankFigures, Summary

Row = Sequence[str]
_CHOSEN_ON = {"default": "as configured", "validation": "chosen on the validation split"}
POOR_CALIBRATION, MIN_QUESTIONS = 0.1, 30
"""Calibration error from which, and number of questions with which, the report warns of the confidence for a kind of question."""
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


def can_change_table(summary: Summary) -> tuple[Row, list[Row]]:
    """Header and rows: percentage of questions on which choosing another candidate can change or raise the score, by system."""
    by_system = {name: vars(results.can_change) for name, results in summary.systems.items() if results.can_change is not None}
    keys = [key for key in _CAN_CHANGE if any(values[key] is not None for values in by_system.values())]
    rows: list[Row] = [
        (name, *("" if values[key] is None else f"{100 * values[key]:.1f}" for key in keys)) for name, values in by_system.items()
    ]
    return ("system", *(_CAN_CHANGE[key] for key in keys)), rows


def can_change_sentence(figures: CanChange | None) -> str:
    """The same percentages of one system as a sentence; empty if there are none."""
    if figures is None:
        return ""
    sentence = (
        f"Choosing another candidate could change the score of {100 * figures.score_can_change:.1f} % of the questions, "
        f"and raise it for {100 * figures.score_can_rise:.1f} %."
    )
    if figures.skipped is None or figures.rerank_can_change is None or figures.rerank_can_rise is None:
        return sentence
    return (
        f"{sentence} Reranking skips {100 * figures.skipped:.1f} %, so it can change the score of {100 * figures.rerank_can_change:.1f} %, "
        f"and raise it for {100 * figures.rerank_can_rise:.1f} %."
    )


def validation_table(summary: Summary) -> tuple[Row, list[Row]]:
    """Header and rows: accuracy on the validation split; tuned weights and learned fusions are measured on held-out folds."""
    header = ("validation split, all systems pooled", "answers", "VQA accuracy")
    validation = None if summary.rerank is None else summary.rerank.validation
    if validation is None:
        return header, []
    pooled = (
        ("first candidates", validation.first),
        ("reranked as configured", validation.configured),
        ("reranked, weights chosen on the other folds", validation.tuned_held_out),
        ("oracle", validation.oracle),
    )
    rows: list[Row] = [(label, f"{validation.questions:,}", f"{100 * value:.1f}") for label, value in pooled if value is not None]
    rows += [
        (f"{name}: learned fusion, fitted on the other folds", f"{values.questions:,}", f"{100 * values.learned_held_out:.1f}")
        for name, values in (validation.systems or {}).items()
        if values.learned_held_out is not None
    ]
    return header, rows


def confidence_table(summary: Summary) -> tuple[Row, list[Row]]:
    """Header and rows: calibration of the confidence, and accuracy of the most confident answers."""
    header = (
        "system",
        "answers",
        "calibration error",
        "Brier",
        "AURC",
        *(f"accuracy of the most confident {fraction:.0%}" for fraction in COVERAGES),
    )
    rows: list[Row] = []
    for name, results in summary.systems.items():
        if (values := results.confidence) is None:
            continue
        curve = {point.coverage: point.vqa_accuracy for point in values.risk_coverage}
        selective = (f"{100 * curve[fraction]:.1f}" if fraction in curve else "" for fraction in COVERAGES)
        rows.append((name, f"{values.questions:,}", f"{100 * values.ece:.1f}", f"{values.brier:.3f}", f"{values.aurc:.3f}", *selective))
    return header, rows


def confidence_by_kind_table(summary: Summary) -> tuple[Row, list[Row]]:
    """Header and rows: calibration of the confidence by category, language and source, and where questions are unlike the calibration's."""
    rows: list[Row] = []
    for name, results in summary.systems.items():
        if (values := results.confidence) is None:
            continue
        parts = values.parts()
        parts += [("unlike the calibration", values.unlike)] if values.unlike is not None else []
        for label, part in parts:
            confident = part.confident
            rows.append(
                (
                    name,
                    label,
                    f"{part.questions:,}",
                    f"{100 * part.confidence:.1f}",
                    f"{100 * part.vqa_accuracy:.1f}",
                    f"{100 * part.ece:.1f}",
                    "" if confident is None else f"{100 * confident.vqa_accuracy:.1f} ({confident.questions:,})",
                )
            )
    return ("system", "questions", "answers", "mean confidence", "VQA accuracy", "calibration error", "right at 90 % or more"), rows


def _confidence_remarks(name: str, values: ConfidenceFigures) -> list[str]:
    """Sentences about the kinds of questions for which a system's confidence does not hold, and about those unlike the calibration's."""
    lines = []
    parts = values.parts()
    off = [(label, part) for label, part in parts if part.questions >= MIN_QUESTIONS and part.ece >= POOR_CALIBRATION]
    for label, part in off:
        lines.append(
            f"{name}: do not trust the confidence for {label}: {100 * part.confidence:.0f} % on average where "
            f"{100 * part.vqa_accuracy:.0f} % are right, calibration error {100 * part.ece:.0f}."
        )
    if (unlike := values.unlike) is not None:
        lines.append(
            f"{name}: {unlike.questions:,} of {values.questions:,} questions are unlike those that the confidence was learnt from, "
            f"by their image or their words; their confidence is limited to {100 * UNLIKE_CONFIDENCE:.0f} %."
        )
    return lines


def remarks(summary: Summary) -> list[str]:
    """Notes: rerank weights and where they were chosen, fitted models, and the effect of abstaining."""
    if summary.rerank is None:
        return []
    rerank = summary.rerank
    weights = ", ".join(f"{name} {weight:g}" for name, weight in rerank.weights.items())
    scorers = rerank.scorers or {}
    if list(scorers) == ["clip"]:
        used = [f"scorer {rerank.scorer}"]
    else:
        used = [f"scorers {', '.join(f'{name} {path}' for name, path in scorers.items())}"] if scorers else []
    form = (
        [f"form of the CLIP scores: {rerank.clip_score_form}", f"statement form: {rerank.statement_form}"]
        if rerank.clip_score_form is not None
        else []
    )
    lines = [f"Rerank weights ({_CHOSEN_ON[rerank.chosen_on]}): {weights}; {'; '.join([*used, *form])}.".replace("; .", ".")]
    lines += [sentence] if (sentence := tuning_sentence(summary).strip()) else []
    lines.append(_skipped_types_sentence(rerank))
    if rerank.learned is not None:
        lines.append(
            "learned: a logistic model per system over all scores, fitted on the validation split; no reference of the evaluated split is "
            "read in any fit."
        )
    if any(results.confidence is not None for results in summary.systems.values()):
        lines.append("Confidence: fitted and calibrated per system on the validation split only. AURC: mean error over all coverages.")
    for name, results in summary.systems.items():
        if results.confidence is None:
            continue
        lines += _confidence_remarks(name, results.confidence)
        if (values := results.confidence.abstaining) is not None:
            accuracy = f", {100 * values.vqa_accuracy:.1f} % of these right" if values.vqa_accuracy is not None else ""
            lines.append(
                f"{name} answers {100 * values.answered:.1f} % of the questions, abstaining below confidence {values.below:g}{accuracy}."
            )
    return lines


def tuning_sentence(summary: Summary) -> str:
    """Whether weights chosen on the validation split beat the configured ones on held-out folds of it; empty without tuning."""
    rerank = summary.rerank
    gain = None if rerank is None or rerank.validation is None else rerank.validation.tuned_gain
    if rerank is None or gain is None:
        return ""
    points = f"{100 * gain.difference:+.1f} points, p = {gain.p_value:.3f}"
    if rerank.chosen_on == "default":
        return f" On held-out folds of the validation split, tuned weights do not beat the configured ones ({points}), which are used."
    if gain.verdict == "a":
        return f" On held-out folds of the validation split, tuned weights beat the configured ones ({points}) and are used."
    return (
        f" Tuned weights are used because they score higher than the configured ones on held-out folds of the validation split ({points}), "
        "but are not shown to beat them."
    )


def _skipped_types_sentence(rerank: RerankFigures) -> str:
    """Which question types reranking skips, and the evidence from the validation split."""
    skipped, by_type = rerank.skipped_question_types, (rerank.validation and rerank.validation.skipped_question_types) or {}
    reranked = [
        f"{kind} ({100 * values.gain:+.1f} points, p = {values.p_holm:.3f} after Holm)"
        for kind, values in by_type.items()
        if not values.skipped
    ]
    sentence = f"Reranking skips {' and '.join(skipped)} questions." if skipped else "Reranking skips no question type."
    if reranked:
        return f"{sentence} The validation split shows a gain for {' and '.join(reranked)} questions."
    return f"{sentence} The validation split shows no gain for them." if by_type else sentence
