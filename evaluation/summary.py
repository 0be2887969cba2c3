"""From scores to the figures of summary.json: means with intervals, by category, and every comparison with its verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from evaluation.bars import held_against
from evaluation.categories import names
from evaluation.choosing import Weighting
from evaluation.config import EvalConfig
from evaluation.questions import Question
from evaluation.scoring import Scored, Scores
from evaluation.significance import Difference, clusters, compare, enough_resamples, holm, intervals, verdict

SCHEMA_VERSION = 1
METRIC = "vqa_accuracy"
"""The metric of intervals, comparisons and verdicts."""
COMPARED = ("first", "reranked")
"""Choices in which systems are compared with each other."""


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
    captions: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pair:
    """A comparison to be made: names such as "ours/reranked", scores [questions] of the same questions."""

    a: str
    b: str
    scores_a: np.ndarray
    scores_b: np.ndarray
    questions: Sequence[Question]


def summarise(
    dataset: Mapping[str, Any],
    questions: Sequence[Question],
    systems: Mapping[str, SystemResult],
    controls: Mapping[str, tuple[Sequence[Question], Scores]],
    control_of: str | None,
    rerank: tuple[Weighting, str] | None,
    settings: EvalConfig,
) -> dict[str, Any]:
    """summary.json as DESIGN.md lays it out. questions: the short ones; controls: the first answers of each control run.

    control_of: the system that was controlled. rerank: the weights and the scorer's name.
    """
    tested = comparisons(pairs(systems, questions, controls, control_of), settings)
    summary: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "dataset": dict(dataset)}
    if settings.note is not None:
        summary["note"] = settings.note
    summary["systems"] = {}
    for name, result in systems.items():
        choices = {choice: measures(scores, questions, settings) for choice, scores in result.short.scores.items()}
        speed = {} if result.questions_per_second is None else {"questions_per_second": result.questions_per_second}
        summary["systems"][name] = {
            "kind": result.kind,
            "model": result.model,
            "decoding": result.decoding,
            "errors": result.errors,
            **speed,
            "distinct_candidates": result.distinct_candidates,
            "choices": choices,
            **({"captions": result.captions} if result.captions else {}),
        }
    if controls:
        summary["controls"] = {name: measures(scores, asked, settings) for name, (asked, scores) in controls.items()}
    if control_of is not None and "first" in summary["systems"][control_of]["choices"]:
        first = summary["systems"][control_of]["choices"]["first"][METRIC]
        controlled = {name: control[METRIC] for name, control in summary.get("controls", {}).items()}
        if bars := held_against(settings.bars, control_of, first, controlled):
            summary["bars"] = bars
    summary["comparisons"] = tested
    if rerank is not None:
        weighting, scorer = rerank
        summary["rerank"] = {"weights": asdict(weighting.weights), "chosen_on": weighting.chosen_on, "scorer": scorer}
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


def pairs(
    systems: Mapping[str, SystemResult],
    questions: Sequence[Question],
    controls: Mapping[str, tuple[Sequence[Question], Scores]],
    control_of: str | None,
) -> list[Pair]:
    """What is compared: in each system the reranked answer with the first; each two systems in both; controls with their system."""
    accuracy = {name: {choice: s[METRIC] for choice, s in result.short.scores.items()} for name, result in systems.items()}
    found = [
        Pair(f"{name}/reranked", f"{name}/first", own["reranked"], own["first"], questions)
        for name, own in accuracy.items()
        if "reranked" in own
    ]
    for (one, mine), (other, theirs) in combinations(accuracy.items(), 2):
        both = [choice for choice in COMPARED if choice in mine and choice in theirs]
        found += [Pair(f"{one}/{choice}", f"{other}/{choice}", mine[choice], theirs[choice], questions) for choice in both]
    place = {question.sample_id: i for i, question in enumerate(questions)}
    for name, (asked, scores) in controls.items():
        assert control_of is not None
        same = [place[question.sample_id] for question in asked]
        own = accuracy[control_of]["first"][same]
        # Clustered by the pictures that the questions were written for, not by those of the control.
        found.append(Pair(f"{control_of}/first", f"controls/{name}", own, scores[METRIC], [questions[i] for i in same]))
    return found


def comparisons(found: Sequence[Pair], settings: EvalConfig) -> list[dict[str, Any]]:
    """Each pair's difference with interval, p-value, Holm over all of them, and verdict."""
    resamples = enough_resamples(settings.bootstrap, len(found))
    differences: list[Difference] = []
    for pair in found:
        groups = clusters([question.image_ids for question in pair.questions])
        differences += compare(pair.scores_a[:, None], pair.scores_b[:, None], groups, resamples, settings.seed)
    return [
        {
            "a": pair.a,
            "b": pair.b,
            "metric": METRIC,
            "difference": difference.difference,
            "ci95": [difference.ci95.low, difference.ci95.high],
            "p_value": difference.p_value,
            "p_holm": p_holm,
            "verdict": verdict(difference, p_holm),
        }
        for pair, difference, p_holm in zip(found, differences, holm([d.p_value for d in differences]), strict=True)
    ]
