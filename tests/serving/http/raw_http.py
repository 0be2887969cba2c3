"""Requests over bare sockets: unfinished, half-closed, of the wrong form."""

import socket

import httpx2

from tests.serving.conftest import TIMEOUT_SECONDS


def connect(client: httpx2.Client) -> socket.socket:
    """A connection to the server of a client."""
    return socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=TIMEOUT_SECONDS)


def read_response(connection: socket.socket) -> tuple[str, bytes]:
    """Headers and body of the next final response, which states its length; interim responses are skipped."""
    data = bytearray()
    while True:
        while b"\r\n\r\n" not in data:
            data += _receive(connection)
        head, _, rest = bytes(data).partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 1"):
            break
        data = bytearray(rest)
    lines = [line.partition(b":") for line in head.lower().split(b"\r\n")]
    length = next(int(value) for name, _, value in lines if name == b"content-length")
    while len(rest) < length:
        rest += _receive(connection)
    return head.decode(), rest[:length]


def _receive(connection: socket.socket) -> bytes:
    part = connection.recv(100_000)
    assert part, "the connection was closed before the response ended"
    return part
