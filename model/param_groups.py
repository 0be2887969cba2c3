"""Parameter groups by name: connector, LoRA adapters, language model; which of them are trainable."""

from collections.abc import Collection
from typing import Literal

from torch import nn

Group = Literal["projector", "lora", "language"]
"""Parameters that have a learning rate of their own."""


PROJECTOR, LANGUAGE = "model.multi_modal_projector", "model.language_model"
"""Paths inside a VisionLanguageModel."""


def set_trainable(model: nn.Module, train: Collection[Group]) -> None:
    """Freeze all parameters but those of the groups in `train`, which become fp32: bf16 loses small late updates."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(group_of(name) in train)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def trainable_groups(model: nn.Module) -> dict[Group, list[nn.Parameter]]:
    """The parameters to optimise, by group; groups without any are left out."""
    groups: dict[Group, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        group = group_of(name)
        if parameter.requires_grad and group is not None:
            groups.setdefault(group, []).append(parameter)
    return groups


def group_of(name: str) -> Group | None:
    """The group of a parameter by its path (with or without a PEFT wrapper); None for what is never trained."""
    path = name.removeprefix("base_model.model.")
    if path.startswith(PROJECTOR):
        # PEFT trains a copy and keeps the projector it found beside it.
        return None if ".original_module." in path else "projector"
    if ".lora_" in path:
        return "lora"
    return "language" if path.startswith((LANGUAGE, "lm_head.")) else None
