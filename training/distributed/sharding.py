"""Sharded weights (FSDP2, ZeRO-3): settings of the model's wrapping, resharding, and gathering of full weights."""

import dataclasses
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from model.param_groups import param_group_of
from model.siglip_qwen.adapters import base_model


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

    Tensors are gathered one at a time, so a rank that does not keep them needs no more memory than the largest takes.

    Args:
        model: Parameters may be sharded by FSDP2 or ZeRO-3. Frozen base weights are not gathered.
        keep: False returns an empty dict, on ranks that do not write the checkpoint.
    """
    wanted = {"connector", "lora"} | ({"language"} if base_model(model).config.language_weights else set())
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
