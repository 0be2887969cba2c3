"""Processes that share work on files, such as checking or rendering images, and end together with the process that started them."""

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

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


def map_in_workers(function: Callable[[A], B], items: Sequence[A], workers: int, chunk: int, killed: Callable[[A], B]) -> Iterator[B]:
    """`function` of each item, in order, computed in several processes.

    When the system kills a process, as it does where memory runs out, the items that were in work are computed one at a time, and the
    one that kills its process again gets `killed(item)` in the place of a result.

    Args:
        function: Called with an item in a worker process.
        items: All items.
        workers: Number of processes.
        chunk: Items that are handed to a process at once.
        killed: Makes the result of an item whose process was killed.

    Raises:
        TesseraError: Worker processes cannot be started.
    """
    done = 0
    while done < len(items):
        try:
            with worker_pool(workers) as pool:
                try:
                    for result in pool.map(function, items[done:], chunksize=chunk):
                        yield result
                        done += 1
                finally:
                    pool.shutdown(cancel_futures=True)
        except BrokenProcessPool:
            suspects = items[done : done + 2 * workers * chunk]
            yield from _one_by_one(function, suspects, killed)
            done += len(suspects)


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
