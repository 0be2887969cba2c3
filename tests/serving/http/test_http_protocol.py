"""The listening socket. Clients that close their sending side after the request get their answer; clients that are gone are noticed."""

import json
import re
import socket

import httpx2
import pytest

from errors import UsageError
from serving.http.http_protocol import listening_socket
from tests.fakes import EchoAnswerer
from tests.serving.conftest import CHAT, image_file, serving, wait_for
from tests.serving.http.raw_http import connect, read_response


def request_bytes(version: str = "1.1") -> bytes:
    """A whole request as bytes."""
    request = httpx2.Request("POST", "http://localhost/vqa", files={"image": image_file()}, data={"question": "red"})
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    return f"POST /vqa HTTP/{version}\r\n{head}\r\n".encode() + request.read()


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_half_closed_client_gets_its_answer(answerer: EchoAnswerer, version: str) -> None:
    answerer.released.clear()
    with serving(answerer) as (client, service), connect(client) as connection:
        connection.sendall(request_bytes(version))
        connection.shutdown(socket.SHUT_WR)
        wait_for(lambda: answerer.calls == [["red"]])
        if version == "1.1":
            assert connection.recv(10_000) == b"HTTP/1.1 100 Continue\r\n\r\n", "the server looks whether the client is there"
        answerer.released.set()
        head, body = read_response(connection)
        assert head.startswith("HTTP/1.1 200") and b'"red!"' in body
        assert connection.recv(1) == b"", "the connection is closed after the answer"
        wait_for(lambda: service.in_progress == 0)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_half_closed_client_gets_its_whole_stream(answerer: EchoAnswerer, version: str) -> None:
    answerer.released.clear()
    body = json.dumps(CHAT).encode()
    head = f"POST /v1/chat/completions HTTP/{version}\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with serving(answerer) as (client, service), connect(client) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        received = bytearray()
        while b'"one"' not in received:
            received += connection.recv(10_000)
        connection.shutdown(socket.SHUT_WR)
        while not re.search(rb"\n:\n\n|\n3\r\n:\n\n", received):
            received += connection.recv(10_000)
        answerer.released.set()
        while part := connection.recv(10_000):
            received += part
        wait_for(lambda: service.in_progress == 0)
    for piece in (b'" two"', b'" three"', b"data: [DONE]"):
        assert piece in received


def test_a_client_that_is_gone_leaves_the_queue(answerer: EchoAnswerer) -> None:
    answerer.released.clear()
    with serving(answerer) as (client, service):
        with connect(client) as connection:
            connection.sendall(request_bytes())
            wait_for(lambda: answerer.calls == [["red"]])
        wait_for(lambda: service.in_progress == 0)
        answerer.released.set()
        wait_for(lambda: b'path="/vqa",status="499"} 1.0' in client.get("/metrics").content)


def test_a_client_that_closes_in_the_middle_of_its_body_is_not_waited_for(answerer: EchoAnswerer) -> None:
    with serving(answerer) as (client, service), connect(client) as connection:
        connection.sendall(request_bytes()[:-10])
        wait_for(lambda: len(service.bodies) == 1)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
        wait_for(lambda: len(service.bodies) == 0)
    assert answerer.calls == []


def test_the_body_of_a_response_does_not_wait_for_its_headers() -> None:
    with listening_socket("127.0.0.1", 0, "serve.port") as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_taken_port_is_one_sentence() -> None:
    with listening_socket("127.0.0.1", 0, "serve.port") as first:
        port = first.getsockname()[1]
        with pytest.raises(UsageError, match=rf"^serve\.port: cannot listen on 127\.0\.0\.1 port {port} \("):
            listening_socket("127.0.0.1", port, "serve.port")
