"""Figures of summary.json about answers: of one choice, of captions, of what reranking changed, and of calibration."""

from dataclasses import dataclass

from evaluation.confidence_intervals import Interval


@dataclass(frozen=True)
class PartFigures:
    """Accuracy on a part of the questions."""

    questions: int
    vqa_accuracy: float


@dataclass(frozen=True)
class ChoiceFigures:
    """Short answers of one choice: every metric, and the VQA accuracy by category, language and source.

    clusters: groups of questions that share no image with each other, on whose number the interval depends.
    """

    questions: int
    clusters: int
    vqa_accuracy: float
    vqa_accuracy_ci95: Interval
    vqa_accuracy_m4c: float
    exact: float
    fuzzy: float
    contains: float
    bidirectional: float
    anls: float
    contains_legacy: float
    bidirectional_legacy: float
    by_category: dict[str, PartFigures]
    by_language: dict[str, PartFigures]
    by_source: dict[str, PartFigures]

    def metric(self, name: str) -> float:
        """A metric by its name."""
        return float(getattr(self, name))


@dataclass(frozen=True)
class CaptionFigures:
    """Captions or descriptions of one task, language and tokenisation. clip_score: None without a scorer of the language."""

    questions: int
    bleu_1: float
    bleu_2: float
    bleu_3: float
    bleu_4: float
    rouge_l: float
    cider_d: float
    clip_score: float | None = None


@dataclass(frozen=True)
class GroundingPart:
    """Answers that are boxes, on a part of the questions."""

    questions: int
    acc_50: float
    mean_iou: float


@dataclass(frozen=True)
class GroundingFigures:
    """Answers of one choice to questions for boxes.

    clusters: groups of questions that share no image with each other. acc_50: share of the boxes whose intersection over union with the
    reference is at least .5. mean_iou: mean intersection over union. malformed: number of answers that name no box.
    """

    questions: int
    clusters: int
    acc_50: float
    acc_50_ci95: Interval
    mean_iou: float
    mean_iou_ci95: Interval
    malformed: int
    by_language: dict[str, GroundingPart]
    by_source: dict[str, GroundingPart]


@dataclass(frozen=True)
class UnanswerableFigures:
    """Detection of unanswerable questions. questions: how many there are."""

    questions: int
    average_precision: float
    f1: float


@dataclass(frozen=True)
class ChangedAnswers:
    """Numbers of answers that reranking changed: in total, with a higher, a lower and an equal score."""

    answers: int
    better: int
    worse: int
    equal: int


@dataclass(frozen=True)
class CanChange:
    """Fractions of the questions: with several candidates, whose score another candidate can change or raise; with reranking also
    those that it skips, and whose score it can change or raise."""

    several_candidates: float
    score_can_change: float
    score_can_rise: float
    skipped: float | None = None
    rerank_can_change: float | None = None
    rerank_can_rise: float | None = None


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
class ConfidenceFigures(Reliability):
    """Calibration of a system's confidence, and accuracy of the most confident answers.

    brier: mean squared distance of confidence and accuracy. aurc: mean of 1 - accuracy over all coverages. unlike: questions that are
    unlike those of the calibration.
    """

    questions: int
    fitted_on: str
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
