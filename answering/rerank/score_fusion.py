"""Fuse scores of different scales: min-max normalise each over the candidates of a question, then take the weighted mean; or, learned,
take the probability that a logistic regression gives each candidate by `features` that all answerers have.

Shapes: [..., K], K candidates; NaN where a question has fewer than K.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from answering.config import RerankWeights
from answering.protocol import Candidate
from answering.rerank.candidate_scores import SELF_EVALUATION, Signal, Signals, scores_by_name
from errors import UsageError

Form: TypeAlias = Literal["softmax", "raw", "prior_corrected"]
"""How image-text logits enter the fusion: softmax over the candidates, unchanged, or softmax of the scores minus prior."""

LIKELIHOOD, CLIP = "likelihood", "clip"


def min_max(values: ArrayLike) -> np.ndarray:
    """Min-max normalisation over the last axis: the best candidate gets 1, the worst 0; if all are equal, each gets 1.

    values: [..., K]; NaN stays NaN.
    """
    values = np.asarray(values, dtype=np.float64)
    missing = np.isnan(values)
    low = np.min(values, axis=-1, keepdims=True, where=~missing, initial=np.inf)
    high = np.max(values, axis=-1, keepdims=True, where=~missing, initial=-np.inf)
    span = np.where(high > low, high - low, 1.0)
    return np.where(missing, np.nan, np.where(high > low, (values - low) / span, 1.0))


def softmax(values: ArrayLike) -> np.ndarray:
    """Softmax over the last axis of [..., K] log-probabilities or logits, ignoring NaN."""
    values = np.asarray(values, dtype=np.float64)
    missing = np.isnan(values)
    exponentials = np.exp(values - np.max(values, axis=-1, keepdims=True, where=~missing, initial=-np.inf))
    return np.asarray(exponentials / np.sum(exponentials, axis=-1, keepdims=True, where=~missing))


def softmax_min_max(values: ArrayLike) -> np.ndarray:
    """Softmax, then min-max normalisation, over the last axis of [..., K] log-probabilities or logits."""
    return min_max(softmax(values))


def log_likelihoods(candidates: Sequence[Candidate]) -> list[float]:
    """Mean log-probability of each candidate; 0 for all if any is missing, so that they do not influence the choice."""
    values = [candidate.mean_log_prob for candidate in candidates]
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else [0.0] * len(values)


def components(candidates: Sequence[Candidate], signals: Signals, form: Form) -> dict[str, np.ndarray]:
    """The components of the fusion, each [K] in 0..1: `likelihood`, `clip` (mean over the image-text scorers) and, if given, `self`.

    Raises UsageError if `form` needs priors and there are none.
    """
    by_name = {LIKELIHOOD: softmax_min_max(log_likelihoods(candidates))}
    if image_text_scores := [_scaled_scores(name, signal, form) for name, signal in signals.items() if name != SELF_EVALUATION]:
        by_name[CLIP] = np.mean(image_text_scores, axis=0)
    if SELF_EVALUATION in signals:
        by_name[SELF_EVALUATION] = min_max(signals[SELF_EVALUATION].scores)
    return by_name


def fuse(parts: Mapping[str, np.ndarray], weights: RerankWeights) -> np.ndarray:
    """Weighted mean [..., K] of the result of `components`; only the ratios of the weights matter.

    Works on many questions at once, so that a grid of weights can be tried on components that are computed once. Raises UsageError
    if the weights of all given components are zero.
    """
    by_name = {LIKELIHOOD: weights.likelihood, CLIP: weights.clip, SELF_EVALUATION: weights.self_evaluation}
    total = sum(by_name[name] for name in parts)
    if total == 0.0:
        raise UsageError(f"rerank.weights: those of {', '.join(parts)} are zero; at least one must be positive")
    return np.asarray(sum(by_name[name] * part for name, part in parts.items()) / total)


def _scaled_scores(name: str, signal: Signal, form: Form) -> np.ndarray:
    if form != "prior_corrected":
        return min_max(signal.scores) if form == "raw" else softmax_min_max(signal.scores)
    if signal.corrected is None:
        raise UsageError(
            f"rerank.clip_score_form: prior_corrected needs the scores of {name} on background images; "
            "set rerank.background_images to a number above 0"
        )
    return softmax_min_max(signal.corrected)


def features(candidates: Sequence[Candidate], signals: Signals) -> dict[str, list[float]]:
    """Features of the candidates for the learned fusion by name, one number per candidate.

    likelihood: softmax of the mean log-probabilities; agreement: share of the generations; first: 1 for the first candidate; <scorer>
    and <scorer>_corrected: softmax of the logits, without and with the prior subtracted; self: P(yes) of the answerer.
    """
    total_count = sum(candidate.count for candidate in candidates)
    return {
        "likelihood": softmax(log_likelihoods(candidates)).tolist(),
        "agreement": [candidate.count / total_count for candidate in candidates],
        "first": [float(index == 0) for index in range(len(candidates))],
        **{name: list(scores) if name == SELF_EVALUATION else softmax(scores).tolist() for name, scores in scores_by_name(signals).items()},
    }
