"""Jobs that arrive together are worked on together; the queue is bounded; nobody is worked for who has left."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence

import pytest

from serving.http.error_responses import ServiceError
from serving.request_batcher import Batcher, Job
from tests.serving.conftest import TIMEOUT_SECONDS


class Worker:
    """Notes each batch and answers its jobs, once it is let."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.let = threading.Event()
        self.let.set()

    def __call__(self, jobs: Sequence[Job[str]]) -> None:
        self.batches.append([job.task for job in jobs])
        assert self.let.wait(TIMEOUT_SECONDS)
        for job in jobs:
            if job.task == "bad":
                raise ValueError("a bad one")
            job.put(job.task.upper())


def run(
    scenario: Callable[[Batcher[str], Worker], Awaitable[None]], max_batch: int = 4, max_wait: float = TIMEOUT_SECONDS, max_queue: int = 8
) -> Worker:
    """Play a scenario with a batcher at work; its worker."""
    worker = Worker()

    async def play() -> None:
        batcher: Batcher[str] = Batcher(worker, max_batch=max_batch, max_wait=max_wait, max_queue=max_queue)
        working = asyncio.create_task(batcher.run())
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await scenario(batcher, worker)
        working.cancel()
        batcher.close()

    asyncio.run(play())
    return worker


async def begun(worker: Worker, batches: int) -> None:
    """Until so many batches have been begun."""
    while len(worker.batches) < batches:
        await asyncio.sleep(0.001)


async def hold(batcher: Batcher[str], worker: Worker) -> Job[str]:
    """A job that is being worked on and keeps the worker busy."""
    worker.let.clear()
    job = batcher.submit("key", "first")
    await begun(worker, 1)
    return job


def test_what_arrives_while_others_are_answered_is_answered_together() -> None:
    async def scenario(batcher: Batcher[str], worker: Worker) -> None:
        first = await hold(batcher, worker)
        jobs = [batcher.submit("key", name) for name in "abc"]
        worker.let.set()
        assert [await job.result() for job in (first, *jobs)] == ["FIRST", "A", "B", "C"]

    assert run(scenario).batches == [["first"], ["a", "b", "c"]]


def test_one_that_comes_alone_waits_for_nobody() -> None:
    async def scenario(batcher: Batcher[str], _: Worker) -> None:
        for name in "ab":
            await batcher.submit("key", name).result()

    assert run(scenario, max_wait=10 * TIMEOUT_SECONDS).batches == [["a"], ["b"]]


def test_after_a_batch_the_next_waits_until_as_many_are_there() -> None:
    async def scenario(batcher: Batcher[str], worker: Worker) -> None:
        first = await hold(batcher, worker)
        before = [batcher.submit("key", name) for name in "ab"]
        worker.let.set()
        for job in (first, *before):
            await job.result()
        early = batcher.submit("key", "early")
        for _ in range(20):
            await asyncio.sleep(0)
        late = batcher.submit("key", "late")
        assert [await job.result() for job in (early, late)] == ["EARLY", "LATE"]

    assert run(scenario, max_wait=10 * TIMEOUT_SECONDS).batches == [["first"], ["a", "b"], ["early", "late"]]


def test_it_waits_no_longer_than_it_may() -> None:
    async def scenario(batcher: Batcher[str], worker: Worker) -> None:
        first = await hold(batcher, worker)
        before = [batcher.submit("key", name) for name in "ab"]
        worker.let.set()
        for job in (first, *before):
            await job.result()
        assert await batcher.submit("key", "alone").result() == "ALONE"

    assert run(scenario, max_wait=0.05).batches[-1] == ["alone"]


def test_a_batch_has_jobs_of_one_key_and_no_more_than_its_size() -> None:
    async def scenario(batcher: Batcher[str], worker: Worker) -> None:
        jobs = [await hold(batcher, worker)]
        jobs += [batcher.submit(*pair) for pair in (("x", "a"), ("y", "b"), ("x", "c"), ("x", "d"), ("x", "e"), ("y", "f"))]
        worker.let.set()
        for job in jobs:
            assert await job.result() == job.task.upper()

    assert run(scenario, max_batch=3, max_wait=0.0).batches == [["first"], ["a", "c", "d"], ["b", "f"], ["e"]]


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async def scenario(batcher: Batcher[str], worker: Worker) -> None:
        await hold(batcher, worker)
        for i in range(3 + 2 - 1):
            batcher.submit("key", str(i))
        with pytest.raises(ServiceError) as refused:
            batcher.submit("key", "too many")
        assert refused.value.status_code == 429
        assert int(refused.value.headers["Retry-After"]) >= 1  # type: ignore[index]
        worker.let.set()

    run(scenario, max_batch=3, max_queue=2)


def test_nobody_is_worked_for_who_has_left() -> None:
    async def scenario(batcher: Batcher[str], worker: Worker) -> None:
        first = await hold(batcher, worker)
        with batcher.submit("key", "leaves"):
            stays = batcher.submit("key", "stays")
        assert batcher.waiting == 1
        worker.let.set()
        await first.result()
        await stays.result()

    assert run(scenario).batches == [["first"], ["stays"]]


def test_a_batch_that_fails_tells_its_clients_and_the_next_is_answered() -> None:
    async def scenario(batcher: Batcher[str], _: Worker) -> None:
        with pytest.raises(ValueError, match="a bad one"):
            await batcher.submit("key", "bad").result()
        assert await batcher.submit("key", "good").result() == "GOOD"

    run(scenario)


def test_what_spoils_a_batch_spoils_it_for_nobody_else() -> None:
    begun, let = threading.Event(), threading.Event()

    async def scenario(batcher: Batcher[str], worker: Worker) -> None:
        def work(jobs: Sequence[Job[str]]) -> None:
            if len(jobs) > 1:
                begun.set()
                assert let.wait(TIMEOUT_SECONDS)
            worker(jobs)

        batcher.work = work
        first = await hold(batcher, worker)
        told, bad, other = (batcher.submit("key", name) for name in ("a", "bad", "c"))
        with batcher.submit("key", "leaves"):
            worker.let.set()
            await first.result()
            assert await asyncio.to_thread(begun.wait, TIMEOUT_SECONDS)
        let.set()
        assert (await told.result(), await other.result()) == ("A", "C")
        with pytest.raises(ValueError, match="a bad one"):
            await bad.result()

    # Who was told something is not asked about again, nor who has left.
    assert run(scenario).batches == [["first"], ["a", "bad", "c", "leaves"], ["bad"], ["c"]]


def test_whatever_a_batch_fails_with_is_told_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(BaseException):
        """Not even an Exception."""

    async def scenario(batcher: Batcher[str], _: Worker) -> None:
        def fails(jobs: Sequence[Job[str]]) -> None:
            raise Odd(f"with {len(jobs)}")

        batcher.work, work = fails, batcher.work
        with pytest.raises(Odd, match="with 1"):
            await batcher.submit("key", "a").result()
        batcher.work = work
        assert await batcher.submit("key", "good").result() == "GOOD"

    run(scenario)
    assert "a batch of 1 failed: Odd: with 1" in caplog.text
