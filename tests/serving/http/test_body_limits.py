"""Limits on bodies that are still being read: unfinished uploads lock nobody out."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx2
import pytest

from serving.service import Service
from tests.fakes import EchoAnswerer
from tests.serving.conftest import ask, image_file, serving, wait_for
from tests.serving.http.raw_http import connect, read_response

HEAD = b"POST /vqa HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000\r\n\r\n"

PART = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
"""The beginning of a form."""


@contextmanager
def unfinished_uploads(client: httpx2.Client, service: Service, number: int, body: bytes = PART) -> Iterator[list[object]]:
    """Uploads of which only the beginning was sent."""
    with ExitStack() as sockets:
        connections = []
        for i in range(number):
            connections.append(sockets.enter_context(connect(client)))
            connections[-1].sendall(HEAD + body)
            wait_for(lambda expected=i + 1: len(service.bodies) == expected)
        yield list(connections)


def test_eighty_unfinished_uploads_lock_nobody_out(answerer: EchoAnswerer) -> None:
    with serving(answerer) as (client, service), unfinished_uploads(client, service, 80):
        assert service.settings.max_batch + service.settings.max_queue == 80
        assert service.in_progress == 0
        assert ask(client, "red").status_code == 200


def test_a_request_takes_a_place_in_the_queue_when_it_is_whole(answerer: EchoAnswerer) -> None:
    request = httpx2.Request("POST", "http://localhost/vqa", files={"image": image_file()}, data={"question": "red"})
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    data = f"POST /vqa HTTP/1.1\r\n{head}\r\n".encode() + request.read()
    answerer.released.clear()
    with serving(answerer) as (client, service), connect(client) as connection:
        connection.sendall(data[:-1])
        wait_for(lambda: len(service.bodies) == 1)
        assert service.in_progress == 0
        connection.sendall(data[-1:])
        wait_for(lambda: service.in_progress == 1)
        assert len(service.bodies) == 0
        answerer.released.set()
        assert read_response(connection)[0].startswith("HTTP/1.1 200")


def test_a_request_that_becomes_whole_when_the_queue_is_full_is_429(answerer: EchoAnswerer) -> None:
    with serving(answerer, max_batch=1, max_queue=1) as (client, service), connect(client) as connection:
        connection.sendall(HEAD + PART.ljust(99_999, b"x"))
        wait_for(lambda: len(service.bodies) == 1)
        service.in_progress += 2
        connection.sendall(b"x")
        head, body = read_response(connection)
        service.in_progress -= 2
    assert head.startswith("HTTP/1.1 429") and b"queue_full" in body
    assert "retry-after" in head.lower()


def test_the_upload_that_is_silent_for_longest_gives_up_its_place(answerer: EchoAnswerer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.http.body_limits.MIN_SILENCE_SECONDS", 0.0)
    with serving(answerer, max_uploads=3) as (client, service), unfinished_uploads(client, service, 3) as connections:
        connections[0].sendall(b"more")  # type: ignore[attr-defined]
        wait_for(lambda: any(body.num_bytes == len(PART) + 4 for body in service.bodies._bodies))
        assert ask(client, "red").status_code == 200
        head, body = read_response(connections[1])  # type: ignore[arg-type]
        assert head.startswith("HTTP/1.1 408") and b"nothing of it arrived for" in body
        assert len(service.bodies) == 2


def test_uploads_that_are_not_silent_keep_their_places(answerer: EchoAnswerer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.http.body_limits.MIN_SILENCE_SECONDS", 1000.0)
    with serving(answerer, max_uploads=2) as (client, service), unfinished_uploads(client, service, 2):
        refused = ask(client, "red")
        assert client.get("/health").status_code == 200, "requests without a body take no place"
        assert len(service.bodies) == 2
    assert (refused.status_code, refused.json()["error"]["code"], refused.headers["Retry-After"]) == (429, "uploads", "1")


def test_the_bytes_of_all_uploads_are_limited(answerer: EchoAnswerer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.http.body_limits.MIN_SILENCE_SECONDS", 0.0)
    with (
        serving(answerer, max_bytes=100_000, max_upload_bytes=150_000) as (client, service),
        unfinished_uploads(client, service, 1, PART.ljust(90_000, b"x")) as (first,),
    ):
        wait_for(lambda: any(body.num_bytes == 90_000 for body in service.bodies._bodies))
        assert ask(client, "red", image_file(size=(200, 120))).status_code == 200
        assert read_response(first)[0].startswith("HTTP/1.1 408")  # type: ignore[arg-type]
        assert len(service.bodies) == 0


def test_a_silent_upload_times_out(answerer: EchoAnswerer) -> None:
    with serving(answerer, upload_silence_seconds=0.2) as (client, service), unfinished_uploads(client, service, 1) as (connection,):
        head, body = read_response(connection)  # type: ignore[arg-type]
        assert head.startswith("HTTP/1.1 408") and b'"code":"body"' in body
        assert ask(client, "red").status_code == 200
