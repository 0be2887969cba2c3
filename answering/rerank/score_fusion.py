"""Signals of different scales made one score: each stretched to 0..1 over a question's candidates, then averaged by weight."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np

from answering.config import RerankWeights
from answering.protocol import Candidate
from answering.rerank.candidate_scores import SELF_EVALUATION, Signal, Signals, image_text_signals
from errors import UsageError

Form: TypeAlias = Literal["softmax", "raw", "prior_corrected"]
"""How a picture scorer's logits enter the fusion: softmax over the candidates, as they are, or softmax of scores minus prior."""

LIKELIHOOD, CLIP = "likelihood", "clip"


def min_max(values: np.ndarray) -> np.ndarray:
    """Min-max over the last axis: the best candidate of a question gets 1, the worst 0; all equal: 1 each.

    values: [..., k]; NaN stands where a question has fewer than k candidates and stays NaN.
    """
    values = np.asarray(values, dtype=np.float64)
    missing = np.isnan(values)
    low = np.min(values, axis=-1, keepdims=True, where=~missing, initial=np.inf)
    high = np.max(values, axis=-1, keepdims=True, where=~missing, initial=-np.inf)
    span = np.where(high > low, high - low, 1.0)
    return np.where(missing, np.nan, np.where(high > low, (values - low) / span, 1.0))


def softmax(values: np.ndarray) -> np.ndarray:
    """Softmax over the last axis: [..., k] log-probabilities or logits, NaN where there is no candidate."""
    values = np.asarray(values, dtype=np.float64)
    missing = np.isnan(values)
    exponentials = np.exp(values - np.max(values, axis=-1, keepdims=True, where=~missing, initial=-np.inf))
    return np.asarray(exponentials / np.sum(exponentials, axis=-1, keepdims=True, where=~missing))


def softmax_min_max(values: np.ndarray) -> np.ndarray:
    """Softmax, then min-max, over the last axis of [..., k] log-probabilities or logits."""
    return min_max(softmax(values))


def log_likelihoods(candidates: Sequence[Candidate]) -> list[float]:
    """Mean log-probability of each candidate; where a system gives none, 0 for all, so that they tell nothing apart."""
    values = [candidate.mean_log_prob for candidate in candidates]
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else [0.0] * len(values)


def components(candidates: Sequence[Candidate], signals: Signals, form: Form) -> dict[str, np.ndarray]:
    """What the weights weigh, each [k] in 0..1: `likelihood`, `clip` (the mean over the picture scorers) and, where given, `self`.

    Raises UsageError when `form` wants priors and there are none.
    """
    found = {LIKELIHOOD: softmax_min_max(np.array(log_likelihoods(candidates)))}
    if image_text_scores := [_scaled_scores(name, one, form) for name, one in image_text_signals(signals).items()]:
        found[CLIP] = np.mean(image_text_scores, axis=0)
    if SELF_EVALUATION in signals:
        found[SELF_EVALUATION] = min_max(np.array(signals[SELF_EVALUATION].scores))
    return found


def fuse(parts: Mapping[str, np.ndarray], weights: RerankWeights) -> np.ndarray:
    """Weighted mean [..., k] of what `components` gives; only the proportions of the weights matter.

    Vectorised, so that a grid of weights can be tried on components that are computed once. Raises UsageError when the
    weights of all parts that there are are zero.
    """
    by_name = {LIKELIHOOD: weights.likelihood, CLIP: weights.clip, SELF_EVALUATION: weights.self_evaluation}
    total = sum(by_name[name] for name in parts)
    if total == 0.0:
        raise UsageError(f"rerank.weights: those of {', '.join(parts)} are zero; at least one must be positive")
    return np.asarray(sum(by_name[name] * part for name, part in parts.items()) / total)


def _scaled_scores(name: str, one: Signal, form: Form) -> np.ndarray:
    if form == "raw":
        return min_max(np.array(one.scores))
    if form == "softmax":
        return softmax_min_max(np.array(one.scores))
    if one.corrected is None:
        raise UsageError(
            f"rerank.clip_score_form: prior_corrected needs what {name} says of unrelated pictures; set rerank.background_images to a number of pictures"
        )
    return softmax_min_max(np.array(one.corrected))
