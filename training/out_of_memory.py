"""Out-of-memory errors as one line that names the settings to change; reuse of freed host memory between steps."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from errors import TesseraError

REMEDIES = (
    "lower train.packing_length (packed) or train.per_device_train_batch_size (padded) and raise train.gradient_accumulation_steps, "
    "set train.gradient_checkpointing=true, lower train.logits_memory_gib, load the language model with model.quantization=nf4, "
    "set train.optim=paged_adamw8bit (CUDA), or shorten samples with model.connector.pool or model.max_length"
)

OUT_OF_MEMORY_SIGNS = ("out of memory", "ALLOC_FAILED", "DefaultCPUAllocator")
"""Substrings of out-of-memory errors that come as a plain RuntimeError (from the driver, cuBLAS, torch's CPU allocator)."""


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
TRIM_THRESHOLD_BYTES, MMAP_THRESHOLD_BYTES = 2**30, 2**28
"""mallopt's limits in bytes: freed memory the process keeps, and the size from which a block is mapped, and returned, separately."""


def keep_freed_host_memory() -> bool:
    """Let the process keep up to TRIM_THRESHOLD_BYTES of freed memory for the next step. False when the C library is not glibc.

    By default glibc returns much of what a backward pass frees to the system, which zeroes it again page by page in the next
    forward pass: 5 to 10 % of a small model's step on a CPU.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES) and library.mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES))


@contextmanager
def explain_out_of_memory(activity: str) -> Iterator[None]:
    """Turn an out-of-memory error, on a device or on the host, into a TesseraError. activity: such as "training"."""
    try:
        yield
    except MemoryError as error:
        raise TesseraError(f"{activity}: out of memory on this machine; {REMEDIES}") from error
    except RuntimeError as error:
        # torch.OutOfMemoryError is a RuntimeError.
        if not isinstance(error, torch.OutOfMemoryError) and not any(sign in str(error) for sign in OUT_OF_MEMORY_SIGNS):
            raise
        raise TesseraError(f"{activity}: out of memory {_where(error)}; {REMEDIES}") from error


def _where(error: RuntimeError) -> str:
    if "DefaultCPUAllocator" in str(error) or not torch.cuda.is_available():
        return f"on this machine ({str(error).splitlines()[0]})"
    index = torch.cuda.current_device()
    total, peak = torch.cuda.get_device_properties(index).total_memory, torch.cuda.max_memory_allocated(index)
    return f"on cuda:{index} (peak {peak / 2**30:.1f} of {format_gib(total)})"


def format_gib(size: float) -> str:
    """A number of bytes in GiB."""
    return f"{size / 2**30:.1f} GiB"
