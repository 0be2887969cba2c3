"""The optimizer: AdamW with fp32 moments or with 8-bit moments in paged memory, or SGD; its parameter groups.

Expected of what runs on a GPU alone: one launch for the step of all parameters (fused), and a quarter of the memory of the moments
(8-bit). Neither was measured on a GPU.
"""

import re
from collections.abc import Iterable
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn

from errors import UsageError
from model.family_config import ParamGroup
from model.param_groups import trainable_param_groups
from training.config import LearningRates, StageConfig, TrainConfig

_LAYER = re.compile(r"\.(?:layers|layer|blocks)\.(\d+)\.")


def check_optimizer(train: TrainConfig, device: torch.device, sharded: bool) -> None:
    """Raise UsageError where train.optim cannot run. sharded: weights are sharded over ranks (FSDP, ZeRO-3)."""
    if train.optim != "paged_adamw8bit":
        return
    if device.type != "cuda":
        raise UsageError(f"train.optim: {train.optim} needs a CUDA device, found {device.type}; set train.optim=adamw")
    if sharded:
        raise UsageError(f"train.optim: {train.optim} does not work on sharded weights (FSDP, ZeRO-3); set train.optim=adamw")


def build_optimizer(train: TrainConfig, groups: list[dict[str, Any]], device: torch.device, scaled: bool = False) -> torch.optim.Optimizer:
    """The optimizer that train.optim names, over the parameter groups.

    scaled: accelerate scales its gradients (fp16). The fused AdamW skips a step with infinite gradients inside its kernel, where
    accelerate does not see it and lets the schedule advance.
    """
    if train.optim == "adamw":
        return torch.optim.AdamW(groups, fused=device.type == "cuda" and not scaled)
    if train.optim == "sgd":
        return torch.optim.SGD(groups)
    return PagedAdamW8bit(groups)


def optimizer_bytes_per_parameter(train: TrainConfig) -> int:
    """Bytes of optimizer state per trained weight: AdamW has two moments, SGD has none."""
    return {"adamw": 8, "paged_adamw8bit": 2, "sgd": 0}[train.optim]


class PagedAdamW8bit(bnb.optim.PagedAdamW8bit):
    """AdamW with block-wise 8-bit moments (Dettmers et al. 2021, arXiv:2110.02861) in paged memory, which the driver moves to
    the host when the device is full (QLoRA, arXiv:2305.14314, section 3). After a resume the moments are paged again;
    bitsandbytes' own class would leave the loaded moments in ordinary device memory."""

    def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
        super().load_state_dict(state_dict, move_to_device)
        moments = [(state, moment, p) for p, state in self.state.items() for moment in ("state1", "state2") if moment in state]
        paged_buffers = [self.get_state_buffer(parameter, dtype=state[moment].dtype) for state, moment, parameter in moments]
        for device in {parameter.device for _, _, parameter in moments if parameter.is_cuda}:
            # The host may write to paged memory only after the device has zeroed it.
            torch.cuda.synchronize(device)
        for (state, moment, _), paged in zip(moments, paged_buffers, strict=True):
            state[moment] = paged.copy_(state[moment].to(paged.device).view_as(paged))


def learning_rate(stage: StageConfig, train: TrainConfig, group: ParamGroup) -> float:
    """Peak learning rate of a parameter group: the stage's if set, else train.learning_rate."""
    rates = stage.learning_rate if stage.learning_rate is not None else train.learning_rate
    return float(getattr(rates, group)) if isinstance(rates, LearningRates) else float(rates)


def optimizer_param_groups(model: nn.Module, stage: StageConfig, train: TrainConfig) -> list[dict[str, Any]]:
    """The optimizer's parameter groups: matrices of each trained group, and its vectors (biases, norms) without weight decay; with a
    learning rate of their own the B matrices of LoRA+ and the layers of a vision encoder with layer-wise decay."""
    groups: list[dict[str, Any]] = []
    for group, parameters in trainable_param_groups(model).items():
        rate = learning_rate(stage, train, group)
        by_rate: dict[float, list[nn.Parameter]] = {}
        for name, parameter in parameters.items():
            by_rate.setdefault(rate * _rate_factor(name, group, parameters, train), []).append(parameter)
        for own_rate, own in sorted(by_rate.items()):
            matrices, vectors = [p for p in own if p.ndim > 1], [p for p in own if p.ndim < 2]
            for members, decay in ((matrices, train.weight_decay), (vectors, 0.0)):
                if members:
                    groups.append({"params": members, "lr": own_rate, "weight_decay": decay, "name": group})
    return groups


def _rate_factor(name: str, group: ParamGroup, names: Iterable[str], train: TrainConfig) -> float:
    """What the learning rate of a group is multiplied by for one of its parameters."""
    if group == "lora":
        return train.loraplus_lr_ratio if ".lora_B." in name else 1.0
    if group != "vision" or train.vision_layer_decay == 1.0:
        return 1.0
    # As BEiT counts (arXiv:2106.08254): embeddings are below layer 0, what comes after the last layer is above it.
    above = 1 + max((int(match[1]) for other in names if (match := _LAYER.search(other))), default=-1)
    match = _LAYER.search(name)
    number = int(match[1]) if match else -1 if "embeddings" in name else above
    return float(train.vision_layer_decay ** (above - number))
