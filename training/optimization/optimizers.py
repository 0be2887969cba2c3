"""The optimizer: AdamW in fp32, or with 8-bit moments that may be paged out to the host."""

from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn

from errors import UsageError
from model.param_groups import trainable_param_groups
from training.config import LearningRates, ParamGroup, StageConfig, TrainConfig


def check_optimizer(train: TrainConfig, device: torch.device, sharded: bool) -> None:
    """Raise UsageError where the optimizer cannot run. shared_out: weights are divided over processes (FSDP, ZeRO-3)."""
    if train.optim == "adamw":
        return
    if device.type != "cuda":
        raise UsageError(f"train.optim: {train.optim} needs a CUDA device, found {device.type}; set train.optim=adamw")
    if sharded:
        raise UsageError(f"train.optim: {train.optim} cannot work on divided weights (FSDP, ZeRO-3); set train.optim=adamw")


def build_optimizer(train: TrainConfig, groups: list[dict[str, Any]], device: torch.device) -> torch.optim.Optimizer:
    """The optimizer of train.optim over the parameter groups."""
    if train.optim == "adamw":
        return torch.optim.AdamW(groups, fused=device.type == "cuda")
    return PagedAdamW8bit(groups)


def optimizer_bytes_per_parameter(train: TrainConfig) -> int:
    """Memory of the optimizer for each trained weight: two moments."""
    return 8 if train.optim == "adamw" else 2


class PagedAdamW8bit(bnb.optim.PagedAdamW8bit):
    """AdamW with block-wise 8-bit moments (Dettmers et al. 2021, arXiv:2110.02861) in memory that the driver pages out to
    the host when the device is full (QLoRA, arXiv:2305.14314, section 3). Also behind a resume, where bitsandbytes' own
    would leave the moments that it has loaded in ordinary device memory."""

    def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
        super().load_state_dict(state_dict, move_to_device)
        moments = [(state, moment, p) for p, state in self.state.items() for moment in ("state1", "state2") if moment in state]
        paged_buffers = [self.get_state_buffer(parameter, dtype=state[moment].dtype) for state, moment, parameter in moments]
        for device in {parameter.device for _, _, parameter in moments if parameter.is_cuda}:
            # Paged memory is the host's to write as soon as the device has cleared it.
            torch.cuda.synchronize(device)
        for (state, moment, _), paged in zip(moments, paged_buffers, strict=True):
            state[moment] = paged.copy_(state[moment].to(paged.device).view_as(paged))


def learning_rate(stage: StageConfig, train: TrainConfig, group: ParamGroup) -> float:
    """The peak learning rate of a group: the stage's, else the training's."""
    rates = stage.learning_rate if stage.learning_rate is not None else train.learning_rate
    return float(getattr(rates, group)) if isinstance(rates, LearningRates) else float(rates)


def optimizer_param_groups(model: nn.Module, stage: StageConfig, train: TrainConfig) -> list[dict[str, Any]]:
    """Parameter groups for the optimizer, one or two a trained group: vectors (biases, norms) are not decayed."""
    groups: list[dict[str, Any]] = []
    for group, parameters in trainable_param_groups(model).items():
        matrices, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim < 2]
        for members, decay in ((matrices, train.weight_decay), (vectors, 0.0)):
            if members:
                groups.append({"params": members, "lr": learning_rate(stage, train, group), "weight_decay": decay, "name": group})
    return groups
