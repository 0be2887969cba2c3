"""Reads a LLaVA folder of transformers (an export of ours, or a published SigLIP + Qwen LLaVA) as a VisionLanguageModel.

The two classes compute the same where a LLaVA's settings are among those that we have; other settings are refused by name.
"""

from pathlib import Path

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

from errors import UsageError, loading
from model.siglip_qwen.assembly import LANGUAGE_FAMILIES
from model.siglip_qwen.config import ConnectorConfig
from model.siglip_qwen.connectors.connector_factory import build_connector
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.vision_language_config import VisionLanguageConfig
from visual.hub_name import pretrained


def read_config(folder: Path) -> VisionLanguageConfig:
    """The config of the same model in our class. Raises UsageError naming the first setting that it does not have."""
    with loading("LLaVA folder", str(folder)):
        config = LlavaConfig.from_pretrained(**pretrained(folder))
    _check_supported(folder, config)
    layer = config.vision_feature_layer
    return VisionLanguageConfig(
        vision_config=config.vision_config,
        text_config=config.text_config,
        image_token_index=config.image_token_index,
        vision_feature_layer="last_hidden_state" if _takes_normed_features(config) and layer == -1 else layer,
        drop_first_patch=config.vision_feature_select_strategy == "default",
    )


def load(folder: Path) -> VisionLanguageModel:
    """The model, frozen, on the CPU, in the dtype of its files. Raises UsageError as `read_config`, and when weights are missing."""
    config = read_config(folder)
    with loading("LLaVA folder", str(folder)):
        llava, report = LlavaForConditionalGeneration.from_pretrained(**pretrained(folder), dtype="auto", output_loading_info=True)
    missing = sorted(key for key in report["missing_keys"] if ".head." not in key)  # the pooling head is not used
    if missing:
        raise UsageError(f"{folder}: weights are missing, such as {missing[0]}")
    with torch.device("meta"):
        model = VisionLanguageModel(config)
    model.model.vision_tower, model.model.language_model = llava.model.vision_tower, llava.model.language_model
    model.lm_head.weight = llava.lm_head.weight
    connector = build_connector(ConnectorConfig(), config.vision_config.hidden_size, config.text_config.hidden_size)
    connector.load_state_dict(llava.model.multi_modal_projector.state_dict())
    model.model.multi_modal_projector = connector
    model.generation_config = llava.generation_config
    model.requires_grad_(False).eval()
    return model


def _takes_normed_features(config: LlavaConfig) -> bool:
    return bool(getattr(config.vision_config, "tie_last_hidden_states", False))


def _check_supported(folder: Path, config: LlavaConfig) -> None:
    expected = {
        "vision_config.model_type": (config.vision_config.model_type, (SiglipVisionConfig.model_type,)),
        "text_config.model_type": (config.text_config.model_type, LANGUAGE_FAMILIES),
        "projector_hidden_act": (config.projector_hidden_act, ("gelu",)),
        "multimodal_projector_bias": (config.multimodal_projector_bias, (True,)),
    }
    for key, (found, supported) in expected.items():
        if found not in supported:
            raise UsageError(f"{folder / 'config.json'}: {key} is {found}, expected {' or '.join(map(str, supported))}")
    if not isinstance(config.vision_feature_layer, int):
        raise UsageError(f"{folder / 'config.json'}: vision_feature_layer is {config.vision_feature_layer}, expected one layer")
