"""Choosing among candidates, from the candidates and their signals alone."""

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
"""Names of choices and scores that no picture scorer may have."""
UNKNOWN_ANSWER = "unknown"
"""What a chosen answer becomes where it would be empty, and the answer to a question that failed."""


@dataclass(frozen=True, slots=True)
class RerankPlan:
    """The numbers by which answers are chosen. `guard`: kinds of questions at which the first candidate stays.

    learned and credibility come from the validation split; without it there is neither.
    """

    weights: RerankWeights = field(default_factory=RerankWeights)
    clip_score_form: Form = "softmax"
    skipped_question_types: tuple[SkippableQuestionType, ...] = SKIPPABLE_QUESTION_TYPES
    learned: LogisticModel | None = None
    confidence: Confidence | None = None


@dataclass(frozen=True, slots=True)
class RankedCandidates:
    """`order`: places of the candidates, best first. `fused[i]`: the fused score of candidate i, 0..1."""

    order: tuple[int, ...]
    fused: tuple[float, ...]


def rerank(candidates: Sequence[Candidate], signals: Signals, weights: RerankWeights, form: Form = "softmax") -> RankedCandidates:
    """Order candidates by fused score; ties keep the earlier one first. Raises UsageError as `fuse` and `components` do."""
    if not candidates:
        return RankedCandidates((), ())
    fused = fuse(components(candidates, signals, form), weights)
    return RankedCandidates(best_first(fused), tuple(fused.tolist()))


def select_candidates(
    candidates: Sequence[Candidate], signals: Signals | None, plan: RerankPlan, kind: SkippableQuestionType | None = None
) -> dict[str, int]:
    """The place of the candidate that each way of choosing takes, by its name; 0 where there is none.

    first: the head of the list. majority: the candidate that most generations said; of equals the likelier (by its
    probability), then the earlier. likelihood: the highest mean log-probability. With signals also: each scorer's name (its
    highest score), the name and `_corrected` (the highest score minus prior), `self`, `reranked` (the highest fused score) and,
    where it was fitted, `learned`. The last two leave a question of a guarded `kind` alone.
    """
    indices = {"first": 0, "majority": _majority(candidates), "likelihood": _argmax(log_likelihoods(candidates))}
    if signals is None:
        return indices
    skipped = kind is not None and kind in plan.skipped_question_types
    for name, one in image_text_signals(signals).items():
        indices[name] = _argmax(one.scores)
        if one.corrected is not None:
            indices[name + CORRECTED_SUFFIX] = _argmax(one.corrected)
    if SELF_EVALUATION in signals:
        indices[SELF_EVALUATION] = _argmax(signals[SELF_EVALUATION].scores)
    indices["reranked"] = 0 if skipped else next(iter(rerank(candidates, signals, plan.weights, plan.clip_score_form).order), 0)
    if plan.learned is not None:
        indices["learned"] = 0 if skipped or not candidates else _argmax(learned_fusion.fused(plan.learned, candidates, signals))
    return indices


def displayed_choice(choices: Container[str]) -> str:
    """The choice that stands for a system where only one is shown: reranked where there is one, else first."""
    return "reranked" if "reranked" in choices else "first"


def chosen_text(candidates: Sequence[Candidate], index: int) -> str:
    """Text of a chosen candidate, "unknown" where it is empty or there is none."""
    return (candidates[index].text.strip() if candidates else "") or UNKNOWN_ANSWER


def best_first(scores: np.ndarray) -> tuple[int, ...]:
    """Places by falling score; of equals the earlier first."""
    return tuple(np.argsort(-scores, kind="stable").tolist())


def _argmax(scores: Sequence[float]) -> int:
    return int(np.argmax(scores)) if len(scores) else 0


def _majority(candidates: Sequence[Candidate]) -> int:
    def weight(index: int) -> tuple[float, float, int]:
        candidate = candidates[index]
        return candidate.count, candidate.log_prob if candidate.log_prob is not None else 0.0, -index

    return max(range(len(candidates)), key=weight, default=0)
