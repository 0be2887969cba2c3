"""The socket that listens, and uvicorn's HTTP protocol with a timeout for request headers and with answers for clients that have
closed their sending side.

uvicorn itself waits forever for headers that never end, and takes the end of what a client sends for the end of the connection.
"""

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from errors import UsageError

HEADER_TIMEOUT_SECONDS = 10.0
"""Longest time for the headers of a request, counted from the opened connection or from the first byte of the headers."""

PEER_CHECK_SECONDS = 0.2
"""Time between two looks whether a client that has closed its sending side is still there."""

PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""An interim response, which every client of HTTP/1.1 skips (RFC 9110, 15.2). The system of a client that is gone resets the
connection."""

STREAM_PROBE = b":\n\n"
"""The same in a stream of server-sent events that has begun: a comment."""


def listening_socket(host: str, port: int, keys: str) -> socket.socket:
    """A listening socket. port 0: a free port; keys: settings to name in the message. Raises UsageError if the address cannot be bound."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(f"{keys}: cannot listen on {host} port {port} ({error.strerror})") from error
    # Accepted connections inherit it. asyncio sets it only on sockets that name their protocol; without it the body of a response waits
    # 40 ms for the client to acknowledge the headers.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


class ServiceProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """The protocol of one connection. The body has the deadline of the request itself."""

    timeout_handle: asyncio.TimerHandle | None = None
    peer_check_handle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the timer for the first request."""
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Stop the timer once the headers are complete."""
        super().data_received(data)
        if self._response_in_progress():
            self._cancel_timer()
        else:
            self._start_timer()

    def eof_received(self) -> bool:
        """Keep the connection until the answer, if the request is whole; returns whether it is kept.

        A client that has closed only its sending side and one that is gone look alike until something is sent to them.
        """
        if not self._response_in_progress() or self.cycle.more_body:
            return False
        self.cycle.keep_alive = False
        self._send_probe()
        self._check_peer()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        self._cancel_timer()
        if self.peer_check_handle is not None:
            self.peer_check_handle.cancel()
        super().connection_lost(exc)

    def _response_in_progress(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _send_probe(self) -> None:
        """Send what a client skips, so that one that is gone resets the connection. Parts of a stream are written whole, so it stands
        between two of them. A client of HTTP/1.0 knows no interim response."""
        has_chunks = self.cycle.scope["http_version"] != "1.0"
        if self.cycle.scope["state"].get("is_event_stream"):
            self.transport.write(b"%x\r\n%b\r\n" % (len(STREAM_PROBE), STREAM_PROBE) if has_chunks else STREAM_PROBE)
        elif not self.cycle.response_started and has_chunks:
            self.transport.write(PROBE)

    def _check_peer(self) -> None:
        """End the connection if the client has reset it; a transport whose reading side has ended does not notice that."""
        if self.transport.is_closing() or not self._response_in_progress():
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self.peer_check_handle = self.loop.call_later(PEER_CHECK_SECONDS, self._check_peer)

    def _start_timer(self) -> None:
        if self.timeout_handle is None:
            self.timeout_handle = self.loop.call_later(HEADER_TIMEOUT_SECONDS, self._on_timeout)

    def _cancel_timer(self) -> None:
        if self.timeout_handle is not None:
            self.timeout_handle.cancel()
            self.timeout_handle = None

    def _on_timeout(self) -> None:
        self.timeout_handle = None
        if not self._response_in_progress():
            self.transport.close()
