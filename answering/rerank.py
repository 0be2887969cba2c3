"""Choosing among candidates, from the candidates and their scores alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from answering.config import RerankWeights
from answering.protocol import Candidate
from errors import UsageError

UNKNOWN = "unknown"
"""What a chosen answer becomes where it would be empty, and the answer to a question that failed."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """`order`: places of the candidates, best first. `fused[i]`: the fused score of candidate i, 0..1."""

    order: tuple[int, ...]
    fused: tuple[float, ...]


def signal(values: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, then min-max: the best candidate of a question gets 1, the worst 0; all equal: 1 each.

    values: [..., k] log-probabilities or logits; NaN stands where a question has fewer than k candidates and stays NaN.
    """
    values = np.asarray(values, dtype=np.float64)
    absent = np.isnan(values)
    powers = np.exp(values - np.max(values, axis=-1, keepdims=True, where=~absent, initial=-np.inf))
    shares = powers / np.sum(powers, axis=-1, keepdims=True, where=~absent)
    low = np.min(shares, axis=-1, keepdims=True, where=~absent, initial=np.inf)
    high = np.max(shares, axis=-1, keepdims=True, where=~absent, initial=-np.inf)
    span = np.where(high > low, high - low, 1.0)
    return np.where(absent, np.nan, np.where(high > low, (shares - low) / span, 1.0))


def fuse(likelihood: np.ndarray, clip: np.ndarray, weights: RerankWeights) -> np.ndarray:
    """Weighted mean [..., k] of two arrays that `signal` made; only the proportions of the weights matter.

    Vectorised, so that a grid of weights can be tried on signals that are computed once.
    Raises UsageError when both weights are zero.
    """
    total = weights.likelihood + weights.clip
    if total == 0.0:
        raise UsageError("rerank.weights: both are zero; at least one must be positive")
    return np.asarray((weights.likelihood * likelihood + weights.clip * clip) / total)


def log_likelihoods(candidates: Sequence[Candidate]) -> list[float]:
    """Mean log-probability of each candidate; where a system gives none, 0 for all, so that they tell nothing apart."""
    values = [candidate.mean_log_prob for candidate in candidates]
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else [0.0] * len(values)


def rerank(candidates: Sequence[Candidate], clip_scores: Sequence[float], weights: RerankWeights) -> Ranking:
    """Order candidates by fused score; ties keep the earlier one first. `clip_scores`: one CLIP logit each."""
    if not candidates:
        return Ranking((), ())
    fused = fuse(signal(np.array(log_likelihoods(candidates))), signal(np.array(clip_scores, dtype=np.float64)), weights)
    return Ranking(_best_first(fused), tuple(fused.tolist()))


def choose(candidates: Sequence[Candidate], clip_scores: Sequence[float] | None, weights: RerankWeights) -> dict[str, str]:
    """The answer that each way of choosing takes, by its name.

    first: the head of the list. majority: the candidate that most generations said; of equals the likelier (by its
    probability), then the earlier. clip: the highest CLIP score. reranked: the highest fused score. The last two only
    with `clip_scores`. Every answer is the text of a candidate; one that is empty, or has no candidate, is "unknown".
    """
    places = {"first": 0, "majority": _majority(candidates)}
    if clip_scores is not None:
        places["clip"] = next(iter(_best_first(np.array(clip_scores, dtype=np.float64))), 0)
        places["reranked"] = next(iter(rerank(candidates, clip_scores, weights).order), 0)
    return {name: chosen_text(candidates, place) for name, place in places.items()}


def chosen_text(candidates: Sequence[Candidate], place: int) -> str:
    """Text of a chosen candidate, "unknown" where it is empty or there is none."""
    return (candidates[place].text.strip() if candidates else "") or UNKNOWN


def _majority(candidates: Sequence[Candidate]) -> int:
    def weight(place: int) -> tuple[float, float, int]:
        candidate = candidates[place]
        return candidate.count, candidate.log_prob if candidate.log_prob is not None else 0.0, -place

    return max(range(len(candidates)), key=weight, default=0)


def _best_first(scores: np.ndarray) -> tuple[int, ...]:
    return tuple(np.argsort(-scores, kind="stable").tolist())
