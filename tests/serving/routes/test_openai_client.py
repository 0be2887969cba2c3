"""OpenAI's own client gets from the service what it gets from OpenAI's: neutral fields, whole answers sent back, images in every form."""

import base64
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import openai
import pytest

from answering.protocol import Answer, Decoding, FinishReason, Request
from dataset.sample import Message
from tests.fakes import Recorder
from tests.serving.conftest import image_file, serving
from tests.serving.routes.conftest import URL, Running

QUESTION: list[Any] = [{"role": "user", "content": "What is it?"}]
NEUTRAL: dict[str, Any] = {
    "audio": None,
    "frequency_penalty": 0,
    "function_call": "none",
    "functions": [],
    "logit_bias": {},
    "logprobs": False,
    "max_completion_tokens": None,
    "max_tokens": None,
    "metadata": None,
    "modalities": ["text"],
    "moderation": None,
    "n": None,
    "parallel_tool_calls": True,
    "prediction": None,
    "presence_penalty": 0,
    "prompt_cache_key": "someone",
    "prompt_cache_options": {},
    "prompt_cache_retention": "in_memory",
    "reasoning_effort": "none",
    "response_format": {"type": "text"},
    "safety_identifier": "someone",
    "seed": None,
    "service_tier": "auto",
    "stop": [],
    "store": False,
    "stream_options": None,
    "temperature": None,
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1,
    "user": "someone",
    "verbosity": "medium",
    "web_search_options": None,
}
"""A value of every known field that asks for nothing."""


def image_part(url: str, **fields: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **fields}}


def test_the_list_has_every_field_of_the_installed_client() -> None:
    known = set(openai.types.chat.completion_create_params.CompletionCreateParamsBase.__annotations__)
    assert known - set(NEUTRAL) == {"model", "messages"}


@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_values_ask_for_nothing(running: Running, name: str) -> None:
    answer = running.client.chat.completions.create(model="fake", messages=QUESTION, **{name: NEUTRAL[name]})
    assert answer.choices[0].message.content == "What is it?!"
    assert running.chat(**{name: None}).status_code == 200, "null is as if the field were left out"


def test_all_neutral_values_at_once_change_no_answer(running: Running) -> None:
    plain = running.client.chat.completions.create(model="fake", messages=QUESTION)
    decoding = running.recorder.decoding
    neutral = running.client.chat.completions.create(model="fake", messages=QUESTION, **NEUTRAL)
    assert neutral.choices == plain.choices
    assert running.recorder.decoding == decoding


def test_an_answer_is_sent_back_as_the_client_dumps_it(running: Running) -> None:
    first = running.client.chat.completions.create(model="fake", messages=QUESTION).choices[0].message
    assert set(first.model_dump()) >= {"refusal", "annotations", "audio", "function_call", "tool_calls"}
    dumped: list[Any] = [first, first.model_dump(), {**first.model_dump(), "annotations": [], "tool_calls": []}]
    for message in dumped:
        running.client.chat.completions.create(model="fake", messages=[*QUESTION, message, {"role": "user", "content": "Why?"}])
        assert running.recorder.request.messages == (
            Message("user", "What is it?"), Message("assistant", "What is it?!"), Message("user", "Why?"),
        )  # fmt: skip


def test_a_whole_answer_can_be_dumped_and_read_again(running: Running) -> None:
    answer = running.client.chat.completions.create(model="fake", messages=QUESTION, metadata={"run": "7"})
    assert openai.types.chat.ChatCompletion.model_validate(answer.model_dump()) == answer
    assert answer.metadata == {"run": "7"}
    assert answer.choices[0].message.refusal is None


def test_models_are_listed_and_retrieved(running: Running) -> None:
    (listed,) = running.client.models.list()
    assert running.client.models.retrieve("fake") == listed
    for unknown in ("other", "someone/other"):
        with pytest.raises(openai.NotFoundError, match="there is no model"):
            running.client.models.retrieve(unknown)


@pytest.mark.parametrize("detail", ["low", "high", "auto", "original", None])
def test_every_detail_is_accepted_and_asks_for_the_same(running: Running, detail: str | None) -> None:
    running.client.chat.completions.create(model="fake", messages=[{"role": "user", "content": [image_part(URL, detail=detail)]}])  # type: ignore[misc,list-item]
    assert [image.size for image in running.recorder.request.images] == [(40, 30)]  # type: ignore[union-attr]


def test_base64_is_read_as_clients_write_it(running: Running) -> None:
    data = image_file(3)
    text = base64.b64encode(data).decode()
    forms = {
        "lines": "\n".join(text[i : i + 76] for i in range(0, len(text), 76)) + "\n",
        "lines of Windows": "\r\n".join(text[i : i + 64] for i in range(0, len(text), 64)),
        "spaces": " ".join(text[i : i + 100] for i in range(0, len(text), 100)),
        "url-safe": base64.urlsafe_b64encode(data).decode(),
        "without padding": text.rstrip("="),
        "percent-encoded": text.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
    }
    assert set("-_") & set(forms["url-safe"]) and "%2B" in forms["percent-encoded"]
    running.chat([{"role": "user", "content": [image_part(f"data:image/png;base64,{text}")]}])
    expected = running.recorder.request.images[0].tobytes()  # type: ignore[union-attr]
    for name, form in forms.items():
        response = running.chat([{"role": "user", "content": [image_part(f"data:image/png;base64,{form}")]}])
        assert response.status_code == 200, name
        assert running.recorder.request.images[0].tobytes() == expected, name  # type: ignore[union-attr]


