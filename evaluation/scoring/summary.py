"""Build summary.json from scores: means with intervals, accuracy by category, and every comparison with its verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from answering.rerank.choose_answer import chosen_text
from evaluation.config import EvalConfig
from evaluation.metrics.reliability import reliability
from evaluation.metrics.short_answers import PRIMARY_METRIC
from evaluation.prediction_files import Prediction
from evaluation.questions import Question
from evaluation.robustness.robustness_run import Robustness, summarise_robustness
from evaluation.run.system_groups import checkpoint_steps, mean_scores, seed_statistics
from evaluation.scoring.answer_scores import AnswerScores, CaptionResult, Scores
from evaluation.scoring.question_categories import category_names
from evaluation.scoring.thresholds import check_against_thresholds
from evaluation.statistics import Difference, clusters, compare, holm, intervals, mcnemar, min_resamples, minimum_detectable_effect, verdict

SCHEMA_VERSION = 2
"""Version of the layout of summary.json."""
BINARY_METRIC = "exact"
"""The 0/1 metric that McNemar's test uses."""
COMPARED_CHOICES = ("first", "reranked")
"""Choices for which systems are compared with each other."""
AGAINST_FIRST = ("reranked", "learned")
"""Choices that are compared with the first candidate of the same system."""


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


@dataclass(frozen=True, slots=True)
class ScorePair:
    """Two sides of a comparison.

    Args:
        a: name of side a, such as "ours/reranked"
        b: name of side b
        scores_a: metric -> scores [questions] of side a
        scores_b: metric -> scores [questions] of side b
        questions: the questions
    """

    a: str
    b: str
    scores_a: Scores
    scores_b: Scores
    questions: Sequence[Question]


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
    comparison_rows = comparisons(score_pairs(systems, questions, controls, control_of, settings), settings)
    summary: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "dataset": dict(dataset)}
    if settings.note is not None:
        summary["note"] = settings.note
    summary["systems"] = {}
    for name, result in systems.items():
        choices = {choice: metric_summary(scores, questions, settings) for choice, scores in result.short.scores.items()}
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
        summary["robustness"] = summarise_robustness(robust, settings)
    if controls:
        summary["controls"] = {
            name: metric_summary(scores, control_questions, settings) for name, (control_questions, scores) in controls.items()
        }
    if control_of is not None and "first" in summary["systems"][control_of]["choices"]:
        first = summary["systems"][control_of]["choices"]["first"][PRIMARY_METRIC]
        controlled = {name: control[PRIMARY_METRIC] for name, control in summary.get("controls", {}).items()}
        if thresholds := check_against_thresholds(settings.thresholds, control_of, first, controlled):
            summary["thresholds"] = thresholds
    summary["comparisons"] = comparison_rows
    if rerank is not None:
        summary["rerank"] = dict(rerank)
    return summary


def metric_summary(scores: Scores, questions: Sequence[Question], settings: EvalConfig) -> dict[str, Any]:
    """Figures of one choice: mean of every metric, interval of the VQA accuracy, and accuracy by category, language and source."""
    accuracy = scores[PRIMARY_METRIC]
    groups = clusters([question.image_ids for question in questions])
    (interval,) = intervals(accuracy[:, None], groups, settings.bootstrap, settings.seed)
    metrics: dict[str, Any] = {
        "questions": len(questions),
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


def score_pairs(
    systems: Mapping[str, SystemResult],
    questions: Sequence[Question],
    controls: Mapping[str, tuple[Sequence[Question], Scores]],
    control_of: str | None,
    settings: EvalConfig,
) -> list[ScorePair]:
    """All comparisons: within each system, reranked and learned with first; each pair of systems in first and in reranked; the
    controlled system with its control runs.

    A group of seeds replaces its members. In a learning curve each checkpoint is compared only with the last one.

    Args:
        systems: results by system
        questions: the short questions
        controls: control -> its questions and the scores of its first candidates
        control_of: the system of the control runs
        settings: groups, and whether the systems form a learning curve
    """
    scores = {name: result.short.scores for name, result in systems.items() if result.short.scores}
    pairs = _pairs_of_systems(_compared_units(scores, settings.groups or {}), questions, settings.curve)
    index = {question.sample_id: i for i, question in enumerate(questions)}
    for name, (control_questions, control) in controls.items():
        assert control_of is not None
        rows_of_control = [index[question.sample_id] for question in control_questions]
        system_scores = {metric: values[rows_of_control] for metric, values in scores[control_of]["first"].items()}
        # Clusters follow the original images of the questions, not the shuffled ones.
        pairs.append(ScorePair(f"{control_of}/first", f"controls/{name}", system_scores, control, [questions[i] for i in rows_of_control]))
    return pairs


def _compared_units(scores: Mapping[str, dict[str, Scores]], groups: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Scores]]:
    """Scores of the units that are compared with each other: systems outside groups, and groups (mean over their members)."""
    grouped = {member for members in groups.values() for member in members}
    single = {name: by_choice for name, by_choice in scores.items() if name not in grouped}
    group_scores = {name: [scores[member] for member in members if member in scores] for name, members in groups.items()}
    return single | {name: mean_scores(members) for name, members in group_scores.items() if members}


