"""Requests that no client would send: each is answered or refused, none with a 500, and the service goes on."""

import json
import random
import socket
from collections.abc import Callable

import httpx2
import pytest

from tests.fakes import EchoAnswerer
from tests.serving.conftest import CHAT, ask, image_file, serving, wait_for
from tests.serving.http.raw_http import connect

SEEDS = range(4)
REQUESTS_PER_SEED = 60


def form() -> bytes:
    return as_bytes(httpx2.Request("POST", "http://localhost/vqa", files={"image": image_file()}, data={"question": "red", "k": "2"}))


def chat() -> bytes:
    return as_bytes(httpx2.Request("POST", "http://localhost/v1/chat/completions", json={**CHAT, "stream": False}))


def search() -> bytes:
    return as_bytes(httpx2.Request("POST", "http://localhost/text2image_search", json={"text_query": "red"}))


def remove() -> bytes:
    return as_bytes(httpx2.Request("DELETE", f"http://localhost/images/{'0' * 64}"))


def as_bytes(request: httpx2.Request) -> bytes:
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    return f"{request.method} {request.url.raw_path.decode()} HTTP/1.1\r\n{head}\r\n".encode() + request.read()


def flip_bytes(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def repeat_part(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data))
    part = data[start : start + chance.randint(1, 200)]
    return data[:start] + part * chance.randint(2, 5) + data[start:]


def repeat_line(data: bytes, chance: random.Random) -> bytes:
    lines = data.split(b"\r\n")
    lines.insert(chance.randrange(len(lines)), chance.choice(lines))
    return b"\r\n".join(lines)


def other_headers(data: bytes, chance: random.Random) -> bytes:
    odd = (
        b"Transfer-Encoding: chunked",
        b"Content-Length: -1",
        b"Content-Length: 99999999999999999999",
        b"Content-Type: multipart/form-data",
        b"Content-Type: application/json; charset=utf-7",
        b"Expect: 100-continue",
        b"Upgrade: websocket\r\nConnection: upgrade",
        b"X-Request-ID: \xff\x00",
        b"Authorization: Bearer \xe9",
        b"Host: [::1",
        b"Origin: http://[",
    )
    return data.replace(b"\r\n", b"\r\n" + chance.choice(odd) + b"\r\n", 1)


def odd_json(data: bytes, chance: random.Random) -> bytes:
    value: object = None
    for _ in range(chance.randint(1, 60)):
        value = chance.choice([[value], {"messages": value}, {"content": value}, [value, "\ud800", 1e308, 10**400, {}, ""]])
    body = json.dumps({"model": "fake", "messages": value, "n": chance.choice([-1, 2**70, "1", 1.5, None])}).encode()
    head = data.partition(b"\r\n\r\n")[0].split(b"\r\n")
    head = [line for line in head if not line.lower().startswith(b"content-length")]
    return b"\r\n".join([*head, b"Content-Length: %d" % len(body)]) + b"\r\n\r\n" + body


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (flip_bytes, cut, repeat_part, repeat_line, other_headers, odd_json)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_request_is_answered_with_500_and_the_service_goes_on(answerer: EchoAnswerer, seed: int) -> None:
    chance = random.Random(seed)
    with serving(answerer, token=chance.choice([None, None, "secret"])) as (client, service):
        headers = {} if service.token is None else {"Authorization": f"Bearer {service.token}"}
        for _ in range(REQUESTS_PER_SEED):
            data = chance.choice([form, chat, search, remove])()
            for _ in range(chance.randint(1, 2)):
                data = chance.choice(MUTATIONS)(data, chance)
            assert b" 500 " not in answer_to(data, client).partition(b"\r\n")[0], data
        client.headers.update(headers)
        assert ask(client, "red").status_code == 200
        wait_for(lambda: service.in_progress == len(service.bodies) == 0)
        assert service.failure is None


def answer_to(data: bytes, client: httpx2.Client) -> bytes:
    """What the server sends until it closes the connection."""
    with connect(client) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            received = bytearray()
            while part := connection.recv(100_000):
                received += part
        except (ConnectionResetError, BrokenPipeError):
            # The server had already closed it.
            return b""
    return bytes(received).replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
