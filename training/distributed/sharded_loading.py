"""Loading of sharded models (FSDP2, ZeRO-3) in little host memory: rank 0 loads the weights, the other ranks get their shards from it.

In: a model on each rank, on all but rank 0 with pre-trained weights on the meta device. Out: the same model, ready for accelerate or
DeepSpeed, which then send every weight from rank 0, one at a time (accelerate with `fsdp_cpu_ram_efficient_loading` in the launch file).
"""

import torch
from torch import nn

from errors import TesseraError


def prepare_for_weights(model: nn.Module, rank: int, sends_all: bool) -> None:
    """Make a model ready to receive its weights from rank 0. Every rank must call this.

    Parameters that need it get memory, which the system provides only when it is written. Buffers that no state dict contains, such as
    rotary frequencies, get their values.

    Args:
        model: on ranks other than 0 its pre-trained weights are on the meta device.
        rank: of this process.
        sends_all: DeepSpeed, which sends into each parameter's memory and then keeps a shard of it. Otherwise only trained parameters
            get memory: the optimizer tells them apart by their addresses.

    Raises:
        TesseraError: this rank has other parameters than rank 0.
    """
    if rank:
        _allocate_parameters(model, sends_all)
    buffers = {name: buffer for name, buffer in model.named_buffers() if not _is_persistent(model, name)}
    specification = {name: (tuple(p.shape), str(p.dtype), p.requires_grad) for name, p in model.named_parameters()}
    sent = [(specification, {name: buffer.cpu() for name, buffer in buffers.items()})] if not rank else [None]
    torch.distributed.broadcast_object_list(sent, src=0)
    expected, values = sent[0] or ({}, {})
    differing = sorted(name for name in expected.keys() | specification.keys() if expected.get(name) != specification.get(name))
    if differing:
        name = differing[0]
        raise TesseraError(f"{name}: rank {rank} has {specification.get(name)}, rank 0 {expected.get(name)}; all ranks need the same model")
    if rank:
        for name, value in values.items():
            parent, buffer_name = _parent_of(model, name)
            parent.register_buffer(buffer_name, value, persistent=False)


def _allocate_parameters(model: nn.Module, frozen_too: bool) -> None:
    """Replace trained (or all) parameters on the meta device by uninitialised ones on the CPU; tied ones stay tied."""
    allocated: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta and (parameter.requires_grad or frozen_too):
                if parameter not in allocated:
                    allocated[parameter] = nn.Parameter(torch.empty_like(parameter, device="cpu"), requires_grad=parameter.requires_grad)
                setattr(module, name, allocated[parameter])


def _parent_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, own_name = name.rpartition(".")
    return model.get_submodule(path), own_name


def _is_persistent(model: nn.Module, name: str) -> bool:
    """Whether state dicts contain a buffer."""
    parent, own_name = _parent_of(model, name)
    return own_name not in parent._non_persistent_buffers_set
