"""From scores to the figures of summary.json: means with intervals, by category, and every comparison with its verdict."""

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

SCHEMA_VERSION = 1
BINARY_METRIC = "exact"
"""The 0/1 metric of McNemar's test."""
COMPARED_CHOICES = ("first", "reranked")
"""Choices in which systems are compared with each other."""
AGAINST_FIRST = ("reranked", "learned")
"""Choices that are compared with the first candidate of the same system."""


@dataclass(frozen=True, slots=True)
class SystemResult:
    """What is known of a system after all its questions: `short` of the short ones, `captions` of the others."""

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


@dataclass(frozen=True, slots=True)
class ScorePair:
    """A comparison to be made: names such as "ours/reranked", scores by metric of the same questions."""

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
    """summary.json as DESIGN.md lays it out. questions: the short ones; controls: the first answers of each control run.

    control_of: the system that was controlled. rerank: what `rerank_figures` says of it.
    """
    comparison_rows = comparisons(score_pairs(systems, questions, controls, control_of, settings), settings)
    summary: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "dataset": dict(dataset)}
    if settings.note is not None:
        summary["note"] = settings.note
    summary["systems"] = {}
    for name, result in systems.items():
        choices = {choice: metric_summary(scores, questions, settings) for choice, scores in result.short.scores.items()}
        measured = {"questions_per_second": result.questions_per_second, "without_cuda_graphs": result.cuda_graphs_error}
        speed = {key: value for key, value in measured.items() if value is not None}
        summary["systems"][name] = {
            "kind": result.kind,
            "model": result.model,
            "decoding": result.decoding,
            "errors": result.errors,
            **speed,
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
    """The M of DESIGN.md: every metric's mean, the interval of the first, and accuracy by category, language and source."""
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
    """Accuracy by label, for the labels that there are."""
    parts = {name: accuracy[np.array(labels) == name] for name in order}
    return {name: {"questions": len(part), PRIMARY_METRIC: mean(part)} for name, part in parts.items() if len(part)}


def mean(values: np.ndarray) -> float:
    """Mean as a plain number."""
    return float(values.mean())


def _extras(result: SystemResult) -> dict[str, Any]:
    """Figures of a system that only some systems or questions have."""
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
    """How many answers the rerank changed, and how many of them for the better, for the worse, and neither."""
    changed = np.array(short.texts["reranked"]) != np.array(short.texts["first"])
    gain = short.scores["reranked"][PRIMARY_METRIC] - short.scores["first"][PRIMARY_METRIC]
    better, worse = int((changed & (gain > 0)).sum()), int((changed & (gain < 0)).sum())
    return {"answers": int(changed.sum()), "better": better, "worse": worse, "equal": int(changed.sum()) - better - worse}


def _fused_score(prediction: Prediction, text: str) -> float:
    """The fused score of the candidate that a chosen text is of."""
    assert prediction.fused is not None
    indices = (i for i in range(len(prediction.fused)) if chosen_text(prediction.candidates[i : i + 1], 0) == text)
    return prediction.fused[next(indices)]


def _fused_calibration(short: AnswerScores) -> dict[str, Any] | None:
    """Accuracy of the reranked answers by the fused score that chose them; None where nothing has one."""
    texts = short.texts["reranked"]
    # A question that the rerank leaves alone may have a candidate with a higher score.
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
    """What is compared: in each system the reranked and the learned answer with the first; each two systems in first and reranked;
    controls with their system.

    A group of seeds stands in the place of its members. Along a learning curve, each checkpoint is compared with the last only.
    """
    scores = {name: result.short.scores for name, result in systems.items() if result.short.scores}
    found = _pairs_of_systems(_compared_units(scores, settings.groups or {}), questions, settings.curve)
    index = {question.sample_id: i for i, question in enumerate(questions)}
    for name, (control_questions, control) in controls.items():
        assert control_of is not None
        rows_of_control = [index[question.sample_id] for question in control_questions]
        own = {metric: values[rows_of_control] for metric, values in scores[control_of]["first"].items()}
        # Clustered by the pictures that the questions were written for, not by those of the control.
        found.append(ScorePair(f"{control_of}/first", f"controls/{name}", own, control, [questions[i] for i in rows_of_control]))
    return found


def _compared_units(scores: Mapping[str, dict[str, Scores]], groups: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Scores]]:
    """What is compared with each other: the systems that are in no group, and the groups."""
    grouped = {member for members in groups.values() for member in members}
    alone = {name: own for name, own in scores.items() if name not in grouped}
    found = {name: [scores[member] for member in members if member in scores] for name, members in groups.items()}
    return alone | {name: mean_scores(members) for name, members in found.items() if members}


def _pairs_of_systems(units: Mapping[str, dict[str, Scores]], questions: Sequence[Question], curve: bool) -> list[ScorePair]:
    found = [
        ScorePair(f"{name}/{choice}", f"{name}/first", own[choice], own["first"], questions)
        for name, own in units.items()
        for choice in AGAINST_FIRST
        if choice in own
    ]
    named = list(units.items())
    comparison_rows = [(named[-1], earlier) for earlier in named[:-1]] if curve else combinations(named, 2)
    for (one, mine), (other, theirs) in comparison_rows:
        both = [choice for choice in COMPARED_CHOICES if choice in mine and choice in theirs]
        found += [ScorePair(f"{one}/{choice}", f"{other}/{choice}", mine[choice], theirs[choice], questions) for choice in both]
    return found


def comparisons(found: Sequence[ScorePair], settings: EvalConfig) -> list[dict[str, Any]]:
    """Each pair's difference with interval, p-value, Holm over all of them, verdict, the smallest difference that could be
    shown (absent where none could) and, for 0/1 scores, McNemar's test of exact matches with a Holm of its own."""
    resamples = min_resamples(settings.bootstrap, len(found))
    differences: list[Difference] = []
    detectable_effects: list[float | None] = []
    for pair in found:
        groups = clusters([question.image_ids for question in pair.questions])
        a, b = pair.scores_a[PRIMARY_METRIC], pair.scores_b[PRIMARY_METRIC]
        differences += compare(a[:, None], b[:, None], groups, resamples, settings.seed)
        detectable_effects.append(minimum_detectable_effect(a - b, groups, len(found)))
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
            **({} if effect is None else {"smallest_shown": effect}),
        }
        for pair, difference, p_holm, effect in zip(
            found, differences, holm([d.p_value for d in differences]), detectable_effects, strict=True
        )
    ]
    tests = {i: mcnemar(pair.scores_a[BINARY_METRIC], pair.scores_b[BINARY_METRIC]) for i, pair in enumerate(found) if _binary(pair)}
    for (i, test), p_holm in zip(tests.items(), holm([test.p_value for test in tests.values()]), strict=True):
        rows[i]["mcnemar"] = {"metric": BINARY_METRIC, **asdict(test), "p_holm": p_holm}
    return rows


def _binary(pair: ScorePair) -> bool:
    """Whether both sides are right or wrong, nothing between: a mean over seeds is not."""
    return all(bool(np.isin(scores[BINARY_METRIC], (0.0, 1.0)).all()) for scores in (pair.scores_a, pair.scores_b))
