"""Parameter groups: vision encoder, connector, LoRA, language model. Sets and lists the trainable ones.

A model says which of its modules form its groups in its attribute `group_paths`.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from torch import nn

from model.family_config import ParamGroup

if TYPE_CHECKING:
    from peft import PeftModel

GroupPaths: TypeAlias = Mapping[ParamGroup | None, tuple[str, ...]]
"""Beginnings of the names of the parameters of each group; the first group with a match has a parameter. LoRA needs none;
the key None has what is never trained.
The first path of `language` is that of the language model."""


def has_adapters(model: nn.Module) -> "TypeGuard[PeftModel]":
    """Whether PEFT wraps the model. Does not import PEFT, which takes two seconds."""
    return hasattr(model, "get_base_model")


def unwrapped(model: nn.Module) -> Any:
    """The model without the PEFT wrapper."""
    return model.get_base_model() if has_adapters(model) else model


def language_model_path(model: nn.Module) -> str:
    """The place of the language model in the model without the PEFT wrapper: the first path of its group."""
    path: str = unwrapped(model).group_paths["language"][0]
    return path.removesuffix(".")


def language_model(model: nn.Module) -> Any:
    """The language model, which has the `layers` that can recompute their activations."""
    return unwrapped(model).get_submodule(language_model_path(model))


def set_trainable(model: nn.Module, train: Collection[ParamGroup]) -> None:
    """Freeze all parameters but those of the groups in `train`, which become fp32: bf16 rounds small updates away."""
    paths = unwrapped(model).group_paths
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(param_group_of(name, paths) in train)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def trainable_param_groups(model: nn.Module) -> dict[ParamGroup, dict[str, nn.Parameter]]:
    """Trainable parameters by group and name; groups without any are omitted."""
    paths = unwrapped(model).group_paths
    groups: dict[ParamGroup, dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        group = param_group_of(name, paths)
        if parameter.requires_grad and group is not None:
            groups.setdefault(group, {})[name] = parameter
    return groups


def param_group_of(name: str, paths: GroupPaths) -> ParamGroup | None:
    """Group of a parameter, by its name (with or without the PEFT wrapper); None if it is never trained."""
    path = name.removeprefix("base_model.model.")
    if ".lora_" in path:
        # Adapters on anything but the language model are on the vision encoder.
        return "lora" if path.startswith(paths["language"][0]) else "vision"
    if ".original_module." in path:
        # PEFT (modules_to_save) trains a copy of a module and keeps the original next to it.
        return None
    return next((group for group, beginnings in paths.items() if path.startswith(beginnings)), None)
