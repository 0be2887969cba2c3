"""An endpoint as an answerer, over real connections to a local server: requests, responses, retries, rate limit and errors."""

import base64
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from answering.answerer_factory import check_decoding
from answering.config import CheckpointSystem, DecodingConfig, OpenAiSystem, for_descriptions
from answering.protocol import Request
from answering.systems.openai_endpoint.client import EndpointClient, EndpointError, RateLimiter
from dataset.sample import Message
from errors import UsageError
from tests.answering.conftest import make_request, noise_image, questions
from tests.answering.endpoints import GREEDY, KEY, THREE, Server, load


def test_a_question_is_sent_with_its_image_and_prompt(server: Server, system: Callable[..., OpenAiSystem], tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.new("RGBA", (400, 100), (255, 0, 0, 255)).save(path)
    config = system(max_image_side=100, extra_body={"enable_thinking": False})
    (answer,) = load(config).answer([make_request("a", "What color?", path)], GREEDY)
    assert answer.error is None
    assert answer.prompt == "user: <image>\nWhat color?\nAnswer the question using a single word or phrase."
    (body,) = server.sent(config.model)
    assert {key: value for key, value in body.items() if key != "messages"} == {
        "model": config.model, "temperature": 0.0, "max_tokens": 8, "logprobs": True, "enable_thinking": False,
    }  # fmt: skip
    ((image, text),) = [message["content"] for message in body["messages"]]
    assert text == {"type": "text", "text": "What color?\nAnswer the question using a single word or phrase."}
    head, _, data = image["image_url"]["url"].partition(",")
    assert head == "data:image/jpeg;base64"
    sent = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (sent.format, sent.size) == ("JPEG", (100, 25))
    red = sent.getpixel((50, 12))
    assert isinstance(red, tuple)
    assert red[0] > 240 > 20 > red[1]


def test_turns_and_several_images_keep_their_order(server: Server, system: Callable[..., OpenAiSystem]) -> None:
    config = system(short_answer_prompt=None)
    turns = (
        Message("system", "Be short."),
        Message("user", "First <image> then\n<image>"),
        Message("assistant", "ok"),
        Message("user", "And?"),
    )
    load(config).answer([Request("a", (noise_image(1), noise_image(2)), turns, "conversation")], GREEDY)
    (body,) = server.sent(config.model)
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "user"]
    assert [part["type"] for part in body["messages"][1]["content"]] == ["text", "image_url", "text", "image_url"]
    assert [body["messages"][i]["content"] for i in (0, 2, 3)] == ["Be short.", "ok", "And?"]


@pytest.mark.parametrize(
    ("model", "sampling", "expected"),
    [
        ("plain", "n", [(0.0, None, None), (0.7, 3, 5)]),
        ("plain", "repeated", [(0.0, None, None), (0.7, None, 5), (0.7, None, 6), (0.7, None, 7)]),
        # Choices that are missing in a response are requested again.
        ("ignores-n", "n", [(0.0, None, None), (0.7, 3, 5), (0.7, 2, 6), (0.7, None, 7)]),
    ],
)
def test_the_greedy_candidate_comes_first_and_samples_follow(
    server: Server, system: Callable[..., OpenAiSystem], model: str, sampling: str, expected: list[tuple[float, int | None, int | None]]
) -> None:
    config = system(f"{model}+no-logprobs", sampling=sampling)
    decoding = DecodingConfig(num_candidates=4, temperature=0.7, seed=4, max_new_tokens=8)
    (greedy,) = load(dataclasses.replace(config, cache=config.cache / "other")).answer(
        questions(1), dataclasses.replace(decoding, strategy="greedy")
    )
    (answer,) = load(config).answer(questions(1), decoding)
    assert [(body["temperature"], body.get("n"), body.get("seed")) for body in server.sent(config.model)][1:] == expected
    assert sum(candidate.count for candidate in answer.candidates) == 4
    assert answer.first.text == greedy.first.text
    assert all(candidate.log_prob is None and candidate.mean_log_prob is None for candidate in answer.candidates)


def test_log_probabilities_are_used_if_the_server_returns_them(system: Callable[..., OpenAiSystem]) -> None:
    (answer,) = load(system()).answer(questions(1), GREEDY)
    log_prob = answer.first.log_prob
    assert log_prob is not None
    assert answer.first.mean_log_prob == pytest.approx(log_prob / 2)
    assert 10 * (log_prob + 0.25) == pytest.approx(round(10 * (log_prob + 0.25)))
    several = [a for a in load(system()).answer(questions(8), THREE) if len(a.candidates) > 1]
    assert several
    for answer in several:
        means = [candidate.mean_log_prob or 0.0 for candidate in answer.candidates]
        assert means == sorted(means, reverse=True)
    for model in ("some-logprobs", "endless-logprobs", "no-logprobs"):
        (without,) = load(system(model)).answer(questions(1), THREE)
        assert {candidate.log_prob for candidate in without.candidates} == {None}, model


