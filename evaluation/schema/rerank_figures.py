"""Figures of summary.json about reranking: its weights, and what was measured on the validation split."""

from dataclasses import dataclass

from evaluation.statistics import Verdict


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

    Args:
        chosen_on: where the weights come from: "default" (as configured) or "validation".
        scorer: folder or hub name of the first image-text scorer.
        scorers: those of all, by the name of their choice.
        background_images: number of images for the prior.
        self_evaluation: name of the self-evaluation's scores, if systems judge their own candidates.
        learned: system -> feature -> weight of the learned fusion.
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
