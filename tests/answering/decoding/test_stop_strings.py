"""An answer ends before the first stop text in it, in every strategy and as a stream."""

import dataclasses

import pytest

from answering.config import DecodingConfig
from answering.decoding.stop_strings import IncrementalDetokenizer, StopStrings, cut_before, without_beginning_of
from answering.decoding.streaming import TokenGenerated, stream_tokens
from answering.protocol import Request
from answering.systems.family_answerer import FamilyAnswerer

GREEDY = DecodingConfig(strategy="greedy", max_new_tokens=12)


def letters(token_ids: object) -> str:
    """Token ids are characters of this text."""
    return "".join("red\nQ: blue"[i] for i in token_ids)  # type: ignore[attr-defined]


def test_a_text_is_cut_before_the_first_stop_text() -> None:
    assert cut_before("red. blue, green", (",", ".")) == "red"
    assert cut_before("red", (",",)) == "red"
    assert cut_before("red", ()) == "red"


def test_a_possible_beginning_of_a_stop_text_is_held_back() -> None:
    assert [without_beginning_of(text, ("\nQ:", "END")) for text in ("red\nQ", "red\n", "redEN", "redE", "red", "red\nQ.")] == [
        "red", "red", "red", "red", "red", "red\nQ.",
    ]  # fmt: skip


def test_a_stop_text_over_several_tokens_is_found_when_it_is_complete() -> None:
    stop = StopStrings(("\nQ:",), letters)
    assert [stop.newly_found(range(i)) for i in range(1, 9)] == [False] * 5 + [True] + [True, False]


def test_a_stream_never_shows_a_part_of_a_stop_text() -> None:
    text = IncrementalDetokenizer(letters, ("\nQ:",))
    pieces = [text.add(i) for i in range(6)]
    assert pieces == ["r", "e", "d", "", "", ""]
    assert text.flush() == ""
    unfinished = IncrementalDetokenizer(letters, ("\nQ: x",))
    assert "".join(unfinished.add(i) for i in range(6)) + unfinished.flush() == "red\nQ:"


@pytest.fixture(scope="module")
def stopped(answerer: FamilyAnswerer, requests: list[Request]) -> tuple[DecodingConfig, list[str]]:
    """Greedy decoding with a stop text that some answers have in their middle, and the answers without it."""
    whole = [answer.first.raw for answer in answerer.answer(requests, GREEDY)]
    longest = max(whole, key=len)
    return dataclasses.replace(GREEDY, stop=(longest[len(longest) // 2 : len(longest) // 2 + 2],)), whole


def test_greedy_answers_end_before_the_stop_text(
    answerer: FamilyAnswerer, requests: list[Request], stopped: tuple[DecodingConfig, list[str]]
) -> None:
    decoding, whole = stopped
    answers = answerer.answer(requests, decoding)
    assert [answer.first.raw for answer in answers] == [cut_before(text, decoding.stop).strip() for text in whole]
    cut = [decoding.stop[0] in text for text in whole]
    assert any(cut)
    assert all(answer.finish_reasons == ("stop",) for answer, is_cut in zip(answers, cut, strict=True) if is_cut)
    assert {answer.finish_reasons for answer in answerer.answer(requests, dataclasses.replace(GREEDY, max_new_tokens=2))} == {("length",)}


def test_streams_end_before_the_stop_text(
    answerer: FamilyAnswerer, requests: list[Request], stopped: tuple[DecodingConfig, list[str]]
) -> None:
    decoding, whole = stopped
    expected = [cut_before(text, decoding.stop).strip() for text in whole]
    texts, ends = [""] * len(requests), [""] * len(requests)
    for event in stream_tokens(answerer, requests, decoding):
        if isinstance(event, TokenGenerated):
            texts[event.request_index] += event.text
            ends[event.request_index] += event.end or ""
            assert expected[event.request_index].startswith(texts[event.request_index])
    assert texts == expected
    assert [end for end, text in zip(ends, whole, strict=True) if decoding.stop[0] in text] == ["stop"] * sum(
        decoding.stop[0] in text for text in whole
    )
    assert ["".join(answerer.stream(request, decoding)) for request in requests] == expected


@pytest.mark.parametrize("strategy", ["beam", "sample"])
def test_no_candidate_has_a_stop_text(answerer: FamilyAnswerer, requests: list[Request], strategy: str) -> None:
    unlimited = DecodingConfig(strategy=strategy, num_candidates=4, max_new_tokens=10)  # type: ignore[arg-type]
    raw = [candidate.raw for answer in answerer.answer(requests, unlimited) for candidate in answer.candidates]
    stop = max(raw, key=len)[3:5]
    answers = answerer.answer(requests, dataclasses.replace(unlimited, stop=(stop,)))
    assert any(stop in text for text in raw)
    assert not any(stop in candidate.raw for answer in answers for candidate in answer.candidates)
    assert all(answer.candidates for answer in answers)
