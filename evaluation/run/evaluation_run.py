"""The evaluation run: all systems answer the same questions, answers are chosen, and only then compared with the references."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from answering.config import System
from answering.model_fingerprint import decoding_record, scorer_identity
from answering.question_types import skippable_question_type
from answering.rerank.choose_answer import RerankPlan
from answering.rerank.fitted_reranker import FittedReranker, rerank_settings, save_fitted
from atomic_io import write_json, write_text
from evaluation.answer_selection import RerankPlans, add_choices
from evaluation.calibration.rerank_fitting import tune
from evaluation.metrics.short_answers import PRIMARY_METRIC
from evaluation.metrics.unanswerable import unanswerable_metrics
from evaluation.prediction_files import Prediction, write_predictions
from evaluation.questions import Question, choose, references
from evaluation.robustness import CorruptionCondition, robustness_figures
from evaluation.run.evaluation_setup import Experiment, first_checkpoint
from evaluation.run.question_runner import NamedScorer, SystemRun
from evaluation.run.system_runner import EvaluationRun
from evaluation.schema.summary_file import DatasetFigures, RobustnessFigures, Summary, SystemFigures, to_json
from evaluation.scoring.answer_scores import References, Scores, caption_scores, format_sensitivity, score, score_lines
from evaluation.scoring.box_scores import per_sample_scores, score_boxes, summarise_boxes
from evaluation.scoring.confidence_metrics import confidence_metrics
from evaluation.scoring.rerank_metrics import count_changed, fused_calibration, improvable_fractions, rerank_metrics
from evaluation.scoring.summary import SystemResult, metric_summary, summarise

CALIBRATION_IMAGES = 1000
"""Most images of the validation split from which the confidence knows what images are like."""


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Everything that the reports show. questions: the short ones, in the order of every system's `short` in `results`."""

    summary: Summary
    questions: list[Question]
    references: References
    results: dict[str, SystemResult]

    def record(self) -> Any:
        """The content of summary.json."""
        return to_json(self.summary)


def score_evaluation(experiment: Experiment, evaluation_run: EvaluationRun) -> EvaluationResult:
    """Choose answers and score them; complete predictions/*.jsonl, write summary.json, scores/ and plans/ to `experiment.out`."""
    settings, questions, known, scorers = experiment.settings, evaluation_run.questions, evaluation_run.references, evaluation_run.scorers
    rerank_plans = _fit_rerank_plans(experiment, evaluation_run)
    corrupted = [system_run for answered in evaluation_run.corrupted.values() for system_run in answered.values()]
    planned = [
        (system_run, rerank_plans.for_system(name))
        for name, system_run in (*evaluation_run.systems.items(), *evaluation_run.validation.items())
    ]
    planned += [(system_run, rerank_plans.shared_plan) for system_run in (*evaluation_run.controls.values(), *corrupted)]
    for system_run, plan in planned:
        chosen = add_choices(system_run.questions, system_run.predictions, plan, settings.seed, experiment.rerank.abstain_below)
        system_run.predictions = chosen
        write_predictions(system_run.path, chosen)
    if scorers or experiment.rerank.self_evaluation:
        _save_plans(experiment, evaluation_run, rerank_plans, scorers)

    control_system = first_checkpoint(settings)
    control_of = None if control_system is None else control_system.name
    short = [question for question in questions if question.short]
    abstain_below = experiment.rerank.abstain_below
    results = {
        system.name: _result(system, evaluation_run, rerank_plans.for_system(system.name), abstain_below) for system in settings.systems
    }
    summary = summarise(
        dataset=_dataset(experiment, questions, known),
        questions=short,
        systems=results,
        controls=_short_controls(evaluation_run),
        control_of=control_of,
        rerank=rerank_metrics(experiment.rerank, rerank_plans, scorers) if scorers or experiment.rerank.self_evaluation else None,
        settings=settings,
    )
    boxes = {name: score_boxes(own.questions, own.predictions, known) for name, own in evaluation_run.controls.items()}
    grounding = summarise_boxes({name: result.boxes for name, result in results.items()}, boxes, control_of, settings)
    evaluation_result = EvaluationResult(replace(summary, grounding=grounding), short, known, results)
    write_json(experiment.out / "summary.json", evaluation_result.record())
    for name, result in results.items():
        lines = score_lines(questions, result.short, {**result.captions.per_sample, **per_sample_scores(result.boxes)})
        write_text(experiment.out / "scores" / f"{name}.jsonl", "".join(line + "\n" for line in lines))
    return evaluation_result


