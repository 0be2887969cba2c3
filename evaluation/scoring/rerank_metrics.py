"""Figures of summary.json about candidates and reranking."""

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np

from answering.config import RerankConfig
from answering.rerank.candidate_scores import SELF_EVALUATION
from answering.rerank.choose_answer import chosen_text
from evaluation.answer_selection import RerankPlans
from evaluation.metrics.short_answers import PRIMARY_METRIC
from evaluation.prediction_files import Prediction
from evaluation.run.question_runner import NamedScorer
from evaluation.schema.answer_figures import CanChange, ChangedAnswers, Reliability
from evaluation.schema.summary_file import RerankFigures
from evaluation.scoring.answer_scores import AnswerScores, References, answer_accuracy
from evaluation.scoring.confidence_metrics import reliability


def rerank_metrics(rerank: RerankConfig, rerank_plans: RerankPlans, scorers: Sequence[NamedScorer]) -> RerankFigures:
    """Weights, form, skipped question types, where they were chosen, cross-validated figures."""
    plan = rerank_plans.shared_plan
    weights = asdict(plan.weights)
    if not rerank.self_evaluation:
        del weights["self_evaluation"]
    models = {name: plan.learned for name, plan in rerank_plans.plans.items() if plan.learned is not None}
    learned = {name: {**dict(zip(model.names, model.weights, strict=True)), "bias": model.bias} for name, model in models.items()}
    figures = RerankFigures(
        weights=weights,
        chosen_on=rerank_plans.chosen_on,
        skipped_question_types=list(plan.skipped_question_types),
        self_evaluation=SELF_EVALUATION if rerank.self_evaluation else None,
        validation=rerank_plans.found,
        learned=learned or None,
    )
    if not scorers:
        return figures
    background = [0 if scorer.background_images is None else len(scorer.background_images.keys) for scorer in scorers]
    return replace(
        figures,
        scorer=scorers[0].name,
        scorers={scorer.choice: scorer.name for scorer in scorers},
        clip_score_form=plan.clip_score_form,
        statement_form=rerank.statement_form,
        background_images=max(background),
    )


def improvable_fractions(short: AnswerScores, references: References, skipped: np.ndarray) -> CanChange:
    """Fractions of the questions on which choosing another candidate matters. skipped: [questions] bool, whether reranking skips it."""
    first, best = short.scores["first"][PRIMARY_METRIC], short.scores["oracle"][PRIMARY_METRIC]
    accuracies = ([answer_accuracy(p, chosen_text([candidate], 0), references) for candidate in p.candidates] for p in short.predictions)
    lowest = np.array([min(row, default=0.0) for row in accuracies])
    change, rise = (best > first) | (lowest < first), best > first
    several = np.array([len(prediction.candidates) > 1 for prediction in short.predictions])
    reranked = (skipped, change & ~skipped, rise & ~skipped) if "reranked" in short.scores else ()
    return CanChange(*(float(fraction.mean()) for fraction in (several, change, rise, *reranked)))


def count_changed(short: AnswerScores) -> ChangedAnswers:
    """Numbers of short answers that reranking changed."""
    changed = np.array(short.texts["reranked"]) != np.array(short.texts["first"])
    gain = short.scores["reranked"][PRIMARY_METRIC] - short.scores["first"][PRIMARY_METRIC]
    better, worse = int((changed & (gain > 0)).sum()), int((changed & (gain < 0)).sum())
    return ChangedAnswers(int(changed.sum()), better, worse, int(changed.sum()) - better - worse)


def _fused_score(prediction: Prediction, text: str) -> float:
    """Fused score of the candidate with this text."""
    assert prediction.fused is not None
    indices = (i for i in range(len(prediction.fused)) if chosen_text(prediction.candidates[i : i + 1], 0) == text)
    return prediction.fused[next(indices)]


def fused_calibration(short: AnswerScores) -> Reliability | None:
    """Calibration of the fused score of the reranked answers; None if there are no fused scores."""
    texts = short.texts["reranked"]
    # In a skipped question the answer is the first candidate, which need not have the highest fused score.
    scored = [(i, _fused_score(p, texts[i])) for i, p in enumerate(short.predictions) if p.fused]
    if not scored:
        return None
    indices, fused = zip(*scored, strict=True)
    return reliability(np.array(fused), short.scores["reranked"][PRIMARY_METRIC][list(indices)])
