"""The trainable parts of our own model: connector, vision encoder, language model; the latter two in full or by LoRA."""

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch

from errors import UsageError
from model.family_config import LoraConfig, ParamGroup
from model.param_groups import has_adapters, set_trainable
from model.siglip_qwen.config import SiglipQwenConfig
from model.siglip_qwen.modeling import CONNECTOR, VISION_TOWER, VisionLanguageModel
from visual import vision_encoder

# PEFT is imported where it is used: it takes two seconds, and asking a checkpoint needs none of it.
if TYPE_CHECKING:
    import peft
    from peft import PeftModel


PEFT_PREFIX = "base_model.model."
"""What PEFT's file format puts before the name of a weight."""


def configure_trainable(
    model: "VisionLanguageModel | PeftModel",
    config: SiglipQwenConfig,
    train: Collection[ParamGroup],
    run_groups: Collection[ParamGroup] = (),
) -> "VisionLanguageModel | PeftModel":
    """Make the groups in `train` trainable, in fp32, and freeze everything else. LoRA is added when first needed.

    May be called once per training stage; LoRA layers of an earlier stage stay, trainable or frozen.

    Args:
        model: with or without the LoRA of an earlier stage.
        config: model settings.
        train: groups to train.
        run_groups: groups of all stages of the run, which get their LoRA together.

    Returns the model, wrapped by PEFT if it has LoRA. Raises UsageError when LoRA is requested without model.lora, or the language model
    is quantised or has LoRA and is to be trained.
    """
    if "language" in train:
        if config.quantization != "none":
            raise UsageError(f"train.stages: language cannot be trained while model.quantization is {config.quantization}; train lora")
        if "lora" in train or has_adapters(model):
            raise UsageError("train.stages: language and lora cannot both be trained")
        model.config.language_weights = True
    if "lora" in train and not has_adapters(model):
        if config.lora is None:
            raise UsageError("train.stages: lora cannot be trained while model.lora is null")
        if model.config.language_weights:
            raise UsageError("train.stages: language and lora cannot both be trained")
    if "vision" in train and config.vision_lora is None:
        model.config.vision_weights = True
    if not has_adapters(model) and _adapted_groups(config, train):
        import peft

        groups = _adapted_groups(config, {*train, *run_groups})
        model.config.adapter_groups = groups
        model = peft.get_peft_model(model, peft_lora_config(base_model(model), config, groups))
    set_trainable(model, train)
    return model


def _adapted_groups(config: SiglipQwenConfig, train: Collection[ParamGroup]) -> list[ParamGroup]:
    """The groups in `train` that are trained by LoRA."""
    by_lora: dict[ParamGroup, LoraConfig | None] = {"lora": config.lora, "vision": config.vision_lora}
    return [group for group, lora in by_lora.items() if group in train and lora is not None]


def peft_lora_config(model: VisionLanguageModel, config: SiglipQwenConfig, groups: Collection[ParamGroup]) -> "peft.LoraConfig":
    """PEFT's config: LoRA on linear layers of the language model, the vision encoder or both; the connector is saved with it."""
    from model.lora import language_lora_config, lora_config, with_other_layers

    saved = [CONNECTOR.rpartition(".")[2]]
    vision = None
    if "vision" in groups and config.vision_lora is not None:
        layers = vision_encoder.trained_parts(model.model.vision_tower, config.vision_feature_layer, "all")
        vision = lora_config(model, config.vision_lora, [f"{VISION_TOWER}.{name}" for name in layers], "model.vision_lora", saved)
    if "lora" not in groups or config.lora is None:
        assert vision is not None
        return vision
    language = language_lora_config(model, config.lora, saved)
    return language if vision is None else with_other_layers(language, vision)


def base_model(model: "VisionLanguageModel | PeftModel") -> VisionLanguageModel:
    """The model without the PEFT wrapper. Raises TypeError if it is not a VisionLanguageModel."""
    inner = model.get_base_model() if has_adapters(model) else model
    if not isinstance(inner, VisionLanguageModel):
        raise TypeError(f"expected a VisionLanguageModel, found {type(inner).__name__}")
    return inner


def trained_state_dict(model: "VisionLanguageModel | PeftModel", state: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Connector and LoRA weights under the keys of PEFT's file format; the same keys for a model without LoRA.

    state: full state dict of the model, required when its parameters are sharded (FSDP, ZeRO-3).
    """
    if has_adapters(model):
        import peft

        return dict(peft.get_peft_model_state_dict(model, state_dict=state))
    state = model.state_dict() if state is None else state
    return {PEFT_PREFIX + key: value for key, value in state.items() if key.startswith(CONNECTOR)}
