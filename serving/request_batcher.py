"""Requests that arrive together are answered together.

In: jobs, from the event loop. A thread of its own works on one batch after the other; what it finds out goes back to each
job's client at once. Everything here but `Job.put`, `Job.fail` and `Job.abandoned` belongs to the event loop's thread.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from serving.http.error_responses import ServiceError

log = logging.getLogger("tessera.serve")

T = TypeVar("T")


@dataclass(eq=False)
class Job(Generic[T]):
    """A request on its way. Jobs with equal `key` can be answered together. told: whether something was put for its client.

    Used as a context: whoever leaves it does not wait any more, and the job leaves the queue or its batch.
    """

    key: Hashable
    task: T
    batcher: "Batcher[T]"
    arrived: float = field(default_factory=time.monotonic)
    abandoned: bool = False
    told: bool = False
    _events: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def put(self, event: object) -> None:
        """Something that the client waits for; from any thread."""
        self.told = True
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def fail(self, error: BaseException) -> None:
        """The client gets this error; from any thread."""
        self.put(_Failure(error))

    async def events(self) -> AsyncIterator[Any]:
        """What was put, until the batch is done. Raises what the job failed with."""
        while not isinstance(event := await self._events.get(), _Done):
            if isinstance(event, _Failure):
                raise event.error
            yield event

    async def result(self) -> Any:
        """The one thing that is put."""
        async for event in self.events():
            return event
        raise RuntimeError("a batch was done and a job in it had no answer")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.abandoned = True
        self.batcher.forget(self)


@dataclass(frozen=True)
class _Failure:
    error: BaseException


class _Done:
    pass


class Batcher(Generic[T]):
    """A bounded queue, and a thread that works it off in batches.

    work: answers jobs of equal key, in the thread; max_queue: jobs that may wait beside those of a batch; max_wait: longest
    seconds that a job waits for others. Nobody waits for a batch to become larger than the one before it, so that a client
    who asks alone never waits. on_batch: told the size and the seconds of each batch that is done.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Job[T]]], None],
        *,
        max_batch: int,
        max_wait: float,
        max_queue: int,
        on_batch: Callable[[int, float], None] | None = None,
    ):
        self.work, self.on_batch = work, on_batch
        self.max_batch, self.max_wait, self.max_queue = max_batch, max_wait, max_queue
        self.thread = ThreadPoolExecutor(1, "model")
        self._waiting: list[Job[T]] = []
        self._arrival = asyncio.Event()
        self._running, self._expected, self._seconds = 0, 1, 0.0

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._waiting)

    @property
    def retry_after(self) -> int:
        """Seconds after which the queue will probably have been worked off, at least 1."""
        return max(1, math.ceil(self._seconds * (1 + len(self._waiting) / self.max_batch)))

    def submit(self, key: Hashable, task: T) -> Job[T]:
        """Queue a job. Raises ServiceError 429 when the queue is full."""
        if self._running + len(self._waiting) >= self.max_batch + self.max_queue:
            raise ServiceError(429, "too many requests are waiting", "queue_full", retry_after=self.retry_after)
        job = Job(key, task, self)
        self._waiting.append(job)
        self._arrival.set()
        return job

    def forget(self, job: Job[T]) -> None:
        """Nobody waits for this job any more."""
        if job in self._waiting:
            self._waiting.remove(job)

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            batch = await self._next()
            begun, self._running = time.monotonic(), len(batch)
            await self._answer(batch)
            self._seconds, self._running, self._expected = time.monotonic() - begun, 0, len(batch)
            if self.on_batch is not None:
                self.on_batch(len(batch), self._seconds)

    def close(self) -> None:
        """Wait for the batch that is being answered and end the thread."""
        self.thread.shutdown()

    async def _next(self) -> list[Job[T]]:
        """The oldest job and those that can be answered with it, taken out of the queue."""
        while True:
            while not self._waiting:
                self._arrival.clear()
                await self._arrival.wait()
            oldest = self._waiting[0]
            alike = [job for job in self._waiting if job.key == oldest.key][: self.max_batch]
            left = oldest.arrived + self.max_wait - time.monotonic()
            if len(alike) >= min(self._expected, self.max_batch) or left <= 0:
                for job in alike:
                    self._waiting.remove(job)
                return alike
            self._arrival.clear()
            try:
                async with asyncio.timeout(left):
                    await self._arrival.wait()
            except TimeoutError:
                # None of those that were expected came; the next turn of the loop takes what is there.
                continue

    async def _answer(self, batch: Sequence[Job[T]]) -> None:
        """Work on a batch, then tell its clients that nothing more comes, and what it failed with, whatever that was: they wait.

        Where a batch of several fails, each that heard nothing yet is answered alone: what one asks must not spoil it for others.
        """
        working = asyncio.get_running_loop().run_in_executor(self.thread, self.work, batch)
        await asyncio.wait([working])
        error, alone = working.exception(), []
        if error is not None:
            log.error("a batch of %d failed: %s: %s", len(batch), type(error).__name__, error, exc_info=error)
            alone = [job for job in batch if not job.told] if len(batch) > 1 else []
        for job in batch:
            if job in alone:
                continue
            if error is not None:
                job.fail(error)
            job.put(_Done())
        for job in alone:
            if not job.abandoned:
                await self._answer([job])
