"""Learned fusion: how likely each candidate is right, from features that say the same of every answerer."""

from collections.abc import Sequence

import numpy as np

from answering.protocol import Candidate
from answering.rerank.candidate_scores import CORRECTED, SELF, Signals, of_pictures
from answering.rerank.logistic_regression import Logistic
from answering.rerank.score_fusion import log_likelihoods, shares


def features(candidates: Sequence[Candidate], signals: Signals) -> dict[str, list[float]]:
    """By name, a number for each candidate: its share of the likelihood, how often it was said, whether it comes first, its share
    of each scorer's logits before and after the prior is taken off, and what the answerer itself thinks of it."""
    said = sum(candidate.count for candidate in candidates)
    found = {
        "likelihood": _shares(log_likelihoods(candidates)),
        "agreement": [candidate.count / said for candidate in candidates],
        "first": [float(place == 0) for place in range(len(candidates))],
    }
    for name, one in of_pictures(signals).items():
        found[name] = _shares(one.scores)
        if one.corrected is not None:
            found[name + CORRECTED] = _shares(one.corrected)
    if SELF in signals:
        found[SELF] = list(signals[SELF].scores)
    return found


def fused(learned: Logistic, candidates: Sequence[Candidate], signals: Signals) -> list[float]:
    """The probability that each candidate is right."""
    return learned.probabilities(features(candidates, signals))


def _shares(values: Sequence[float]) -> list[float]:
    found: list[float] = shares(np.array(values, dtype=np.float64)).tolist()
    return found
