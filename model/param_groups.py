"""Parameter groups by name: connector, LoRA adapters, language model; which of them are trainable."""

from collections.abc import Collection
from typing import Literal

from torch import nn

ParamGroup = Literal["connector", "lora", "language"]
"""Parameters that have a learning rate of their own."""


CONNECTOR, LANGUAGE_MODEL = "model.multi_modal_projector", "model.language_model"
"""Paths inside a VisionLanguageModel."""


def set_trainable(model: nn.Module, train: Collection[ParamGroup]) -> None:
    """Freeze all parameters but those of the groups in `train`, which become fp32: bf16 loses small late updates."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(param_group_of(name) in train)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def trainable_param_groups(model: nn.Module) -> dict[ParamGroup, list[nn.Parameter]]:
    """The parameters to optimise, by group; groups without any are left out."""
    groups: dict[ParamGroup, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        group = param_group_of(name)
        if parameter.requires_grad and group is not None:
            groups.setdefault(group, []).append(parameter)
    return groups


def param_group_of(name: str) -> ParamGroup | None:
    """The group of a parameter by its path (with or without a PEFT wrapper); None for what is never trained."""
    path = name.removeprefix("base_model.model.")
    if path.startswith(CONNECTOR):
        # PEFT trains a copy and keeps the projector it found beside it.
        return None if ".original_module." in path else "connector"
    if ".lora_" in path:
        return "lora"
    return "language" if path.startswith((LANGUAGE_MODEL, "lm_head.")) else None
