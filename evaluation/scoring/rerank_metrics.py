"""Figures of summary.json about candidates, reranking and confidence."""

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
    """The entry `rerank` of summary.json: weights, form, skipped question types, where they were chosen, cross-validated figures.

    Its `scorer` is the folder or hub name of the first scorer, `scorers` those of all, by the name of their choice.
    """
    plan = rerank_plans.shared_plan
    weights = asdict(plan.weights)
    if not rerank.self_evaluation:
        del weights["self_evaluation"]
    metrics: dict[str, Any] = {"weights": weights, "chosen_on": rerank_plans.chosen_on}
    if scorers:
        metrics |= {"scorer": scorers[0].name, "scorers": {scorer.choice: scorer.name for scorer in scorers}}
        metrics |= {"clip_score_form": plan.clip_score_form, "statement_form": rerank.statement_form}
        metrics["background_images"] = max(
            0 if scorer.background_images is None else len(scorer.background_images.keys) for scorer in scorers
        )
    if rerank.self_evaluation:
        metrics["self_evaluation"] = SELF_EVALUATION
    metrics["skipped_question_types"] = list(plan.skipped_question_types)
    if rerank_plans.found:
        metrics["validation"] = dict(rerank_plans.found)
    learned = {name: plan.learned for name, plan in rerank_plans.plans.items() if plan.learned is not None}
    if learned:
        metrics["learned"] = {
            name: {**dict(zip(model.names, model.weights, strict=True)), "bias": model.bias} for name, model in learned.items()
        }
    return metrics


def candidate_metrics(short: AnswerScores, references: References, skipped: np.ndarray, abstain_below: float | None) -> dict[str, Any]:
    """Entries `can_change` and, where there is a fitted confidence, `confidence` of a system in summary.json.

    Args:
        short: scores of the system's short answers
        references: reference answers by sample id
        skipped: [questions] bool, whether reranking skips the question
        abstain_below: confidence below which the system answers "not sure"; None: never
    """
    if not short.predictions:
        return {}
    metrics: dict[str, Any] = {"can_change": improvable_fractions(short, references, skipped)}
    if any(prediction.confidence is not None for prediction in short.predictions):
        metrics["confidence"] = confidence_metrics(short, abstain_below)
    return metrics


def improvable_fractions(short: AnswerScores, references: References, skipped: np.ndarray) -> dict[str, float]:
    """Fractions of the questions on which choosing another candidate matters.

    Returns:
        several_candidates: with at least two candidates; score_can_change: some candidate scores differently from the first;
        score_can_rise: some candidate scores higher. With reranking also skipped: skipped by it; rerank_can_change and
        rerank_can_rise: as above, among the questions that are not skipped.
    """
    first, best = short.scores["first"][PRIMARY_METRIC], short.scores["oracle"][PRIMARY_METRIC]
    lowest = np.array([min(_candidate_accuracies(prediction, references), default=0.0) for prediction in short.predictions])
    change, rise = (best > first) | (lowest < first), best > first
    fractions = {
        "several_candidates": np.array([len(prediction.candidates) > 1 for prediction in short.predictions]),
        "score_can_change": change,
        "score_can_rise": rise,
    }
    if "reranked" in short.scores:
        fractions |= {"skipped": skipped, "rerank_can_change": change & ~skipped, "rerank_can_rise": rise & ~skipped}
    return {name: float(fraction.mean()) for name, fraction in fractions.items()}


def _candidate_accuracies(prediction: Prediction, references: References) -> list[float]:
    """VQA accuracy of every candidate."""
    return [answer_accuracy(prediction, chosen_text([candidate], 0), references) for candidate in prediction.candidates]


def confidence_metrics(short: AnswerScores, abstain_below: float | None) -> dict[str, Any]:
    """Calibration and selective accuracy of the displayed answers. A question without confidence (a failed one) counts as 0.

    Returns:
        ece, bins: as in `reliability`; brier: mean squared distance of confidence and accuracy; risk_coverage: accuracy of the
        most confident fraction of the answers; aurc: mean of 1 - accuracy over all coverages (Geifman & El-Yaniv 2017,
        arXiv:1705.08500); abstaining: with `abstain_below`, fraction of questions still answered and their accuracy.
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
    """Coverage and accuracy [n] when only the 1, 2, ..., n most confident answers are given.

    The order of equally confident answers is arbitrary, so each of them counts with their mean accuracy.
    """
    order = np.argsort(-confidences, kind="stable")
    _, inverse = np.unique(-confidences[order], return_inverse=True)
    means = np.bincount(inverse, weights=answer_accuracy[order]) / np.bincount(inverse)
    n = np.arange(1, len(answer_accuracy) + 1)
    return n / len(answer_accuracy), np.cumsum(means[inverse]) / n
