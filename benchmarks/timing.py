"""Interleaved timing: each path of the same work runs once per round, so that a slow phase of the machine affects all paths.

Ratios are computed per round.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self, TypeVar

import torch

T = TypeVar("T")
K = TypeVar("K")

OURS = "ours"
"""Name of our path."""

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


@dataclass(frozen=True, slots=True)
class Workload:
    """Amount of work of a comparison with the stock model.

    Args:
        samples: samples or questions per block.
        rounds: blocks per path.
        stock_batch: largest batch size of the stock model; None: a default.
        against_stock: also run the stock model.
    """

    samples: int
    rounds: int
    stock_batch: int | None = None
    against_stock: bool = True


@dataclass
class TimedPath:
    """One path that does all of the work.

    Args:
        name: of the path.
        batch: batch size, or what a batch is.
        work: does all of it; this call is timed.
        device: of the model.
        prepare: called before the time of a block begins.
        uncounted_bytes: bytes that the other side has allocated meanwhile.
        peaks: peak bytes of each block; empty if the device does not report them.
    """

    name: str
    batch: int | str
    work: Callable[[], object]
    device: torch.device
    prepare: Callable[[], None] = lambda: None
    uncounted_bytes: Callable[[], int] = lambda: 0
    peaks: list[int] = field(default_factory=list)

    def block(self) -> float:
        """Do the work; returns the seconds."""
        free_memory()
        self.prepare()
        on_cuda = self.device.type == "cuda"
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        seconds = timed(self.work, self.device)
        if on_cuda:
            self.peaks.append(torch.cuda.max_memory_allocated(self.device) - self.uncounted_bytes())
        return seconds


@dataclass(frozen=True, slots=True)
class PathResult:
    """What was measured of every path: seconds of each block (none if the path ran out of memory), peak memory (None if the device does
    not report it), and the speed of ours divided by the speed of this path."""

    path: str
    batch: int | str
    seconds: tuple[float, ...] = ()
    peak_gib: float | None = None
    ours_is_faster_by: Ratio | None = None

    @classmethod
    def of(cls, path: TimedPath, seconds: Mapping[str, Sequence[float]]) -> Self:
        """From the seconds of the blocks of all paths, by name."""
        own, peak = tuple(seconds[path.name]), max(path.peaks) / 2**30 if path.peaks else None
        return cls(path.name, path.batch, own, peak, None if path.name == OURS else Ratio.of(seconds[OURS], own))


def time_interleaved(blocks: Mapping[K, Callable[[], float]], rounds: int) -> dict[K, list[float]]:
    """Run all blocks once per round; returns the seconds of each block per round. The starting block rotates."""
    seconds: dict[K, list[float]] = {name: [] for name in blocks}
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
