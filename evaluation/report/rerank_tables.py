"""The rerank in tables and sentences: what it can change at all, where its numbers come from, how far answers can be trusted."""

from collections.abc import Sequence
from typing import Any

Row = Sequence[str]
_CHOSEN_ON = {"default": "as configured", "validation": "chosen on the validation split"}
COVERAGES = (0.5, 0.8)
"""Shares of the most credible answers whose accuracy is shown."""


_CAN_CHANGE = {
    "several_candidates": "% with several candidates",
    "score_can_change": "% whose score can change",
    "score_can_rise": "% whose score can rise",
    "left_alone": "% the rerank leaves alone",
    "rerank_can_change": "% whose score it can change",
    "rerank_can_rise": "% whose score it can raise",
}


def can_change_table(summary: dict[str, Any]) -> tuple[Row, list[Row]]:
    """Shares of the questions on which a choice among the candidates can do anything."""
    found = {name: values for name, results in summary["systems"].items() if (values := results.get("can_change")) is not None}
    keys = [key for key in _CAN_CHANGE if any(key in values for values in found.values())]
    rows: list[Row] = [(name, *(f"{100 * values[key]:.1f}" if key in values else "" for key in keys)) for name, values in found.items()]
    return ("system", *(_CAN_CHANGE[key] for key in keys)), rows


def can_change_sentence(results: dict[str, Any]) -> str:
    """The same of one system in words; empty where nothing is known."""
    values = {key: f"{100 * fraction:.1f} %" for key, fraction in results.get("can_change", {}).items()}
    if not values:
        return ""
    sentence = f"Another candidate would change the score of {values['score_can_change']} of the questions and raise it at {values['score_can_rise']}."
    if "left_alone" not in values:
        return sentence
    return (
        f"{sentence} The rerank leaves {values['left_alone']} alone, so it can change the score of {values['rerank_can_change']} "
        f"and raise it at {values['rerank_can_rise']}."
    )


def validation_table(summary: dict[str, Any]) -> tuple[Row, list[Row]]:
    """What cross-validation on the validation split said: accuracy on questions that were left out of each choice."""
    found = summary.get("rerank", {}).get("validation", {})
    rows: list[Row] = [
        (label, f"{found['questions']:,}", f"{100 * found[key]:.1f}")
        for key, label in (
            ("first", "first candidates"),
            ("configured", "reranked as configured"),
            ("tuned_held_out", "reranked with weights of the other folds"),
            ("oracle", "oracle"),
        )
        if key in found
    ]
    rows += [
        (f"{name}: learned on the other folds", f"{values['questions']:,}", f"{100 * values['learned_held_out']:.1f}")
        for name, values in found.get("systems", {}).items()
        if "learned_held_out" in values
    ]
    return ("validation split, all systems together", "answers", "VQA accuracy"), rows


def confidence_table(summary: dict[str, Any]) -> tuple[Row, list[Row]]:
    """How well credibility says what is right, and what is gained by giving only the credible answers."""
    header = (
        "system",
        "answers",
        "calibration error",
        "Brier",
        "risk (area)",
        *(f"accuracy of the top {fraction:.0%}" for fraction in COVERAGES),
    )
    rows: list[Row] = []
    for name, results in summary["systems"].items():
        if (values := results.get("confidence")) is None:
            continue
        curve = {point["coverage"]: point["vqa_accuracy"] for point in values["risk_coverage"]}
        best = (f"{100 * curve[fraction]:.1f}" if fraction in curve else "" for fraction in COVERAGES)
        rows.append(
            (name, f"{values['questions']:,}", f"{100 * values['ece']:.1f}", f"{values['brier']:.3f}", f"{values['aurc']:.3f}", *best)
        )
    return header, rows


def remarks(summary: dict[str, Any]) -> list[str]:
    """Where the numbers of the rerank were chosen, and what abstaining did."""
    if "rerank" not in summary:
        return []
    rerank = summary["rerank"]
    weights = ", ".join(f"{name} {weight:g}" for name, weight in rerank["weights"].items())
    scorers = rerank.get("scorers", {})
    if list(scorers) == ["clip"]:
        used = [f"scorer {rerank['scorer']}"]
    else:
        used = [f"scorers {', '.join(f'{name} {path}' for name, path in scorers.items())}"] if scorers else []
    form = [f"form {rerank['form']}", f"statements: {rerank['wording']}"] if "form" in rerank else []
    lines = [f"Rerank weights ({_CHOSEN_ON[rerank['chosen_on']]}): {weights}; {'; '.join([*used, *form])}.".replace("; .", ".")]
    lines.append(_skipped_types_sentence(rerank))
    if "learned" in rerank:
        lines.append(
            "learned: a logistic model of each system, fitted on the validation split; the test split was scored once, "
            "when all numbers stood."
        )
    if any("confidence" in results for results in summary["systems"].values()):
        lines.append("Credibility: fitted and calibrated for each system on the validation split alone.")
    for name, results in summary["systems"].items():
        if (values := results.get("confidence", {}).get("abstaining")) is not None:
            accuracy = f", {100 * values['vqa_accuracy']:.1f} % of these right" if "vqa_accuracy" in values else ""
            lines.append(
                f"{name} answers {100 * values['answered']:.1f} % of the questions when unsure below {values['below']:g}{accuracy}."
            )
    return lines


def _skipped_types_sentence(rerank: dict[str, Any]) -> str:
    """Which kinds of questions keep their first answer, and on what grounds."""
    skipped, found = rerank["left_alone"], rerank.get("validation", {}).get("guard", {})
    lifted = [
        f"{kind} ({100 * values['gain']:+.1f} points, p = {values['p_holm']:.3f} after Holm)"
        for kind, values in found.items()
        if not values["left_alone"]
    ]
    sentence = (
        f"Left alone by the rerank: {' and '.join(skipped)} questions." if skipped else "The rerank leaves no kind of questions alone."
    )
    if lifted:
        return f"{sentence} The validation split shows a gain at {' and '.join(lifted)}."
    return f"{sentence} The validation split shows no gain there." if found else sentence
