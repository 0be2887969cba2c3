"""Limits of the service: sizes, malformed requests, header timeout, clients that do not read."""

import json
import socket
from collections.abc import Callable, Iterator

import httpx2
import pytest

from tests.fakes import EchoAnswerer
from tests.serving.conftest import CHAT, TIMEOUT_SECONDS, ask, image_file, serving, wait_for

INVALID_IMAGE = {"type": "image_url", "image_url": {"url": "no address"}}


def long_body(client: httpx2.Client) -> httpx2.Response:
    return ask(client, "red", b"x" * 20_000)


def long_chunks(client: httpx2.Client) -> httpx2.Response:
    def chunks() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        yield from (b"x" * 1000 for _ in range(20))

    return client.post("/vqa", content=chunks(), headers={"Content-Type": "multipart/form-data; boundary=b"})


@pytest.mark.parametrize("send", [long_body, long_chunks])
def test_a_body_over_the_limit_is_413(answerer: EchoAnswerer, send: Callable[[httpx2.Client], httpx2.Response]) -> None:
    with serving(answerer, max_bytes=10_000) as (client, _):
        response = send(client)
        assert ask(client, "red").status_code == 200
    assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    ("request_fields", "status", "code"),
    [
        ({"question": "red", "data": b"<svg/>"}, 415, "image_type"),
        ({"question": "red", "data": b"%PDF-1.7"}, 415, "image_type"),
        ({"question": "red", "data": b""}, 415, "image_type"),
        ({"question": "red", "data": image_file()[:-40]}, 422, "image_damaged"),
        ({"question": "red", "data": image_file(kind="JPEG")[:100]}, 422, "image_damaged"),
        ({"question": "red", "data": image_file(size=(200, 100))}, 413, "image_too_large"),
        ({"question": "   "}, 422, "text_length"),
        ({"question": "x" * 50}, 422, "text_length"),
        ({"question": "red", "k": 0}, 422, "invalid_request"),
        ({"question": "red", "k": 5}, 422, "k"),
        ({"question": "red", "rerank": "true"}, 422, "no_reranker"),
        ({"question": "red", "rerank": "perhaps"}, 422, "invalid_request"),
    ],
)
def test_an_invalid_request_is_refused_before_it_reaches_the_model(
    answerer: EchoAnswerer, request_fields: dict[str, object], status: int, code: str
) -> None:
    with serving(answerer, max_pixels=10_000, max_question_chars=40, max_candidates=4) as (client, _):
        response = ask(client, **request_fields)  # type: ignore[arg-type]
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert answerer.calls == []


def test_an_error_names_the_missing_form_field(answerer: EchoAnswerer) -> None:
    with serving(answerer) as (client, _):
        response = client.post("/vqa", files={"image": image_file()})
        path = client.post("/vqa", data={"image": "/etc/passwd", "question": "red"})
    assert (response.status_code, response.json()["error"]["message"]) == (422, "question: required, but missing")
    assert path.status_code == 422 and "passwd" not in path.text


@pytest.mark.parametrize("body", ["{", "[" * 100_000, '{"model": 5}', "null", '"' + "x" * 1000 + '"'])
def test_invalid_json_is_refused(answerer: EchoAnswerer, body: str) -> None:
    with serving(answerer) as (client, _):
        response = client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422)
    assert "x" * 100 not in response.text


def chat_about(*turns: object) -> dict[str, object]:
    return {"model": "fake", "messages": [{"role": "user", "content": turn} for turn in turns]}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (chat_about("half \ud800 a character"), "a lone surrogate"),
        (chat_about([{"type": "text", "text": "\udfff"}]), "a lone surrogate"),
        (chat_about(*["x"] * 257), "at most 256"),
        (chat_about([{"type": "text", "text": "x"}] * 65), "at most 64"),
        (chat_about([INVALID_IMAGE] * 5, [INVALID_IMAGE] * 5), "at most 8 images, found 10"),
    ],
)
def test_a_conversation_over_a_limit_is_refused_before_its_images_are_read(
    answerer: EchoAnswerer, body: dict[str, object], message: str
) -> None:
    with serving(answerer) as (client, _):
        response = client.post("/v1/chat/completions", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert message in response.json()["error"]["message"]
    assert answerer.calls == []


@pytest.mark.parametrize("charset", ["punycode", '"unicode_escape"', "utf-8; charset=punycode"])
def test_a_form_in_another_charset_than_utf8_is_refused(answerer: EchoAnswerer, charset: str) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="question"\r\n\r\na-9z9z\r\n--b--\r\n'
    with serving(answerer) as (client, _):
        response = client.post("/vqa", content=part, headers={"Content-Type": f"multipart/form-data; boundary=b; charset={charset}"})
        utf8 = client.post("/vqa", content=part, headers={"Content-Type": "multipart/form-data; charset=UTF-8; boundary=b"})
    assert (response.status_code, response.json()["error"]["code"]) == (415, "charset")
    assert utf8.json()["error"]["message"] == "image: required, but missing"


def test_a_client_that_does_not_read_does_not_block_the_shutdown(answerer: EchoAnswerer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.http.middleware.STREAM_GRACE_SECONDS", 0.1)
    monkeypatch.setattr("serving.server.STREAM_GRACE_SECONDS", 0.1)
    monkeypatch.setattr(answerer, "stream", lambda *_: (f"{i} " * 500_000 for i in range(40)))
    with socket.socket() as unread:
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with serving(answerer, deadline_seconds=1.0) as (client, service):
            unread.connect((client.base_url.host, client.base_url.port or 80))
            body = json.dumps(CHAT).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            unread.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            wait_for(lambda: service.in_progress == 1)
            wait_for(lambda: service.in_progress == 0)
        # Leaving the context stops the server, and fails if it does not stop.


@pytest.mark.parametrize("before", [b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"], ids=["first", "second"])
def test_headers_that_never_end_time_out_and_a_slow_body_does_not(
    answerer: EchoAnswerer, monkeypatch: pytest.MonkeyPatch, before: bytes
) -> None:
    monkeypatch.setattr("serving.http.http_protocol.HEADER_TIMEOUT_SECONDS", 0.5)
    with serving(answerer) as (client, service):
        server_address = (client.base_url.host, client.base_url.port or 80)
        with (
            socket.create_connection(server_address, timeout=TIMEOUT_SECONDS) as slow,
            socket.create_connection(server_address, timeout=TIMEOUT_SECONDS) as unfinished,
        ):
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"
            slow.sendall(head + b"{")
            wait_for(lambda: len(service.bodies) == 1)
            unfinished.sendall(before)
            if before:
                assert unfinished.recv(10_000).startswith(b"HTTP/1.1 200")
            unfinished.sendall(b"POST /vqa HTTP/1.1\r\n")
            while unfinished.recv(10_000):
                """The rest of the first response."""
            slow.sendall(b"}")
            # The body is an empty object: a response, although an error.
            assert slow.recv(10_000).startswith(b"HTTP/1.1 422")


def test_a_second_content_type_does_not_hide_the_first(answerer: EchoAnswerer) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="question"\r\n\r\na-9z9z\r\n--b--\r\n'
    kinds = ["multipart/form-data; boundary=b; charset=punycode", "application/json"]
    with serving(answerer) as (client, _):
        for order in (kinds, kinds[::-1]):
            response = client.post("/vqa", content=part, headers=[("Content-Type", kind) for kind in order])
            assert (response.status_code, response.json()["error"]["code"]) == (415, "charset")
