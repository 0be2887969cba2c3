"""Detection of questions that the image cannot answer (VizWiz, Gurari et al. 2018, arXiv:1802.08218)."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

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


def average_precision(positive: np.ndarray, scores: np.ndarray) -> float:
    """Sum over thresholds of (increase in recall) x precision, as scikit-learn and VizWiz compute it; equal scores share a threshold.

    positive: [n] bool with at least one true value; scores: [n], higher means more likely positive.
    """
    order = np.argsort(-scores, kind="stable")
    true_positives = np.cumsum(positive[order])
    last = np.append(np.diff(scores[order]) != 0, True)
    num_predicted = np.flatnonzero(last) + 1
    precision, recall = true_positives[last] / num_predicted, true_positives[last] / positive.sum()
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def f1(positive: np.ndarray, predicted: np.ndarray) -> float:
    """Harmonic mean of precision and recall; 0 where there is no true positive."""
    true_positives = float((positive & predicted).sum())
    return 2 * true_positives / float(positive.sum() + predicted.sum()) if true_positives else 0.0


def unanswerable_metrics(predictions: Sequence[Prediction], references: Mapping[str, Sequence[object]]) -> UnanswerableFigures | None:
    """How well a system detects unanswerable questions; None where there are none.

    Average precision of `unanswerable_probability`; F1 of predicting "unanswerable" where that probability exceeds one half.
    """
    positive = np.array([is_unanswerable(references[p.sample_id]) for p in predictions], dtype=bool)
    if not positive.any():
        return None
    probabilities = np.array([unanswerable_probability(p.candidates) if p.error is None else 0.0 for p in predictions])
    return UnanswerableFigures(int(positive.sum()), average_precision(positive, probabilities), f1(positive, probabilities > 0.5))
