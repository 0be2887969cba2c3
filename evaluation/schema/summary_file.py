"""The content of summary.json, as typed classes: what the evaluation writes, and what reports and other programs read.

Every field is a key of the same name. A field that is None here is not in the file. Accuracies, fractions and probabilities are in
0..1, intervals are (low, high) of 95 %, p-values are two-sided. docs/evaluation.md explains the figures.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from evaluation.schema.choice_figures import CanChange, CaptionFigures, ChangedAnswers, ChoiceFigures, UnanswerableFigures
from evaluation.schema.comparison_figures import Comparison, GroupFigures, RobustnessFigures, ThresholdFigures
from evaluation.schema.confidence_figures import ConfidenceFigures, Reliability
from evaluation.schema.rerank_figures import RerankFigures

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

    Args:
        model: identity of the model.
        decoding: settings of the short answers.
        errors: questions that failed.
        distinct_candidates: mean number per question.
        choices: by the name of the choice; empty without short questions.
        questions_per_second: speed of answering, if it was measured.
        without_cuda_graphs: why decoding ran without them, if it had to.
        visual_tokens: mean number per question, if the system says it.
        captions: choice -> task, language and tokenisation -> figures.
        format_sensitivity: choice -> format -> metric, when only the format of the answers changes.
        fused_calibration: calibration of the fused score of the reranked answers.
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


@dataclass(frozen=True)
class Summary:
    """summary.json.

    Args:
        note: of the configuration, shown above the results.
        groups: seeds of one configuration.
        curve: training step of each checkpoint of a learning curve.
        robustness: by system.
        controls: control run -> figures of its first candidates.
        controlled_system: whose control runs these are.
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


def to_json(value: Any) -> Any:
    """The plain values of a dataclass, without fields that are None."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: to_json(own) for name, own in fields.items() if own is not None}
    if isinstance(value, Mapping):
        return {key: to_json(own) for key, own in value.items()}
    return [to_json(own) for own in value] if isinstance(value, list | tuple) else value


def read_summary(path: Path) -> Summary:
    """The content of a summary.json. Raises pydantic.ValidationError if it has another layout."""
    return TypeAdapter(Summary).validate_json(path.read_text(encoding="utf-8"))
