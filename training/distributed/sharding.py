"""Sharded weights (FSDP2, ZeRO-3): loading in little host memory, settings of the model's wrapping, resharding, and gathering.

To load, rank 0 alone reads the weights; on the other ranks they are on the meta device until accelerate (with
`fsdp_cpu_ram_efficient_loading` in the launch file) or DeepSpeed sends every weight from rank 0, one at a time.
"""

import dataclasses
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from errors import TesseraError
from model.param_groups import param_group_of
from model.siglip_qwen.adapters import base_model


def prepare_for_weights(model: nn.Module, rank: int, sends_all: bool) -> None:
    """Make a model ready to receive its weights from rank 0. Every rank must call this.

    Parameters that need it get memory, which the system provides only when it is written. Buffers that no state dict contains, such as
    rotary frequencies, get their values.

    sends_all: DeepSpeed, which sends into each parameter's memory and then keeps a shard of it. Otherwise only trained parameters get
    memory: the optimizer tells them apart by their addresses.

    Raises TesseraError when this rank has other parameters than rank 0.
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


def reshard_model(model: nn.Module) -> None:
    """Reshard all FSDP2 modules: after a forward pass without a backward pass, some weights stay gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def configure_fsdp(plugin: Any, model: nn.Module) -> None:
    """Set what depends on the model in accelerate's FSDP2 plugin: the layer classes to wrap, and fp32 gradient reduction.

    Under bf16, parameters are cast to bf16; gradients are reduced and outputs (the loss) returned in fp32.
    """
    layers = [module[0] for module in base_model(model).model.modules() if isinstance(module, nn.ModuleList)]
    plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in layers})
    if plugin.mixed_precision_policy is not None:
        exact = {"reduce_dtype": torch.float32, "output_dtype": torch.float32}
        plugin.mixed_precision_policy = dataclasses.replace(plugin.mixed_precision_policy, **exact)


def gather_full_state_dict(model: nn.Module, keep: bool = True) -> dict[str, torch.Tensor]:
    """Full tensors on the CPU of all parameters that a checkpoint contains, by name. Every rank must call this.

    Tensors are gathered one at a time, so a rank that does not keep them needs no more memory than the largest takes. Frozen base
    weights are not gathered. keep: False returns an empty dict, on ranks that do not write the checkpoint.
    """
    config = base_model(model).config
    wanted = {"connector", *config.adapter_groups}
    wanted |= {group for group, is_saved in (("language", config.language_weights), ("vision", config.vision_weights)) if is_saved}
    paths = base_model(model).group_paths
    state: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if param_group_of(name, paths) in wanted:
            full = _full_tensor(parameter)
            if keep:
                state[name] = full.cpu()
    return state


def _full_tensor(parameter: nn.Parameter) -> torch.Tensor:
    if hasattr(parameter, "full_tensor"):  # a DTensor of FSDP2
        # Cloned: the gathered tensor is asynchronous and complete only when it is first used.
        full: torch.Tensor = parameter.full_tensor().detach().clone()
        return full
    if not (hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id")):
        return parameter.detach()
    import deepspeed

    if parameter.requires_grad:
        # DeepSpeed trains an fp32 copy; the parameter itself may be rounded to bf16.
        exact: torch.Tensor = deepspeed.utils.safe_get_full_fp32_param(parameter)
        return exact.detach().clone()
    with deepspeed.zero.GatheredParameters([parameter]):  # frozen, partitioned by ZeRO-3
        return parameter.detach().clone()
