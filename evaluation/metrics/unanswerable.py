"""Detection of questions that the image cannot answer (VizWiz, Gurari et al. 2018, arXiv:1802.08218)."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.metrics import average_precision_score, f1_score

from answering.protocol import Candidate
from evaluation.metrics.answer_normalisation import normalise_m4c
from evaluation.metrics.short_answers import text_references
from evaluation.prediction_files import Prediction
from evaluation.schema.answer_figures import UnanswerableFigures

UNANSWERABLE_TEXTS = frozenset({"unanswerable", "unsuitable", "unsuitable image", "无法回答", "不能回答", "无法判断"})
"""Normalised answers that mean: this question cannot be answered."""


def is_unanswerable(references: Sequence[object]) -> bool:
    """Whether at least half of the reference answers say that the question is unanswerable."""
    texts = [normalise_m4c(text) for text in text_references(references)]
    return bool(texts) and 2 * sum(text in UNANSWERABLE_TEXTS for text in texts) >= len(texts)


def unanswerable_probability(candidates: Sequence[Candidate]) -> float:
    """Share 0..1 of the candidates' probability on "unanswerable"; share of generations where a system gives no probabilities."""
    if not candidates:
        return 0.0
    log_probs = [candidate.log_prob for candidate in candidates if candidate.log_prob is not None]
    if len(log_probs) == len(candidates):
        best = max(log_probs)
        weights = [math.exp(value - best) for value in log_probs]
    else:
        weights = [float(candidate.count) for candidate in candidates]
    predicted = sum(
        weight for weight, candidate in zip(weights, candidates, strict=True) if normalise_m4c(candidate.text) in UNANSWERABLE_TEXTS
    )
    return predicted / sum(weights)


def unanswerable_metrics(predictions: Sequence[Prediction], references: Mapping[str, Sequence[object]]) -> UnanswerableFigures | None:
    """How well a system detects unanswerable questions; None where there are none.

    Average precision of `unanswerable_probability`; F1 of predicting "unanswerable" where that probability exceeds one half.
    """
    positive = np.array([is_unanswerable(references[p.sample_id]) for p in predictions], dtype=bool)
    if not positive.any():
        return None
    probabilities = np.array([unanswerable_probability(p.candidates) if p.error is None else 0.0 for p in predictions])
    average_precision, f1 = average_precision_score(positive, probabilities), f1_score(positive, probabilities > 0.5, zero_division=0.0)
    return UnanswerableFigures(int(positive.sum()), float(average_precision), float(f1))
