"""What summary.json says of candidates, of the rerank and of how far its answers can be trusted."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from answering.config import RerankConfig
from answering.rerank.candidate_scores import SELF
from answering.rerank.choose_answer import chosen_text
from evaluation.answer_selection import ABSTAINING, Weighting
from evaluation.metrics.reliability import reliability
from evaluation.metrics.short_answers import METRIC
from evaluation.prediction_files import Prediction
from evaluation.run.question_runner import NamedScorer
from evaluation.scoring.answer_scores import References, Scored, right


def rerank_figures(rerank: RerankConfig, weighting: Weighting, scorers: Sequence[NamedScorer]) -> dict[str, Any]:
    """Weights, form and guard, where they were chosen, and what cross-validation on the validation split said of them.

    scorer: the folder or hub name of the first, where there is one; scorers: all of them by the name of their choice.
    """
    plan = weighting.common
    weights = asdict(plan.weights)
    if not rerank.self_score:
        del weights["self_score"]
    figures: dict[str, Any] = {"weights": weights, "chosen_on": weighting.chosen_on}
    if scorers:
        figures |= {"scorer": scorers[0].name, "scorers": {scorer.choice: scorer.name for scorer in scorers}}
        figures |= {"form": plan.form, "wording": rerank.wording}
        figures["bank"] = max(0 if scorer.bank is None else len(scorer.bank.keys) for scorer in scorers)
    if rerank.self_score:
        figures["self_score"] = SELF
    figures["left_alone"] = list(plan.guard)
    if weighting.found:
        figures["validation"] = dict(weighting.found)
    learned = {name: own.learned for name, own in weighting.plans.items() if own.learned is not None}
    if learned:
        figures["learned"] = {
            name: {**dict(zip(model.names, model.weights, strict=True)), "bias": model.bias} for name, model in learned.items()
        }
    return figures


def candidate_figures(short: Scored, references: References, left_alone: np.ndarray, abstain_below: float | None) -> dict[str, Any]:
    """What a choice among a system's candidates can do at all, and how far its answers can be trusted where that is known.

    left_alone: [questions] bool, which of them the rerank leaves alone.
    """
    if not short.predictions:
        return {}
    figures: dict[str, Any] = {"can_change": can_change(short, references, left_alone)}
    if any(prediction.credibility is not None for prediction in short.predictions):
        figures["credibility"] = credibility_figures(short, abstain_below)
    return figures


def can_change(short: Scored, references: References, left_alone: np.ndarray) -> dict[str, float]:
    """Shares of the questions: with two candidates or more; where some candidate scores otherwise than the first; where one scores
    higher. Where there is a rerank also: what it leaves alone, and the last two shares without that."""
    first, best = short.scores["first"][METRIC], short.scores["oracle"][METRIC]
    lowest = np.array([min(_all(prediction, references), default=0.0) for prediction in short.predictions])
    change, rise = (best > first) | (lowest < first), best > first
    shares = {
        "several_candidates": np.array([len(prediction.candidates) > 1 for prediction in short.predictions]),
        "score_can_change": change,
        "score_can_rise": rise,
    }
    if "reranked" in short.scores:
        shares |= {"left_alone": left_alone, "rerank_can_change": change & ~left_alone, "rerank_can_rise": rise & ~left_alone}
    return {name: float(share.mean()) for name, share in shares.items()}


def _all(prediction: Prediction, references: References) -> list[float]:
    """Accuracy of every candidate."""
    return [right(prediction, chosen_text([candidate], 0), references) for candidate in prediction.candidates]


def credibility_figures(short: Scored, abstain_below: float | None) -> dict[str, Any]:
    """Calibration and selective accuracy of the shown answers. A question without a credibility (a failed one) counts as 0.

    ece, bins: as `reliability`; brier: mean squared distance of credibility and accuracy; risk_coverage: accuracy of the most
    credible share of the answers; aurc: mean of 1 - accuracy over all coverages (Geifman & El-Yaniv 2017, arXiv:1705.08500).
    """
    credible = np.array([prediction.credibility or 0.0 for prediction in short.predictions])
    correct = short.scores["reranked" if "reranked" in short.scores else "first"][METRIC]
    _, accuracy = risk_coverage(credible, correct)
    figures: dict[str, Any] = {
        "questions": len(correct),
        "fitted_on": "validation",
        **reliability(credible, correct),
        "brier": float(np.mean((credible - correct) ** 2)),
        "aurc": float(np.mean(1 - accuracy)),
        "risk_coverage": [
            {"coverage": share, METRIC: float(accuracy[round(share * len(correct)) - 1])} for share in _SHARES if share * len(correct) >= 1
        ],
    }
    if abstain_below is not None and ABSTAINING in short.scores:
        answered = credible >= abstain_below
        figures["abstaining"] = {
            "below": abstain_below,
            "answered": float(answered.mean()),
            **({METRIC: float(correct[answered].mean())} if answered.any() else {}),
        }
    return figures


_SHARES = tuple(round(0.05 * step, 2) for step in range(1, 21))


def risk_coverage(credible: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and accuracy [n] when the 1, 2, ..., n most credible answers are given.

    Answers of equal credibility stand in any order: each counts with their mean, so that none of them is favoured.
    """
    order = np.argsort(-credible, kind="stable")
    _, inverse = np.unique(-credible[order], return_inverse=True)
    means = np.bincount(inverse, weights=right[order]) / np.bincount(inverse)
    n = np.arange(1, len(right) + 1)
    return n / len(right), np.cumsum(means[inverse]) / n
