"""Build the summary from scores: means with intervals, accuracy by category, and the comparisons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from answering.rerank.choose_answer import chosen_text
from evaluation.confidence_intervals import mean_intervals
from evaluation.config import EvalConfig
from evaluation.metrics.reliability import reliability
from evaluation.metrics.short_answers import PRIMARY_METRIC
from evaluation.prediction_files import Prediction
from evaluation.questions import Question
from evaluation.robustness.robustness_run import Robustness, summarise_robustness
from evaluation.run.system_groups import checkpoint_steps, seed_statistics
from evaluation.schema.choice_figures import CanChange, CaptionFigures, ChangedAnswers, ChoiceFigures, PartFigures
from evaluation.schema.comparison_figures import GroupFigures, ThresholdFigures
from evaluation.schema.confidence_figures import ConfidenceFigures, Reliability
from evaluation.schema.rerank_figures import RerankFigures
from evaluation.schema.summary_file import DatasetFigures, Summary, SystemFigures
from evaluation.scoring.answer_scores import AnswerScores, CaptionResult, Scores
from evaluation.scoring.pairwise_comparisons import comparisons, score_pairs
from evaluation.scoring.question_categories import category_names
from evaluation.scoring.thresholds import check_against_thresholds
from evaluation.statistics import clusters


@dataclass(frozen=True, slots=True)
class SystemResult:
    """Metadata and scores of one system.

    Args:
        kind: kind of system
        model: identity of the model
        decoding: decoding settings of the short answers
        errors: number of failed questions
        questions_per_second: speed of answering; None if nothing was measured
        distinct_candidates: mean number of distinct candidates per question
        visual_tokens: mean number of visual tokens per question; None if the system does not say
        short: scores of the short answers
        captions: scores of captions and descriptions
        robustness: accuracy on corrupted images; None without corruptions
        cuda_graphs_error: why decoding ran without CUDA graphs; None if it did not have to
        can_change: questions whose score another candidate can change; None without short questions
        confidence: calibration of the confidence; None if none was fitted
    """

    kind: str
    model: dict[str, Any]
    decoding: dict[str, Any]
    errors: int
    questions_per_second: float | None
    distinct_candidates: float
    short: AnswerScores
    captions: CaptionResult = field(default_factory=lambda: CaptionResult({}, {}))
    robustness: Robustness | None = None
    cuda_graphs_error: str | None = None
    visual_tokens: float | None = None
    can_change: CanChange | None = None
    confidence: ConfidenceFigures | None = None


def summarise(
    dataset: DatasetFigures,
    questions: Sequence[Question],
    systems: Mapping[str, SystemResult],
    controls: Mapping[str, tuple[Sequence[Question], Scores]],
    control_of: str | None,
    rerank: RerankFigures | None,
    settings: EvalConfig,
) -> Summary:
    """The content of summary.json.

    Args:
        dataset: name, split and numbers of questions and images
        questions: the short questions
        systems: results by system
        controls: control -> its questions and the scores of its first candidates
        control_of: the system of the control runs; None if there is no checkpoint
        rerank: result of `rerank_metrics`; None without reranking
        settings: statistics, groups and thresholds
    """
    scores = {name: result.short.scores for name, result in systems.items() if result.short.scores}
    robust = {name: result.robustness for name, result in systems.items() if result.robustness is not None}
    figures = {name: _system_figures(result, questions) for name, result in systems.items()}
    control_figures = {name: metric_summary(control, own_questions) for name, (own_questions, control) in controls.items()}
    return Summary(
        dataset=dataset,
        note=settings.note,
        systems=figures,
        groups=_groups(settings.groups, systems) if settings.groups else None,
        curve=checkpoint_steps(settings.systems) if settings.curve else None,
        robustness=summarise_robustness(robust) if robust else None,
        controls=control_figures or None,
        controlled_system=control_of if controls else None,
        thresholds=_thresholds(settings, control_of, figures, control_figures) or None,
        comparisons=comparisons(score_pairs(scores, questions, controls, control_of, settings), settings),
        rerank=rerank,
    )


def _system_figures(result: SystemResult, questions: Sequence[Question]) -> SystemFigures:
    """The figures of one system. questions: the short ones."""
    short = result.short
    forms = {
        choice: {form: {name: mean(values) for name, values in scores.items()} for form, scores in forms.items()}
        for choice, forms in short.forms.items()
    }
    captions = {
        choice: {kind: CaptionFigures(**values) for kind, values in kinds.items()} for choice, kinds in result.captions.means.items()
    }
    return SystemFigures(
        kind=result.kind,
        model=result.model,
        decoding=result.decoding,
        errors=result.errors,
        questions_per_second=result.questions_per_second,
        without_cuda_graphs=result.cuda_graphs_error,
        visual_tokens=result.visual_tokens,
        distinct_candidates=result.distinct_candidates,
        choices={choice: metric_summary(by_metric, questions) for choice, by_metric in short.scores.items()},
        captions=captions or None,
        unanswerable=short.unanswerable,
        format_sensitivity=forms or None,
        changed=_count_changed(short) if "reranked" in short.scores else None,
        fused_calibration=_fused_calibration(short) if "reranked" in short.scores else None,
        can_change=result.can_change,
        confidence=result.confidence,
    )


def _groups(groups: Mapping[str, Sequence[str]], systems: Mapping[str, SystemResult]) -> dict[str, GroupFigures]:
    return {
        name: GroupFigures(list(members), seed_statistics([systems[member].short.scores for member in members]))
        for name, members in groups.items()
    }


def _thresholds(
    settings: EvalConfig, control_of: str | None, systems: Mapping[str, SystemFigures], controls: Mapping[str, ChoiceFigures]
) -> list[ThresholdFigures]:
    """The thresholds of the controlled system's first candidates; empty if it has none."""
    if control_of is None or "first" not in systems[control_of].choices:
        return []
    controlled = {name: control.vqa_accuracy for name, control in controls.items()}
    return check_against_thresholds(settings.thresholds, control_of, systems[control_of].choices["first"].vqa_accuracy, controlled)


