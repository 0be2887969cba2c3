"""From candidates and signals to choices. No reference can come in here: what references taught stands in the plans, as numbers."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from answering.question_types import guarded_kind
from answering.rerank.candidate_scores import filled
from answering.rerank.choose_answer import Plan, choose, chosen_text, rerank, shown_choice
from answering.rerank.confidence import NOT_SURE
from answering.rerank.learned_fusion import fused as learned_scores
from dataset.sample import uniform
from evaluation.prediction_files import Prediction
from evaluation.questions import Question

ABSTAINING = "abstaining"
"""Choice that says "not sure" where the answer is not credible enough."""


@dataclass(frozen=True, slots=True)
class Weighting:
    """The plan that all systems share, each system's own, where the weights were chosen (default or validation), and what the
    validation split said of all this."""

    common: Plan
    plans: Mapping[str, Plan] = field(default_factory=dict)
    chosen_on: str = "default"
    found: Mapping[str, Any] = field(default_factory=dict)

    def of(self, system: str) -> Plan:
        """The plan of a system; of a control, and of a system that nothing was fitted for, the common one."""
        return self.plans.get(system, self.common)


def completed(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Predictions with the same signals each: a scorer that had nothing to look at finds all candidates alike."""
    kinds: dict[str, bool] = {}
    for prediction in predictions:
        for name in prediction.scorers:
            kinds.setdefault(name, False)
        for name, signal in prediction.signals.items():
            kinds[name] = kinds[name] or signal.prior is not None
    return [dataclasses.replace(p, signals=filled(p.signals, kinds, len(p.candidates))) for p in predictions]


def chosen(
    questions: Sequence[Question], predictions: Sequence[Prediction], plan: Plan, seed: int, abstain_below: float | None = None
) -> list[Prediction]:
    """The predictions with all choices; with scorers also fused scores, and what was learned where the plan has it."""
    return [
        _chosen(question, prediction, whole, plan, seed, abstain_below)
        for question, prediction, whole in zip(questions, predictions, completed(predictions), strict=True)
    ]


def _chosen(
    question: Question, prediction: Prediction, whole: Prediction, plan: Plan, seed: int, abstain_below: float | None
) -> Prediction:
    candidates, signals = prediction.candidates, whole.signals if prediction.scorers else None
    language = question.request.language
    if not question.short:
        # What was learned of short answers says nothing about descriptions.
        plan = dataclasses.replace(plan, learned=None, credibility=None)
    places = choose(candidates, signals, plan, guarded_kind(question.text, language) if question.short else None)
    choices = {name: chosen_text(candidates, place) for name, place in places.items()}
    choices["random"] = chosen_text(candidates, uniform(prediction.sample_id, seed, 0, len(candidates)) if candidates else 0)
    if signals is None or not candidates:
        return dataclasses.replace(prediction, choices=_abstaining(choices, 0.0, language, plan, abstain_below))
    fused = rerank(candidates, signals, plan.weights, plan.form).fused
    learned = None if plan.learned is None else tuple(learned_scores(plan.learned, candidates, signals))
    credibility = None if plan.credibility is None else plan.credibility(candidates, places[shown_choice(places)], signals)
    choices = _abstaining(choices, credibility or 0.0, language, plan, abstain_below)
    return dataclasses.replace(prediction, choices=choices, fused=fused, learned=learned, credibility=credibility)


def _abstaining(choices: dict[str, str], credibility: float, language: Any, plan: Plan, below: float | None) -> dict[str, str]:
    """The choices, and the shown one again with "not sure" in the place of what is less credible than `below`."""
    if plan.credibility is None or below is None:
        return choices
    shown = choices[shown_choice(choices)]
    return choices | {ABSTAINING: NOT_SURE[language] if credibility < below else shown}
