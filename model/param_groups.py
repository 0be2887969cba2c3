"""Parameter groups: connector, LoRA, language model. Sets and lists the trainable ones."""

from collections.abc import Collection
from typing import Literal

from torch import nn

ParamGroup = Literal["connector", "lora", "language"]
"""Name of a parameter group; each group has its own learning rate."""


CONNECTOR, LANGUAGE_MODEL = "model.multi_modal_projector", "model.language_model"
"""Paths of the modules in a VisionLanguageModel."""


def set_trainable(model: nn.Module, train: Collection[ParamGroup]) -> None:
    """Freeze all parameters but those of the groups in `train`, which become fp32: bf16 rounds small updates away."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(param_group_of(name) in train)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def trainable_param_groups(model: nn.Module) -> dict[ParamGroup, list[nn.Parameter]]:
    """Trainable parameters by group; groups without any are omitted."""
    groups: dict[ParamGroup, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        group = param_group_of(name)
        if parameter.requires_grad and group is not None:
            groups.setdefault(group, []).append(parameter)
    return groups


def param_group_of(name: str) -> ParamGroup | None:
    """Group of a parameter, by its path (with or without the PEFT wrapper); None if it is never trained."""
    path = name.removeprefix("base_model.model.")
    if path.startswith(CONNECTOR):
        # PEFT (modules_to_save) trains a copy of the connector and keeps the original next to it.
        return None if ".original_module." in path else "connector"
    if ".lora_" in path:
        return "lora"
    return "language" if path.startswith((LANGUAGE_MODEL, "lm_head.")) else None
