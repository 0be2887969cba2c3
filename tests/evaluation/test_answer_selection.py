"""Choices among candidates: skipped question types, and abstaining."""

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
    prediction = Prediction("q", question, "", CANDIDATES, None, "", {}, {}, scorers={"clip": "x"}, signals=SIGNALS)
    (completed,) = add_choices([asked], [prediction], plan, 0, below)
    assert completed.choices is not None
    return completed.choices


@pytest.mark.parametrize(("question", "skipped"), [("Is it red?", True), ("How many are red?", True), ("What color is it?", False)])
def test_only_skipped_question_types_keep_their_first_candidate(question: str, skipped: bool) -> None:
    found = choices(question, PLAN)
    assert found["reranked"] == found["learned"] == ("first said" if skipped else "clip's")
    assert found["clip"] == "clip's"
    assert choices(question, RerankPlan(PLAN.weights, skipped_question_types=()))["reranked"] == "clip's"


def test_question_types_are_skipped_for_short_answers_only() -> None:
    assert choices("Is it red?", PLAN, "conversation")["reranked"] == "clip's"


@pytest.mark.parametrize(("below", "expected"), [(0.49, "clip's"), (0.5, "clip's"), (0.51, "not sure")])
def test_answers_with_a_confidence_below_the_threshold_become_not_sure(below: float, expected: str) -> None:
    even = RerankPlan(PLAN.weights, confidence=Confidence(LogisticModel(("agreement",), (0.0,), 0.0)))
    found = choices("What color is it?", even, below=below)
    assert (found["abstaining"], found["reranked"]) == (expected, "clip's")
    assert "abstaining" not in choices("What color is it?", even)
