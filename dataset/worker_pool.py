"""Processes that share work on files, such as checking or rendering images, and end together with the process that started them."""

import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Generic, Self, TypeVar

from errors import TesseraError

A = TypeVar("A")
B = TypeVar("B")


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """A pool of processes, to be used as a context.

    They end by themselves when this process does, however it ends: a queue that nobody fills would keep them waiting for ever.
    """
    # Spawn, not fork: Arrow's threads are already running.
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), end_with_parent)


def end_with_parent() -> None:
    """Initializer of a worker process."""
    # The main process handles interrupts. Decoder warnings are not printed; errors become reasons in the report.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_and_exit, args=(parent,), daemon=True).start()


def _wait_and_exit(parent: "multiprocessing.process.BaseProcess") -> None:
    # A pipe (on Windows a handle) that the system closes when the parent ends; unlike PR_SET_PDEATHSIG on every platform.
    parent.join()
    os._exit(1)


class WorkerMap(Generic[A, B]):
    """Applies a function to items in several processes, beginning while further items are still added. A context manager.

    When the system kills a process, as it does where memory runs out, the items that were in work are computed one at a time, and the
    one that kills its process again gets `killed(item)` in the place of a result.

    Args:
        function: Called with an item in a worker process.
        workers: Number of processes.
        chunk: Items that are handed to a process at once.
        killed: Makes the result of an item whose process was killed.
    """

    def __init__(self, function: Callable[[A], B], workers: int, chunk: int, killed: Callable[[A], B]):
        self.function, self.workers, self.chunk, self.killed = function, workers, chunk, killed
        self._incomplete: list[A] = []
        self._chunks: deque[tuple[list[A], Future[list[B]] | None]] = deque()
        self._pool = worker_pool(workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for what is in work; what has not begun is cancelled."""
        self._pool.shutdown(cancel_futures=True)

    def add(self, item: A) -> None:
        """Append an item; its chunk is handed over when it is complete."""
        self._incomplete.append(item)
        if len(self._incomplete) == self.chunk:
            self._hand_over()

    def results(self) -> Iterator[B]:
        """The results of all items, in order. Raises TesseraError when worker processes cannot be started."""
        self._hand_over()
        while self._chunks:
            _, future = self._chunks[0]
            try:
                results = _result(future)
            except BrokenProcessPool:
                yield from self._after_broken_pool()
            else:
                self._chunks.popleft()
                yield from results

    def completed(self) -> Iterator[B]:
        """The next results that need not be waited for, after the context has ended."""
        while self._chunks and (future := self._chunks[0][1]) and not future.cancelled() and future.exception() is None:
            self._chunks.popleft()
            yield from future.result()

    def _hand_over(self) -> None:
        if self._incomplete:
            items, self._incomplete = self._incomplete, []
            self._chunks.append((items, self._submit(items)))

    def _submit(self, items: list[A]) -> "Future[list[B]] | None":
        try:
            return self._pool.submit(_apply, self.function, items)
        except BrokenProcessPool:
            return None

    def _after_broken_pool(self) -> Iterator[B]:
        self._pool.shutdown(cancel_futures=True)
        suspects = [self._chunks.popleft()[0] for _ in range(min(2 * self.workers, len(self._chunks)))]
        yield from _one_by_one(self.function, [item for items in suspects for item in items], self.killed)
        self._pool = worker_pool(self.workers)
        self._chunks = deque((items, self._submit(items)) for items, _ in self._chunks)


def _apply(function: Callable[[A], B], items: list[A]) -> list[B]:
    return [function(item) for item in items]


def _result(future: "Future[list[B]] | None") -> list[B]:
    if future is None:
        raise BrokenProcessPool
    return future.result()


def map_in_workers(function: Callable[[A], B], items: Iterable[A], workers: int, chunk: int, killed: Callable[[A], B]) -> Iterator[B]:
    """`function` of each item, in order, computed in several processes (see `WorkerMap`)."""
    with WorkerMap(function, workers, chunk, killed) as worker_map:
        for item in items:
            worker_map.add(item)
        yield from worker_map.results()


def _one_by_one(function: Callable[[A], B], items: Sequence[A], killed: Callable[[A], B]) -> Iterator[B]:
    remaining = list(items)
    while remaining:
        with worker_pool(1) as pool:
            try:
                pool.submit(os.getpid).result()
            except BrokenProcessPool as error:
                raise TesseraError("worker processes cannot be started; data.workers: 1 does without them") from error
            try:
                while remaining:
                    result = pool.submit(function, remaining[0]).result()
                    remaining.pop(0)
                    yield result
            except BrokenProcessPool:
                yield killed(remaining.pop(0))
