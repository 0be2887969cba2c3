"""Timing by turns: every way of doing the same work has its block in every round, so that what slows the machine slows all.

In: blocks of work. Out: seconds of each block in each round, and ratios taken round by round.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")

MATMUL_SIZE = {"cuda": 8192, "cpu": 1024}
"""Side of the square matrices whose product is the measure of what a device can do."""
MATMUL_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as fast: the median over the rounds, the lowest and the highest."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> "Ratio":
        """From the seconds that both took for the same work, round by round."""
        speedups = [their / our for our, their in zip(ours, theirs, strict=True)]
        return cls(statistics.median(speedups), min(speedups), max(speedups))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lowest:.2f} .. {self.highest:.2f})"


def time_interleaved(blocks: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds that each block gives, in each round. Every round begins with another block."""
    seconds: dict[str, list[float]] = {name: [] for name in blocks}
    names = list(blocks)
    for round_index in range(rounds):
        first = round_index % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(blocks[name]())
    return seconds


def largest_fitting_batch(attempt: Callable[[int], T], largest: int) -> tuple[T | None, list[int]]:
    """What `attempt` gives for the largest batch that does not run out of memory, halved from `largest` down to 1, or None;
    and the batches that did."""
    oom_sizes: list[int] = []
    size = largest
    while size:
        try:
            return attempt(size), oom_sizes
        except torch.OutOfMemoryError:
            oom_sizes.append(size)
            size //= 2
        # Outside the handler: the error itself holds on to what was in use.
        free_memory()
    return None, oom_sizes


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of some work, what it left to an accelerator included."""
    synchronize(device)
    begin = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - begin


def synchronize(device: torch.device) -> None:
    """Wait for what the device has still to do."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def free_memory() -> None:
    """Give back what no tensor needs, so that the next block can have it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of a large matrix product: the median of several."""
    size = MATMUL_SIZE["cuda" if device.type == "cuda" else "cpu"]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = [timed(lambda: a @ b, device) for _ in range(MATMUL_REPEATS + 1)][1:]
    return 2 * size**3 / statistics.median(seconds) / 1e12
