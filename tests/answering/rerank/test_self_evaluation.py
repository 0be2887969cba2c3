"""The self-score is the model's own probability of yes against no, and says nothing of the prompt that the answer came from."""

from dataclasses import replace

import pytest
import torch

from answering.protocol import Request
from answering.rerank.self_evaluation import NO, YES, Judge, judging
from answering.systems.siglip_qwen import CheckpointAnswerer
from tests.answering.conftest import asked, drawn


def test_it_is_the_probability_of_yes_against_no(answerer: CheckpointAnswerer) -> None:
    request = asked("a", "What color is the circle?", drawn(1))
    assert isinstance(answerer, Judge)
    (group,) = answerer.judge([request], [["red", "blue"]], 16)
    assert group is not None
    for text, found in zip(["red", "blue"], group, strict=True):
        prompt = answerer.encode(judging(request, text))
        ids = torch.tensor([prompt.ids])
        with torch.no_grad():
            logits = answerer.model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), **prompt.pictures).logits[0, -1]
        probabilities = torch.softmax(logits.double(), 0)
        yes, no = (sum(probabilities[i] for i in {answerer.tokenizer(w)["input_ids"][0] for w in words["en"]}) for words in (YES, NO))
        assert found == pytest.approx(float(yes / (yes + no)), abs=1e-4)
    assert group[0] != group[1]


def test_each_candidate_is_judged_as_it_is_alone(answerer: CheckpointAnswerer, requests: list[Request]) -> None:
    texts = [["red"], ["yes", "no", ""], [], ["2"], ["a blue ring"]]
    together = answerer.judge(requests, texts, 3)
    assert [None if group is None else len(group) for group in together] == [1, 3, 0, 1, 1]
    for request, group, expected in zip(requests, texts, together, strict=True):
        assert answerer.judge([request], [group], 1)[0] == pytest.approx(expected, abs=1e-5)
    assert all(0.0 <= value <= 1.0 for group in together for value in group or [])


def test_what_cannot_be_asked_is_not_judged_and_harms_no_other(answerer: CheckpointAnswerer) -> None:
    good, long = asked("a", "What?", drawn(1)), asked("b", "What? " * 600)
    assert answerer.judge([long, good], [["x", "y"], ["z"]], 8)[0] is None
    assert answerer.judge([long, good], [["x"], ["z"]], 8)[1] == pytest.approx(answerer.judge([good], [["z"]], 8)[0], abs=1e-5)


def test_the_question_stays_with_its_pictures_and_gets_no_suffix() -> None:
    request = replace(asked("a", "是什么？", drawn(1)), language="zh")
    changed = judging(request, "a <image> b")
    assert changed.task == "conversation"
    assert changed.messages[-1].content.count("<image>") == 1
    assert "候选答案：a   b" in changed.messages[-1].content
