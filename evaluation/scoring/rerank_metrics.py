"""What summary.json says of candidates, of the rerank and of how far its answers can be trusted."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from answering.config import RerankConfig
from answering.rerank.candidate_scores import SELF_EVALUATION
from answering.rerank.choose_answer import chosen_text
from evaluation.answer_selection import ABSTAINING, RerankPlans
from evaluation.metrics.reliability import reliability
from evaluation.metrics.short_answers import PRIMARY_METRIC
from evaluation.prediction_files import Prediction
from evaluation.run.question_runner import NamedScorer
from evaluation.scoring.answer_scores import AnswerScores, References, answer_accuracy


def rerank_metrics(rerank: RerankConfig, rerank_plans: RerankPlans, scorers: Sequence[NamedScorer]) -> dict[str, Any]:
    """Weights, form and guard, where they were chosen, and what cross-validation on the validation split said of them.

    scorer: the folder or hub name of the first, where there is one; scorers: all of them by the name of their choice.
    """
    plan = rerank_plans.shared_plan
    weights = asdict(plan.weights)
    if not rerank.self_evaluation:
        del weights["self_evaluation"]
    metrics: dict[str, Any] = {"weights": weights, "chosen_on": rerank_plans.chosen_on}
    if scorers:
        metrics |= {"scorer": scorers[0].name, "scorers": {scorer.choice: scorer.name for scorer in scorers}}
        metrics |= {"form": plan.clip_score_form, "wording": rerank.statement_form}
        metrics["background_images"] = max(
            0 if scorer.background_images is None else len(scorer.background_images.keys) for scorer in scorers
        )
    if rerank.self_evaluation:
        metrics["self_score"] = SELF_EVALUATION
    metrics["left_alone"] = list(plan.skipped_question_types)
    if rerank_plans.found:
        metrics["validation"] = dict(rerank_plans.found)
    learned = {name: own.learned for name, own in rerank_plans.plans.items() if own.learned is not None}
    if learned:
        metrics["learned"] = {
            name: {**dict(zip(model.names, model.weights, strict=True)), "bias": model.bias} for name, model in learned.items()
        }
    return metrics


def candidate_metrics(short: AnswerScores, references: References, skipped: np.ndarray, abstain_below: float | None) -> dict[str, Any]:
    """What a choice among a system's candidates can do at all, and how far its answers can be trusted where that is known.

    left_alone: [questions] bool, which of them the rerank leaves alone.
    """
    if not short.predictions:
        return {}
    metrics: dict[str, Any] = {"can_change": improvable_fractions(short, references, skipped)}
    if any(prediction.confidence is not None for prediction in short.predictions):
        metrics["confidence"] = confidence_metrics(short, abstain_below)
    return metrics


def improvable_fractions(short: AnswerScores, references: References, skipped: np.ndarray) -> dict[str, float]:
    """Shares of the questions: with two candidates or more; where some candidate scores otherwise than the first; where one scores
    higher. Where there is a rerank also: what it leaves alone, and the last two shares without that."""
    first, best = short.scores["first"][PRIMARY_METRIC], short.scores["oracle"][PRIMARY_METRIC]
    lowest = np.array([min(_candidate_accuracies(prediction, references), default=0.0) for prediction in short.predictions])
    change, rise = (best > first) | (lowest < first), best > first
    fractions = {
        "several_candidates": np.array([len(prediction.candidates) > 1 for prediction in short.predictions]),
        "score_can_change": change,
        "score_can_rise": rise,
    }
    if "reranked" in short.scores:
        fractions |= {"left_alone": skipped, "rerank_can_change": change & ~skipped, "rerank_can_rise": rise & ~skipped}
    return {name: float(fraction.mean()) for name, fraction in fractions.items()}


def _candidate_accuracies(prediction: Prediction, references: References) -> list[float]:
    """Accuracy of every candidate."""
    return [answer_accuracy(prediction, chosen_text([candidate], 0), references) for candidate in prediction.candidates]


def confidence_metrics(short: AnswerScores, abstain_below: float | None) -> dict[str, Any]:
    """Calibration and selective accuracy of the shown answers. A question without a credibility (a failed one) counts as 0.

    ece, bins: as `reliability`; brier: mean squared distance of credibility and accuracy; risk_coverage: accuracy of the most
    credible share of the answers; aurc: mean of 1 - accuracy over all coverages (Geifman & El-Yaniv 2017, arXiv:1705.08500).
    """
    confidences = np.array([prediction.confidence or 0.0 for prediction in short.predictions])
    correct = short.scores["reranked" if "reranked" in short.scores else "first"][PRIMARY_METRIC]
    _, accuracy = risk_coverage(confidences, correct)
    metrics: dict[str, Any] = {
        "questions": len(correct),
        "fitted_on": "validation",
        **reliability(confidences, correct),
        "brier": float(np.mean((confidences - correct) ** 2)),
        "aurc": float(np.mean(1 - accuracy)),
        "risk_coverage": [
            {"coverage": fraction, PRIMARY_METRIC: float(accuracy[round(fraction * len(correct)) - 1])}
            for fraction in _COVERAGES
            if fraction * len(correct) >= 1
        ],
    }
    if abstain_below is not None and ABSTAINING in short.scores:
        answered = confidences >= abstain_below
        metrics["abstaining"] = {
            "below": abstain_below,
            "answered": float(answered.mean()),
            **({PRIMARY_METRIC: float(correct[answered].mean())} if answered.any() else {}),
        }
    return metrics


_COVERAGES = tuple(round(0.05 * step, 2) for step in range(1, 21))


def risk_coverage(confidences: np.ndarray, answer_accuracy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and accuracy [n] when the 1, 2, ..., n most credible answers are given.

    Answers of equal credibility stand in any order: each counts with their mean, so that none of them is favoured.
    """
    order = np.argsort(-confidences, kind="stable")
    _, inverse = np.unique(-confidences[order], return_inverse=True)
    means = np.bincount(inverse, weights=answer_accuracy[order]) / np.bincount(inverse)
    n = np.arange(1, len(answer_accuracy) + 1)
    return n / len(answer_accuracy), np.cumsum(means[inverse]) / n
