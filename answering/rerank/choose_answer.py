"""Choose an answer among the candidates of a question by their scores: the one place that evaluation, service, page and commands use.

References are never read here. What was fitted on references of the validation split arrives as numbers, in a RerankPlan.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from answering.config import RerankWeights
from answering.protocol import Candidate, Request
from answering.question_types import SKIPPABLE_QUESTION_TYPES, SkippableQuestionType, skippable_question_type
from answering.rerank.candidate_scores import SELF_EVALUATION, Signals, scores_by_name
from answering.rerank.confidence import NOT_SURE, Confidence
from answering.rerank.logistic_regression import LogisticModel
from answering.rerank.score_fusion import Form, components, features, fuse, log_likelihoods

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
class ChosenAnswer:
    """The answer to a question.

    Args:
        chosen: the final answer: the displayed choice, or "not sure" if its confidence is too low.
        choices: text that each selection method chooses, by its name.
        fused: fused score of each candidate, 0..1; None if nothing was scored, as for the following fields.
        learned: score of each candidate under the learned fusion; None also if the plan has none.
        confidence: probability that the displayed choice is right; None also if the plan has no confidence model.
        unlike: what about the question is unlike those that the confidence was learnt from ("image", "words").
    """

    chosen: str
    choices: dict[str, str]
    fused: tuple[float, ...] | None = None
    learned: tuple[float, ...] | None = None
    confidence: float | None = None
    unlike: tuple[str, ...] = ()


def choose_answer(
    request: Request, candidates: Sequence[Candidate], signals: Signals, plan: RerankPlan, abstain_below: float | None = None
) -> ChosenAnswer:
    """Choose the answer to a question.

    Args:
        request: the question.
        candidates: of its answer, best first; may be empty.
        signals: their scores; empty if nothing scored them. The first candidate is then the answer, without a confidence.
        plan: weights and fitted models. Those that were fitted on short answers are not used for captions and descriptions.
        abstain_below: confidence 0..1 below which the answer is "not sure"; None: never.
    """
    if not request.short:
        plan = replace(plan, learned=None, confidence=None)
    signals = signals if candidates else {}
    kind = skippable_question_type(request.question, request.language) if request.short else None
    indices = select_candidates(candidates, signals or None, plan, kind)
    choices = {name: chosen_text(candidates, index) for name, index in indices.items()}
    displayed = displayed_choice(choices)
    if not signals:
        return ChosenAnswer(choices[displayed], choices)
    fused = rerank(candidates, signals, plan.weights, plan.clip_score_form)
    learned = None if plan.learned is None else tuple(plan.learned.probabilities(features(candidates, signals)))
    if plan.confidence is None:
        return ChosenAnswer(choices[displayed], choices, fused, learned)
    estimate = plan.confidence.estimate(request.question, request.images, candidates, indices[displayed], signals)
    abstains = abstain_below is not None and estimate.value < abstain_below
    text = NOT_SURE[request.language] if abstains else choices[displayed]
    return ChosenAnswer(text, choices, fused, learned, estimate.value, estimate.unlike)


def rerank(candidates: Sequence[Candidate], signals: Signals, weights: RerankWeights, form: Form = "softmax") -> tuple[float, ...]:
    """The fused score of each candidate, 0..1; of equal ones the earlier is better. Raises UsageError as `fuse` and `components` do."""
    return tuple(fuse(components(candidates, signals, form), weights).tolist()) if candidates else ()


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
    indices |= {name: _argmax(scores) for name, scores in scores_by_name(signals).items()}
    indices["reranked"] = 0 if skipped else _argmax(rerank(candidates, signals, plan.weights, plan.clip_score_form))
    if plan.learned is not None:
        indices["learned"] = 0 if skipped or not candidates else _argmax(plan.learned.probabilities(features(candidates, signals)))
    return indices


def displayed_choice(choices: Container[str]) -> str:
    """The choice to show if only one is shown: `reranked` if available, else `first`."""
    return "reranked" if "reranked" in choices else "first"


def chosen_text(candidates: Sequence[Candidate], index: int) -> str:
    """Text of a chosen candidate; "unknown" if it is empty or there are no candidates."""
    return (candidates[index].text.strip() if candidates else "") or UNKNOWN_ANSWER


def _argmax(scores: Sequence[float]) -> int:
    return int(np.argmax(scores)) if len(scores) else 0


def _majority(candidates: Sequence[Candidate]) -> int:
    return max(range(len(candidates)), key=lambda i: (candidates[i].count, candidates[i].log_prob or 0.0, -i), default=0)
