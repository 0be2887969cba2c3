"""BLIP-2 takes the decoding settings of the other systems: its language model's own `generate` gives the same sequences."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from answering.config import DecodingConfig
from answering.decoding.stop_strings import cut_before
from answering.systems.family_answerer import FamilyAnswerer
from tests.answering.systems.test_blip2 import BEAMS, GREEDY, REQUESTS, SAMPLES, is_encoder_decoder, language_inputs, loaded
from tests.small_models import build_blip2

SETTINGS: list[dict[str, Any]] = [
    {"no_repeat_ngram_size": 1},
    {"repetition_penalty": 1.7},
    {"length_penalty": -1.0},
    {"length_penalty": 2.0, "no_repeat_ngram_size": 2},
]


@pytest.fixture(scope="module", params=["opt", "t5"])
def answerer(request: pytest.FixtureRequest, parts: Path, tmp_path_factory: pytest.TempPathFactory) -> FamilyAnswerer:
    return loaded(build_blip2(tmp_path_factory.mktemp(request.param), request.param, parts))


def raws(answerer: FamilyAnswerer, decoding: DecodingConfig) -> list[list[str]]:
    return [[candidate.raw for candidate in answer.candidates] for answer in answerer.answer(REQUESTS, decoding)]


def until_end(ids: list[int], ends: Sequence[int]) -> tuple[int, ...]:
    """The tokens up to the first end token; what follows is padding."""
    return tuple(ids[: next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))])


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_beams_equal_those_of_the_language_models_own_search(answerer: FamilyAnswerer, settings: dict[str, Any]) -> None:
    decoding = replace(BEAMS, max_new_tokens=10, **settings)
    start = int(is_encoder_decoder(answerer))
    for request in REQUESTS:
        prompt = answerer.encode(request)
        (own,) = answerer.generate([request], [prompt], decoding)
        output = answerer.model.language_model.generate(
            **language_inputs(answerer, prompt), eos_token_id=list(answerer.end_ids), num_beams=4, num_return_sequences=4,
            max_new_tokens=10, output_scores=True,
            return_dict_in_generate=True, **settings,
        )  # fmt: skip
        expected = [until_end(row, answerer.end_ids) for row in output.sequences[:, start:].tolist()]
        assert [sequence.token_ids for sequence in own] == expected
        scores = [
            (s.log_prob if s.penalised_log_prob is None else s.penalised_log_prob) / len(s.token_ids) ** decoding.length_penalty
            for s in own
        ]
        assert scores == pytest.approx(output.sequences_scores.tolist(), abs=1e-4, rel=1e-5)
    if "no_repeat_ngram_size" in settings:
        assert raws(answerer, decoding) != raws(answerer, replace(BEAMS, max_new_tokens=10))


def test_samples_follow_top_k_and_penalties(answerer: FamilyAnswerer) -> None:
    greedy = raws(answerer, GREEDY)
    assert raws(answerer, replace(SAMPLES, top_k=1, temperature=3.0)) == greedy
    assert raws(answerer, replace(SAMPLES, top_p=1e-6, temperature=3.0)) == greedy
    no_repeats = replace(SAMPLES, no_repeat_ngram_size=1, max_new_tokens=10)
    for generated in answerer.generate(REQUESTS, [answerer.encode(request) for request in REQUESTS], no_repeats):
        for sequence in generated:
            assert len(set(sequence.token_ids)) == len(sequence.token_ids)
            assert sequence.penalised_log_prob is not None and sequence.penalised_log_prob > sequence.log_prob - 1e-3


def test_answers_end_before_a_stop_text(answerer: FamilyAnswerer) -> None:
    for decoding in (GREEDY, BEAMS, SAMPLES):
        unlimited = replace(decoding, max_new_tokens=8)
        longest = max((text for own in raws(answerer, unlimited) for text in own), key=len)
        stop = longest[len(longest) // 2 : len(longest) // 2 + 2]
        stopped = raws(answerer, replace(unlimited, stop=(stop,)))
        assert not any(stop in text for own in stopped for text in own)
        if decoding is GREEDY:
            assert stopped == [[cut_before(text, [stop]).strip()] for (text,) in raws(answerer, unlimited)]
            streamed = ["".join(answerer.stream(request, replace(unlimited, stop=(stop,)))) for request in REQUESTS]
            assert streamed == [own[0] for own in stopped]


def test_answers_say_whether_they_were_cut_off(answerer: FamilyAnswerer) -> None:
    for answer in answerer.answer(REQUESTS, replace(GREEDY, max_new_tokens=2)):
        ids = answerer.tokenizer(answer.first.raw).input_ids
        assert answer.finish_reasons == ("length",) or len(ids) < 2
