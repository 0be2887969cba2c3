"""From candidates and signals to choices: what the guard leaves alone, and what is not sure."""

import pytest

from answering.config import RerankWeights
from answering.protocol import Candidate, Request
from answering.rerank.candidate_scores import Signal
from answering.rerank.choose_answer import RerankPlan
from answering.rerank.confidence import Confidence
from answering.rerank.logistic_regression import LogisticModel
from dataset.sample import Message, Task
from evaluation.answer_selection import add_choices
from evaluation.prediction_files import Prediction
from evaluation.questions import Question

SIGNALS = {"clip": Signal((0.0, 9.0))}
CANDIDATES = (Candidate("first said", -0.1, -0.1, ""), Candidate("clip's", -0.2, -0.2, ""))
PLAN = RerankPlan(RerankWeights(likelihood=0.1, clip=0.9), learned=LogisticModel(("clip",), (1.0,), 0.0))


def choices(question: str, plan: RerankPlan, task: Task = "vqa", below: float | None = None) -> dict[str, str]:
    asked = Question(Request("q", (), (Message("user", question),), task), (1,), ("1",), "planted")
    said = Prediction("q", question, "", CANDIDATES, None, "", {}, {}, scorers={"clip": "x"}, signals=SIGNALS)
    (found,) = add_choices([asked], [said], plan, 0, below)
    assert found.choices is not None
    return found.choices


@pytest.mark.parametrize(("question", "left_alone"), [("Is it red?", True), ("How many are red?", True), ("What color is it?", False)])
def test_the_guard_keeps_first_answers_and_only_those_of_its_kinds(question: str, left_alone: bool) -> None:
    found = choices(question, PLAN)
    assert found["reranked"] == found["learned"] == ("first said" if left_alone else "clip's")
    assert found["clip"] == "clip's"
    assert choices(question, RerankPlan(PLAN.weights, skipped_question_types=()))["reranked"] == "clip's"


def test_the_guard_is_about_short_answers() -> None:
    assert choices("Is it red?", PLAN, "conversation")["reranked"] == "clip's"


@pytest.mark.parametrize(("below", "said"), [(0.49, "clip's"), (0.5, "clip's"), (0.51, "not sure")])
def test_what_is_less_credible_than_the_threshold_is_not_sure(below: float, said: str) -> None:
    even = RerankPlan(PLAN.weights, confidence=Confidence(LogisticModel(("agreement",), (0.0,), 0.0)))
    found = choices("What color is it?", even, below=below)
    assert (found["abstaining"], found["reranked"]) == (said, "clip's")
    assert "abstaining" not in choices("What color is it?", even)