def test_an_endpoint_does_not_say_how_many_visual_tokens_an_image_has(system: Callable[..., OpenAiSystem]) -> None:
    (answer,) = load(system()).answer(questions(1), GREEDY)
    assert answer.error is None and answer.visual_tokens is None


def test_texts_that_differ_only_in_form_are_one_candidate(system: Callable[..., OpenAiSystem]) -> None:
    answers = load(system()).answer(questions(30), DecodingConfig(num_candidates=8))
    assert [c for a in answers for c in a.candidates if c.text.lower().startswith("red")]
    assert all(sum(c.text.lower().startswith("red") for c in a.candidates) <= 1 for a in answers)
    assert {c.raw for a in answers for c in a.candidates if c.text == "Red"} <= {"Red."}


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_temporary_errors_are_retried(server: Server, system: Callable[..., OpenAiSystem], status: int) -> None:
    config = system(f"{status}x2")
    (answer,) = load(config).answer(questions(1), GREEDY)
    assert answer.error is None
    assert len(server.sent(config.model)) == 3


@pytest.mark.parametrize(("model", "tries"), [("500", 3), ("429", 3), ("429+quota", 1), ("401", 1), ("404", 1)])
def test_permanent_errors_are_reported_without_the_key(
    server: Server, system: Callable[..., OpenAiSystem], tmp_path: Path, model: str, tries: int
) -> None:
    config = system(model)
    (answer,) = load(config).answer(questions(1), THREE)
    assert answer.candidates == ()
    status = model.partition("+")[0]
    count = f"{tries} tries" if tries > 1 else "1 try"
    assert answer.error == f"the endpoint answered with status {status}: status {status}, asked with *** ({count})"
    assert answer.prompt.startswith("user: <image>")
    assert len(server.sent(config.model)) == tries
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_a_rejected_request_affects_no_other(system: Callable[..., OpenAiSystem], tmp_path: Path) -> None:
    answerer = load(system("breaks-on-broken"))
    bad = [
        make_request("refused", "Is it broken?", noise_image(1)),
        make_request("missing", "What?", tmp_path / "none.png"),
        Request("empty", (), ()),
    ]
    answers = {answer.request_id: answer for answer in answerer.answer([*bad, *questions(3)], THREE)}
    assert list(answers) == ["refused", "missing", "empty", "q0", "q1", "q2"]
    assert "I cannot see that" in (answers["refused"].error or "")
    assert "there is no such file" in (answers["missing"].error or "")
    assert "roles must be" in (answers["empty"].error or "")
    assert [answers[f"q{i}"].error for i in range(3)] == [None] * 3
    assert list(answers.values())[3:] == load(answerer.system).answer(questions(3), THREE)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("html", "the endpoint's response is not a chat completion"),
        ("no-choices", "the endpoint's response has no choices"),
        ("filtered", "the endpoint returned no text (finish_reason: content_filter)"),
    ],
)
def test_an_invalid_or_empty_response_is_an_error(system: Callable[..., OpenAiSystem], model: str, message: str) -> None:
    (answer,) = load(system(model)).answer(questions(1), GREEDY)
    assert answer.error is not None
    assert message in answer.error


def test_a_request_that_times_out_is_retried(server: Server, system: Callable[..., OpenAiSystem]) -> None:
    config = system("hangs-once", timeout=2.0)
    (answer,) = load(config).answer(questions(1), GREEDY)
    assert answer.error is None
    assert len(server.sent(config.model)) == 2
    (late,) = load(system("hangs-once", timeout=0.5, retries=0)).answer(questions(1), GREEDY)
    assert late.error == "the endpoint did not answer in time (1 try)"


def test_without_a_server_each_request_is_an_error(system: Callable[..., OpenAiSystem]) -> None:
    answers = load(system(base_url="http://127.0.0.1:9/v1", retries=1)).answer(questions(2), GREEDY)
    assert all((answer.error or "").startswith("no connection to the endpoint") for answer in answers)
    assert all((answer.error or "").endswith("(2 tries)") for answer in answers)


def test_retry_waits_double_and_follow_the_retry_after_header(system: Callable[..., OpenAiSystem]) -> None:
    for model, least in (("500", [1.0, 2.0, 4.0]), ("429+says-when", [7.0, 7.0, 7.0]), ("429x2+says-when", [7.0, 7.0])):
        waits: list[float] = []
        client = EndpointClient(system(model, retries=3, retry_wait=1.0), KEY, sleep=waits.append)
        body = {"model": client.system.model, "messages": [{"role": "user", "content": "Hello"}], "temperature": 0.0}
        if model.startswith("429x2"):
            assert client.complete(body)
        else:
            with pytest.raises(EndpointError, match="4 tries"):
                client.complete(body)
        assert len(waits) == len(least)
        assert all(low <= wait <= 1.25 * low for low, wait in zip(least, waits, strict=True)), waits


