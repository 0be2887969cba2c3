"""Learned fusion: the probability that each candidate is right, by logistic regression on features that all answerers have."""

from collections.abc import Sequence

import numpy as np

from answering.protocol import Candidate
from answering.rerank.candidate_scores import CORRECTED_SUFFIX, SELF_EVALUATION, Signals, image_text_signals
from answering.rerank.logistic_regression import LogisticModel
from answering.rerank.score_fusion import log_likelihoods, softmax


def features(candidates: Sequence[Candidate], signals: Signals) -> dict[str, list[float]]:
    """Features of the candidates by name, one number per candidate.

    likelihood: softmax of the mean log-probabilities; agreement: share of the generations; first: 1 for the first candidate; <scorer>
    and <scorer>_corrected: softmax of the logits, without and with the prior subtracted; self: P(yes) of the answerer.
    """
    total_count = sum(candidate.count for candidate in candidates)
    table = {
        "likelihood": _softmax(log_likelihoods(candidates)),
        "agreement": [candidate.count / total_count for candidate in candidates],
        "first": [float(index == 0) for index in range(len(candidates))],
    }
    for name, signal in image_text_signals(signals).items():
        table[name] = _softmax(signal.scores)
        if signal.corrected is not None:
            table[name + CORRECTED_SUFFIX] = _softmax(signal.corrected)
    if SELF_EVALUATION in signals:
        table[SELF_EVALUATION] = list(signals[SELF_EVALUATION].scores)
    return table


def fused(learned: LogisticModel, candidates: Sequence[Candidate], signals: Signals) -> list[float]:
    """The probability that each candidate is right, in their order."""
    return learned.probabilities(features(candidates, signals))


def _softmax(values: Sequence[float]) -> list[float]:
    shares: list[float] = softmax(np.array(values, dtype=np.float64)).tolist()
    return shares
