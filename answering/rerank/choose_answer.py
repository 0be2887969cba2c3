"""Choose among the candidates of a question by their scores."""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field

import numpy as np

from answering.config import RerankWeights
from answering.protocol import Candidate
from answering.question_types import SKIPPABLE_QUESTION_TYPES, SkippableQuestionType
from answering.rerank import learned_fusion
from answering.rerank.candidate_scores import CORRECTED_SUFFIX, SELF_EVALUATION, Signals, image_text_signals
from answering.rerank.confidence import Confidence
from answering.rerank.logistic_regression import LogisticModel
from answering.rerank.score_fusion import Form, components, fuse, log_likelihoods

RESERVED_NAMES = frozenset(
    {"first", "random", "majority", "likelihood", "reranked", "learned", "abstaining", "oracle", "fused", SELF_EVALUATION}
)
"""Names of choices and scores; no image-text scorer may have one of them."""
UNKNOWN_ANSWER = "unknown"
"""Replaces a chosen answer that would be empty, and is the answer to a question that failed."""


@dataclass(frozen=True, slots=True)
class RerankPlan:
    """The values by which answers are chosen.

    Args:
        weights: of the weighted fusion.
        clip_score_form: how the logits of image-text scorers enter the fusion.
        skipped_question_types: question types that keep their first candidate.
        learned: learned fusion, fitted on the validation split; None if not fitted.
        confidence: confidence model, fitted on the validation split; None if not fitted.
    """

    weights: RerankWeights = field(default_factory=RerankWeights)
    clip_score_form: Form = "softmax"
    skipped_question_types: tuple[SkippableQuestionType, ...] = SKIPPABLE_QUESTION_TYPES
    learned: LogisticModel | None = None
    confidence: Confidence | None = None


@dataclass(frozen=True, slots=True)
class RankedCandidates:
    """order: indices of the candidates, best first. fused[i]: the fused score of candidate i, 0..1."""

    order: tuple[int, ...]
    fused: tuple[float, ...]


def rerank(candidates: Sequence[Candidate], signals: Signals, weights: RerankWeights, form: Form = "softmax") -> RankedCandidates:
    """Order candidates by fused score; of equal ones the earlier comes first. Raises UsageError as `fuse` and `components` do."""
    if not candidates:
        return RankedCandidates((), ())
    fused = fuse(components(candidates, signals, form), weights)
    return RankedCandidates(best_first(fused), tuple(fused.tolist()))


def select_candidates(
    candidates: Sequence[Candidate], signals: Signals | None, plan: RerankPlan, kind: SkippableQuestionType | None = None
) -> dict[str, int]:
    """The index of the candidate that each selection method chooses, by the name of the method; 0 if there are no candidates.

    Without signals: `first` (the first candidate), `majority` (the highest count; of equal counts the highest probability, then the
    earliest) and `likelihood` (the highest mean log-probability). With signals also: the name of each scorer (its highest score), the
    name with `_corrected` (the highest score minus prior), `self`, `reranked` (the highest fused score) and, if fitted, `learned`.

    Args:
        candidates: of one question.
        signals: their scores; None without reranking.
        plan: weights and fitted models.
        kind: type of the question; if the plan skips it, `reranked` and `learned` choose the first candidate.
    """
    indices = {"first": 0, "majority": _majority(candidates), "likelihood": _argmax(log_likelihoods(candidates))}
    if signals is None:
        return indices
    skipped = kind is not None and kind in plan.skipped_question_types
    for name, signal in image_text_signals(signals).items():
        indices[name] = _argmax(signal.scores)
        if signal.corrected is not None:
            indices[name + CORRECTED_SUFFIX] = _argmax(signal.corrected)
    if SELF_EVALUATION in signals:
        indices[SELF_EVALUATION] = _argmax(signals[SELF_EVALUATION].scores)
    indices["reranked"] = 0 if skipped else next(iter(rerank(candidates, signals, plan.weights, plan.clip_score_form).order), 0)
    if plan.learned is not None:
        indices["learned"] = 0 if skipped or not candidates else _argmax(learned_fusion.fused(plan.learned, candidates, signals))
    return indices


def displayed_choice(choices: Container[str]) -> str:
    """The choice to show if only one is shown: `reranked` if available, else `first`."""
    return "reranked" if "reranked" in choices else "first"


def chosen_text(candidates: Sequence[Candidate], index: int) -> str:
    """Text of a chosen candidate; "unknown" if it is empty or there are no candidates."""
    return (candidates[index].text.strip() if candidates else "") or UNKNOWN_ANSWER


def best_first(scores: np.ndarray) -> tuple[int, ...]:
    """Indices by descending score; of equal scores the earlier comes first."""
    return tuple(np.argsort(-scores, kind="stable").tolist())


def _argmax(scores: Sequence[float]) -> int:
    return int(np.argmax(scores)) if len(scores) else 0


def _majority(candidates: Sequence[Candidate]) -> int:
    def weight(index: int) -> tuple[float, float, int]:
        candidate = candidates[index]
        return candidate.count, candidate.log_prob if candidate.log_prob is not None else 0.0, -index

    return max(range(len(candidates)), key=weight, default=0)
