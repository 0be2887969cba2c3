"""Streamed chat completions over HTTP, with a fake answerer: chunks, cancellation, deadline."""

import json
from collections.abc import Iterator

from tests.fakes import EchoAnswerer
from tests.serving.conftest import CHAT, ask, serving, wait_for


def contents(lines: Iterator[str]) -> Iterator[str]:
    """Text of each chunk of a stream."""
    for line in lines:
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content", "")


def test_chunks_are_sent_as_soon_as_they_are_generated(answerer: EchoAnswerer) -> None:
    answerer.released.clear()
    with serving(answerer) as (client, _), client.stream("POST", "/v1/chat/completions", json=CHAT) as response:
        pieces = contents(response.iter_lines())
        assert [next(pieces), next(pieces)] == ["", "one"]
        assert answerer.streamed == ["one"]
        answerer.released.set()
        assert "".join(pieces) == " two three"
    assert response.headers["Content-Type"].startswith("text/event-stream")


def test_generation_stops_when_the_client_of_a_stream_disconnects(answerer: EchoAnswerer) -> None:
    answerer.released.clear()
    with serving(answerer) as (client, service):
        with client.stream("POST", "/v1/chat/completions", json=CHAT) as response:
            pieces = contents(response.iter_lines())
            assert [next(pieces), next(pieces)] == ["", "one"]
        wait_for(lambda: service.in_progress == 0)
        answerer.released.set()
        assert ask(client, "next").json()["answer"] == "next!"
    assert answerer.streamed == ["one", " two"]


def test_a_stream_past_its_deadline_ends_with_an_error(answerer: EchoAnswerer) -> None:
    answerer.released.clear()
    with serving(answerer, deadline_seconds=1.0) as (client, _):
        lines = [line for line in client.post("/v1/chat/completions", json=CHAT).text.splitlines() if line]
        answerer.released.set()
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "deadline"
