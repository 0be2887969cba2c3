"""A refusal is a sentence in the request's own words: the field as the client wrote it, never a validator's path or type name."""

import json
import re
from typing import Any

import pytest

from serving.http.validation_messages import describe_value
from tests.serving.conftest import ask, image_file
from tests.serving.routes.conftest import URL, Running

VALIDATORS_WORDS = re.compile(
    r"[Vv]alue error|pydantic|[Vv]alidat|[Ii]nput should|_error|type=|\bstr\b|\bint\b|\bfloat\b|\bdict\b|\bbool\b|\bNone\b|NoneType|"
    r"\bTrue\b|\bFalse\b|Mapping|class '|<|[a-z]\.\d|tagged|discriminator|Extra inputs|Field required|UploadFile|constrained|function-"
)
"""Words of validators and of Python that are no words of a request."""


def user(content: object) -> list[Any]:
    return [{"role": "user", "content": content}]


TEXT = user("What is it?")
MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "no messages": ({"messages": []}, "messages: expected at least 1 entries, found 0"),
    "messages as text": ({"messages": "x"}, "messages: expected a list, found 'x'"),
    "a turn as text": ({"messages": ["x"]}, "messages[0]: expected an object, found 'x'"),
    "no role": ({"messages": [{"content": "x"}]}, "messages[0].role: required, but missing"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content: required, but missing"),
    "content null": ({"messages": user(None)}, "messages[0].content: required, but missing"),
    "content a number": ({"messages": user(5)}, "messages[0].content: expected text or a list of parts, found 5"),
    "content an object": ({"messages": user({"type": "text"})}, "messages[0].content: expected text or a list of parts, found an object"),
    "a surrogate": ({"messages": user("a\ud800")}, "messages[0].content: character 1 is a lone surrogate"),
    "a surrogate in a part": (
        {"messages": user([{"type": "text", "text": "\ud800"}])},
        "messages[0].content[0].text: character 0 is a lone surrogate",
    ),
    "an unknown role": (
        {"messages": [{"role": "boss", "content": "x"}]},
        "messages[0].role: expected 'system', 'developer', 'user' or 'assistant', found 'boss'",
    ),
    "a tool's turn": ({"messages": [*TEXT, {"role": "tool", "content": "x", "tool_call_id": None}]}, "messages[1].role: the model calls"),
    "a call of a tool": (
        {"messages": [*TEXT, {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}, *TEXT]},
        "messages[1].tool_calls: the model calls no tools; leave it out (found a list)",
    ),
    "a name": ({"messages": [{"role": "user", "content": "x", "name": "Bob"}]}, "messages[0].name: the model is not told names"),
    "an unknown key of a turn": (
        {"messages": [{"role": "user", "content": "x", "mood": 1}]},
        "messages[0].mood: not a field of this request",
    ),
    "a part as text": ({"messages": user(["x"])}, "messages[0].content[0]: expected a part such as {type: text, text: ...}, found 'x'"),
    "a part without a type": ({"messages": user([{"text": "x"}])}, "messages[0].content[0].type: expected text or image_url, found null"),
    "audio": (
        {"messages": user([{"type": "input_audio", "input_audio": {}}])},
        "messages[0].content[0].type: audio is not read; expected text or image_url, found 'input_audio'",
    ),
    "a part without its text": ({"messages": user([{"type": "text"}])}, "messages[0].content[0].text: required, but missing"),
    "a text that is a number": (
        {"messages": user([{"type": "text", "text": 7}])},
        "messages[0].content[0].text: expected text, found 7",
    ),
    "an image as text": (
        {"messages": user([{"type": "image_url", "image_url": URL}])},
        "messages[0].content[0].image_url: expected an object, found a text of",
    ),
    "an image without a URL": (
        {"messages": user([{"type": "image_url", "image_url": {}}])},
        "messages[0].content[0].image_url.url: required, but missing",
    ),
    "another detail": (
        {"messages": user([{"type": "image_url", "image_url": {"url": URL, "detail": "huge"}}])},
        "messages[0].content[0].image_url.detail: expected 'auto', 'low', 'high' or 'original', found 'huge'",
    ),
    "a path": (
        {"messages": [*TEXT, *user([{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "/etc/passwd"}}])]},
        "messages[1].content[1].image_url.url: expected data:image/...;base64,...; other URLs are not fetched",
    ),
    "wrong base64": (
        {"messages": user([{"type": "image_url", "image_url": {"url": "data:image/png;base64,*"}}])},
        "messages[0].content[0].image_url.url: the data after 'base64,' is not valid base64",
    ),
    "an image of the assistant": (
        {"messages": [*TEXT, {"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": URL}}]}, *TEXT]},
        "messages[1].content[0]: only turns of the user may have images, found assistant",
    ),
    "the assistant first": (
        {"messages": [{"role": "assistant", "content": "Hi"}]},
        "messages[0].role: the conversation begins with the user",
    ),
    "the assistant last": (
        {"messages": [*TEXT, {"role": "assistant", "content": "Hi"}]},
        "messages[1].role: the last turn is the user's, found assistant",
    ),
    "a late system turn": (
        {"messages": [*TEXT, {"role": "system", "content": "x"}]},
        "messages[1].role: system turns stand before all others",
    ),
    "system turns alone": ({"messages": [{"role": "system", "content": "x"}]}, "messages: expected a turn of the user"),
    "a long turn": ({"messages": user("x" * 4001)}, "messages[0].content: at most 4000 characters a turn, found 4001"),
    "no such model": ({"model": "other"}, "model: there is no model 'other', only 'fake'"),
    "a model that is a list": ({"model": ["fake"]}, "model: expected text, found a list"),
    "tools": ({"tools": [{"type": "function"}]}, "tools: the model calls no tools; leave it out (found a list)"),
    "a chosen tool": ({"tool_choice": "required"}, "tool_choice: the model calls no tools; leave it out (found 'required')"),
    "JSON": ({"response_format": {"type": "json_object"}}, "response_format: answers are free text"),
    "store": ({"store": True}, "store: answers are not stored; leave it out or send false (found true)"),
    "a bias": ({"logit_bias": {"5": 1}}, "logit_bias: single tokens cannot be made more or less probable"),
    "top_logprobs": (
        {"logprobs": True, "top_logprobs": 3},
        "top_logprobs: only the log-probabilities of the answer's own tokens are known",
    ),
    "a search": ({"web_search_options": {}}, "web_search_options: the model does not search the web; leave it out (found an object)"),
    "effort": ({"reasoning_effort": "high"}, "reasoning_effort: the model answers without reasoning first"),
    "padding": (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation: chunks are not padded",
    ),
    "an unknown field": ({"min_p": 0.5}, "min_p: not a field of this request"),
    "a long unknown field": ({"x" * 5000: 1}, "(a name of 5,000 characters): not a field of this request"),
    "a surrogate as a field": ({"\ud800": 1}, "the body: expected text in UTF-8"),
    "a surrogate as a model": ({"model": "\ud800"}, "model: there is no model a text of 1 characters, only 'fake'"),
    "a hot temperature": ({"temperature": 2.5}, "temperature: expected at most 2.0, found 2.5"),
    "a temperature as text": ({"temperature": "hot"}, "temperature: expected a number, found 'hot'"),
    "no share": ({"top_p": 0}, "top_p: expected a number above 0.0, found 0"),
    "no penalty": ({"repetition_penalty": 0}, "repetition_penalty: expected a number above 0.0, found 0"),
    "a large penalty": ({"presence_penalty": 2.1}, "presence_penalty: expected at most 2.0, found 2.1"),
    "beams": ({"length_penalty": 0.5}, "length_penalty: acts on beam search, and chat completions are greedy or sampled"),
    "stop as a number": ({"stop": 5}, "stop: expected text or a list of texts, found 5"),
    "five stops": ({"stop": list("abcde")}, "stop: expected at most 4 entries, found 5"),
    "an empty stop": ({"stop": ["a", ""]}, "stop[1]: expected at least 1 characters, found 0"),
    "no tokens": ({"max_tokens": 0}, "max_tokens: expected at least 1, found 0"),
    "half a token": ({"max_tokens": 1.5}, "max_tokens: expected a whole number, found 1.5"),
    "many answers": ({"n": 17}, "n: at most 16, found 17"),
    "a seed as text": ({"seed": "x"}, "seed: expected a whole number, found 'x'"),
    "a surrogate in metadata": ({"metadata": {"a": "\ud800"}}, "metadata.a: character 0 is a lone surrogate"),
    "a surrogate in stop": ({"stop": "\ud800"}, "stop: expected text in UTF-8"),
    "metadata of numbers": ({"metadata": {"a": 1}}, "metadata.a: expected text, found 1"),
    "logprobs": ({"logprobs": True}, "logprobs: this system does not report them"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_refusal_names_the_field_as_the_client_wrote_it(running: Running, name: str) -> None:
    fields, sentence = MALFORMED[name]
    body = json.dumps({"model": "fake", "messages": TEXT, **fields})
    response = running.web.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (404, 422), response.text
    message, field = response.json()["error"]["message"], sentence.partition(": ")[0]
    assert message.startswith(sentence)
    assert response.json()["error"]["param"] == (field if re.fullmatch(r"[\w.\[\]]+", field) else None)
    assert not VALIDATORS_WORDS.search(message.replace("'boss'", "")), message


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{", "the body is not valid JSON"),
        (b"", "the body: required, but missing"),
        (b"[]", "the body: expected an object, found a list"),
        (b'"x"', "the body: expected an object, found 'x'"),
        (b"\xff", "the body"),
        (b"null", "the body: expected an object, found null"),
        (b'{"model": "fake", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "temperature: expected"),
    ],
)
def test_a_body_that_is_no_request_is_described(running: Running, content: bytes, sentence: str) -> None:
    response = running.web.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert 400 <= response.status_code < 500
    message = response.json()["error"]["message"]
    assert message.startswith(sentence) or response.status_code == 400, message
    assert not VALIDATORS_WORDS.search(message), message


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"k": "many"}, "k: expected a whole number, found 'many'"),
        ({"k": 0}, "k: expected at least 1, found '0'"),
        ({"rerank": "perhaps"}, "rerank: expected true or false, found 'perhaps'"),
        ({"strategy": "best"}, "strategy: expected 'beam', 'sample' or 'greedy', found 'best'"),
        ({"temperature": 0}, "temperature: expected a number above 0.0, found '0'"),
        ({"stop": ["a", ""]}, "stop"),
        ({"temperature": 0.5, "strategy": "beam"}, "temperature: acts on sampled tokens, and this request is answered by beam search"),
        (
            {"length_penalty": 0.5, "strategy": "sample"},
            "length_penalty: acts on beam search, and this request is answered by strategy=sample",
        ),
        ({"k": 3, "strategy": "greedy"}, "k: greedy decoding gives a single candidate, found 3"),
        ({"topp": 0.5}, "'topp': not a field of this request; it has "),
    ],
)
def test_a_form_is_refused_in_its_own_words(running: Running, fields: dict[str, Any], sentence: str) -> None:
    response = ask(running.web, "What?", **fields)
    assert response.status_code == 422
    message = response.json()["error"]["message"]
    assert message.startswith(sentence)
    assert not VALIDATORS_WORDS.search(message), message


def test_missing_and_wrong_form_fields_are_named(running: Running) -> None:
    missing = running.web.post("/vqa", data={"question": "x"}).json()["error"]["message"]
    as_text = running.web.post("/vqa", data={"question": "x", "image": "y"}).json()["error"]["message"]
    empty = running.web.post("/vqa", files={"image": image_file()}).json()["error"]["message"]
    searched = running.web.delete("/images/x").json()["error"]["message"]
    assert missing == "image: required, but missing"
    assert as_text.startswith("image: expected an uploaded file, found text")
    assert empty == "question: required, but missing"
    assert searched.startswith("image_id: expected text of the form")


def test_long_texts_and_images_are_not_repeated() -> None:
    assert describe_value("x" * 50) == "a text of 50 characters"
    assert describe_value("a\ud800") == "a text of 2 characters"
    values: list[object] = [None, True, 0.5, {}, []]
    assert [describe_value(value) for value in values] == ["null", "true", "0.5", "an object", "a list"]