def test_turns_of_one_role_in_a_row_are_joined_as_parts_are(running: Running) -> None:
    turns: list[Any] = [
        {"role": "system", "content": "Be short. "},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": [image_part(URL)]},
        {"role": "user", "content": " Which color?\n"},
        {"role": "assistant", "content": "Red."},
        {"role": "assistant", "content": [{"type": "text", "text": "Dark red."}]},
        {"role": "user", "content": "And here?"},
        {"role": "user", "content": [image_part(URL), {"type": "text", "text": "Which?"}]},
    ]
    running.client.chat.completions.create(model="fake", messages=turns)
    request = running.recorder.request
    assert [(message.role, message.content) for message in request.messages] == [
        ("system", "Be short.\nBe kind."),
        ("user", "<image>\nWhich color?"),
        ("assistant", "Red.\nDark red."),
        ("user", "And here?\n<image>\nWhich?"),
    ]
    assert len(request.images) == 2
    parts = [{"role": "user", "content": [image_part(URL), {"type": "text", "text": "Which color?"}]}]
    running.client.chat.completions.create(model="fake", messages=parts)  # type: ignore[arg-type]
    assert running.recorder.request.messages[0] == request.messages[1], "the same as one turn in parts"


def test_a_stream_takes_all_of_this_too(running: Running) -> None:
    turns: list[Any] = [{"role": "user", "content": [image_part(URL, detail="low")]}, *QUESTION]
    chunks = running.client.chat.completions.create(model="fake", messages=turns, stream=True, **NEUTRAL)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "one two three"
    assert running.recorder.request.messages == (Message("user", "<image>\nWhat is it?"),)


def test_a_refusal_of_the_assistant_is_read_as_its_answer(running: Running) -> None:
    refusals: list[Any] = [{"content": None, "refusal": "No."}, {"content": [{"type": "refusal", "refusal": "No."}]}]
    for refusal in refusals:
        turns: list[Any] = [*QUESTION, {"role": "assistant", **refusal}, *QUESTION]
        running.client.chat.completions.create(model="fake", messages=turns)
        assert running.recorder.request.messages[1] == Message("assistant", "No.")


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("stream", [False, True])
def test_more_tokens_than_the_limit_are_capped(real: openai.OpenAI, name: str, stream: bool) -> None:
    reasons, lengths = set(), set()
    for text in ("Describe it.", "Why?", "描述一下。", "Count."):
        fields: dict[str, Any] = {name: 100_000, "stream": stream}
        messages: list[Any] = [{"role": "user", "content": text}]
        answer = real.chat.completions.create(model="small", messages=messages, **fields)
        if stream:
            reasons |= {chunk.choices[0].finish_reason for chunk in answer} - {None}
        else:
            reasons.add(answer.choices[0].finish_reason)
            lengths.add(answer.usage.completion_tokens)
            assert (answer.choices[0].finish_reason == "length") >= (answer.usage.completion_tokens == 9)
    assert "length" in reasons
    assert not lengths or max(lengths) == 9


def test_an_answer_ends_before_a_stop_text(real: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": [image_part(URL), {"type": "text", "text": "Describe it."}]}]
    whole = real.chat.completions.create(model="small", messages=messages, max_tokens=9).choices[0].message.content or ""
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    for given in (stop, [stop], ["zzzz", stop]):
        choice = real.chat.completions.create(model="small", messages=messages, max_tokens=9, stop=given).choices[0]
        assert (choice.message.content, choice.finish_reason) == (whole[: whole.index(stop)].strip(), "stop")
        chunks = list(real.chat.completions.create(model="small", messages=messages, max_tokens=9, stop=given, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_penalties_and_sampling_change_answers_and_not_what_the_model_thinks_of_them(real: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "Describe it."}]

    def ask(**fields: Any) -> Any:
        return real.chat.completions.create(model="small", messages=messages, max_tokens=9, logprobs=True, **fields).choices[0]

    greedy, one_token = ask(), ask(temperature=2.0, seed=1, extra_body={"top_k": 1})
    assert one_token.message.content == greedy.message.content
    assert [t.logprob for t in one_token.logprobs.content] == pytest.approx([t.logprob for t in greedy.logprobs.content], abs=1e-4)
    no_pairs = ask(extra_body={"no_repeat_ngram_size": 1, "repetition_penalty": 1.5}, presence_penalty=1.0, frequency_penalty=1.0)
    assert [t.logprob for t in no_pairs.logprobs.content] != [t.logprob for t in greedy.logprobs.content]
    assert all(float("-inf") < token.logprob <= 0 for token in no_pairs.logprobs.content)


class CutOff(Recorder):
    """A system that does not stream tokens and says that its answers reached the limit."""

    def answer(self, requests: Sequence[Request], decoding: Decoding) -> list[Answer]:
        return [replace(answer, finish_reasons=("length",)) for answer in super().answer(requests, decoding)]

    def stream(self, request: Request, decoding: Decoding) -> Generator[str, None, FinishReason]:
        yield from super().stream(request, decoding)
        return "length"


def test_a_system_that_was_cut_off_says_so(running: Running) -> None:
    with serving(CutOff(), cache_mib=0.0) as (web, _):
        client = Running(web).client
        answer = client.chat.completions.create(model="fake", messages=QUESTION)
        chunks = list(client.chat.completions.create(model="fake", messages=QUESTION, stream=True))
    assert answer.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == "length"
    assert running.client.chat.completions.create(model="fake", messages=QUESTION).choices[0].finish_reason == "stop"
