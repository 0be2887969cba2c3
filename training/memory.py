"""Running out of memory ends in one line that names the settings to change."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from errors import TesseraError

REMEDIES = (
    "lower train.batch_size (padded) or train.tokens_per_row (packed) and raise train.accumulation, "
    "set train.gradient_checkpointing=true, load the language model with model.quantization=nf4, "
    "or shorten samples with model.projector.pool or model.max_tokens"
)


@contextmanager
def naming_memory_settings(doing: str) -> Iterator[None]:
    """Turn running out of memory, on a device or on the host, into a TesseraError. doing: such as "training"."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        index = torch.cuda.current_device()
        whole = torch.cuda.get_device_properties(index).total_memory / 2**30
        peak = torch.cuda.max_memory_allocated(index) / 2**30
        raise TesseraError(f"{doing}: out of memory on cuda:{index} (peak {peak:.1f} of {whole:.1f} GiB); {REMEDIES}") from error
    except MemoryError as error:
        raise TesseraError(f"{doing}: out of memory on this machine; {REMEDIES}") from error
    except RuntimeError as error:
        # torch's CPU allocator has no exception class of its own.
        if "DefaultCPUAllocator" not in str(error):
            raise
        raise TesseraError(f"{doing}: out of memory on this machine ({str(error).splitlines()[0]}); {REMEDIES}") from error
