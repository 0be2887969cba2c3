"""Connections on which no request begins are closed: the server itself waits for the end of a head for ever."""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEADER_TIMEOUT_SECONDS = 10.0
"""Longest time for the head of a request, from the connection's or the head's first byte on."""


class HeaderTimeoutProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """The server's own protocol, with a deadline for heads; what comes behind a head has the request's own."""

    timeout_handle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for the first head."""
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Wait on where these bytes did not end a head."""
        super().data_received(data)
        if self._response_in_progress():
            self._cancel_timer()
        else:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._cancel_timer()
        super().connection_lost(exc)

    def _response_in_progress(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

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
