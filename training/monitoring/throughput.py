"""Training throughput: tokens/s, samples/s, peak memory, data wait, TFLOP/s and MFU.

In: the micro-batches that the model processes. Out: rates over the steps since the last reading, summed over all ranks.
"""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from dataset.loading.encoded_sample import IGNORE_INDEX
from model.kernels.autocast import Precision
from model.step_flops import StepFlops

PEAK_TFLOPS = (
    ("B200", 2250.0),
    ("H200", 989.0),
    ("H100 NVL", 835.0),
    ("H100 PCIe", 756.0),
    ("H100", 989.0),
    ("H800", 989.0),
    ("H20", 148.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("L40S", 362.0),
    ("L4", 121.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("A40", 149.7),
    ("RTX 6000 Ada", 364.2),
    ("RTX A6000", 154.8),
    ("RTX 5090", 209.5),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
    ("V100 SXM2", 125.0),
    ("V100 PCIE", 112.0),
    ("T4", 65.0),
    ("Quadro RTX 6000", 130.5),
    ("Quadro RTX 8000", 130.5),
    ("RTX 2080 Ti", 53.8),
)
"""Peak dense 16-bit TFLOP/s (fp32 accumulation) from vendor data sheets, by whole words of the device name; the first match counts.
Cards before Ampere (the last six) reach it in fp16, all others in bf16 and fp16."""

SLOWER_VARIANTS = ("Laptop", "MIG", "D")
"""Words in a device name that mark a slower variant or a slice of a GPU, whose peak is not in the table."""


def peak_tflops(device_name: str) -> float | None:
    """Peak dense 16-bit TFLOP/s of a device, None when it is not in the table."""
    words = f" {re.sub(r'[^A-Za-z0-9]+', ' ', device_name)} "
    if any(f" {word} " in words for word in SLOWER_VARIANTS):
        return None
    return next((peak for part, peak in PEAK_TFLOPS if f" {part} " in words), None)


def peak_tflops_of(device: torch.device, precision: Precision) -> float | None:
    """Peak TFLOP/s at which a run computes; None when it is unknown, in fp32 and on a CPU."""
    return peak_tflops(torch.cuda.get_device_name(device)) if device.type == "cuda" and precision != "fp32" else None


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes so far: allocated on a CUDA device, else resident in this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True)
class Rates:
    """Rates on the status line. tflops and mfu are None when the peak of the device in this precision is unknown."""

    supervised_tokens_per_second: float
    samples_per_second: float
    peak_memory_gib: float
    data_wait: float
    """Fraction of the time that the model waited for data."""
    tflops: float | None
    """Useful TFLOP/s per device."""
    mfu: float | None
    """Model FLOPs utilisation (Chowdhery et al. 2022, arXiv:2204.02311, appendix B): `tflops` over the device's peak."""


class ThroughputMeter:
    """Counts tokens, samples and images of the training batches and turns them into rates.

    Args:
        cost: FLOPs of the model.
        peak: The device's peak TFLOP/s; None when unknown.
        clock: Returns seconds; tests replace it.
    """

    def __init__(self, cost: StepFlops, device: torch.device, peak: float | None, clock: Callable[[], float] = time.perf_counter):
        self._cost, self._device, self._peak, self._clock = cost, device, peak, clock
        self.start()

    def start(self, now: float | None = None) -> None:
        """Reset all counts and start the clock."""
        self._tokens = self._supervised_tokens = self._images = self._samples = 0
        self._data_wait_seconds = 0.0
        self._started = self._clock() if now is None else now

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent inside, such as for validation or saving, from the rates."""
        start = self._clock()
        yield
        self._started += self._clock() - start

    def count(self, batch: dict[str, Any]) -> None:
        """Count a micro-batch."""
        supervised = batch["labels"] != IGNORE_INDEX
        if "attention_mask" in batch:
            self._tokens += int(batch["attention_mask"].sum())
        else:
            # A packed row: its last sample ends with a supervised token; padding follows.
            self._tokens += int(supervised[0].nonzero()[-1]) + 1 if supervised.any() else 0
        self._supervised_tokens += int(supervised.sum())
        self._images += len(batch["image_features"] if "image_features" in batch else batch["pixel_values"])
        self._samples += len(batch["layout"].sample_ids if "layout" in batch else batch["sample_ids"])

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time spent inside as waiting for data."""
        start = self._clock()
        yield
        self._data_wait_seconds += self._clock() - start

    def read(self, gather: Callable[[torch.Tensor], torch.Tensor]) -> Rates:
        """Rates since the last reading, over all ranks. gather: from [n] to [world size, n]; called once."""
        now = self._clock()
        seconds = max(now - self._started, 1e-9)
        counts = [self._tokens, self._supervised_tokens, self._images, self._samples, self._data_wait_seconds, peak_memory(self._device)]
        gathered = gather(torch.tensor(counts, dtype=torch.float64))
        tokens, supervised, images, samples, data_wait_seconds, _ = gathered.mean(dim=0).tolist()
        tflops = self._cost.flops(tokens, supervised, images) / seconds / 1e12 if self._peak else None
        self.start(now)
        return Rates(
            supervised_tokens_per_second=supervised * len(gathered) / seconds,
            samples_per_second=samples * len(gathered) / seconds,
            peak_memory_gib=float(gathered[:, -1].max()) / 2**30,
            data_wait=min(data_wait_seconds / seconds, 1.0),
            tflops=tflops,
            mfu=tflops / self._peak if tflops is not None and self._peak else None,
        )
