"""Responses of an endpoint are cached: no request is sent twice, and no cached response is used for a different request."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from answering.config import OpenAiSystem
from tests.answering.conftest import make_request, noise_image, questions
from tests.answering.endpoints import GREEDY, THREE, Server, load


def test_no_request_is_sent_twice(server: Server, system: Callable[..., OpenAiSystem], tmp_path: Path) -> None:
    config = system()
    path = tmp_path / "picture.png"
    noise_image(1).save(path)
    requests = [make_request("a", "What?", path), make_request("b", "What?", path), make_request("c", "Who?", path)]
    first = load(config).answer(requests, THREE)
    assert len(server.sent(config.model)) == 4  # two different questions, a greedy and a sampled request each
    again = load(config).answer(requests, dataclasses.replace(THREE, batch_size=1))
    assert again == first
    assert "".join(load(config).stream(requests[0], THREE)) == load(config).answer(requests[:1], GREEDY)[0].first.raw
    assert len(server.sent(config.model)) == 4


@pytest.mark.parametrize("change", ["picture", "question", "temperature", "tokens", "seed", "model", "side", "extra", "prompt"])
def test_anything_that_can_change_an_answer_is_requested_again(
    server: Server, system: Callable[..., OpenAiSystem], tmp_path: Path, change: str
) -> None:
    config, path, question, decoding = system(), tmp_path / "picture.png", "What?", THREE
    noise_image(1).save(path)
    load(config).answer([make_request("a", question, path)], decoding)
    before = len(server.log()["requests"])
    match change:
        case "picture":
            noise_image(2).save(path)
        case "question":
            question = "Who?"
        case "temperature":
            decoding = dataclasses.replace(decoding, temperature=0.5)
        case "tokens":
            decoding = dataclasses.replace(decoding, max_new_tokens=9)
        case "seed":
            decoding = dataclasses.replace(decoding, seed=1)
        case _:
            other: dict[str, dict[str, Any]] = {
                "model": {"model": "other"},
                "side": {"max_image_side": 30},
                "extra": {"extra_body": {"top_k": 3}},
                "prompt": {"short_answer_prompt": "!"},
            }
            config = dataclasses.replace(config, **other[change])
    load(config).answer([make_request("a", question, path)], decoding)
    # A greedy answer depends on neither temperature nor seed.
    assert len(server.log()["requests"]) - before == (1 if change in ("temperature", "seed") else 2)


def test_an_interrupted_run_requests_only_the_missing_answers(server: Server, system: Callable[..., OpenAiSystem]) -> None:
    config = system("500x1", retries=0)
    failed = load(config).answer(questions(4), GREEDY)
    assert all(answer.error for answer in failed)
    load(config).answer(questions(2), GREEDY)
    done = load(dataclasses.replace(config, retries=1)).answer(questions(4), GREEDY)
    assert not any(answer.error for answer in done)
    assert len(server.sent(config.model)) == 4 + 2 + 2


def test_a_cache_file_that_is_not_a_response_is_an_error(system: Callable[..., OpenAiSystem], tmp_path: Path) -> None:
    answerer = load(system())
    answerer.answer(questions(1), GREEDY)
    (path,) = (tmp_path / "cache").rglob("*.json")
    cached = json.loads(path.read_text(encoding="utf-8"))
    assert cached["asked"]["messages"][0]["content"].startswith("<image>\nWhat color is number 0?")
    assert cached["usage"] == {"total_tokens": 9}
    path.write_text("{}", encoding="utf-8")
    (answer,) = answerer.answer(questions(1), GREEDY)
    assert "not a cached response of an endpoint; delete it" in (answer.error or "")


@pytest.mark.parametrize("model", ["plain", "no-logprobs", "500x1"])
def test_a_stream_adds_up_to_the_answer_and_is_cached(server: Server, system: Callable[..., OpenAiSystem], model: str) -> None:
    config = system(model)
    pieces = list(load(config).stream(questions(1)[0], THREE))
    assert len(pieces) > 1
    sent = len(server.sent(config.model))
    (answer,) = load(config).answer(questions(1), GREEDY)
    assert len(server.sent(config.model)) == sent
    assert "".join(pieces) == answer.first.raw
    assert (answer.first.log_prob is None) == (model == "no-logprobs")
