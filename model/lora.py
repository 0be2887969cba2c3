"""What is trained on a model: the projector, LoRA on the language model, or the whole language model.

In: a frozen model and the groups of a training stage. Out: the model with just those groups trainable, in fp32.
"""

import re
from collections.abc import Collection

import peft
import torch
from peft import PeftModel
from torch import nn

from errors import UsageError
from model.param_groups import CONNECTOR, LANGUAGE_MODEL, ParamGroup, set_trainable
from model.siglip_qwen.config import LoraConfig, ModelConfig
from model.siglip_qwen.modeling import VisionLanguageModel


def configure_trainable(
    model: VisionLanguageModel | PeftModel, config: ModelConfig, train: Collection[ParamGroup]
) -> VisionLanguageModel | PeftModel:
    """Make the groups in `train` trainable, in fp32, and everything else frozen; adapters are added when first asked for.

    A stage may follow another: adapters that are there stay, trained or not. Raises UsageError when a group does not fit
    the settings: LoRA without model.lora, the language model itself when it is quantised or has adapters.
    """
    if "language" in train:
        if config.quantization != "none":
            raise UsageError(f"train.stages: language cannot be trained while model.quantization is {config.quantization}; train lora")
        if "lora" in train or isinstance(model, PeftModel):
            raise UsageError("train.stages: a model trains either language or lora, not both")
        model.config.language_weights = True
    if "lora" in train and not isinstance(model, PeftModel):
        if config.lora is None:
            raise UsageError("train.stages: lora is to be trained, but model.lora is null")
        if model.config.language_weights:
            raise UsageError("train.stages: a model trains either language or lora, not both")
        model = peft.get_peft_model(model, peft_lora_config(model, config.lora))
    set_trainable(model, train)
    return model


def peft_lora_config(model: VisionLanguageModel, lora: LoraConfig) -> peft.LoraConfig:
    """LoRA on every linear layer of the language model; the pattern is anchored, since SigLIP has layers of the same names."""
    linear = {name.rpartition(".")[2] for name, module in model.model.language_model.named_modules() if isinstance(module, nn.Linear)}
    return peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        use_dora=lora.use_dora,
        target_modules=rf"{re.escape(LANGUAGE_MODEL)}\..*\.({'|'.join(sorted(linear))})",
        modules_to_save=[CONNECTOR.rpartition(".")[2]],
    )


def enable_gradient_checkpointing(model: VisionLanguageModel | PeftModel, layers: int | None = None) -> None:
    """Recompute activations in the backward pass: those of `layers` of the language model's layers, evenly spread, or of all.

    The frozen vision tower keeps none anyway.
    """
    language_model = base_model(model).model.language_model
    language_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    num_layers = len(language_model.layers)
    count = num_layers if layers is None else layers
    for i, layer in enumerate(language_model.layers):
        layer.gradient_checkpointing = (i + 1) * count // num_layers > i * count // num_layers


def base_model(model: VisionLanguageModel | PeftModel) -> VisionLanguageModel:
    """The model under its adapters."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(inner, VisionLanguageModel):
        raise TypeError(f"expected a VisionLanguageModel, found {type(inner).__name__}")
    return inner


def trained_state_dict(model: VisionLanguageModel | PeftModel, state: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Projector and adapter under the keys of PEFT's file format, whether there is an adapter or not.

    state: the model's whole state dict, where only a launcher that shards parameters can give it.
    """
    if isinstance(model, PeftModel):
        return dict(peft.get_peft_model_state_dict(model, state_dict=state))
    state = model.state_dict() if state is None else state
    return {f"base_model.model.{key}": value for key, value in state.items() if key.startswith(CONNECTOR)}
