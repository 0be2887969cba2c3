"""Figures of summary.json about answers: of one choice, of captions, and of what reranking changed."""

from dataclasses import dataclass

Interval95 = tuple[float, float]
"""Low and high end of a 95 % interval."""


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
    vqa_accuracy_ci95: Interval95
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
        value: float = getattr(self, name)
        return value


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
