"""From candidates and signals to choices. No reference can come in here: what references taught stands in the plans, as numbers."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from answering.question_types import skippable_question_type
from answering.rerank.candidate_scores import fill_missing
from answering.rerank.choose_answer import RerankPlan, chosen_text, displayed_choice, rerank, select_candidates
from answering.rerank.confidence import NOT_SURE
from answering.rerank.learned_fusion import fused as learned_scores
from dataset.sample import hash_to_index
from evaluation.prediction_files import Prediction
from evaluation.questions import Question

ABSTAINING = "abstaining"
"""Choice that says "not sure" where the answer is not credible enough."""


@dataclass(frozen=True, slots=True)
class RerankPlans:
    """The plan that all systems share, each system's own, where the weights were chosen (default or validation), and what the
    validation split said of all this."""

    shared_plan: RerankPlan
    plans: Mapping[str, RerankPlan] = field(default_factory=dict)
    chosen_on: str = "default"
    found: Mapping[str, Any] = field(default_factory=dict)

    def for_system(self, system: str) -> RerankPlan:
        """The plan of a system; of a control, and of a system that nothing was fitted for, the common one."""
        return self.plans.get(system, self.shared_plan)


def fill_missing_signals(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Predictions with the same signals each: a scorer that had nothing to look at finds all candidates alike."""
    has_priors: dict[str, bool] = {}
    for prediction in predictions:
        for name in prediction.scorers:
            has_priors.setdefault(name, False)
        for name, signal in prediction.signals.items():
            has_priors[name] = has_priors[name] or signal.prior is not None
    return [dataclasses.replace(p, signals=fill_missing(p.signals, has_priors, len(p.candidates))) for p in predictions]


def add_choices(
    questions: Sequence[Question], predictions: Sequence[Prediction], plan: RerankPlan, seed: int, abstain_below: float | None = None
) -> list[Prediction]:
    """The predictions with all choices; with scorers also fused scores, and what was learned where the plan has it."""
    return [
        _add_choices(question, prediction, filled_prediction, plan, seed, abstain_below)
        for question, prediction, filled_prediction in zip(questions, predictions, fill_missing_signals(predictions), strict=True)
    ]


def _add_choices(
    question: Question, prediction: Prediction, filled_prediction: Prediction, plan: RerankPlan, seed: int, abstain_below: float | None
) -> Prediction:
    candidates, signals = prediction.candidates, filled_prediction.signals if prediction.scorers else None
    language = question.request.language
    if not question.short:
        # What was learned of short answers says nothing about descriptions.
        plan = dataclasses.replace(plan, learned=None, confidence=None)
    indices = select_candidates(candidates, signals, plan, skippable_question_type(question.text, language) if question.short else None)
    choices = {name: chosen_text(candidates, index) for name, index in indices.items()}
    choices["random"] = chosen_text(candidates, hash_to_index(prediction.sample_id, seed, 0, len(candidates)) if candidates else 0)
    if signals is None or not candidates:
        return dataclasses.replace(prediction, choices=_add_abstaining(choices, 0.0, language, plan, abstain_below))
    fused = rerank(candidates, signals, plan.weights, plan.clip_score_form).fused
    learned = None if plan.learned is None else tuple(learned_scores(plan.learned, candidates, signals))
    confidence = None if plan.confidence is None else plan.confidence(candidates, indices[displayed_choice(indices)], signals)
    choices = _add_abstaining(choices, confidence or 0.0, language, plan, abstain_below)
    return dataclasses.replace(prediction, choices=choices, fused=fused, learned=learned, confidence=confidence)


def _add_abstaining(
    choices: dict[str, str], confidence: float, language: Any, plan: RerankPlan, abstain_below: float | None
) -> dict[str, str]:
    """The choices, and the shown one again with "not sure" in the place of what is less credible than `below`."""
    if plan.confidence is None or abstain_below is None:
        return choices
    shown = choices[displayed_choice(choices)]
    return choices | {ABSTAINING: NOT_SURE[language] if confidence < abstain_below else shown}
