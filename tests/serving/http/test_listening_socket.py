"""The socket on which the service and the demo listen."""

import socket

import pytest

from errors import UsageError
from serving.http.listening_socket import listening_socket


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
