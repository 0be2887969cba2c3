"""What an endpoint has answered is kept: nothing is asked for twice, and nothing old is given for a new question."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from answering.config import OpenAiSystem
from tests.answering.conftest import make_request, noise_image, questions
from tests.answering.endpoints import GREEDY, THREE, Server, load


def test_nothing_is_asked_for_twice(server: Server, system: Callable[..., OpenAiSystem], tmp_path: Path) -> None:
    one = system()
    path = tmp_path / "picture.png"
    noise_image(1).save(path)
    requests = [make_request("a", "What?", path), make_request("b", "What?", path), make_request("c", "Who?", path)]
    first = load(one).answer(requests, THREE)
    assert len(server.sent(one.model)) == 4  # two different questions, a greedy and a sampled request each
    again = load(one).answer(requests, dataclasses.replace(THREE, batch_size=1))
    assert again == first
    assert "".join(load(one).stream(requests[0], THREE)) == load(one).answer(requests[:1], GREEDY)[0].first.raw
    assert len(server.sent(one.model)) == 4


@pytest.mark.parametrize("change", ["picture", "question", "temperature", "tokens", "seed", "model", "side", "extra", "prompt"])
def test_anything_that_may_change_an_answer_is_asked_anew(
    server: Server, system: Callable[..., OpenAiSystem], tmp_path: Path, change: str
) -> None:
    one, path, question, decoding = system(), tmp_path / "picture.png", "What?", THREE
    noise_image(1).save(path)
    load(one).answer([make_request("a", question, path)], decoding)
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
                "side": {"max_side": 30},
                "extra": {"extra_body": {"top_k": 3}},
                "prompt": {"short_answer_prompt": "!"},
            }
            one = dataclasses.replace(one, **other[change])
    load(one).answer([make_request("a", question, path)], decoding)
    # A greedy answer depends on neither temperature nor seed.
    assert len(server.log()["requests"]) - before == (1 if change in ("temperature", "seed") else 2)


def test_a_run_that_was_cut_off_pays_for_the_rest_alone(server: Server, system: Callable[..., OpenAiSystem]) -> None:
    one = system("500x1", retries=0)
    failed = load(one).answer(questions(4), GREEDY)
    assert all(answer.error for answer in failed)
    load(one).answer(questions(2), GREEDY)
    done = load(dataclasses.replace(one, retries=1)).answer(questions(4), GREEDY)
    assert not any(answer.error for answer in done)
    assert len(server.sent(one.model)) == 4 + 2 + 2


def test_a_file_of_the_cache_that_is_not_ours_is_an_error(system: Callable[..., OpenAiSystem], tmp_path: Path) -> None:
    answerer = load(system())
    answerer.answer(questions(1), GREEDY)
    (path,) = (tmp_path / "cache").rglob("*.json")
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert kept["asked"]["messages"][0]["content"].startswith("<image>\nWhat color is number 0?")
    assert kept["usage"] == {"total_tokens": 9}
    path.write_text("{}", encoding="utf-8")
    (answer,) = answerer.answer(questions(1), GREEDY)
    assert "not a reply of an endpoint; delete it" in (answer.error or "")


@pytest.mark.parametrize("model", ["plain", "no-logprobs", "500x1"])
def test_a_stream_adds_up_to_the_answer_and_is_kept(server: Server, system: Callable[..., OpenAiSystem], model: str) -> None:
    one = system(model)
    pieces = list(load(one).stream(questions(1)[0], THREE))
    assert len(pieces) > 1
    sent = len(server.sent(one.model))
    (answer,) = load(one).answer(questions(1), GREEDY)
    assert len(server.sent(one.model)) == sent
    assert "".join(pieces) == answer.first.raw
    assert (answer.first.log_prob is None) == (model == "no-logprobs")
