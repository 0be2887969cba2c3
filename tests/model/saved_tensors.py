"""Memory of the tensors that autograd saves for the backward pass."""

from collections.abc import Callable

import torch
from torch import nn


def saved_tensor_bytes(compute: Callable[[], torch.Tensor]) -> int:
    """Bytes of the tensors saved by a loss that is computed under bf16 autocast; shared storage counts once, parameters do not."""
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        loss = compute()
    del loss
    return sum(storages.values())
