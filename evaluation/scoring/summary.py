"""Build summary.json from scores: means with intervals, accuracy by category, and the comparisons."""

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
from evaluation.scoring.answer_scores import AnswerScores, CaptionResult, Scores
from evaluation.scoring.pairwise_comparisons import comparisons, score_pairs
from evaluation.scoring.question_categories import category_names
from evaluation.scoring.thresholds import check_against_thresholds
from evaluation.statistics import clusters

SCHEMA_VERSION = 2
"""Version of the layout of summary.json."""


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


def summarise(
    dataset: Mapping[str, Any],
    questions: Sequence[Question],
    systems: Mapping[str, SystemResult],
    controls: Mapping[str, tuple[Sequence[Question], Scores]],
    control_of: str | None,
    rerank: Mapping[str, Any] | None,
    settings: EvalConfig,
) -> dict[str, Any]:
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
    comparison_rows = comparisons(score_pairs(scores, questions, controls, control_of, settings), settings)
    summary: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "dataset": dict(dataset)}
    if settings.note is not None:
        summary["note"] = settings.note
    summary["systems"] = {}
    for name, result in systems.items():
        choices = {choice: metric_summary(by_metric, questions) for choice, by_metric in result.short.scores.items()}
        measured = {
            "questions_per_second": result.questions_per_second,
            "without_cuda_graphs": result.cuda_graphs_error,
            "visual_tokens": result.visual_tokens,
        }
        summary["systems"][name] = {
            "kind": result.kind,
            "model": result.model,
            "decoding": result.decoding,
            "errors": result.errors,
            **{key: value for key, value in measured.items() if value is not None},
            "distinct_candidates": result.distinct_candidates,
            "choices": choices,
            **_extras(result),
        }
    if settings.groups:
        summary["groups"] = {
            name: {"systems": list(members), "choices": seed_statistics([systems[member].short.scores for member in members])}
            for name, members in settings.groups.items()
        }
    if settings.curve:
        summary["curve"] = checkpoint_steps(settings.systems)
    if robust := {name: result.robustness for name, result in systems.items() if result.robustness is not None}:
        summary["robustness"] = summarise_robustness(robust)
    if controls:
        summary["controls"] = {
            name: metric_summary(control_scores, control_questions) for name, (control_questions, control_scores) in controls.items()
        }
        summary["controlled_system"] = control_of
    if control_of is not None and "first" in summary["systems"][control_of]["choices"]:
        first = summary["systems"][control_of]["choices"]["first"][PRIMARY_METRIC]
        controlled = {name: control[PRIMARY_METRIC] for name, control in summary.get("controls", {}).items()}
        if thresholds := check_against_thresholds(settings.thresholds, control_of, first, controlled):
            summary["thresholds"] = thresholds
    summary["comparisons"] = comparison_rows
    if rerank is not None:
        summary["rerank"] = dict(rerank)
    return summary


def metric_summary(scores: Scores, questions: Sequence[Question]) -> dict[str, Any]:
    """Figures of one choice: mean of every metric, interval of the VQA accuracy, and accuracy by category, language and source.

    `clusters`: groups of questions that share no image with each other, on whose number the interval depends.
    """
    accuracy = scores[PRIMARY_METRIC]
    groups = clusters([question.image_ids for question in questions])
    (interval,) = mean_intervals(accuracy[:, None], groups)
    metrics: dict[str, Any] = {
        "questions": len(questions),
        "clusters": int(groups.max()) + 1,
        PRIMARY_METRIC: mean(accuracy),
        f"{PRIMARY_METRIC}_ci95": [interval.low, interval.high],
    }
    metrics |= {name: mean(values) for name, values in scores.items() if name != PRIMARY_METRIC}
    metrics["by_category"] = _accuracy_by_label(accuracy, [question.category for question in questions], category_names())
    metrics["by_language"] = _accuracy_by_label(accuracy, [question.request.language for question in questions], ["en", "zh"])
    sources = [question.source for question in questions]
    metrics["by_source"] = _accuracy_by_label(accuracy, sources, sorted(set(sources)))
    return metrics


def _accuracy_by_label(accuracy: np.ndarray, labels: Sequence[str], order: Sequence[str]) -> dict[str, Any]:
    """Number of questions and accuracy by label, for the labels that occur."""
    parts = {name: accuracy[np.array(labels) == name] for name in order}
    return {name: {"questions": len(part), PRIMARY_METRIC: mean(part)} for name, part in parts.items() if len(part)}


def mean(values: np.ndarray) -> float:
    """Mean as a Python float."""
    return float(values.mean())


def _extras(result: SystemResult) -> dict[str, Any]:
    """Optional entries of a system: captions, unanswerable, format_sensitivity, changed, fused_calibration."""
    short = result.short
    extras: dict[str, Any] = {}
    if result.captions.means:
        extras["captions"] = result.captions.means
    if short.unanswerable is not None:
        extras["unanswerable"] = short.unanswerable
    if short.forms:
        extras["format_sensitivity"] = {
            choice: {form: {name: mean(values) for name, values in scores.items()} for form, scores in forms.items()}
            for choice, forms in short.forms.items()
        }
    if "reranked" in short.scores:
        extras["changed"] = _count_changed(short)
        if (calibration := _fused_calibration(short)) is not None:
            extras["fused_calibration"] = calibration
    return extras


def _count_changed(short: AnswerScores) -> dict[str, int]:
    """Numbers of answers that reranking changed: in total, with a higher score, with a lower score, with an equal score."""
    changed = np.array(short.texts["reranked"]) != np.array(short.texts["first"])
    gain = short.scores["reranked"][PRIMARY_METRIC] - short.scores["first"][PRIMARY_METRIC]
    better, worse = int((changed & (gain > 0)).sum()), int((changed & (gain < 0)).sum())
    return {"answers": int(changed.sum()), "better": better, "worse": worse, "equal": int(changed.sum()) - better - worse}


def _fused_score(prediction: Prediction, text: str) -> float:
    """Fused score of the candidate with this text."""
    assert prediction.fused is not None
    indices = (i for i in range(len(prediction.fused)) if chosen_text(prediction.candidates[i : i + 1], 0) == text)
    return prediction.fused[next(indices)]


def _fused_calibration(short: AnswerScores) -> dict[str, Any] | None:
    """Calibration of the fused score of the reranked answers; None if there are no fused scores."""
    texts = short.texts["reranked"]
    # In a skipped question the answer is the first candidate, which need not have the highest fused score.
    scored = [(i, _fused_score(p, texts[i])) for i, p in enumerate(short.predictions) if p.fused]
    if not scored:
        return None
    indices, fused = zip(*scored, strict=True)
    return reliability(np.array(fused), short.scores["reranked"][PRIMARY_METRIC][list(indices)])
