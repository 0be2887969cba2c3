"""Interleaved timing: each variant of the same work runs once per round, so that a slow phase of the machine affects all variants.

Ratios are computed per round.
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
"""Side of the square matrices whose product measures the attainable FLOP/s of a device."""
MATMUL_REPEATS = 5
"""Timed products, after one for warm-up."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Speedup: median, minimum and maximum over the rounds."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> "Ratio":
        """From the seconds of both for the same work, per round."""
        speedups = [their / our for our, their in zip(ours, theirs, strict=True)]
        return cls(statistics.median(speedups), min(speedups), max(speedups))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lowest:.2f} .. {self.highest:.2f})"


def time_interleaved(blocks: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run all blocks once per round; returns the seconds of each block per round. The starting block rotates."""
    seconds: dict[str, list[float]] = {name: [] for name in blocks}
    names = list(blocks)
    for round_index in range(rounds):
        first = round_index % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(blocks[name]())
    return seconds


def largest_fitting_batch(attempt: Callable[[int], T], largest: int) -> tuple[T | None, list[int]]:
    """Halve the batch size from `largest` down to 1 until `attempt` does not run out of memory.

    Returns:
        The result of `attempt`, or None if no size fits; and the sizes that did not fit.
    """
    oom_sizes: list[int] = []
    size = largest
    while size:
        try:
            return attempt(size), oom_sizes
        except torch.OutOfMemoryError:
            oom_sizes.append(size)
            size //= 2
        # Outside the handler: the exception references the tensors of the failed attempt.
        free_memory()
    return None, oom_sizes


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, including the work that it queued on an accelerator."""
    synchronize(device)
    begin = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - begin


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def free_memory() -> None:
    """Free unused memory, cached blocks of torch's CUDA allocator included."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def matmul_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of a large matrix product: the median of `MATMUL_REPEATS` runs."""
    size = MATMUL_SIZE["cuda" if device.type == "cuda" else "cpu"]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = [timed(lambda: a @ b, device) for _ in range(MATMUL_REPEATS + 1)][1:]
    return 2 * size**3 / statistics.median(seconds) / 1e12
