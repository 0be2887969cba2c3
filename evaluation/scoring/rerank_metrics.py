"""Figures of summary.json about candidates and reranking."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from answering.config import RerankConfig
from answering.rerank.candidate_scores import SELF_EVALUATION
from answering.rerank.choose_answer import chosen_text
from evaluation.answer_selection import RerankPlans
from evaluation.metrics.short_answers import PRIMARY_METRIC
from evaluation.prediction_files import Prediction
from evaluation.questions import Question
from evaluation.run.question_runner import NamedScorer
from evaluation.scoring.answer_scores import AnswerScores, References, answer_accuracy
from evaluation.scoring.confidence_metrics import confidence_metrics


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


def candidate_metrics(
    questions: Sequence[Question], short: AnswerScores, references: References, skipped: np.ndarray, abstain_below: float | None
) -> dict[str, Any]:
    """Entries `can_change` and, where there is a fitted confidence, `confidence` of a system in summary.json.

    Args:
        questions: the short questions
        short: scores of the system's answers to them, in the same order
        references: reference answers by sample id
        skipped: [questions] bool, whether reranking skips the question
        abstain_below: confidence below which the system answers "not sure"; None: never
    """
    if not short.predictions:
        return {}
    metrics: dict[str, Any] = {"can_change": improvable_fractions(short, references, skipped)}
    if any(prediction.confidence is not None for prediction in short.predictions):
        metrics["confidence"] = confidence_metrics(questions, short, abstain_below)
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
