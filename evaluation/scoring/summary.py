"""Build the summary from scores: means with intervals, accuracy by category, and the comparisons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.confidence_intervals import mean_intervals
from evaluation.config import EvalConfig
from evaluation.metrics.short_answers import PRIMARY_METRIC
from evaluation.questions import Question
from evaluation.run.system_selection import checkpoint_steps
from evaluation.schema.answer_figures import ChoiceFigures, PartFigures
from evaluation.schema.summary_file import (
    DatasetFigures,
    GroupFigures,
    RerankFigures,
    RobustnessFigures,
    SeedStatistics,
    Summary,
    SystemFigures,
    ThresholdFigures,
)
from evaluation.scoring.answer_scores import AnswerScores, CaptionResult, Scores, masks_by_kind
from evaluation.scoring.box_scores import BoxScores
from evaluation.scoring.pairwise_comparisons import comparisons, mean_scores, score_pairs
from evaluation.statistics import clusters


@dataclass(frozen=True, slots=True)
class SystemResult:
    """The figures of one system, and the scores of single questions that they are made of. boxes: None without questions for boxes.
    robustness: None without corruptions."""

    figures: SystemFigures
    short: AnswerScores
    captions: CaptionResult
    boxes: BoxScores | None = None
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
        groups=_groups(settings.groups, scores) if settings.groups else None,
        curve=checkpoint_steps(settings.systems) if settings.curve else None,
        robustness=robustness or None,
        controls=control_figures or None,
        controlled_system=control_of if controls else None,
        thresholds=_thresholds(settings, control_of, figures, control_figures) or None,
        comparisons=comparisons(score_pairs(scores, questions, controls, control_of, settings), settings),
        rerank=rerank,
    )


def _groups(groups: Mapping[str, Sequence[str]], scores: Mapping[str, Mapping[str, Scores]]) -> dict[str, GroupFigures]:
    """Groups of seeds: mean, sample standard deviation, minimum and maximum over the members' mean scores, by choice and metric."""
    result = {}
    for name, systems in groups.items():
        members = [scores.get(system, {}) for system in systems]
        choices = {
            choice: {metric: _seed_statistics([member[choice][metric].mean() for member in members]) for metric in by_metric}
            for choice, by_metric in mean_scores(members).items()
        }
        result[name] = GroupFigures(list(systems), choices)
    return result


def _seed_statistics(means: Sequence[np.floating]) -> SeedStatistics:
    values = np.array(means)
    return SeedStatistics(*map(float, (values.mean(), values.std(ddof=1), values.min(), values.max())))


def _thresholds(
    settings: EvalConfig, control_of: str | None, systems: Mapping[str, SystemFigures], controls: Mapping[str, ChoiceFigures]
) -> list[ThresholdFigures]:
    """Every threshold that is set, with what was measured for the first candidates of the controlled system and its control runs."""
    if control_of is None or "first" not in systems[control_of].choices:
        return []
    first = systems[control_of].choices["first"].vqa_accuracy
    accuracies = {name: figures.vqa_accuracy for name, figures in controls.items()}
    shuffled = accuracies.get("shuffled_images")
    measurements = (
        ("first", f"{control_of}, first candidate", first, "at least"),
        ("shuffled_images", "the same with shuffled images", shuffled, "at most"),
        ("untuned", "the same with an untrained connector", accuracies.get("untuned"), "at most"),
        ("min_lead", f"{control_of}, lead over shuffled images", None if shuffled is None else first - shuffled, "at least"),
    )
    return [
        ThresholdFigures(name, what, value, kind, limit, value >= limit if kind == "at least" else value <= limit)
        for name, what, value, kind in measurements
        if value is not None and (limit := getattr(settings.thresholds, name)) is not None
    ]


def metric_summary(scores: Scores, questions: Sequence[Question]) -> ChoiceFigures:
    """Figures of one choice: mean of every metric, interval of the VQA accuracy, and accuracy by category, language and source."""
    accuracy = scores[PRIMARY_METRIC]
    groups = clusters([question.image_ids for question in questions])
    (interval,) = mean_intervals(accuracy[:, None], groups)
    by_category, by_language, by_source = (
        {label: PartFigures(int(mask.sum()), float(accuracy[mask].mean())) for label, mask in masks.items()}
        for masks in masks_by_kind(questions)
    )
    return ChoiceFigures(
        questions=len(questions),
        clusters=int(groups.max()) + 1,
        vqa_accuracy_ci95=interval,
        **{name: float(values.mean()) for name, values in scores.items()},
        by_category=by_category,
        by_language=by_language,
        by_source=by_source,
    )