def metric_summary(scores: Scores, questions: Sequence[Question]) -> ChoiceFigures:
    """Figures of one choice: mean of every metric, interval of the VQA accuracy, and accuracy by category, language and source."""
    accuracy = scores[PRIMARY_METRIC]
    groups = clusters([question.image_ids for question in questions])
    (interval,) = mean_intervals(accuracy[:, None], groups)
    sources = [question.source for question in questions]
    return ChoiceFigures(
        questions=len(questions),
        clusters=int(groups.max()) + 1,
        vqa_accuracy_ci95=(interval.low, interval.high),
        **{name: mean(values) for name, values in scores.items()},
        by_category=_accuracy_by_label(accuracy, [question.category for question in questions], category_names()),
        by_language=_accuracy_by_label(accuracy, [question.request.language for question in questions], ["en", "zh"]),
        by_source=_accuracy_by_label(accuracy, sources, sorted(set(sources))),
    )


def _accuracy_by_label(accuracy: np.ndarray, labels: Sequence[str], order: Sequence[str]) -> dict[str, PartFigures]:
    """Number of questions and accuracy by label, for the labels that occur."""
    parts = {name: accuracy[np.array(labels) == name] for name in order}
    return {name: PartFigures(len(part), mean(part)) for name, part in parts.items() if len(part)}


def mean(values: np.ndarray) -> float:
    """Mean as a Python float."""
    return float(values.mean())


def _count_changed(short: AnswerScores) -> ChangedAnswers:
    changed = np.array(short.texts["reranked"]) != np.array(short.texts["first"])
    gain = short.scores["reranked"][PRIMARY_METRIC] - short.scores["first"][PRIMARY_METRIC]
    better, worse = int((changed & (gain > 0)).sum()), int((changed & (gain < 0)).sum())
    return ChangedAnswers(int(changed.sum()), better, worse, int(changed.sum()) - better - worse)


def _fused_score(prediction: Prediction, text: str) -> float:
    """Fused score of the candidate with this text."""
    assert prediction.fused is not None
    indices = (i for i in range(len(prediction.fused)) if chosen_text(prediction.candidates[i : i + 1], 0) == text)
    return prediction.fused[next(indices)]


def _fused_calibration(short: AnswerScores) -> Reliability | None:
    """Calibration of the fused score of the reranked answers; None if there are no fused scores."""
    texts = short.texts["reranked"]
    # In a skipped question the answer is the first candidate, which need not have the highest fused score.
    scored = [(i, _fused_score(p, texts[i])) for i, p in enumerate(short.predictions) if p.fused]
    if not scored:
        return None
    indices, fused = zip(*scored, strict=True)
    return reliability(np.array(fused), short.scores["reranked"][PRIMARY_METRIC][list(indices)])
