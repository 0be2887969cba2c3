"""From scored candidates to choices, and the weights that make one of them. Only the validation split teaches weights."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from answering.config import RerankWeights
from answering.rerank import choose, chosen_text, fuse, log_likelihoods, rerank, signal
from dataset.sample import uniform
from evaluation.metrics import vqa_accuracy
from evaluation.predictions import Prediction

GRID = tuple(round(step * 0.05, 2) for step in range(21))
"""Weights of the likelihood that are tried; CLIP has the rest."""
_EQUAL = 1e-9


@dataclass(frozen=True, slots=True)
class Weighting:
    """The weights of the rerank and where they were chosen."""

    weights: RerankWeights
    chosen_on: Literal["default", "validation"]


def chosen(prediction: Prediction, weights: RerankWeights, seed: int) -> Prediction:
    """The prediction with fused scores and the choices first, majority, random and, where there is a scorer, clip, reranked.

    Where a scorer had no picture to look at, all candidates fit equally. No reference can come in here.
    """
    candidates = prediction.candidates
    clip = None if prediction.scorer is None else prediction.clip or [0.0] * len(candidates)
    drawn = uniform(prediction.sample_id, seed, 0, len(candidates)) if candidates else 0
    choices = choose(candidates, clip, weights) | {"random": chosen_text(candidates, drawn)}
    fused = rerank(candidates, clip, weights).fused if clip is not None and candidates else None
    return dataclasses.replace(prediction, choices=choices, fused=fused)


def tune(answered: Iterable[Sequence[Prediction]], references: Mapping[str, Sequence[str]], default: RerankWeights) -> Weighting:
    """The weights of GRID with the best official VQA accuracy of the reranked answer, averaged over systems.

    answered: each system's predictions on the validation split, whose references these are. Of equally good weights those
    nearest to the default are taken; the default stays when all are equally good, or nothing could be scored.
    """
    curves = [_accuracies([p for p in predictions if p.clip and p.sample_id in references], references) for predictions in answered]
    mean = np.mean([curve for curve in curves if len(curve)] or [np.zeros(len(GRID))], axis=0)
    if np.ptp(mean) < _EQUAL:
        return Weighting(default, "default")
    usual = default.likelihood / (default.likelihood + default.clip)
    good = [weight for weight, accuracy in zip(GRID, mean, strict=True) if accuracy > mean.max() - _EQUAL]
    best = min(good, key=lambda weight: abs(weight - usual))
    return Weighting(RerankWeights(likelihood=best, clip=round(1 - best, 2)), "validation")


def _accuracies(predictions: Sequence[Prediction], references: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Mean accuracy [GRID] of the candidate that each pair of weights takes; empty without predictions."""
    if not predictions:
        return np.empty(0)
    likelihood = signal(_padded([log_likelihoods(p.candidates) for p in predictions]))
    clip = signal(_padded([p.clip or () for p in predictions]))
    right = _padded([[vqa_accuracy(c.text, references[p.sample_id]) for c in p.candidates] for p in predictions])
    fused = [fuse(likelihood, clip, RerankWeights(likelihood=w, clip=round(1 - w, 2))) for w in GRID]
    taken = np.array([np.argmax(np.where(np.isnan(scores), -np.inf, scores), axis=1) for scores in fused])
    return np.asarray(right[np.arange(len(right)), taken].mean(axis=1))


def _padded(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """[rows, longest], filled up with NaN."""
    width = max(map(len, rows))
    return np.array([[*row, *[np.nan] * (width - len(row))] for row in rows])
