"""Limits on request bodies that are still being read: their number, their bytes in total, and how long one may be silent.

A request takes a place in the model's queue when it is whole. Clients that never finish theirs take places here, and give them up to
others.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.types import Message, Receive

from serving.http.error_responses import ServiceError

MIN_SILENCE_SECONDS = 1.0
"""A body that has been silent for less time is not given up for another one."""


@dataclass(eq=False)
class UnfinishedBody:
    """A body that is still being read.

    Args:
        num_bytes: number of bytes read so far.
        silent_since: time of the event loop's clock since which the next part is awaited; None while it is not awaited.
        timeout: of the present wait.
    """

    num_bytes: int = 0
    silent_since: float | None = None
    timeout: asyncio.Timeout | None = None


class BodyLimits:
    """The bodies that are being read, and their limits. Belongs to the event loop.

    max_total_bytes: of all bodies; silence_seconds: longest wait for the next part of one.
    """

    def __init__(self, max_bodies: int, max_total_bytes: int, silence_seconds: float):
        self.max_bodies, self.max_total_bytes, self.silence_seconds = max_bodies, max_total_bytes, silence_seconds
        self._bodies: set[UnfinishedBody] = set()

    def __len__(self) -> int:
        return len(self._bodies)

    @contextmanager
    def reading(self) -> Iterator[UnfinishedBody]:
        """A place for a body. If all are taken, the body that has been silent for longest is given up.

        Raises ServiceError 429 if none is silent.
        """
        if len(self._bodies) >= self.max_bodies:
            self._give_up_one()
        body = UnfinishedBody()
        self._bodies.add(body)
        try:
            yield body
        finally:
            self._bodies.discard(body)

    async def receive(self, body: UnfinishedBody, receive: Receive) -> Message:
        """The next part of a body.

        Raises ServiceError: 408 if it does not arrive in time or is given up for another body, 429 if it is one too many bytes.
        """
        loop = asyncio.get_running_loop()
        body.silent_since = loop.time()
        try:
            async with asyncio.timeout(self.silence_seconds) as body.timeout:
                message = await receive()
        except TimeoutError as error:
            seconds = loop.time() - body.silent_since
            raise ServiceError(408, f"the body is not complete, and nothing of it arrived for {seconds:.1f} seconds", "body") from error
        finally:
            body.silent_since = None
        body.num_bytes += len(message.get("body", b""))
        while sum(other.num_bytes for other in self._bodies) > self.max_total_bytes:
            self._give_up_one()
        return message

    def _give_up_one(self) -> None:
        """End the wait for the body that has been silent for longest. Raises ServiceError 429 if none has been silent long enough."""
        now = asyncio.get_running_loop().time()
        waits = [
            (body.silent_since, body, body.timeout)
            for body in self._bodies
            if body.silent_since is not None and body.timeout is not None and not body.timeout.expired()
        ]
        longest = min(waits, key=lambda wait: wait[0], default=None)
        if longest is None or now - longest[0] < MIN_SILENCE_SECONDS:
            raise ServiceError(429, "too many requests are being sent at the same time", "uploads", retry_after=1)
        _, body, timeout = longest
        self._bodies.discard(body)
        timeout.reschedule(now)
