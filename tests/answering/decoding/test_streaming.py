"""Answers streamed token by token for many requests are the same as those that are returned at once."""

import dataclasses

import pytest
import torch

from answering.config import DecodingConfig
from answering.decoding.beam_search import beam_search
from answering.decoding.decoding_rules import DecodingRules
from answering.decoding.sampling import decode_steps
from answering.decoding.streaming import RequestFailed, RequestStarted, StreamEvent, TokenGenerated, stream_tokens
from answering.protocol import Request
from answering.systems.family_answerer import FamilyAnswerer
from dataset.sample import Message
from tests.answering.conftest import noise_image

GREEDY = DecodingConfig(strategy="greedy", max_new_tokens=8)
SAMPLES = DecodingConfig(strategy="sample", num_candidates=3, max_new_tokens=8, temperature=0.7)


def tokens(events: list[StreamEvent], request_index: int, sample: int = 0) -> list[TokenGenerated]:
    return [
        event for event in events if isinstance(event, TokenGenerated) and (event.request_index, event.sample) == (request_index, sample)
    ]


@pytest.mark.parametrize("batch_size", [2, 16])
def test_greedy_tokens_add_up_to_the_answers(answerer: FamilyAnswerer, requests: list[Request], batch_size: int) -> None:
    decoding = dataclasses.replace(GREEDY, batch_size=batch_size)
    events = list(stream_tokens(answerer, requests, decoding))
    for request_index, answer in enumerate(answerer.answer(requests, GREEDY)):
        streamed = tokens(events, request_index)
        assert "".join(token.text for token in streamed) == answer.first.raw
        assert sum(token.log_prob for token in streamed) == pytest.approx(answer.first.log_prob, abs=1e-4)
        assert [token.end for token in streamed[:-1]] == [None] * (len(streamed) - 1)
        assert streamed[-1].end == ("length" if len(streamed) == 8 and streamed[-1].token != "<|im_end|>" else "stop")
    lengths = [event.prompt_tokens for event in events if isinstance(event, RequestStarted)]
    assert lengths == [len(answerer.encode(request).ids) for request in requests]


def test_streamed_samples_equal_those_of_answer(answerer: FamilyAnswerer, requests: list[Request]) -> None:
    events = list(stream_tokens(answerer, requests, SAMPLES))
    for request_index, answer in enumerate(answerer.answer(requests, SAMPLES)):
        streamed = {"".join(token.text for token in tokens(events, request_index, sample)) for sample in range(3)}
        assert {candidate.raw for candidate in answer.candidates} <= streamed


def test_an_invalid_request_fails_and_affects_no_other(answerer: FamilyAnswerer, requests: list[Request]) -> None:
    bad = Request("marks", (noise_image(1),), (Message("user", "no mark"),))
    events = list(stream_tokens(answerer, [requests[0], bad, requests[1]], GREEDY))
    assert [event for event in events if isinstance(event, RequestFailed)] == [RequestFailed(1, "0 <image> placeholders for 1 images")]
    expected = answerer.answer(requests[:2], GREEDY)
    assert ["".join(token.text for token in tokens(events, request_index)) for request_index in (0, 2)] == [
        answer.first.raw for answer in expected
    ]


def test_a_cancelled_request_leaves_the_batch_and_the_others_do_not_change(answerer: FamilyAnswerer, requests: list[Request]) -> None:
    alone = list(stream_tokens(answerer, requests, GREEDY))
    seen: list[StreamEvent] = []
    for event in stream_tokens(answerer, requests, GREEDY, lambda request_index: request_index == 0 and len(tokens(seen, 0)) >= 2):
        seen.append(event)  # noqa: PERF402 - the lambda reads it
    assert len(tokens(alone, 0)) > 2
    assert len(tokens(seen, 0)) == 2
    for request_index in range(1, len(requests)):
        assert [token.token for token in tokens(seen, request_index)] == [token.token for token in tokens(alone, request_index)]


def test_beams_of_a_cancelled_question_stop_and_the_others_do_not_change(answerer: FamilyAnswerer, requests: list[Request]) -> None:
    batch = answerer.collate([answerer.encode(request) for request in requests])
    uncancelled = beam_search(answerer.model, batch, 3, DecodingRules(8, answerer.end_ids))
    asked: list[int] = []

    def cancelled(question: int) -> bool:
        asked.append(question)
        return question == 1

    rest = beam_search(answerer.model, batch, 3, DecodingRules(8, answerer.end_ids), cancelled)
    for request_index in (0, 2, 3, 4):
        assert [sequence.token_ids for sequence in rest[request_index]] == [sequence.token_ids for sequence in uncancelled[request_index]]
    assert asked.count(1) == 1
    assert max(len(sequence.token_ids) for sequence in rest[1]) <= 1


def test_decoding_stops_when_all_questions_are_cancelled(answerer: FamilyAnswerer, requests: list[Request]) -> None:
    batch = answerer.collate([answerer.encode(request) for request in requests])
    assert len(list(decode_steps(answerer.model, batch, 1, DecodingRules(8, answerer.end_ids), cancelled=lambda _: True))) == 1


def test_probabilities_that_are_not_finite_fail_the_request(
    answerer: FamilyAnswerer, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("answering.decoding.beam_search.torch.log_softmax", lambda logits, **_: torch.full_like(logits, torch.nan))
    events = list(stream_tokens(answerer, requests[:1], GREEDY))
    assert [type(event) for event in events] == [RequestStarted, RequestFailed]


def test_a_cancelled_request_becomes_an_error_and_the_others_do_not_change(answerer: FamilyAnswerer, requests: list[Request]) -> None:
    beams = DecodingConfig(num_candidates=3, max_new_tokens=8, batch_size=2)
    uncancelled, rest = answerer.answer(requests, beams), answerer.answer(requests, beams, lambda request_index: request_index == 1)
    assert rest[1].error == "the request was cancelled"
    for request_index in (0, 2, 3, 4):
        assert [candidate.raw for candidate in rest[request_index].candidates] == [
            candidate.raw for candidate in uncancelled[request_index].candidates
        ]
