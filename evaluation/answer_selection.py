"""The answers that an evaluation compares: those of `choose_answer`, one at random, and "not sure" where the confidence is low."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from answering.rerank.candidate_scores import fill_missing
from answering.rerank.choose_answer import RerankPlan, choose_answer, chosen_text
from answering.rerank.confidence import NOT_SURE
from dataset.sample import hash_to_index
from evaluation.prediction_files import Prediction
from evaluation.questions import Question
from evaluation.schema.summary_file import ValidationFigures

ABSTAINING = "abstaining"
"""Name of the choice that answers "not sure" where the confidence is below the threshold."""


@dataclass(frozen=True, slots=True)
class RerankPlans:
    """Rerank plans of an evaluation.

    shared_plan: of controls and of systems without a plan of their own. plans: of each system that was fitted on the validation split.
    chosen_on: where the weights come from: "default" (as configured) or "validation". found: figures measured on the validation split.
    """

    shared_plan: RerankPlan
    plans: Mapping[str, RerankPlan] = field(default_factory=dict)
    chosen_on: str = "default"
    found: ValidationFigures | None = None

    def for_system(self, system: str) -> RerankPlan:
        """The plan of a system; the shared plan for a control and for a system without a fitted plan."""
        return self.plans.get(system, self.shared_plan)


def fill_missing_signals(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Give every prediction the same set of signals; a missing signal becomes zero for all candidates, so it decides nothing."""
    names = dict.fromkeys(name for prediction in predictions for name in prediction.scorers)
    has_priors = {name: any(name in p.signals and p.signals[name].prior is not None for p in predictions) for name in names}
    return [dataclasses.replace(p, signals=fill_missing(p.signals, has_priors, len(p.candidates))) for p in predictions]


def add_choices(
    questions: Sequence[Question], predictions: Sequence[Prediction], plan: RerankPlan, seed: int, abstain_below: float | None = None
) -> list[Prediction]:
    """Choose the answers, as `choose_answer` does wherever a question is asked, and fill in what it returns.

    All short questions get the same choices, and so do all others: where nothing scored the candidates, every scorer finds the first one
    best. Two choices are added: `random`, and `abstaining`, the final answer with "not sure" (also for a failed question), where the plan
    has a confidence.

    Args:
        questions: the questions, in the order of the predictions
        predictions: candidates and signals of each question
        plan: weights and fitted models
        seed: seed of the choice `random`
        abstain_below: confidence 0..1 below which the choice `abstaining` is "not sure"; None: there is no such choice
    """
    chosen = [
        choose_answer(question.request, filled.candidates, filled.signals if prediction.signals else {}, plan, abstain_below)
        for question, prediction, filled in zip(questions, predictions, fill_missing_signals(predictions), strict=True)
    ]
    names: dict[bool, dict[str, None]] = {True: {}, False: {}}
    for question, answer in zip(questions, chosen, strict=True):
        names[question.short] |= dict.fromkeys(answer.choices)
    completed = []
    for question, prediction, answer in zip(questions, predictions, chosen, strict=True):
        choices = {name: answer.choices.get(name, answer.choices["first"]) for name in names[question.short]}
        choices["random"] = chosen_text(prediction.candidates, hash_to_index(prediction.sample_id, seed, 0, len(prediction.candidates)))
        if plan.confidence is not None and abstain_below is not None and question.short:
            choices[ABSTAINING] = answer.chosen if prediction.candidates else NOT_SURE[question.request.language]
        completed.append(
            dataclasses.replace(
                prediction,
                choices=choices,
                fused=answer.fused,
                learned=answer.learned,
                confidence=answer.confidence,
                unlike=answer.unlike,
            )
        )
    return completed
