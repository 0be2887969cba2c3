"""An endpoint as an answerer, asked over real connections: what is sent, what comes back, what is kept, what is never told."""

import base64
import dataclasses
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from answering.build import build_answerer, check_system
from answering.config import DecodingConfig, OpenAiSystem
from answering.endpoint import EndpointAnswerer
from answering.endpoint_client import EndpointClient, EndpointError, Pace
from answering.endpoint_key import api_key
from answering.protocol import Request
from dataset.sample import Message
from errors import UsageError
from tests.answering.conftest import Server, asked, drawn

KEY = "sk-planted-0123456789"
THREE = DecodingConfig(k=3, max_new_tokens=8)
GREEDY = DecodingConfig(mode="greedy", max_new_tokens=8)


@pytest.fixture
def system(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., OpenAiSystem]:
    """A system at the server, with a cache of its own and hardly a wait between tries."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    # Each test has models, and so a log, of its own.
    times = iter(range(1000))

    def make(model: str = "plain", **settings: Any) -> OpenAiSystem:
        name = f"{model}+{tmp_path.name}-{next(times)}"
        usual = {"base_url": server.url, "cache": tmp_path / "cache", "retry_wait": 0.001, "retries": 2}
        return OpenAiSystem(name="far", kind="openai", model=name, **{**usual, **settings})

    return make


def load(system: OpenAiSystem) -> EndpointAnswerer:
    answerer = build_answerer(system, checkpoint_folder=Path("nowhere"))
    assert isinstance(answerer, EndpointAnswerer)
    return answerer


def questions(count: int) -> list[Request]:
    return [asked(f"q{i}", f"What color is number {i}?", drawn(1)) for i in range(count)]


def test_a_question_is_sent_with_its_picture_and_prompt(server: Server, system: Callable[..., OpenAiSystem], tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.new("RGBA", (400, 100), (255, 0, 0, 255)).save(path)
    one = system(max_side=100, extra_body={"enable_thinking": False})
    (answer,) = load(one).answer([asked("a", "What color?", path)], GREEDY)
    assert answer.error is None
    assert answer.prompt == "user: <image>\nWhat color?\nAnswer the question using a single word or phrase."
    (body,) = server.sent(one.model)
    assert {key: value for key, value in body.items() if key != "messages"} == {
        "model": one.model, "temperature": 0.0, "max_tokens": 8, "logprobs": True, "enable_thinking": False,
    }  # fmt: skip
    ((picture, text),) = [message["content"] for message in body["messages"]]
    assert text == {"type": "text", "text": "What color?\nAnswer the question using a single word or phrase."}
    head, _, data = picture["image_url"]["url"].partition(",")
    assert head == "data:image/jpeg;base64"
    sent = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (sent.format, sent.size) == ("JPEG", (100, 25))
    red = sent.getpixel((50, 12))
    assert isinstance(red, tuple)
    assert red[0] > 240 > 20 > red[1]


def test_turns_and_several_pictures_keep_their_places(server: Server, system: Callable[..., OpenAiSystem]) -> None:
    one = system(short_answer_prompt=None)
    turns = (
        Message("system", "Be short."),
        Message("user", "First <image> then\n<image>"),
        Message("assistant", "ok"),
        Message("user", "And?"),
    )
    load(one).answer([Request("a", (drawn(1), drawn(2)), turns, "conversation")], GREEDY)
    (body,) = server.sent(one.model)
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "user"]
    assert [part["type"] for part in body["messages"][1]["content"]] == ["text", "image_url", "text", "image_url"]
    assert [body["messages"][i]["content"] for i in (0, 2, 3)] == ["Be short.", "ok", "And?"]


@pytest.mark.parametrize(
    ("model", "sampling", "expected"),
    [
        ("plain", "n", [(0.0, None, None), (0.7, 3, 5)]),
        ("plain", "repeated", [(0.0, None, None), (0.7, None, 5), (0.7, None, 6), (0.7, None, 7)]),
        # What one reply lacks is asked for again.
        ("ignores-n", "n", [(0.0, None, None), (0.7, 3, 5), (0.7, 2, 6), (0.7, None, 7)]),
    ],
)
def test_a_greedy_candidate_comes_first_and_samples_behind_it(
    server: Server, system: Callable[..., OpenAiSystem], model: str, sampling: str, expected: list[tuple[float, int | None, int | None]]
) -> None:
    one = system(f"{model}+no-logprobs", sampling=sampling)
    decoding = DecodingConfig(k=4, temperature=0.7, seed=4, max_new_tokens=8)
    (greedy,) = load(dataclasses.replace(one, cache=one.cache / "other")).answer(questions(1), dataclasses.replace(decoding, mode="greedy"))
    (answer,) = load(one).answer(questions(1), decoding)
    assert [(body["temperature"], body.get("n"), body.get("seed")) for body in server.sent(one.model)][1:] == expected
    assert sum(candidate.count for candidate in answer.candidates) == 4
    assert answer.first.text == greedy.first.text
    assert all(candidate.log_prob is None and candidate.mean_log_prob is None for candidate in answer.candidates)


def test_log_probabilities_are_used_where_the_server_gives_them(system: Callable[..., OpenAiSystem]) -> None:
    (answer,) = load(system()).answer(questions(1), GREEDY)
    log_prob = answer.first.log_prob
    assert log_prob is not None
    assert answer.first.mean_log_prob == pytest.approx(log_prob / 2)
    assert 10 * (log_prob + 0.25) == pytest.approx(round(10 * (log_prob + 0.25)))
    several = [a for a in load(system()).answer(questions(8), THREE) if len(a.candidates) > 1]
    assert several
    for one in several:
        means = [candidate.mean_log_prob or 0.0 for candidate in one.candidates]
        assert means == sorted(means, reverse=True)
    for model in ("some-logprobs", "endless-logprobs", "no-logprobs"):
        (without,) = load(system(model)).answer(questions(1), THREE)
        assert {candidate.log_prob for candidate in without.candidates} == {None}, model


def test_texts_that_differ_in_form_alone_are_one_candidate(system: Callable[..., OpenAiSystem]) -> None:
    answers = load(system()).answer(questions(30), DecodingConfig(k=8))
    both = [c for a in answers for c in a.candidates if c.text.lower().startswith("red")]
    assert both
    assert all(sum(c.text.lower().startswith("red") for c in a.candidates) <= 1 for a in answers)
    assert {c.raw for a in answers for c in a.candidates if c.text == "Red"} <= {"Red."}


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_what_passes_is_tried_again(server: Server, system: Callable[..., OpenAiSystem], status: int) -> None:
    one = system(f"{status}x2")
    (answer,) = load(one).answer(questions(1), GREEDY)
    assert answer.error is None
    assert len(server.sent(one.model)) == 3


@pytest.mark.parametrize(("model", "tries"), [("500", 3), ("429", 3), ("429+quota", 1), ("401", 1), ("404", 1)])
def test_what_does_not_pass_is_an_error_without_the_key(
    server: Server, system: Callable[..., OpenAiSystem], tmp_path: Path, model: str, tries: int
) -> None:
    one = system(model)
    (answer,) = load(one).answer(questions(1), THREE)
    assert answer.candidates == ()
    status = model.partition("+")[0]
    said = f"{tries} tries" if tries > 1 else "1 try"
    assert answer.error == f"the endpoint answered with status {status}: status {status}, asked with *** ({said})"
    assert answer.prompt.startswith("user: <image>")
    assert len(server.sent(one.model)) == tries
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_one_refused_question_spoils_no_other(system: Callable[..., OpenAiSystem], tmp_path: Path) -> None:
    answerer = load(system("breaks-on-broken"))
    bad = [asked("refused", "Is it broken?", drawn(1)), asked("missing", "What?", tmp_path / "none.png"), Request("empty", (), ())]
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
        ("html", "the endpoint's reply is no chat completion"),
        ("no-choices", "the endpoint's reply holds no choice"),
        ("filtered", "the endpoint gave no text (finish_reason: content_filter)"),
    ],
)
def test_a_reply_that_is_none_is_an_error(system: Callable[..., OpenAiSystem], model: str, message: str) -> None:
    (answer,) = load(system(model)).answer(questions(1), GREEDY)
    assert answer.error is not None
    assert message in answer.error


def test_a_server_that_hangs_is_given_up_and_tried_again(server: Server, system: Callable[..., OpenAiSystem]) -> None:
    one = system("hangs-once", timeout=2.0)
    (answer,) = load(one).answer(questions(1), GREEDY)
    assert answer.error is None
    assert len(server.sent(one.model)) == 2
    (late,) = load(system("hangs-once", timeout=0.5, retries=0)).answer(questions(1), GREEDY)
    assert late.error == "the endpoint did not answer in time (1 try)"


def test_no_server_is_an_error_of_each_question(system: Callable[..., OpenAiSystem]) -> None:
    answers = load(system(base_url="http://127.0.0.1:9/v1", retries=1)).answer(questions(2), GREEDY)
    assert all((answer.error or "").startswith("no connection to the endpoint") for answer in answers)
    assert all((answer.error or "").endswith("(2 tries)") for answer in answers)


def test_waits_double_and_follow_the_server(system: Callable[..., OpenAiSystem]) -> None:
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


def test_requests_begin_evenly_spaced() -> None:
    now = [100.0]
    begun = []

    def sleep(seconds: float) -> None:
        now[0] += seconds

    pace = Pace(30, clock=lambda: now[0], sleep=sleep)
    for _ in range(4):
        pace.wait()
        begun.append(now[0])
    assert begun == [100.0, 102.0, 104.0, 106.0]
    now[0] = 200.0
    pace.wait()
    assert now[0] == 200.0
    free = Pace(None, clock=lambda: now[0], sleep=sleep)
    for _ in range(5):
        free.wait()
    assert now[0] == 200.0


def test_further_tries_keep_to_the_pace(system: Callable[..., OpenAiSystem]) -> None:
    waits: list[float] = []
    client = EndpointClient(system("500x1", requests_per_minute=1), KEY, sleep=waits.append)
    client.complete({"model": client.system.model, "messages": [{"role": "user", "content": "Hello"}], "temperature": 0.0})
    assert [wait > 50 for wait in waits] == [False, True]


def test_so_many_requests_are_under_way_at_once_and_no_more(server: Server, system: Callable[..., OpenAiSystem]) -> None:
    # The server answers when three have come together.
    one = system("together", concurrency=3, retries=0)
    answers = load(one).answer(questions(6), GREEDY)
    assert [answer.error for answer in answers] == [None] * 6
    assert server.log()["most_under_way"][one.model] == 3


def test_nothing_is_asked_for_twice(server: Server, system: Callable[..., OpenAiSystem], tmp_path: Path) -> None:
    one = system()
    path = tmp_path / "picture.png"
    drawn(1).save(path)
    requests = [asked("a", "What?", path), asked("b", "What?", path), asked("c", "Who?", path)]
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
    drawn(1).save(path)
    load(one).answer([asked("a", question, path)], decoding)
    before = len(server.log()["requests"])
    match change:
        case "picture":
            drawn(2).save(path)
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
    load(one).answer([asked("a", question, path)], decoding)
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


def test_a_stream_that_is_refused_says_so(system: Callable[..., OpenAiSystem]) -> None:
    with pytest.raises(EndpointError, match="status 401"):
        list(load(system("401")).stream(questions(1)[0], GREEDY))


def test_the_key_is_sent_and_told_nobody_else(
    server: Server, system: Callable[..., OpenAiSystem], tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    one = system("500x1")
    answerer = load(one)
    answers = answerer.answer(questions(2), THREE)
    refused = load(system("401")).answer(questions(1), GREEDY)
    with pytest.raises(EndpointError) as error:
        answerer.client.complete({"model": "401", "messages": [], "temperature": 0.0})
    sent = [request["key"] for request in server.log()["requests"] if request["body"]["model"] == one.model]
    assert set(sent) == {f"Bearer {KEY}"}
    assert caplog.records
    printed = capfd.readouterr()
    told = [repr(answers), repr(refused), repr(answerer.description), repr(answerer.system), repr(error.getrepr(chain=True, style="long"))]
    told += [printed.out, printed.err, caplog.text, *(path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.json"))]
    assert not any(KEY in text for text in told)


def test_the_key_comes_from_the_environment_or_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLANTED_KEY", raising=False)
    system = OpenAiSystem(name="far", kind="openai", model="m", api_key_variable="PLANTED_KEY")
    with pytest.raises(
        UsageError, match=r"eval\.systems\.2\.api_key_variable: PLANTED_KEY is set neither in the environment nor in .*\.env"
    ):
        api_key(system, "eval.systems.2.", tmp_path)
    for line in ("PLANTED_KEY=abc", "export PLANTED_KEY = 'abc' ", '# a comment\nOTHER=1\nPLANTED_KEY="abc"'):
        (tmp_path / ".env").write_text(line + "\n", encoding="utf-8")
        assert api_key(system, "eval.systems.2.", tmp_path) == "abc"
    monkeypatch.setenv("PLANTED_KEY", "from the environment"[-11:])
    assert api_key(system, "eval.systems.2.", tmp_path) == "environment"
    monkeypatch.setenv("PLANTED_KEY", "two words")
    with pytest.raises(UsageError) as error:
        api_key(system, "eval.systems.2.", tmp_path)
    assert "two words" not in str(error.value)
    assert api_key(dataclasses.replace(system, api_key_variable=None), "", tmp_path) == "none"


def test_a_missing_key_is_found_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="api_key_variable"):
        check_system(OpenAiSystem(name="far", kind="openai", model="m"))


@pytest.mark.parametrize("url", ["http://user:secret@host/v1", "https://host/v1?key=secret", "host/v1", "ftp://host"])
def test_an_address_that_holds_a_key_or_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        OpenAiSystem(name="far", kind="openai", model="m", base_url=url)


def test_a_defect_ends_the_questions_that_wait_for_the_endpoint(
    server: Server, system: Callable[..., OpenAiSystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = system("503", retries=1000, retry_wait=60.0, concurrency=2)
    answerer = load(one)
    waiting = answerer._messages

    def defective(request: Request) -> tuple[Message, ...]:
        if request.request_id == "q1":
            while not server.sent(one.model):
                pass  # until the other question has been refused once, and waits a minute
            raise ZeroDivisionError("a defect")
        return waiting(request)

    monkeypatch.setattr(answerer, "_messages", defective)
    with pytest.raises(ZeroDivisionError, match="a defect"):
        answerer.answer(questions(6), GREEDY)
    # It returned at all, and neither asked the others nor went on with the first.
    assert len(server.sent(one.model)) <= 3


def test_questions_that_are_answered_leave_the_client_as_it_was(system: Callable[..., OpenAiSystem]) -> None:
    answerer = load(system())
    answerer.answer(questions(3), GREEDY)
    assert not answerer.client.stopped.is_set()
