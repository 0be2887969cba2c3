"""A timeout for request headers: uvicorn itself waits forever for headers that never end."""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEADER_TIMEOUT_SECONDS = 10.0
"""Longest time for the headers of a request, counted from the opened connection or from the first byte of the headers."""


class HeaderTimeoutProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's protocol with a timeout for headers. The body has the deadline of the request itself."""

    timeout_handle: asyncio.TimerHandle | None = None

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

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
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
