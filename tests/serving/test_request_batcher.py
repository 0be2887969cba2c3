"""Jobs that wait at the same time are one batch; the queue is bounded; cancelled jobs are skipped."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence

import pytest

from serving.http.error_responses import ServiceError
from serving.request_batcher import Batcher, Job
from tests.serving.conftest import TIMEOUT_SECONDS


class Worker:
    """Records each batch and answers its jobs, held back until `released` is set."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.released = threading.Event()
        self.released.set()

    def __call__(self, jobs: Sequence[Job[str]]) -> None:
        self.batches.append([job.task for job in jobs])
        assert self.released.wait(TIMEOUT_SECONDS)
        for job in jobs:
            if job.task == "bad":
                raise ValueError("a bad job")
            job.put(job.task.upper())


def run(
    scenario: Callable[[Batcher[str], Worker], Awaitable[None]], max_batch: int = 4, max_wait: float = TIMEOUT_SECONDS, max_queue: int = 8
) -> Worker:
    """Run a scenario with a running batcher; returns its worker."""
    worker = Worker()

    async def run_scenario() -> None:
        batcher: Batcher[str] = Batcher(worker, max_batch=max_batch, max_wait=max_wait, max_queue=max_queue)
        batcher_task = asyncio.create_task(batcher.run())
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await scenario(batcher, worker)
        batcher_task.cancel()
        batcher.thread.shutdown()

    asyncio.run(run_scenario())
    return worker


async def wait_for_batches(worker: Worker, batches: int) -> None:
    """Wait until a number of batches has started."""
    while len(worker.batches) < batches:
        await asyncio.sleep(0.001)


async def hold(batcher: Batcher[str], worker: Worker) -> Job[str]:
    """Submit a job that keeps the worker busy until `released` is set."""
    worker.released.clear()
    job = batcher.submit("key", "first")
    await wait_for_batches(worker, 1)
    return job


async def answer_two_together(batcher: Batcher[str], worker: Worker) -> None:
    """Let a batch of one job and then one of two be answered."""
    first = await hold(batcher, worker)
    before = [batcher.submit("key", name) for name in "ab"]
    worker.released.set()
    for job in (first, *before):
        await job.result()


def test_jobs_that_arrive_during_a_batch_are_the_next_batch() -> None:
    async def scenario(batcher: Batcher[str], worker: Worker) -> None:
        first = await hold(batcher, worker)
        jobs = [batcher.submit("key", name) for name in "abc"]
        worker.released.set()
        assert [await job.result() for job in (first, *jobs)] == ["FIRST", "A", "B", "C"]

    assert run(scenario).batches == [["first"], ["a", "b", "c"]]


def test_a_lone_job_does_not_wait() -> None:
    async def scenario(batcher: Batcher[str], _: Worker) -> None:
        for name in "ab":
            await batcher.submit("key", name).result()

    assert run(scenario, max_wait=10 * TIMEOUT_SECONDS).batches == [["a"], ["b"]]


def test_a_batch_waits_until_it_is_as_large_as_the_batch_before() -> None:
    async def scenario(batcher: Batcher[str], worker: Worker) -> None:
        await answer_two_together(batcher, worker)
        early = batcher.submit("key", "early")
        for _ in range(20):
            await asyncio.sleep(0)
        late = batcher.submit("key", "late")
        assert [await job.result() for job in (early, late)] == ["EARLY", "LATE"]

    assert run(scenario, max_wait=10 * TIMEOUT_SECONDS).batches == [["first"], ["a", "b"], ["early", "late"]]


def test_a_batch_waits_at_most_max_wait() -> None:
    async def scenario(batcher: Batcher[str], worker: Worker) -> None:
        await answer_two_together(batcher, worker)
        assert await batcher.submit("key", "alone").result() == "ALONE"

    assert run(scenario, max_wait=0.05).batches[-1] == ["alone"]


def test_a_job_that_finds_the_thread_idle_is_answered_at_once() -> None:
    async def scenario(batcher: Batcher[str], worker: Worker) -> None:
        await answer_two_together(batcher, worker)
        while batcher._num_running:
            await asyncio.sleep(0.001)
        # As if that had been long ago.
        batcher._last_batch_end -= batcher.max_wait
        assert await batcher.submit("key", "alone").result() == "ALONE"

    assert run(scenario, max_wait=10 * TIMEOUT_SECONDS).batches[-1] == ["alone"]


def test_a_batch_has_jobs_of_one_key_and_at_most_max_batch() -> None:
    async def scenario(batcher: Batcher[str], worker: Worker) -> None:
        jobs = [await hold(batcher, worker)]
        jobs += [batcher.submit(*pair) for pair in (("x", "a"), ("y", "b"), ("x", "c"), ("x", "d"), ("x", "e"), ("y", "f"))]
        worker.released.set()
        for job in jobs:
            assert await job.result() == job.task.upper()

    assert run(scenario, max_batch=3, max_wait=0.0).batches == [["first"], ["a", "c", "d"], ["b", "f"], ["e"]]


def test_a_full_queue_is_429_with_retry_after() -> None:
    async def scenario(batcher: Batcher[str], worker: Worker) -> None:
        await hold(batcher, worker)
        for i in range(3 + 2 - 1):
            batcher.submit("key", str(i))
        with pytest.raises(ServiceError) as refused:
            batcher.submit("key", "too many")
        assert refused.value.status_code == 429
        assert int(refused.value.headers["Retry-After"]) >= 1  # type: ignore[index]
        worker.released.set()

    run(scenario, max_batch=3, max_queue=2)


def test_cancelled_jobs_are_skipped() -> None:
    async def scenario(batcher: Batcher[str], worker: Worker) -> None:
        first = await hold(batcher, worker)
        with batcher.submit("key", "leaves"):
            stays = batcher.submit("key", "stays")
        assert batcher.waiting == 1
        worker.released.set()
        await first.result()
        await stays.result()

    assert run(scenario).batches == [["first"], ["stays"]]


def test_a_failed_batch_reports_the_error_and_the_next_is_answered() -> None:
    async def scenario(batcher: Batcher[str], _: Worker) -> None:
        with pytest.raises(ValueError, match="a bad job"):
            await batcher.submit("key", "bad").result()
        assert await batcher.submit("key", "good").result() == "GOOD"

    run(scenario)


def test_a_bad_job_does_not_fail_the_others_of_its_batch() -> None:
    started, released = threading.Event(), threading.Event()

    async def scenario(batcher: Batcher[str], worker: Worker) -> None:
        def work(jobs: Sequence[Job[str]]) -> None:
            if len(jobs) > 1:
                started.set()
                assert released.wait(TIMEOUT_SECONDS)
            worker(jobs)

        batcher.work = work
        first = await hold(batcher, worker)
        answered, bad, other = (batcher.submit("key", name) for name in ("a", "bad", "c"))
        with batcher.submit("key", "leaves"):
            worker.released.set()
            await first.result()
            assert await asyncio.to_thread(started.wait, TIMEOUT_SECONDS)
        released.set()
        assert (await answered.result(), await other.result()) == ("A", "C")
        with pytest.raises(ValueError, match="a bad job"):
            await bad.result()

    # Jobs that got an event are not retried, and cancelled jobs are not either.
    assert run(scenario).batches == [["first"], ["a", "bad", "c", "leaves"], ["bad"], ["c"]]


def test_any_exception_of_a_batch_is_reported_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(BaseException):
        """Not a subclass of Exception."""

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