def test_the_rate_limiter_spaces_requests_evenly() -> None:
    now = [100.0]
    starts = []

    def sleep(seconds: float) -> None:
        now[0] += seconds

    rate_limiter = RateLimiter(30, clock=lambda: now[0], sleep=sleep)
    for _ in range(4):
        rate_limiter.wait()
        starts.append(now[0])
    assert starts == [100.0, 102.0, 104.0, 106.0]
    now[0] = 200.0
    rate_limiter.wait()
    assert now[0] == 200.0
    unlimited = RateLimiter(None, clock=lambda: now[0], sleep=sleep)
    for _ in range(5):
        unlimited.wait()
    assert now[0] == 200.0


def test_retries_count_towards_the_rate_limit(system: Callable[..., OpenAiSystem]) -> None:
    waits: list[float] = []
    client = EndpointClient(system("500x1", requests_per_minute=1), KEY, sleep=waits.append)
    client.complete({"model": client.system.model, "messages": [{"role": "user", "content": "Hello"}], "temperature": 0.0})
    assert [wait > 50 for wait in waits] == [False, True]


def test_concurrent_requests_reach_the_configured_number_and_no_more(server: Server, system: Callable[..., OpenAiSystem]) -> None:
    # The server answers only when three requests have arrived.
    config = system("together", concurrency=3, retries=0)
    answers = load(config).answer(questions(6), GREEDY)
    assert [answer.error for answer in answers] == [None] * 6
    assert server.log()["max_concurrent"][config.model] == 3


def test_a_rejected_stream_raises(system: Callable[..., OpenAiSystem]) -> None:
    with pytest.raises(EndpointError, match="status 401"):
        list(load(system("401")).stream(questions(1)[0], GREEDY))


def test_an_unexpected_exception_stops_requests_that_wait_for_the_endpoint(
    server: Server, system: Callable[..., OpenAiSystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = system("503", retries=1000, retry_wait=60.0, concurrency=2)
    answerer = load(config)
    messages = answerer._messages

    def defective(request: Request) -> tuple[Message, ...]:
        if request.request_id == "q1":
            while not server.sent(config.model):
                pass  # until the other request has been rejected once and waits a minute
            raise ZeroDivisionError("a defect")
        return messages(request)

    monkeypatch.setattr(answerer, "_messages", defective)
    with pytest.raises(ZeroDivisionError, match="a defect"):
        answerer.answer(questions(6), GREEDY)
    # `answer` returned; the other requests were not sent and the first was not retried further.
    assert len(server.sent(config.model)) <= 3


def test_the_client_is_not_stopped_after_a_successful_batch(system: Callable[..., OpenAiSystem]) -> None:
    answerer = load(system())
    answerer.answer(questions(3), GREEDY)
    assert not answerer.client.stopped.is_set()


def test_with_the_strategy_sample_every_answer_is_sampled(server: Server, system: Callable[..., OpenAiSystem]) -> None:
    config = system(sampling="repeated")
    answerer = load(config)
    sampled = dataclasses.replace(THREE, strategy="sample", num_candidates=2, temperature=0.6)
    (answer,) = answerer.answer(questions(1), sampled)
    streamed = "".join(answerer.stream(questions(1)[0], dataclasses.replace(sampled, seed=9)))
    assert [(body["temperature"], body["seed"]) for body in server.sent(config.model)] == [(0.6, 0), (0.6, 1), (0.6, 9)]
    assert answer.finish_reasons == ("stop",) * len(answer.candidates)
    assert streamed


def test_decoding_settings_are_sent_as_far_as_the_api_has_them(server: Server, system: Callable[..., OpenAiSystem]) -> None:
    config = system()
    decoding = dataclasses.replace(THREE, top_p=0.9, presence_penalty=0.5, frequency_penalty=-0.5, stop=(".",), seed=4, temperature=0.6)
    load(config).answer(questions(1), for_descriptions(decoding, 8))
    greedy, sampled = server.sent(config.model)
    everywhere = {"presence_penalty": 0.5, "frequency_penalty": -0.5, "stop": ["."]}
    assert {key: greedy[key] for key in everywhere} == {key: sampled[key] for key in everywhere} == everywhere
    assert (sampled["top_p"], sampled["temperature"], sampled["seed"]) == (0.9, 0.6, 5)
    assert not {"top_k", "repetition_penalty", "no_repeat_ngram_size", "length_penalty"} & (greedy.keys() | sampled.keys())


@pytest.mark.parametrize(
    ("setting", "value"), [("top_k", 5), ("repetition_penalty", 1.1), ("no_repeat_ngram_size", 2), ("length_penalty", 0.0)]
)
def test_a_setting_that_the_api_does_not_have_is_an_error(setting: str, value: Any) -> None:
    far = OpenAiSystem(name="far", kind="openai", model="m")
    message = f"decoding.{setting}: {value}, but system far is asked through OpenAI's API, which has no such setting; leave it out"
    with pytest.raises(UsageError, match=message):
        check_decoding(DecodingConfig(**{setting: value}), [CheckpointSystem(name="ours", kind="checkpoint"), far])
    check_decoding(DecodingConfig(**{setting: value}), [CheckpointSystem(name="ours", kind="checkpoint")])
    check_decoding(DecodingConfig(no_repeat_ngram_size=0, top_p=0.5), [far])
