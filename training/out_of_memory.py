"""Memory on the host is kept between steps; running out of it ends in one line that names the settings to change."""

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
"""Words by which errors without an exception class of their own (of a driver, a library, torch's CPU allocator) are known."""


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
TRIM_THRESHOLD_BYTES, MMAP_THRESHOLD_BYTES = 2**30, 2**28
"""Bytes of freed memory that stay with the process, and those from which a block is given back alone."""


def keep_freed_host_memory() -> bool:
    """Let freed memory stay with this process, up to KEPT bytes, for the next step to take; False where the C library is not glibc.

    By default glibc gives much of what a backward pass frees back to the system, which clears it again page by page in the
    next forward pass: a twentieth to a tenth of a small model's step on a CPU.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES) and library.mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES))


@contextmanager
def explain_out_of_memory(activity: str) -> Iterator[None]:
    """Turn running out of memory, on a device or on the host, into a TesseraError. doing: such as "training"."""
    try:
        yield
    except MemoryError as error:
        raise TesseraError(f"{activity}: out of memory on this machine; {REMEDIES}") from error
    except RuntimeError as error:
        # torch.OutOfMemoryError is one of them.
        if not isinstance(error, torch.OutOfMemoryError) and not any(sign in str(error) for sign in OUT_OF_MEMORY_SIGNS):
            raise
        raise TesseraError(f"{activity}: out of memory {_where(error)}; {REMEDIES}") from error


def _where(error: RuntimeError) -> str:
    if "DefaultCPUAllocator" in str(error) or not torch.cuda.is_available():
        return f"on this machine ({str(error).splitlines()[0]})"
    index = torch.cuda.current_device()
    total = torch.cuda.get_device_properties(index).total_memory / 2**30
    peak = torch.cuda.max_memory_allocated(index) / 2**30
    return f"on cuda:{index} (peak {peak:.1f} of {total:.1f} GiB)"
