"""Figures of summary.json about calibration: of fused scores and of the confidence."""

from dataclasses import dataclass

from evaluation.schema.choice_figures import PartFigures


@dataclass(frozen=True)
class ReliabilityBin:
    """Answers whose score is in [low, high): their number, mean score and accuracy."""

    low: float
    high: float
    questions: int
    score: float
    vqa_accuracy: float


@dataclass(frozen=True)
class Reliability:
    """Reliability diagram: the bins that are not empty, and the expected calibration error."""

    ece: float
    bins: list[ReliabilityBin]


@dataclass(frozen=True)
class ConfidencePart:
    """Calibration of some questions. confident: the answers that are claimed to be nearly certain, if there are any."""

    questions: int
    confidence: float
    vqa_accuracy: float
    ece: float
    confident: PartFigures | None = None


@dataclass(frozen=True)
class CoveragePoint:
    """Accuracy of the most confident fraction of the answers."""

    coverage: float
    vqa_accuracy: float


@dataclass(frozen=True)
class Abstaining:
    """What is answered if confidences below a threshold become "not sure". vqa_accuracy: None if nothing is."""

    below: float
    answered: float
    vqa_accuracy: float | None = None


@dataclass(frozen=True)
class ConfidenceFigures:
    """The confidence of a system: calibration, and accuracy of the most confident answers.

    Args:
        brier: mean squared distance of confidence and accuracy.
        aurc: mean of 1 - accuracy over all coverages.
        unlike: questions that are unlike those of the calibration, if there are any.
    """

    questions: int
    fitted_on: str
    ece: float
    bins: list[ReliabilityBin]
    brier: float
    aurc: float
    risk_coverage: list[CoveragePoint]
    by_category: dict[str, ConfidencePart]
    by_language: dict[str, ConfidencePart]
    by_source: dict[str, ConfidencePart]
    unlike: ConfidencePart | None = None
    abstaining: Abstaining | None = None

    def parts(self) -> list[tuple[str, ConfidencePart]]:
        """Label and figures of every category, language and source."""
        return [*self.by_category.items(), *self.by_language.items(), *self.by_source.items()]
