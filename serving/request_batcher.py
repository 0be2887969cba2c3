"""Dynamic batching: requests that wait at the same time are answered in one batch.

The event loop submits jobs; a worker thread answers one batch after another and sends events to each job's client at once.
Only `Job.put` and `Job.cancelled` may be used from the worker thread; everything else belongs to the event loop.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from serving.http.error_responses import ServiceError

log = logging.getLogger("tessera.serve")

T = TypeVar("T")


@dataclass(eq=False)
class Job(AbstractContextManager["Job[T]"], Generic[T]):
    """A submitted request. As a context manager it is cancelled on exit: it leaves the queue or its batch.

    Args:
        key: jobs with equal keys can be answered in one batch.
        task: the work, as `Batcher.work` understands it.
        cancelled: whether the client no longer waits.
        has_responded: whether an event was sent to the client.
    """

    key: Hashable
    task: T
    batcher: "Batcher[T]"
    cancelled: bool = False
    has_responded: bool = False
    _events: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def put(self, *events: object) -> None:
        """Send events to the client: an exception is raised there, and None is the last one. Thread-safe.

        Each call wakes the event loop, which then shares Python's lock with the model.
        """
        self.has_responded = True
        self._loop.call_soon_threadsafe(self._receive, events)

    def _receive(self, events: Sequence[object]) -> None:
        for event in events:
            self._events.put_nowait(event)

    async def events(self) -> AsyncIterator[Any]:
        """The events in order, until the batch is done. Raises the error of a failed job."""
        while (event := await self._events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event

    async def result(self) -> Any:
        """The first event, for jobs that get only one."""
        return await anext(self.events())

    def __exit__(self, *_: object) -> None:
        self.cancelled = True
        self.batcher.discard(self)


@dataclass(eq=False)
class Batcher(Generic[T]):
    """A bounded queue, and a thread that answers its jobs in batches.

    A request that finds the thread idle is answered at once. Just after a batch, when its clients may be about to ask again, the next one
    starts when it is as large as that batch: a lone client never waits.

    Args:
        work: answers jobs of equal key; called in the thread.
        max_batch: largest number of jobs in a batch.
        max_wait: time in seconds after a batch in which the next one waits to become as large.
        max_queue: largest number of waiting jobs, in addition to those of a batch.
        on_batch: called with the size and the seconds of each finished batch.
    """

    work: Callable[[Sequence[Job[T]]], None]
    max_batch: int
    max_wait: float
    max_queue: int
    on_batch: Callable[[int, float], None] | None = None
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "model"))
    _waiting: list[Job[T]] = field(default_factory=list)
    _job_arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _num_running: int = 0
    _expected_batch_size: int = 1
    _last_batch_seconds: float = 0.0
    _last_batch_end: float = -math.inf

    @property
    def waiting(self) -> int:
        """Number of jobs in the queue."""
        return len(self._waiting)

    @property
    def retry_after(self) -> int:
        """Estimated seconds until the queue is empty, at least 1."""
        return max(1, math.ceil(self._last_batch_seconds * (1 + len(self._waiting) / self.max_batch)))

    def submit(self, key: Hashable, task: T) -> Job[T]:
        """Queue a job. Raises ServiceError 429 if the queue is full."""
        if self._num_running + len(self._waiting) >= self.max_batch + self.max_queue:
            raise ServiceError(429, "too many requests are waiting", "queue_full", retry_after=self.retry_after)
        job = Job(key, task, self)
        self._waiting.append(job)
        self._job_arrived.set()
        return job

    def discard(self, job: Job[T]) -> None:
        """Remove a cancelled job from the queue, if it still waits there."""
        if job in self._waiting:
            self._waiting.remove(job)

    async def run(self) -> None:
        """Answer batch after batch until cancelled."""
        while True:
            batch = await self._next()
            start_time, self._num_running = time.monotonic(), len(batch)
            await self._run_batch(batch)
            self._last_batch_end = time.monotonic()
            self._last_batch_seconds, self._num_running, self._expected_batch_size = self._last_batch_end - start_time, 0, len(batch)
            if self.on_batch is not None:
                self.on_batch(len(batch), self._last_batch_seconds)

    async def _next(self) -> list[Job[T]]:
        """Take the next batch from the queue: the oldest job and those with the same key."""
        while True:
            while not self._waiting:
                self._job_arrived.clear()
                await self._job_arrived.wait()
            oldest = self._waiting[0]
            same_key_jobs = [job for job in self._waiting if job.key == oldest.key][: self.max_batch]
            remaining_seconds = self._last_batch_end + self.max_wait - time.monotonic()
            if len(same_key_jobs) >= min(self._expected_batch_size, self.max_batch) or remaining_seconds <= 0:
                for job in same_key_jobs:
                    self._waiting.remove(job)
                return same_key_jobs
            self._job_arrived.clear()
            # If the batch does not fill up in time, the next iteration takes the jobs that wait.
            with suppress(TimeoutError):
                async with asyncio.timeout(remaining_seconds):
                    await self._job_arrived.wait()

    async def _run_batch(self, batch: Sequence[Job[T]]) -> None:
        """Answer a batch, then send each client the end of its events, or the error if the batch failed (any BaseException).

        If a batch of several jobs fails, those that got no event yet are retried alone, so that one job cannot fail the others.
        """
        future = asyncio.get_running_loop().run_in_executor(self.thread, self.work, batch)
        await asyncio.wait([future])
        error, jobs_to_retry = future.exception(), []
        if error is not None:
            log.error("a batch of %d failed: %s: %s", len(batch), type(error).__name__, error, exc_info=error)
            jobs_to_retry = [job for job in batch if not job.has_responded] if len(batch) > 1 else []
        for job in batch:
            if job not in jobs_to_retry:
                job.put(error)
        for job in jobs_to_retry:
            if not job.cancelled:
                await self._run_batch([job])
