"""From scores to the figures of summary.json: means with intervals, by category, and every comparison with its verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from answering.rerank.choose_answer import chosen_text
from evaluation.config import EvalConfig
from evaluation.metrics.reliability import reliability
from evaluation.metrics.short_answers import METRIC
from evaluation.prediction_files import Prediction
from evaluation.questions import Question
from evaluation.robustness.robustness_run import Robustness, summarised
from evaluation.run.system_groups import mean_scores, spread, steps
from evaluation.scoring.answer_scores import CaptionResult, Scored, Scores
from evaluation.scoring.question_categories import names
from evaluation.scoring.thresholds import held_against
from evaluation.statistics import Difference, clusters, compare, enough_resamples, holm, intervals, mcnemar, smallest_shown, verdict

SCHEMA_VERSION = 1
BINARY_METRIC = "exact"
"""The 0/1 metric of McNemar's test."""
COMPARED = ("first", "reranked")
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
    short: Scored
    captions: CaptionResult = field(default_factory=lambda: CaptionResult({}, {}))
    robustness: Robustness | None = None
    without_graphs: str | None = None


@dataclass(frozen=True, slots=True)
class Pair:
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
    tested = comparisons(pairs(systems, questions, controls, control_of, settings), settings)
    summary: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "dataset": dict(dataset)}
    if settings.note is not None:
        summary["note"] = settings.note
    summary["systems"] = {}
    for name, result in systems.items():
        choices = {choice: measures(scores, questions, settings) for choice, scores in result.short.scores.items()}
        measured = {"questions_per_second": result.questions_per_second, "without_cuda_graphs": result.without_graphs}
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
            name: {"systems": list(members), "choices": spread([systems[member].short.scores for member in members])}
            for name, members in settings.groups.items()
        }
    if settings.curve:
        summary["curve"] = steps(settings.systems)
    if robust := {name: result.robustness for name, result in systems.items() if result.robustness is not None}:
        summary["robustness"] = summarised(robust, settings)
    if controls:
        summary["controls"] = {name: measures(scores, asked, settings) for name, (asked, scores) in controls.items()}
    if control_of is not None and "first" in summary["systems"][control_of]["choices"]:
        first = summary["systems"][control_of]["choices"]["first"][METRIC]
        controlled = {name: control[METRIC] for name, control in summary.get("controls", {}).items()}
        if bars := held_against(settings.bars, control_of, first, controlled):
            summary["bars"] = bars
    summary["comparisons"] = tested
    if rerank is not None:
        summary["rerank"] = dict(rerank)
    return summary


def measures(scores: Scores, questions: Sequence[Question], settings: EvalConfig) -> dict[str, Any]:
    """The M of DESIGN.md: every metric's mean, the interval of the first, and accuracy by category, language and source."""
    accuracy = scores[METRIC]
    groups = clusters([question.image_ids for question in questions])
    (interval,) = intervals(accuracy[:, None], groups, settings.bootstrap, settings.seed)
    figures: dict[str, Any] = {"questions": len(questions), METRIC: mean(accuracy), f"{METRIC}_ci95": [interval.low, interval.high]}
    figures |= {name: mean(values) for name, values in scores.items() if name != METRIC}
    figures["by_category"] = _parts(accuracy, [question.category for question in questions], names())
    figures["by_language"] = _parts(accuracy, [question.request.language for question in questions], ["en", "zh"])
    sources = [question.source for question in questions]
    figures["by_source"] = _parts(accuracy, sources, sorted(set(sources)))
    return figures


def _parts(accuracy: np.ndarray, labels: Sequence[str], order: Sequence[str]) -> dict[str, Any]:
    """Accuracy by label, for the labels that there are."""
    parts = {name: accuracy[np.array(labels) == name] for name in order}
    return {name: {"questions": len(part), METRIC: mean(part)} for name, part in parts.items() if len(part)}


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
        extras["changed"] = _changed(short)
        if (calibration := _fused_calibration(short)) is not None:
            extras["fused_calibration"] = calibration
    return extras


def _changed(short: Scored) -> dict[str, int]:
    """How many answers the rerank changed, and how many of them for the better, for the worse, and neither."""
    changed = np.array(short.texts["reranked"]) != np.array(short.texts["first"])
    gain = short.scores["reranked"][METRIC] - short.scores["first"][METRIC]
    better, worse = int((changed & (gain > 0)).sum()), int((changed & (gain < 0)).sum())
    return {"answers": int(changed.sum()), "better": better, "worse": worse, "equal": int(changed.sum()) - better - worse}


def _fused_of(prediction: Prediction, text: str) -> float:
    """The fused score of the candidate that a chosen text is of."""
    assert prediction.fused is not None
    places = (i for i in range(len(prediction.fused)) if chosen_text(prediction.candidates[i : i + 1], 0) == text)
    return prediction.fused[next(places)]