def _pairs_of_systems(units: Mapping[str, dict[str, Scores]], questions: Sequence[Question], curve: bool) -> list[ScorePair]:
    pairs = [
        ScorePair(f"{name}/{choice}", f"{name}/first", by_choice[choice], by_choice["first"], questions)
        for name, by_choice in units.items()
        for choice in AGAINST_FIRST
        if choice in by_choice
    ]
    named = list(units.items())
    unit_pairs = [(named[-1], earlier) for earlier in named[:-1]] if curve else combinations(named, 2)
    for (a, scores_a), (b, scores_b) in unit_pairs:
        common = [choice for choice in COMPARED_CHOICES if choice in scores_a and choice in scores_b]
        pairs += [ScorePair(f"{a}/{choice}", f"{b}/{choice}", scores_a[choice], scores_b[choice], questions) for choice in common]
    return pairs


def comparisons(pairs: Sequence[ScorePair], settings: EvalConfig) -> list[dict[str, Any]]:
    """The entry `comparisons` of summary.json, one row per pair.

    A row has the difference with interval, p-value (raw and Holm-adjusted over all pairs), verdict, `minimum_detectable_effect`
    (absent if there is none) and, for 0/1 scores, McNemar's test of exact matches with its own Holm correction.
    """
    resamples = min_resamples(settings.bootstrap, len(pairs))
    differences: list[Difference] = []
    detectable_effects: list[float | None] = []
    for pair in pairs:
        groups = clusters([question.image_ids for question in pair.questions])
        a, b = pair.scores_a[PRIMARY_METRIC], pair.scores_b[PRIMARY_METRIC]
        differences += compare(a[:, None], b[:, None], groups, resamples, settings.seed)
        detectable_effects.append(minimum_detectable_effect(a - b, groups, len(pairs)))
    rows = [
        {
            "a": pair.a,
            "b": pair.b,
            "metric": PRIMARY_METRIC,
            "difference": difference.difference,
            "ci95": [difference.ci95.low, difference.ci95.high],
            "p_value": difference.p_value,
            "p_holm": p_holm,
            "verdict": verdict(difference, p_holm),
            **({} if effect is None else {"minimum_detectable_effect": effect}),
        }
        for pair, difference, p_holm, effect in zip(
            pairs, differences, holm([d.p_value for d in differences]), detectable_effects, strict=True
        )
    ]
    tests = {i: mcnemar(pair.scores_a[BINARY_METRIC], pair.scores_b[BINARY_METRIC]) for i, pair in enumerate(pairs) if _binary(pair)}
    for (i, test), p_holm in zip(tests.items(), holm([test.p_value for test in tests.values()]), strict=True):
        rows[i]["mcnemar"] = {"metric": BINARY_METRIC, **asdict(test), "p_holm": p_holm}
    return rows


def _binary(pair: ScorePair) -> bool:
    """Whether all scores of both sides are 0 or 1; means over seeds are not."""
    return all(bool(np.isin(scores[BINARY_METRIC], (0.0, 1.0)).all()) for scores in (pair.scores_a, pair.scores_b))
