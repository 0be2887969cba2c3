"""The content of summary.json, as typed classes: what the evaluation writes, and what reports and other programs read.

Every field is a key of the same name. A field that is None here is not in the file. Accuracies, fractions and probabilities are in
0..1, intervals are (low, high) of 95 %, p-values are two-sided. docs/evaluation.md explains the figures.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from evaluation.confidence_intervals import Interval
from evaluation.schema.answer_figures import (
    CanChange,
    CaptionFigures,
    ChangedAnswers,
    ChoiceFigures,
    ConfidenceFigures,
    GroundingFigures,
    Reliability,
    UnanswerableFigures,
)
from evaluation.statistics import McNemar, TestedDifference, Verdict

SCHEMA_VERSION = 3
"""Version of this layout. 3: the bins of a reliability diagram have `low` and `high` in place of `from` and `to`."""


@dataclass(frozen=True)
class DatasetFigures:
    """The questions of the evaluated split. fewest_references: of any short question; None if there are none."""

    name: str
    split: str
    questions: int
    images: int
    by_task: dict[str, int]
    fewest_references: int | None = None


@dataclass(frozen=True)
class SystemFigures:
    """One system.

    decoding: of the short answers. distinct_candidates, visual_tokens: mean numbers per question. choices: empty without short questions.
    grounding: choice -> figures of answers that are boxes.
    without_cuda_graphs: why decoding ran without them. captions: choice -> task, language and tokenisation -> figures.
    format_sensitivity: choice -> format -> metric, when only the format of the answers changes. fused_calibration: of the fused score of
    the reranked answers.
    """

    kind: str
    model: dict[str, Any]
    decoding: dict[str, Any]
    errors: int
    distinct_candidates: float
    choices: dict[str, ChoiceFigures]
    questions_per_second: float | None = None
    without_cuda_graphs: str | None = None
    visual_tokens: float | None = None
    captions: dict[str, dict[str, CaptionFigures]] | None = None
    unanswerable: UnanswerableFigures | None = None
    format_sensitivity: dict[str, dict[str, dict[str, float]]] | None = None
    changed: ChangedAnswers | None = None
    fused_calibration: Reliability | None = None
    can_change: CanChange | None = None
    confidence: ConfidenceFigures | None = None
    grounding: dict[str, GroundingFigures] | None = None


@dataclass(frozen=True)
class McNemarFigures(McNemar):
    """McNemar's test of a 0/1 metric, one of several tests. p_holm: adjusted over all of them."""

    metric: str
    p_holm: float


@dataclass(frozen=True)
class Comparison(TestedDifference):
    """Two sides compared in the VQA accuracy, such as "ours/reranked" and "ours/first".

    differing_questions: those with different scores. vqa_accuracy_m4c: the same comparison in M4C, which ignores the form of an answer.
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
class GroundingComparison(TestedDifference):
    """Two sides compared in answers that are boxes, in acc_50.

    differing_questions: those with different scores. mean_iou: the same comparison in the intersection over union.
    minimum_detectable_effect: as in `Comparison`.
    """

    a: str
    b: str
    metric: str
    differing_questions: int
    mean_iou: TestedDifference
    minimum_detectable_effect: float | None = None


@dataclass(frozen=True)
class GroundingSummary:
    """Answers that are boxes, over all systems. controls: control run of `controlled_system` -> figures of its first candidates."""

    comparisons: list[GroundingComparison]
    controls: dict[str, GroundingFigures] | None = None
    controlled_system: str | None = None


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
    vqa_accuracy_ci95: Interval
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


@dataclass(frozen=True)
class TunedGain:
    """Tuned minus configured weights, on held-out folds."""

    difference: float
    p_value: float
    verdict: Verdict


@dataclass(frozen=True)
class QuestionTypeGain:
    """Reranked minus first answers to questions of one type. skipped: reranking leaves them alone."""

    questions: int
    gain: float
    p_value: float
    p_holm: float
    skipped: bool


@dataclass(frozen=True)
class SystemValidation:
    """Models fitted for one system: accuracy of the learned fusion, and calibration error of the confidence, on held-out folds."""

    questions: int
    learned_held_out: float | None = None
    ece_held_out: float | None = None


@dataclass(frozen=True)
class ValidationFigures:
    """Accuracy on the validation split, over all systems: first candidates, configured and tuned weights, oracle. None: too few images."""

    questions: int
    first: float | None = None
    configured: float | None = None
    tuned_held_out: float | None = None
    tuned_gain: TunedGain | None = None
    oracle: float | None = None
    skipped_question_types: dict[str, QuestionTypeGain] | None = None
    systems: dict[str, SystemValidation] | None = None


@dataclass(frozen=True)
class RerankFigures:
    """How candidates were reranked.

    chosen_on: where the weights come from: "default" (as configured) or "validation". scorer: the first image-text scorer, a folder or
    hub name. scorers: all, by the name of their choice. background_images: number of images for the prior. self_evaluation: name of its
    scores, if systems judge their own candidates. learned: system -> feature -> weight of the learned fusion.
    """

    weights: dict[str, float]
    chosen_on: str
    skipped_question_types: list[str]
    scorer: str | None = None
    scorers: dict[str, str] | None = None
    clip_score_form: str | None = None
    statement_form: str | None = None
    background_images: int | None = None
    self_evaluation: str | None = None
    validation: ValidationFigures | None = None
    learned: dict[str, dict[str, float]] | None = None


@dataclass(frozen=True)
class Summary:
    """summary.json.

    note: of the configuration, shown above the results. groups: seeds of one configuration. curve: training step of each checkpoint of a
    learning curve. robustness: by system. controls: control run -> figures of its first candidates, of the system `controlled_system`.
    """

    dataset: DatasetFigures
    systems: dict[str, SystemFigures]
    comparisons: list[Comparison]
    schema_version: int = SCHEMA_VERSION
    note: str | None = None
    groups: dict[str, GroupFigures] | None = None
    curve: dict[str, int] | None = None
    robustness: dict[str, RobustnessFigures] | None = None
    controls: dict[str, ChoiceFigures] | None = None
    controlled_system: str | None = None
    thresholds: list[ThresholdFigures] | None = None
    rerank: RerankFigures | None = None
    grounding: GroundingSummary | None = None


def to_json(value: Any) -> Any:
    """What JSON gives back of a dataclass, without fields that are None."""
    fields = dataclasses.asdict(value, dict_factory=lambda fields: {name: own for name, own in fields if own is not None})
    return json.loads(json.dumps(fields))


def read_summary(path: Path) -> Summary:
    """The content of a summary.json. Raises pydantic.ValidationError if it has another layout."""
    return TypeAdapter(Summary).validate_json(path.read_text(encoding="utf-8"))
