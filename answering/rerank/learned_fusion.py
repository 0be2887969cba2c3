"""Learned fusion: how likely each candidate is right, from features that say the same of every answerer."""

from collections.abc import Sequence

import numpy as np

from answering.protocol import Candidate
from answering.rerank.candidate_scores import CORRECTED_SUFFIX, SELF_EVALUATION, Signals, image_text_signals
from answering.rerank.logistic_regression import LogisticModel
from answering.rerank.score_fusion import log_likelihoods, softmax


def features(candidates: Sequence[Candidate], signals: Signals) -> dict[str, list[float]]:
    """By name, a number for each candidate: its share of the likelihood, how often it was said, whether it comes first, its share
    of each scorer's logits before and after the prior is taken off, and what the answerer itself thinks of it."""
    total_count = sum(candidate.count for candidate in candidates)
    found = {
        "likelihood": _softmax(log_likelihoods(candidates)),
        "agreement": [candidate.count / total_count for candidate in candidates],
        "first": [float(index == 0) for index in range(len(candidates))],
    }
    for name, one in image_text_signals(signals).items():
        found[name] = _softmax(one.scores)
        if one.corrected is not None:
            found[name + CORRECTED_SUFFIX] = _softmax(one.corrected)
    if SELF_EVALUATION in signals:
        found[SELF_EVALUATION] = list(signals[SELF_EVALUATION].scores)
    return found


def fused(learned: LogisticModel, candidates: Sequence[Candidate], signals: Signals) -> list[float]:
    """The probability that each candidate is right."""
    return learned.probabilities(features(candidates, signals))


def _softmax(values: Sequence[float]) -> list[float]:
    found: list[float] = softmax(np.array(values, dtype=np.float64)).tolist()
    return found