def _result(system: System, evaluation_run: EvaluationRun, plan: RerankPlan, abstain_below: float | None) -> SystemResult:
    """Scores and metadata of one system."""
    system_run, known = evaluation_run.systems[system.name], evaluation_run.references
    pairs = list(zip(system_run.questions, system_run.predictions, strict=True))
    questions = [question for question in system_run.questions if question.short]
    short = score([prediction for question, prediction in pairs if question.short], known)
    types = [skippable_question_type(question.text, question.request.language) for question in questions]
    skipped = np.array([kind in plan.skipped_question_types for kind in types], dtype=bool)
    has_confidence = any(prediction.confidence is not None for prediction in short.predictions)
    reranked = "reranked" in short.scores
    # Of the first scorer that supports a language.
    cosines = {language: scorer.scorer.cosine_batch for scorer in reversed(evaluation_run.scorers) for language in scorer.languages}
    captions = caption_scores(system_run.questions, system_run.predictions, known, cosines)
    boxes = score_boxes(system_run.questions, system_run.predictions, known)
    figures = SystemFigures(
        kind=system.kind,
        model=system_run.predictions[0].model,
        decoding=next((prediction.decoding for question, prediction in pairs if question.short), system_run.predictions[0].decoding),
        errors=sum(prediction.error is not None for prediction in system_run.predictions),
        questions_per_second=system_run.questions_per_second,
        without_cuda_graphs=system_run.cuda_graphs_error,
        visual_tokens=_mean_visual_tokens(system_run.predictions),
        distinct_candidates=fmean(len(prediction.candidates) for prediction in system_run.predictions),
        choices={choice: metric_summary(scores, questions) for choice, scores in short.scores.items()},
        captions=captions.figures or None,
        grounding=None if boxes is None else boxes.figures,
        unanswerable=unanswerable_metrics(short.predictions, known),
        format_sensitivity=format_sensitivity(short, known) or None,
        changed=count_changed(short) if reranked else None,
        fused_calibration=fused_calibration(short) if reranked else None,
        can_change=improvable_fractions(short, known, skipped) if questions else None,
        confidence=confidence_metrics(questions, short, abstain_below) if has_confidence else None,
    )
    return SystemResult(figures, short, captions, boxes, _robustness(system_run, evaluation_run.corrupted.get(system.name, {}), known))


def _short_controls(evaluation_run: EvaluationRun) -> dict[str, tuple[list[Question], Scores]]:
    """The questions with short answers of each control run, and the scores of its first candidates."""
    controls = {}
    for name, system_run in evaluation_run.controls.items():
        pairs = [(q, p) for q, p in zip(system_run.questions, system_run.predictions, strict=True) if q.short]
        if pairs:
            scores = score([prediction for _, prediction in pairs], evaluation_run.references).scores["first"]
            controls[name] = [question for question, _ in pairs], scores
    return controls


def _mean_visual_tokens(predictions: Sequence[Prediction]) -> float | None:
    """Mean number of visual tokens over the answered questions; None if it is unknown for any of them, as in files of earlier versions."""
    numbers = [prediction.visual_tokens for prediction in predictions if prediction.error is None]
    known = [number for number in numbers if number is not None]
    return fmean(known) if known and len(known) == len(numbers) else None


def _robustness(clean_run: SystemRun, corrupted: dict[CorruptionCondition, SystemRun], known: References) -> RobustnessFigures | None:
    """Accuracy of the first candidates on clean and corrupted images; None if there are no corruptions."""
    if not corrupted:
        return None

    def first_accuracy(predictions: Sequence[Prediction]) -> np.ndarray:
        return score(predictions, known).scores["first"][PRIMARY_METRIC]

    questions = next(iter(corrupted.values())).questions
    clean = {prediction.sample_id: prediction for prediction in clean_run.predictions}
    by_condition = {condition: first_accuracy(system_run.predictions) for condition, system_run in corrupted.items()}
    return robustness_figures(questions, first_accuracy([clean[question.sample_id] for question in questions]), by_condition)


def _fit_rerank_plans(experiment: Experiment, evaluation_run: EvaluationRun) -> RerankPlans:
    """Plans fitted on the validation split, or the configured plan if rerank.tune is off. The evaluated split is not used."""
    rerank, settings = experiment.rerank, experiment.settings
    if not evaluation_run.validation:
        return RerankPlans(RerankPlan(rerank.weights, rerank.clip_score_form, rerank.skipped_question_types))
    answered = {name: (system_run.questions, system_run.predictions) for name, system_run in evaluation_run.validation.items()}
    questions = choose(experiment.store, "validation", None)
    images = list(dict.fromkeys(image for question in questions for image in question.request.images))[:CALIBRATION_IMAGES]
    return tune(answered, references(experiment.store, "validation"), rerank, settings.resamples, settings.seed, images)


def _save_plans(experiment: Experiment, evaluation_run: EvaluationRun, rerank_plans: RerankPlans, scorers: Sequence[NamedScorer]) -> None:
    """Write plans/<system>.json: the fitted rerank, for later questions to the same system."""
    for name, system_run in evaluation_run.systems.items():
        fitted = FittedReranker(
            plan=rerank_plans.for_system(name),
            model=system_run.predictions[0].model,
            decoding=decoding_record(experiment.decoding),
            scorers={scorer.choice: scorer_identity(scorer.name, scorer.statement_form) for scorer in scorers},
            settings=rerank_settings(experiment.rerank),
            background_means={
                scorer.choice: scorer.background_images.mean().tolist() for scorer in scorers if scorer.background_images is not None
            },
        )
        save_fitted(experiment.out / "plans" / f"{name}.json", fitted)


def _dataset(experiment: Experiment, questions: Sequence[Question], known: References) -> DatasetFigures:
    """What was asked."""
    return DatasetFigures(
        name=experiment.name,
        split=experiment.settings.split,
        questions=len(questions),
        images=len({image for question in questions for image in question.image_ids}),
        by_task=dict(Counter(question.request.task for question in questions)),
        fewest_references=min((len(known[question.sample_id]) for question in questions if question.short), default=None),
    )
