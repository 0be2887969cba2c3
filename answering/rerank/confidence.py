"""The confidence of a chosen answer: the probability that it is right, calibrated on the validation split."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from answering.protocol import Candidate, ImageInput
from answering.rerank.calibration_range import UNLIKE_CONFIDENCE, CalibrationRange
from answering.rerank.candidate_scores import CORRECTED_SUFFIX, SELF_EVALUATION, Signals, scores_by_name
from answering.rerank.logistic_regression import IsotonicSteps, LogisticModel
from answering.rerank.score_fusion import log_likelihoods, softmax
from dataset.sample import Language

NOT_SURE: dict[Language, str] = {"en": "not sure", "zh": "不确定"}
"""The answer instead of one whose confidence is too low."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A confidence 0..1, and what about the question is unlike those that it was learnt from ("image", "words"); empty if nothing is."""

    value: float
    unlike: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Confidence:
    """Turns features of a chosen answer into a probability that holds for questions like those of the calibration.

    steps: isotonic steps that follow the logistic model, if it was calibrated so. calibration_range: which questions are like those of the
    calibration; None in files of earlier versions: all.
    """

    model: LogisticModel
    steps: IsotonicSteps | None = None
    calibration_range: CalibrationRange | None = None

    def estimate(
        self, question: str, images: Sequence[ImageInput], candidates: Sequence[Candidate], index: int, signals: Signals
    ) -> Estimate:
        """The confidence that the candidate at `index` is right.

        For a question unlike those of the calibration nothing was measured: the probability is then at most UNLIKE_CONFIDENCE, divided by
        how many times the limit is exceeded.
        """
        value = self(candidates, index, signals)
        excess = {} if self.calibration_range is None else self.calibration_range.excess(question, images)
        return Estimate(min([value, *(UNLIKE_CONFIDENCE / ratio for ratio in excess.values())]), tuple(excess))

    def __call__(self, candidates: Sequence[Candidate], index: int, signals: Signals) -> float:
        """The probability 0..1 that the candidate at `index` is right, for a question like those of the calibration."""
        (value,) = self.model.probabilities({name: [number] for name, number in confidence_features(candidates, index, signals).items()})
        return value if self.steps is None else self.steps(value)


def confidence_features(candidates: Sequence[Candidate], index: int, signals: Signals) -> dict[str, float]:
    """The features of the candidate at `index`, by name.

    agreement: share of the generations that gave this answer; confidence: geometric mean of its token probabilities; margin: its share
    of the likelihood minus that of the best other candidate; <scorer>_corrected: score minus prior; self: P(yes) of the answerer.
    """
    chosen = candidates[index]
    likelihood = softmax(log_likelihoods(candidates))
    others = np.delete(likelihood, index)
    return {
        "agreement": chosen.count / sum(candidate.count for candidate in candidates),
        "confidence": math.exp(chosen.mean_log_prob) if chosen.mean_log_prob is not None else 0.0,
        "margin": float(likelihood[index] - others.max(initial=0.0)),
        **{
            name: scores[index]
            for name, scores in scores_by_name(signals).items()
            if name == SELF_EVALUATION or name.endswith(CORRECTED_SUFFIX)
        },
    }
