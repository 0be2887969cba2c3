"""Compare choices and systems in pairs: differences with intervals, p-values, verdicts and minimum detectable effects."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np

from evaluation.config import EvalConfig
from evaluation.metrics.short_answers import PRIMARY_METRIC
from evaluation.power_analysis import minimum_detectable_effect
from evaluation.questions import Question
from evaluation.schema.summary_file import Comparison, McNemarFigures
from evaluation.scoring.answer_scores import Scores
from evaluation.statistics import Difference, clusters, compare, holm, mcnemar, min_resamples, with_verdicts

NORMALISED_METRIC = "vqa_accuracy_m4c"
"""The metric that ignores the form of an answer; a verdict that it does not share may be one about form."""
TESTED_METRICS = (PRIMARY_METRIC, NORMALISED_METRIC)
"""Metrics with intervals and p-values."""
BINARY_METRIC = "exact"
"""The 0/1 metric that McNemar's test uses."""
COMPARED_CHOICES = ("first", "reranked")
"""Choices for which systems are compared with each other."""
AGAINST_FIRST = ("reranked", "learned")
"""Choices that are compared with the first candidate of the same system."""


@dataclass(frozen=True, slots=True)
class ScorePair:
    """Two sides of a comparison, such as "ours/reranked" and "ours/first", with the scores [questions] of each by metric."""

    a: str
    b: str
    scores_a: Scores
    scores_b: Scores
    questions: Sequence[Question]


def score_pairs(
    scores: Mapping[str, Mapping[str, Scores]],
    questions: Sequence[Question],
    controls: Mapping[str, tuple[Sequence[Question], Scores]],
    control_of: str | None,
    settings: EvalConfig,
) -> list[ScorePair]:
    """All comparisons: within each system, reranked and learned with first; each pair of systems in first and in reranked; the
    controlled system with its control runs.

    A group of seeds replaces its members. In a learning curve each checkpoint is compared only with the last one.

    Args:
        scores: system -> choice -> scores of its short answers
        questions: the short questions
        controls: control -> its questions and the scores of its first candidates
        control_of: the system of the control runs
        settings: groups, and whether the systems form a learning curve
    """
    pairs = _pairs_of_systems(_compared_units(scores, settings.groups or {}), questions, settings.curve)
    index = {question.sample_id: i for i, question in enumerate(questions)}
    for name, (control_questions, control) in controls.items():
        assert control_of is not None
        rows_of_control = [index[question.sample_id] for question in control_questions]
        system_scores = {metric: values[rows_of_control] for metric, values in scores[control_of]["first"].items()}
        # Clusters follow the original images of the questions, not the shuffled ones.
        pairs.append(ScorePair(f"{control_of}/first", f"controls/{name}", system_scores, control, [questions[i] for i in rows_of_control]))
    return pairs


def mean_scores(members: Sequence[Mapping[str, Scores]]) -> dict[str, Scores]:
    """Scores [questions] averaged over the members, by choice and metric, for the choices that all members have."""
    return {
        choice: {metric: np.mean([member[choice][metric] for member in members], axis=0) for metric in by_metric}
        for choice, by_metric in members[0].items()
        if all(choice in member for member in members)
    }


def _compared_units(scores: Mapping[str, Mapping[str, Scores]], groups: Mapping[str, Sequence[str]]) -> dict[str, Mapping[str, Scores]]:
    """Scores of the units that are compared with each other: systems outside groups, and groups (mean over their members)."""
    grouped = {member for members in groups.values() for member in members}
    single = {name: by_choice for name, by_choice in scores.items() if name not in grouped}
    group_scores = {name: [scores[member] for member in members if member in scores] for name, members in groups.items()}
    return single | {name: mean_scores(members) for name, members in group_scores.items() if members}


def _pairs_of_systems(units: Mapping[str, Mapping[str, Scores]], questions: Sequence[Question], curve: bool) -> list[ScorePair]:
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


@dataclass(frozen=True, slots=True)
class PairedDifferences:
    """What `paired_differences` finds of each pair: by metric the difference, by the first metric the number of questions with different
    scores and the smallest difference that could be shown."""

    by_metric: dict[str, list[Difference]]
    differing: list[int]
    effects: list[float | None]


def paired_differences(pairs: Sequence[ScorePair], metrics: Sequence[str], settings: EvalConfig) -> PairedDifferences:
    """The differences of each pair in some metrics, of which the first decides, with intervals and unadjusted p-values."""
    resamples = min_resamples(settings.resamples, len(pairs))
    found = PairedDifferences({metric: [] for metric in metrics}, [], [])
    for pair in pairs:
        groups = clusters([question.image_ids for question in pair.questions])
        a, b = (np.stack([scores[metric] for metric in metrics], axis=1) for scores in (pair.scores_a, pair.scores_b))
        for metric, difference in zip(metrics, compare(a, b, groups, resamples, settings.seed), strict=True):
            found.by_metric[metric].append(difference)
        found.effects.append(minimum_detectable_effect(a[:, 0] - b[:, 0], groups, len(pairs)))
        found.differing.append(int((a[:, 0] != b[:, 0]).sum()))
    return found


def comparisons(pairs: Sequence[ScorePair], settings: EvalConfig) -> list[Comparison]:
    """One comparison per pair.

    p-values are Holm-adjusted over all pairs, with corrections of their own for M4C and for McNemar's test of exact matches, which only
    pairs with 0/1 scores have.
    """
    found = paired_differences(pairs, TESTED_METRICS, settings)
    tests = {i: mcnemar(pair.scores_a[BINARY_METRIC], pair.scores_b[BINARY_METRIC]) for i, pair in enumerate(pairs) if _binary(pair)}
    adjusted = dict(zip(tests, holm([test.p_value for test in tests.values()]), strict=True))
    exact = {i: McNemarFigures(**asdict(test), metric=BINARY_METRIC, p_holm=adjusted[i]) for i, test in tests.items()}
    tested = zip(*(with_verdicts(found.by_metric[metric]) for metric in TESTED_METRICS), strict=True)
    return [
        Comparison(
            **vars(figures),
            a=pairs[i].a,
            b=pairs[i].b,
            metric=PRIMARY_METRIC,
            differing_questions=found.differing[i],
            vqa_accuracy_m4c=normalised,
            minimum_detectable_effect=found.effects[i],
            mcnemar=exact.get(i),
        )
        for i, (figures, normalised) in enumerate(tested)
    ]


def _binary(pair: ScorePair) -> bool:
    """Whether all scores of both sides are 0 or 1; means over seeds are not."""
    return all(bool(np.isin(scores[BINARY_METRIC], (0.0, 1.0)).all()) for scores in (pair.scores_a, pair.scores_b))
