"""The rerank in tables and sentences: what it can change at all, where its numbers come from, how far answers can be trusted."""

from collections.abc import Sequence
from typing import Any

Row = Sequence[str]
_WHERE = {"default": "as configured", "validation": "chosen on the validation split"}
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
    found = {name: own for name, figures in summary["systems"].items() if (own := figures.get("can_change")) is not None}
    keys = [key for key in _CAN_CHANGE if any(key in own for own in found.values())]
    rows: list[Row] = [(name, *(f"{100 * own[key]:.1f}" if key in own else "" for key in keys)) for name, own in found.items()]
    return ("system", *(_CAN_CHANGE[key] for key in keys)), rows


def can_change_sentence(figures: dict[str, Any]) -> str:
    """The same of one system in words; empty where nothing is known."""
    own = {key: f"{100 * share:.1f} %" for key, share in figures.get("can_change", {}).items()}
    if not own:
        return ""
    said = (
        f"Another candidate would change the score of {own['score_can_change']} of the questions and raise it at {own['score_can_rise']}."
    )
    if "left_alone" not in own:
        return said
    return (
        f"{said} The rerank leaves {own['left_alone']} alone, so it can change the score of {own['rerank_can_change']} "
        f"and raise it at {own['rerank_can_rise']}."
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
        (f"{name}: learned on the other folds", f"{own['questions']:,}", f"{100 * own['learned_held_out']:.1f}")
        for name, own in found.get("systems", {}).items()
        if "learned_held_out" in own
    ]
    return ("validation split, all systems together", "answers", "VQA accuracy"), rows


def trust_table(summary: dict[str, Any]) -> tuple[Row, list[Row]]:
    """How well credibility says what is right, and what is gained by giving only the credible answers."""
    header = (
        "system",
        "answers",
        "calibration error",
        "Brier",
        "risk (area)",
        *(f"accuracy of the top {share:.0%}" for share in COVERAGES),
    )
    rows: list[Row] = []
    for name, figures in summary["systems"].items():
        if (own := figures.get("credibility")) is None:
            continue
        curve = {point["coverage"]: point["vqa_accuracy"] for point in own["risk_coverage"]}
        best = (f"{100 * curve[share]:.1f}" if share in curve else "" for share in COVERAGES)
        rows.append((name, f"{own['questions']:,}", f"{100 * own['ece']:.1f}", f"{own['brier']:.3f}", f"{own['aurc']:.3f}", *best))
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
    lines = [f"Rerank weights ({_WHERE[rerank['chosen_on']]}): {weights}; {'; '.join([*used, *form])}.".replace("; .", ".")]
    lines.append(_guard(rerank))
    if "learned" in rerank:
        lines.append(
            "learned: a logistic model of each system, fitted on the validation split; the test split was scored once, "
            "when all numbers stood."
        )
    if any("credibility" in figures for figures in summary["systems"].values()):
        lines.append("Credibility: fitted and calibrated for each system on the validation split alone.")
    for name, figures in summary["systems"].items():
        if (own := figures.get("credibility", {}).get("abstaining")) is not None:
            accuracy = f", {100 * own['vqa_accuracy']:.1f} % of these right" if "vqa_accuracy" in own else ""
            lines.append(f"{name} answers {100 * own['answered']:.1f} % of the questions when unsure below {own['below']:g}{accuracy}.")
    return lines


def _guard(rerank: dict[str, Any]) -> str:
    """Which kinds of questions keep their first answer, and on what grounds."""
    kept, found = rerank["left_alone"], rerank.get("validation", {}).get("guard", {})
    lifted = [
        f"{kind} ({100 * own['gain']:+.1f} points, p = {own['p_holm']:.3f} after Holm)"
        for kind, own in found.items()
        if not own["left_alone"]
    ]
    said = f"Left alone by the rerank: {' and '.join(kept)} questions." if kept else "The rerank leaves no kind of questions alone."
    if lifted:
        return f"{said} The validation split shows a gain at {' and '.join(lifted)}."
    return f"{said} The validation split shows no gain there." if found else said
