"""How far a chosen answer can be trusted: a probability that it is right, calibrated on the validation split."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from answering.protocol import Candidate
from answering.rerank.candidate_scores import CORRECTED_SUFFIX, SELF_EVALUATION, Signals, image_text_signals
from answering.rerank.logistic_regression import IsotonicSteps, LogisticModel
from answering.rerank.score_fusion import log_likelihoods, softmax
from dataset.sample import Language

NOT_SURE: dict[Language, str] = {"en": "not sure", "zh": "不确定"}
"""What is answered in the place of an answer that is not trusted."""


@dataclass(frozen=True, slots=True)
class Confidence:
    """Turns the evidence for an answer into a probability: a logistic model, and steps behind it where it was calibrated so."""

    model: LogisticModel
    steps: IsotonicSteps | None = None

    def __call__(self, candidates: Sequence[Candidate], index: int, signals: Signals) -> float:
        """How likely the candidate at `place` is right, 0..1."""
        (value,) = self.model.probabilities({name: [number] for name, number in confidence_features(candidates, index, signals).items()})
        return value if self.steps is None else self.steps(value)


def confidence_features(candidates: Sequence[Candidate], index: int, signals: Signals) -> dict[str, float]:
    """What speaks for the candidate at `place`, by name.

    agreement: share of the generations that said it; confidence: geometric mean of its tokens' probabilities; margin: its share
    of the likelihood minus the best other's; <scorer>_corrected: how much better than any picture this one fits it; self: what
    the answerer itself thinks of it.
    """
    chosen = candidates[index]
    likelihood = softmax(np.array(log_likelihoods(candidates)))
    others = np.delete(likelihood, index)
    found = {
        "agreement": chosen.count / sum(candidate.count for candidate in candidates),
        "confidence": math.exp(chosen.mean_log_prob) if chosen.mean_log_prob is not None else 0.0,
        "margin": float(likelihood[index] - others.max(initial=0.0)),
    }
    for name, one in image_text_signals(signals).items():
        if one.corrected is not None:
            found[name + CORRECTED_SUFFIX] = one.corrected[index]
    if SELF_EVALUATION in signals:
        found[SELF_EVALUATION] = signals[SELF_EVALUATION].scores[index]
    return found
