"""Figures of summary.json about comparisons: of systems and choices, over seeds, on corrupted images, with thresholds."""

from dataclasses import dataclass

from evaluation.schema.choice_figures import Interval95
from evaluation.statistics import Verdict


@dataclass(frozen=True)
class TestedDifference:
    """Mean score of a minus that of b. p_holm: adjusted over all comparisons."""

    __test__ = False  # not a test of pytest

    difference: float
    ci95: Interval95
    p_value: float
    p_holm: float
    verdict: Verdict


@dataclass(frozen=True)
class McNemarFigures:
    """McNemar's test of a 0/1 metric: questions that only a, and only b, answers right."""

    metric: str
    only_a: int
    only_b: int
    p_value: float
    p_holm: float


@dataclass(frozen=True)
class Comparison(TestedDifference):
    """Two sides compared in the VQA accuracy, such as "ours/reranked" and "ours/first".

    Args:
        differing_questions: questions with different scores.
        vqa_accuracy_m4c: the same comparison in M4C, which ignores the form of an answer.
        minimum_detectable_effect: smallest true difference that this many images show with a probability of 80 %, if there is one.
        mcnemar: test of exact matches, where all of them are 0 or 1.
    """

    a: str
    b: str
    metric: str
    differing_questions: int
    vqa_accuracy_m4c: TestedDifference
    minimum_detectable_effect: float | None = None
    mcnemar: McNemarFigures | None = None


@dataclass(frozen=True)
class SeedStatistics:
    """A metric over the seeds of a configuration. sd: sample standard deviation."""

    mean: float
    sd: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class GroupFigures:
    """Several seeds of one configuration: choice -> metric -> statistics."""

    systems: list[str]
    choices: dict[str, dict[str, SeedStatistics]]


@dataclass(frozen=True)
class CorruptionPoint:
    """Accuracy of the first candidates at one strength of a corruption; None: on the clean images."""

    vqa_accuracy: float
    vqa_accuracy_ci95: Interval95
    strength: int | None = None


@dataclass(frozen=True)
class RobustnessFigures:
    """Accuracy on clean and corrupted images, by corruption and strength."""

    questions: int
    clean: CorruptionPoint
    corrupted: dict[str, list[CorruptionPoint]]


@dataclass(frozen=True)
class ThresholdFigures:
    """A threshold: what was measured, and whether the value is "at least" or "at most" the limit."""

    name: str
    what: str
    value: float
    kind: str
    limit: float
    met: bool
