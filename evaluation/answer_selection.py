"""Choose one answer per question from its candidates and their scores, in every way that the evaluation compares.

Reference answers are never read here. What was fitted on references of the validation split arrives as numbers, in a RerankPlan.
"""

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
"""Name of the choice that answers "not sure" where the confidence is below the threshold."""


@dataclass(frozen=True, slots=True)
class RerankPlans:
    """Rerank plans of an evaluation.

    Args:
        shared_plan: plan of controls and of systems without a plan of their own
        plans: plan of each system that was fitted on the validation split
        chosen_on: where the weights come from: "default" (as configured) or "validation"
        found: figures measured on the validation split, for summary.json
    """

    shared_plan: RerankPlan
    plans: Mapping[str, RerankPlan] = field(default_factory=dict)
    chosen_on: str = "default"
    found: Mapping[str, Any] = field(default_factory=dict)

    def for_system(self, system: str) -> RerankPlan:
        """The plan of a system; the shared plan for a control and for a system without a fitted plan."""
        return self.plans.get(system, self.shared_plan)


def fill_missing_signals(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Give every prediction the same set of signals; a missing signal becomes zero for all candidates, so it decides nothing."""
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
    """Fill in `choices`; where there are scorers also `fused`, and `learned` and `confidence` where the plan has them.

    Args:
        questions: the questions, in the order of the predictions
        predictions: candidates and signals of each question
        plan: weights and fitted models
        seed: seed of the choice `random`
        abstain_below: confidence 0..1 below which the choice `abstaining` is "not sure"; None: there is no such choice
    """
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
        # These models were fitted on short answers; they do not apply to captions and descriptions.
        plan = dataclasses.replace(plan, learned=None, confidence=None)
    indices = select_candidates(candidates, signals, plan, skippable_question_type(question.text, language) if question.short else None)
    choices = {name: chosen_text(candidates, index) for name, index in indices.items()}
    choices["random"] = chosen_text(candidates, hash_to_index(prediction.sample_id, seed, 0, len(candidates)) if candidates else 0)
    if signals is None or not candidates:
        return dataclasses.replace(prediction, choices=_add_abstaining(choices, 0.0, language, plan, abstain_below))
    fused = rerank(candidates, signals, plan.weights, plan.clip_score_form).fused
    learned = None if plan.learned is None else tuple(learned_scores(plan.learned, candidates, signals))
    if plan.confidence is None:
        return dataclasses.replace(prediction, choices=choices, fused=fused, learned=learned)
    estimate = plan.confidence.estimate(question.text, question.request.images, candidates, indices[displayed_choice(indices)], signals)
    choices = _add_abstaining(choices, estimate.value, language, plan, abstain_below)
    return dataclasses.replace(prediction, choices=choices, fused=fused, learned=learned, confidence=estimate.value, unlike=estimate.unlike)


def _add_abstaining(
    choices: dict[str, str], confidence: float, language: Any, plan: RerankPlan, abstain_below: float | None
) -> dict[str, str]:
    """Add the choice `abstaining`: the displayed choice, or "not sure" where its confidence is below `abstain_below`."""
    if plan.confidence is None or abstain_below is None:
        return choices
    displayed = choices[displayed_choice(choices)]
    return choices | {ABSTAINING: NOT_SURE[language] if confidence < abstain_below else displayed}
