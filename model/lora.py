"""Makes parameter groups of a frozen model trainable: the connector, LoRA on the language model, or the language model itself."""

import re
from collections.abc import Collection

import peft
import torch
from peft import PeftModel
from torch import nn

from errors import UsageError
from model.family_config import LoraConfig, ParamGroup
from model.param_groups import language_model, set_trainable
from model.siglip_qwen.config import SiglipQwenConfig
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.module_paths import CONNECTOR, LANGUAGE_MODEL


def configure_trainable(
    model: VisionLanguageModel | PeftModel, config: SiglipQwenConfig, train: Collection[ParamGroup]
) -> VisionLanguageModel | PeftModel:
    """Make the groups in `train` trainable, in fp32, and freeze everything else. LoRA is added when first needed.

    May be called once per training stage; LoRA layers of an earlier stage stay, trainable or frozen.

    Args:
        model: the model, with or without LoRA.
        config: model settings.
        train: groups to train.

    Returns:
        The model, wrapped by PEFT if it has LoRA.

    Raises:
        UsageError: LoRA is requested without model.lora, or the language model is quantised or has LoRA and is to be trained.
    """
    if "language" in train:
        if config.quantization != "none":
            raise UsageError(f"train.stages: language cannot be trained while model.quantization is {config.quantization}; train lora")
        if "lora" in train or isinstance(model, PeftModel):
            raise UsageError("train.stages: language and lora cannot both be trained")
        model.config.language_weights = True
    if "lora" in train and not isinstance(model, PeftModel):
        if config.lora is None:
            raise UsageError("train.stages: lora cannot be trained while model.lora is null")
        if model.config.language_weights:
            raise UsageError("train.stages: language and lora cannot both be trained")
        model = peft.get_peft_model(model, peft_lora_config(model, config.lora))
    set_trainable(model, train)
    return model


def peft_lora_config(model: VisionLanguageModel, lora: LoraConfig) -> peft.LoraConfig:
    """PEFT's config: LoRA on every linear layer of the language model; the connector is saved with it."""
    return language_lora_config(model.model.language_model, LANGUAGE_MODEL, lora, [CONNECTOR.rpartition(".")[2]])


def language_lora_config(language: nn.Module, path: str, lora: LoraConfig, modules_to_save: list[str] | None) -> peft.LoraConfig:
    """PEFT's config: LoRA on every linear layer of a language model.

    Args:
        language: the language model.
        path: its place in the whole model; vision encoders have layers of equal names, so the pattern has the path.
        lora: rank, scale, dropout.
        modules_to_save: names of modules that are trained in full and saved with the adapters.
    """
    linear = {name.rpartition(".")[2] for name, module in language.named_modules() if isinstance(module, nn.Linear)}
    return peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        use_dora=lora.use_dora,
        target_modules=rf"{re.escape(path)}\..*\.({'|'.join(sorted(linear))})",
        modules_to_save=modules_to_save,
    )


def enable_gradient_checkpointing(model: nn.Module, layers: int | None = None) -> None:
    """Enable activation checkpointing for `layers` layers of the language model, evenly spread; None for all.

    The frozen vision encoder saves no activations anyway.
    """
    language = language_model(model)
    language.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    num_layers = len(language.layers)
    count = num_layers if layers is None else layers
    for i, layer in enumerate(language.layers):
        layer.gradient_checkpointing = (i + 1) * count // num_layers > i * count // num_layers


def base_model(model: VisionLanguageModel | PeftModel) -> VisionLanguageModel:
    """The model without the PEFT wrapper. Raises TypeError if it is not a VisionLanguageModel."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(inner, VisionLanguageModel):
        raise TypeError(f"expected a VisionLanguageModel, found {type(inner).__name__}")
    return inner


def trained_state_dict(model: VisionLanguageModel | PeftModel, state: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Connector and LoRA weights under the keys of PEFT's file format; the same keys for a model without LoRA.

    state: full state dict of the model, required when its parameters are sharded (FSDP, ZeRO-3).
    """
    if isinstance(model, PeftModel):
        return dict(peft.get_peft_model_state_dict(model, state_dict=state))
    state = model.state_dict() if state is None else state
    return {f"base_model.model.{key}": value for key, value in state.items() if key.startswith(CONNECTOR)}
