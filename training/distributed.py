"""Several processes: is the world the one that was asked for, and where are the trained weights when no process holds them all."""

import dataclasses
import os
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import str_to_bool
from torch import nn
from torch.distributed.fsdp import FSDPModule

from errors import UsageError
from model.lora import base_model
from model.param_groups import param_group_of
from process_group import LAUNCH_HELP, init_distributed


def check_world_size(wanted: int | None) -> PartialState:
    """Join the other processes. Raises UsageError when there are not as many as the configuration or the launcher says."""
    state = init_distributed()
    if wanted is not None and state.num_processes != wanted:
        raise UsageError(f"train.num_processes: {wanted} processes are asked for, {state.num_processes} are running; {LAUNCH_HELP}")
    return state


def weights_are_sharded() -> bool:
    """True where the launcher wants the weights divided over the processes (FSDP, ZeRO-3): none holds a whole layer."""
    fsdp = str_to_bool(os.environ.get("ACCELERATE_USE_FSDP", "false"))
    deepspeed = str_to_bool(os.environ.get("ACCELERATE_USE_DEEPSPEED", "false"))
    return bool(fsdp or (deepspeed and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"))


def reshard_model(model: nn.Module) -> None:
    """Behind a forward pass that no backward pass follows, FSDP2 holds some weights whole, beside what the optimizer knows."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def configure_fsdp(plugin: Any, model: nn.Module) -> None:
    """Settings of accelerate's FSDP2 plugin that depend on the model: the units it shares out, and what stays fp32.

    Weights are multiplied in bf16 where that is the precision; gradients are summed and the loss is given in fp32.
    """
    layers = [module[0] for module in base_model(model).model.modules() if isinstance(module, nn.ModuleList)]
    plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in layers})
    if plugin.mixed_precision_policy is not None:
        exact = {"reduce_dtype": torch.float32, "output_dtype": torch.float32}
        plugin.mixed_precision_policy = dataclasses.replace(plugin.mixed_precision_policy, **exact)


def gather_full_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """Whole tensors on the CPU of all parameters that a checkpoint may hold, by name; every process must call this.

    model: its parameters may be shards of FSDP2 or ZeRO-3. Frozen weights that are never trained stay where they are.
    """
    wanted = {"connector", "lora"} | ({"language"} if base_model(model).config.language_weights else set())
    return {name: _full_tensor(parameter) for name, parameter in model.named_parameters() if param_group_of(name) in wanted}


def _full_tensor(parameter: nn.Parameter) -> torch.Tensor:
    if hasattr(parameter, "full_tensor"):  # a DTensor of FSDP2
        # Cloned: what is gathered arrives when it is first touched.
        full: torch.Tensor = parameter.full_tensor().detach().clone()
        return full.cpu()
    if not (hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id")):
        return parameter.detach().cpu()
    import deepspeed

    if parameter.requires_grad:
        # It trains an fp32 copy; the parameter itself may be its rounding to bf16.
        exact: torch.Tensor = deepspeed.utils.safe_get_full_fp32_param(parameter)
        return exact.detach().cpu().clone()
    with deepspeed.zero.GatheredParameters([parameter]):  # frozen, partitioned by ZeRO-3
        return parameter.detach().cpu().clone()
