"""Build the summary from scores: means with intervals, accuracy by category, and the comparisons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.confidence_intervals import mean_intervals
from evaluation.config import EvalConfig
from evaluation.metrics.short_answers import PRIMARY_METRIC
from evaluation.questions import Question
from evaluation.run.system_groups import checkpoint_steps, seed_statistics
from evaluation.schema.answer_figures import ChoiceFigures, PartFigures
from evaluation.schema.summary_file import (
    DatasetFigures,
    GroupFigures,
    RerankFigures,
    RobustnessFigures,
    Summary,
    SystemFigures,
    ThresholdFigures,
)
from evaluation.scoring.answer_scores import AnswerScores, CaptionResult, Scores
from evaluation.scoring.pairwise_comparisons import comparisons, score_pairs
from evaluation.scoring.question_categories import category_names
from evaluation.scoring.thresholds import check_against_thresholds
from evaluation.statistics import clusters


@dataclass(frozen=True, slots=True)
class SystemResult:
    """The figures of one system, and the scores of single questions that they are made of. robustness: None without corruptions."""

    figures: SystemFigures
    short: AnswerScores
    captions: CaptionResult
    robustness: RobustnessFigures | None = None


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
    figures = {name: result.figures for name, result in systems.items()}
    robustness = {name: result.robustness for name, result in systems.items() if result.robustness is not None}
    control_figures = {name: metric_summary(control, own_questions) for name, (own_questions, control) in controls.items()}
    return Summary(
        dataset=dataset,
        note=settings.note,
        systems=figures,
        groups=_groups(settings.groups, systems) if settings.groups else None,
        curve=checkpoint_steps(settings.systems) if settings.curve else None,
        robustness=robustness or None,
        controls=control_figures or None,
        controlled_system=control_of if controls else None,
        thresholds=_thresholds(settings, control_of, figures, control_figures) or None,
        comparisons=comparisons(score_pairs(scores, questions, controls, control_of, settings), settings),
        rerank=rerank,
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
    return check_against_thresholds(settings.thresholds, control_of, systems[control_of].choices["first"].vqa_accuracy, controls)


def metric_summary(scores: Scores, questions: Sequence[Question]) -> ChoiceFigures:
    """Figures of one choice: mean of every metric, interval of the VQA accuracy, and accuracy by category, language and source."""
    accuracy = scores[PRIMARY_METRIC]
    groups = clusters([question.image_ids for question in questions])
    (interval,) = mean_intervals(accuracy[:, None], groups)
    sources = [question.source for question in questions]
    return ChoiceFigures(
        questions=len(questions),
        clusters=int(groups.max()) + 1,
        vqa_accuracy_ci95=interval,
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
