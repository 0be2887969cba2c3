"""Connections on which no request begins are closed: the server itself waits for the end of a head for ever."""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEAD_SECONDS = 10.0
"""Longest time for the head of a request, from the connection's or the head's first byte on."""


class Punctual(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """The server's own protocol, with a deadline for heads; what comes behind a head has the request's own."""

    late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for the first head."""
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        """Wait on where these bytes did not end a head."""
        super().data_received(data)
        if self._answering():
            self._expect_nothing()
        else:
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._expect_nothing()
        super().connection_lost(exc)

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect(self) -> None:
        if self.late is None:
            self.late = self.loop.call_later(HEAD_SECONDS, self._end)

    def _expect_nothing(self) -> None:
        if self.late is not None:
            self.late.cancel()
            self.late = None

    def _end(self) -> None:
        self.late = None
        if not self._answering():
            self.transport.close()
