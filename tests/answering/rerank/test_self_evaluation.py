"""The self-evaluation score is the model's probability of yes against no, in a prompt of its own."""

from dataclasses import replace

import pytest
import torch

from answering.prompts import PromptPolicy
from answering.protocol import Request
from answering.rerank.self_evaluation import NO_WORDS, YES_WORDS, SelfEvaluator, self_evaluation_request
from answering.systems.family_answerer import FamilyAnswerer
from tests.answering.conftest import make_request, noise_image


def test_the_score_is_the_probability_of_yes_against_no(answerer: FamilyAnswerer) -> None:
    request = make_request("a", "What color is the circle?", noise_image(1))
    assert isinstance(answerer, SelfEvaluator)
    (group,) = answerer.judge([request], [["red", "blue"]], 16)
    assert group is not None
    for text, score in zip(["red", "blue"], group, strict=True):
        prompt = answerer.encode(self_evaluation_request(request, text))
        ids = torch.tensor([prompt.ids])
        with torch.no_grad():
            logits = answerer.model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), **prompt.images).logits[0, -1]
        probabilities = torch.softmax(logits.double(), 0)
        yes, no = (
            sum(probabilities[i] for i in {answerer.tokenizer(w)["input_ids"][0] for w in words["en"]}) for words in (YES_WORDS, NO_WORDS)
        )
        assert score == pytest.approx(float(yes / (yes + no)), abs=1e-4)
    assert group[0] != group[1]


def test_batching_does_not_change_the_score_of_a_candidate(answerer: FamilyAnswerer, requests: list[Request]) -> None:
    texts = [["red"], ["yes", "no", ""], [], ["2"], ["a blue ring"]]
    together = answerer.judge(requests, texts, 3)
    assert [None if group is None else len(group) for group in together] == [1, 3, 0, 1, 1]
    for request, group, expected in zip(requests, texts, together, strict=True):
        assert answerer.judge([request], [group], 1)[0] == pytest.approx(expected, abs=1e-5)
    assert all(0.0 <= value <= 1.0 for group in together for value in group or [])


def test_a_request_that_does_not_fit_gets_no_scores_and_affects_no_other(answerer: FamilyAnswerer) -> None:
    good, long = make_request("a", "What?", noise_image(1)), make_request("b", "What? " * 600)
    assert answerer.judge([long, good], [["x", "y"], ["z"]], 8)[0] is None
    assert answerer.judge([long, good], [["x"], ["z"]], 8)[1] == pytest.approx(answerer.judge([good], [["z"]], 8)[0], abs=1e-5)


def test_the_self_evaluation_request_keeps_the_images_and_gets_no_prompt() -> None:
    request = replace(make_request("a", "是什么？", noise_image(1)), language="zh")
    changed = self_evaluation_request(request, "a <image> b")
    policy = PromptPolicy("Briefly!", "简短！", other_prompts={"conversation": {"zh": "详细！"}})
    assert policy.messages(changed) == changed.messages
    assert changed.task == "conversation"
    assert changed.messages[-1].content.count("<image>") == 1
    assert "候选答案：a   b" in changed.messages[-1].content