def _fused_calibration(short: Scored) -> dict[str, Any] | None:
    """Accuracy of the reranked answers by the fused score that chose them; None where nothing has one."""
    texts = short.texts["reranked"]
    # A question that the rerank leaves alone may have a candidate with a higher score.
    scored = [(i, _fused_of(p, texts[i])) for i, p in enumerate(short.predictions) if p.fused]
    if not scored:
        return None
    places, fused = zip(*scored, strict=True)
    return reliability(np.array(fused), short.scores["reranked"][METRIC][list(places)])


def pairs(
    systems: Mapping[str, SystemResult],
    questions: Sequence[Question],
    controls: Mapping[str, tuple[Sequence[Question], Scores]],
    control_of: str | None,
    settings: EvalConfig,
) -> list[Pair]:
    """What is compared: in each system the reranked and the learned answer with the first; each two systems in first and reranked;
    controls with their system.

    A group of seeds stands in the place of its members. Along a learning curve, each checkpoint is compared with the last only.
    """
    scores = {name: result.short.scores for name, result in systems.items() if result.short.scores}
    found = _among(_compared(scores, settings.groups or {}), questions, settings.curve)
    place = {question.sample_id: i for i, question in enumerate(questions)}
    for name, (asked, control) in controls.items():
        assert control_of is not None
        same = [place[question.sample_id] for question in asked]
        own = {metric: values[same] for metric, values in scores[control_of]["first"].items()}
        # Clustered by the pictures that the questions were written for, not by those of the control.
        found.append(Pair(f"{control_of}/first", f"controls/{name}", own, control, [questions[i] for i in same]))
    return found


def _compared(scores: Mapping[str, dict[str, Scores]], groups: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Scores]]:
    """What is compared with each other: the systems that are in no group, and the groups."""
    grouped = {member for members in groups.values() for member in members}
    alone = {name: own for name, own in scores.items() if name not in grouped}
    found = {name: [scores[member] for member in members if member in scores] for name, members in groups.items()}
    return alone | {name: mean_scores(members) for name, members in found.items() if members}


def _among(units: Mapping[str, dict[str, Scores]], questions: Sequence[Question], curve: bool) -> list[Pair]:
    found = [
        Pair(f"{name}/{choice}", f"{name}/first", own[choice], own["first"], questions)
        for name, own in units.items()
        for choice in AGAINST_FIRST
        if choice in own
    ]
    named = list(units.items())
    tested = [(named[-1], earlier) for earlier in named[:-1]] if curve else combinations(named, 2)
    for (one, mine), (other, theirs) in tested:
        both = [choice for choice in COMPARED if choice in mine and choice in theirs]
        found += [Pair(f"{one}/{choice}", f"{other}/{choice}", mine[choice], theirs[choice], questions) for choice in both]
    return found


def comparisons(found: Sequence[Pair], settings: EvalConfig) -> list[dict[str, Any]]:
    """Each pair's difference with interval, p-value, Holm over all of them, verdict, the smallest difference that could be
    shown (absent where none could) and, for 0/1 scores, McNemar's test of exact matches with a Holm of its own."""
    resamples = enough_resamples(settings.bootstrap, len(found))
    differences: list[Difference] = []
    smallest: list[float | None] = []
    for pair in found:
        groups = clusters([question.image_ids for question in pair.questions])
        a, b = pair.scores_a[METRIC], pair.scores_b[METRIC]
        differences += compare(a[:, None], b[:, None], groups, resamples, settings.seed)
        smallest.append(smallest_shown(a - b, groups, len(found)))
    rows = [
        {
            "a": pair.a,
            "b": pair.b,
            "metric": METRIC,
            "difference": difference.difference,
            "ci95": [difference.ci95.low, difference.ci95.high],
            "p_value": difference.p_value,
            "p_holm": p_holm,
            "verdict": verdict(difference, p_holm),
            **({} if least is None else {"smallest_shown": least}),
        }
        for pair, difference, p_holm, least in zip(found, differences, holm([d.p_value for d in differences]), smallest, strict=True)
    ]
    tests = {i: mcnemar(pair.scores_a[BINARY_METRIC], pair.scores_b[BINARY_METRIC]) for i, pair in enumerate(found) if _binary(pair)}
    for (i, test), p_holm in zip(tests.items(), holm([test.p_value for test in tests.values()]), strict=True):
        rows[i]["mcnemar"] = {"metric": BINARY_METRIC, **asdict(test), "p_holm": p_holm}
    return rows


def _binary(pair: Pair) -> bool:
    """Whether both sides are right or wrong, nothing between: a mean over seeds is not."""
    return all(bool(np.isin(scores[BINARY_METRIC], (0.0, 1.0)).all()) for scores in (pair.scores_a, pair.scores_b))
