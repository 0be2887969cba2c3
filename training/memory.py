"""Running out of memory ends in one line that names the settings to change."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from errors import TesseraError

REMEDIES = (
    "lower train.tokens_per_row (packed) or train.batch_size (padded) and raise train.accumulation, "
    "set train.gradient_checkpointing=true, lower train.logits_memory_gib, load the language model with model.quantization=nf4, "
    "set train.optimizer=paged_adamw8bit (CUDA), or shorten samples with model.projector.pool or model.max_tokens"
)

SIGNS = ("out of memory", "ALLOC_FAILED", "DefaultCPUAllocator")
"""Words by which errors without an exception class of their own (of a driver, a library, torch's CPU allocator) are known."""


@contextmanager
def naming_memory_settings(doing: str) -> Iterator[None]:
    """Turn running out of memory, on a device or on the host, into a TesseraError. doing: such as "training"."""
    try:
        yield
    except MemoryError as error:
        raise TesseraError(f"{doing}: out of memory on this machine; {REMEDIES}") from error
    except RuntimeError as error:
        # torch.OutOfMemoryError is one of them.
        if not isinstance(error, torch.OutOfMemoryError) and not any(sign in str(error) for sign in SIGNS):
            raise
        raise TesseraError(f"{doing}: out of memory {_where(error)}; {REMEDIES}") from error


def _where(error: RuntimeError) -> str:
    if "DefaultCPUAllocator" in str(error) or not torch.cuda.is_available():
        return f"on this machine ({str(error).splitlines()[0]})"
    index = torch.cuda.current_device()
    whole = torch.cuda.get_device_properties(index).total_memory / 2**30
    peak = torch.cuda.max_memory_allocated(index) / 2**30
    return f"on cuda:{index} (peak {peak:.1f} of {whole:.1f} GiB)"
