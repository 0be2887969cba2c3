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
    arrival_time: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    has_responded: bool = False
    _events: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def put(self, event: object) -> None:
        """Something that the client waits for; from any thread."""
        self.has_responded = True
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def fail(self, error: BaseException) -> None:
        """The client gets this error; from any thread."""
        self.put(_JobError(error))

    async def events(self) -> AsyncIterator[Any]:
        """What was put, until the batch is done. Raises what the job failed with."""
        while not isinstance(event := await self._events.get(), _EndOfEvents):
            if isinstance(event, _JobError):
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
        self.cancelled = True
        self.batcher.discard(self)


@dataclass(frozen=True)
class _JobError:
    error: BaseException


class _EndOfEvents:
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
        self._job_arrived = asyncio.Event()
        self._num_running, self._expected_batch_size, self._last_batch_seconds = 0, 1, 0.0

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._waiting)

    @property
    def retry_after(self) -> int:
        """Seconds after which the queue will probably have been worked off, at least 1."""
        return max(1, math.ceil(self._last_batch_seconds * (1 + len(self._waiting) / self.max_batch)))

    def submit(self, key: Hashable, task: T) -> Job[T]:
        """Queue a job. Raises ServiceError 429 when the queue is full."""
        if self._num_running + len(self._waiting) >= self.max_batch + self.max_queue:
            raise ServiceError(429, "too many requests are waiting", "queue_full", retry_after=self.retry_after)
        job = Job(key, task, self)
        self._waiting.append(job)
        self._job_arrived.set()
        return job

    def discard(self, job: Job[T]) -> None:
        """Nobody waits for this job any more."""
        if job in self._waiting:
            self._waiting.remove(job)

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            batch = await self._next()
            start_time, self._num_running = time.monotonic(), len(batch)
            await self._run_batch(batch)
            self._last_batch_seconds, self._num_running, self._expected_batch_size = time.monotonic() - start_time, 0, len(batch)
            if self.on_batch is not None:
                self.on_batch(len(batch), self._last_batch_seconds)

    def close(self) -> None:
        """Wait for the batch that is being answered and end the thread."""
        self.thread.shutdown()

    async def _next(self) -> list[Job[T]]:
        """The oldest job and those that can be answered with it, taken out of the queue."""
        while True:
            while not self._waiting:
                self._job_arrived.clear()
                await self._job_arrived.wait()
            oldest = self._waiting[0]
            same_key_jobs = [job for job in self._waiting if job.key == oldest.key][: self.max_batch]
            remaining_seconds = oldest.arrival_time + self.max_wait - time.monotonic()
            if len(same_key_jobs) >= min(self._expected_batch_size, self.max_batch) or remaining_seconds <= 0:
                for job in same_key_jobs:
                    self._waiting.remove(job)
                return same_key_jobs
            self._job_arrived.clear()
            try:
                async with asyncio.timeout(remaining_seconds):
                    await self._job_arrived.wait()
            except TimeoutError:
                # None of those that were expected came; the next turn of the loop takes what is there.
                continue

    async def _run_batch(self, batch: Sequence[Job[T]]) -> None:
        """Work on a batch, then tell its clients that nothing more comes, and what it failed with, whatever that was: they wait.

        Where a batch of several fails, each that heard nothing yet is answered alone: what one asks must not spoil it for others.
        """
        future = asyncio.get_running_loop().run_in_executor(self.thread, self.work, batch)
        await asyncio.wait([future])
        error, jobs_to_retry = future.exception(), []
        if error is not None:
            log.error("a batch of %d failed: %s: %s", len(batch), type(error).__name__, error, exc_info=error)
            jobs_to_retry = [job for job in batch if not job.has_responded] if len(batch) > 1 else []
        for job in batch:
            if job in jobs_to_retry:
                continue
            if error is not None:
                job.fail(error)
            job.put(_EndOfEvents())
        for job in jobs_to_retry:
            if not job.cancelled:
                await self._run_batch([job])
