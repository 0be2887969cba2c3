"""LoRA on the language model of any family, and the recomputation of its activations."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from errors import UsageError, loading
from model.family_config import LoraConfig
from model.param_groups import language_model, language_model_path


def language_lora_config(
    model: nn.Module, lora: LoraConfig, modules_to_save: list[str] | None = None, other_names: Mapping[str, str] | None = None
) -> peft.LoraConfig:
    """PEFT's config: LoRA on linear layers of the language model of `model`.

    Args:
        model: has `group_paths`; vision encoders have layers of equal names, so the pattern has the path of the language model.
        lora: rank, scale, dropout, layers.
        modules_to_save: names of modules that are trained in full and saved with the adapters.
        other_names: what this language model calls layers that `lora` may name differently.

    Raises UsageError when `lora` names a layer that does not exist.
    """
    language = language_model(model).named_modules()
    linear = {name.rpartition(".")[2] for name, module in language if isinstance(module, nn.Linear)} - {"lm_head"}
    chosen = linear
    if lora.target_modules != "all-linear":
        chosen = {(other_names or {}).get(name, name) if name not in linear else name for name in lora.target_modules}
        if unknown := sorted(chosen - linear):
            raise UsageError(f"model.lora.target_modules: the language model has no layer {unknown[0]}; it has {', '.join(sorted(linear))}")
    return peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        use_dora=lora.use_dora,
        target_modules=rf"{re.escape(language_model_path(model))}\..*\.({'|'.join(sorted(chosen))})",
        modules_to_save=modules_to_save,
    )


def with_adapter(model: Any, folder: Path, where: str) -> Any:
    """The model with a LoRA adapter injected into its layers. Raises UsageError if the adapter was trained on another model.

    where: the configuration key for the message.
    """
    if not folder.is_dir():
        raise UsageError(f"{where}: {folder} does not exist")
    with loading(where, str(folder)):
        settings = peft.PeftConfig.from_pretrained(folder)
        if settings.peft_type != peft.PeftType.LORA:
            raise ValueError(f"it is a {settings.peft_type.value} adapter, LORA is expected")
        weights = peft.load_peft_weights(str(folder), device="cpu")
        try:
            adapted = peft.PeftModel.from_pretrained(model, folder)
        except RuntimeError as error:
            raise ValueError(f"its weights have other shapes: {error}") from error
    expected = peft.get_peft_model_state_dict(adapted)
    if wrong := sorted(expected.keys() ^ weights.keys()):
        raise UsageError(
            f"{where}: {folder} was trained on another model ({len(wrong)} weights are missing or left over, such as {wrong[0]})"
        )
    return adapted.get_base_model()


def checkpointed_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """The layers of the language model, which can recompute their activations."""
    return [module for module in language_model(model).modules() if isinstance(module, GradientCheckpointingLayer)]


def enable_gradient_checkpointing(model: nn.Module, layers: int | None = None) -> None:
    """Enable activation checkpointing for `layers` layers of the language model, evenly spread; None for all.

    The frozen vision encoder saves no activations anyway.
    """
    language_model(model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    own_layers = checkpointed_layers(model)
    num_layers = len(own_layers)
    count = num_layers if layers is None else layers
    for i, layer in enumerate(own_layers):
        layer.gradient_checkpointing = (i + 1) * count // num_layers > i * count // num_layers
