"""Loads models of the LLaVA layout in transformers' own class, quantised if wanted, with the paths of their parameter groups."""

import torch
from transformers import AutoConfig, LlavaForConditionalGeneration, PreTrainedConfig, PreTrainedModel

from errors import UsageError, loading
from model.family import LoadOptions
from model.param_groups import GroupPaths
from model.quantization import Quantization
from model.stock.pretrained_model import StockClass, load_pretrained
from visual.hub_name import pretrained

MODEL_TYPE, LANGUAGE_MODEL = "llava", "model.language_model"

GROUP_PATHS: GroupPaths = {
    "vision": ("model.vision_tower.",),
    "connector": ("model.multi_modal_projector.",),
    "language": (f"{LANGUAGE_MODEL}.", "lm_head."),
}

NOT_QUANTISED = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]


def read_config(key: str, path: str) -> PreTrainedConfig:
    """The config of a LLaVA. key: setting that names it. Raises UsageError when it is none."""
    with loading(key, path):
        config = AutoConfig.from_pretrained(**pretrained(path))
    if config.model_type != MODEL_TYPE:
        raise UsageError(f"{key}: {path} is a {config.model_type} model; a LLaVA is expected")
    return config


def tokens_per_image(config: PreTrainedConfig) -> int:
    """Image tokens of an image: its patches, with the class token of the encoder unless the config drops the first position."""
    vision = config.vision_config
    has_class_token = "siglip" not in vision.model_type
    positions = (vision.image_size // vision.patch_size) ** 2 + has_class_token
    return int(positions - (config.vision_feature_select_strategy == "default"))


def build(key: str, path: str, quantization: Quantization, options: LoadOptions) -> PreTrainedModel:
    """The pre-trained model, frozen and in eval mode.

    Args:
        key: setting that names the model, for messages.
        path: folder or hub name.
        quantization: of the language model.
        options: dtype and device.

    Raises:
        UsageError: it cannot be loaded, is no LLaVA, lacks weights, or the installed transformers would compute other features.
    """
    config = read_config(key, path)
    # The pooling head is not used.
    stock = StockClass(LlavaForConditionalGeneration, NOT_QUANTISED, may_be_missing=lambda name: ".head." in name)
    model = load_pretrained(key, path, stock, config, quantization, options)
    if getattr(model.config.vision_config, "tie_last_hidden_states", False) and not _last_hidden_state_is_normed(model):
        raise UsageError(
            f"{key}: {path}: its image features are taken after the final norm (vision_config.tie_last_hidden_states). The installed "
            "transformers does not support this setting and would give other answers; a newer one is needed"
        )
    model.group_paths = GROUP_PATHS
    frozen: PreTrainedModel = model
    return frozen


def build_without_weights(key: str, path: str) -> PreTrainedModel:
    """The model on the meta device: shapes without weights, unquantised."""
    config = read_config(key, path)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.group_paths = GROUP_PATHS
    frozen: PreTrainedModel = model.requires_grad_(False).eval()
    return frozen


@torch.no_grad()
def _last_hidden_state_is_normed(model: LlavaForConditionalGeneration) -> bool:
    """Whether the last hidden state of the vision tower is taken after its final norm."""
    tower, side = model.model.vision_tower, model.config.vision_config.image_size
    outputs = tower(torch.zeros(1, 3, side, side, dtype=tower.dtype, device=tower.device), output_hidden_states=True)
    return torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
