"""Loads Qwen2.5-VL and Qwen3-VL in transformers' own classes, quantised if wanted, with the paths of their parameter groups."""

from typing import Any

import torch
from transformers import (
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)

from errors import UsageError, loading
from model.family import LoadOptions
from model.param_groups import GroupPaths
from model.quantization import Quantization
from model.stock.pretrained_model import StockClass, load_pretrained
from visual.hub_name import pretrained

CLASSES: dict[str, Any] = {"qwen3_vl": Qwen3VLForConditionalGeneration, "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration}
"""Class of each `model_type`."""

LANGUAGE_MODEL = "model.language_model"

GROUP_PATHS: GroupPaths = {
    "connector": ("model.visual.merger.", "model.visual.deepstack_merger_list."),
    "vision": ("model.visual.",),
    "language": (f"{LANGUAGE_MODEL}.", "lm_head."),
}
"""The connector is the merger, which makes word embeddings of patches, with those of Qwen3-VL's intermediate layers."""

NOT_QUANTISED = ["lm_head", "model.visual"]


def read_config(key: str, path: str) -> PreTrainedConfig:
    """The config of a Qwen vision-language model. key: setting that names it. Raises UsageError when it is none."""
    with loading(key, path):
        config = AutoConfig.from_pretrained(**pretrained(path))
    if config.model_type not in CLASSES:
        raise UsageError(f"{key}: {path} is a {config.model_type} model; a Qwen2.5-VL or Qwen3-VL is expected")
    return config


def build(key: str, path: str, quantization: Quantization, options: LoadOptions, **load_options: Any) -> PreTrainedModel:
    """The pre-trained model, frozen and in eval mode.

    Args:
        key: setting that names the model, for messages.
        path: folder or hub name.
        quantization: of the language model.
        options: dtype and device.
        load_options: arguments of from_pretrained in place of ours, such as a device map.

    Raises:
        UsageError: it cannot be loaded, is of another family, or lacks weights.
    """
    config = read_config(key, path)
    stock = StockClass(CLASSES[config.model_type], NOT_QUANTISED)
    model = load_pretrained(key, path, stock, config, quantization, options, **load_options)
    model.group_paths = GROUP_PATHS
    frozen: PreTrainedModel = model
    return frozen


def build_without_weights(key: str, path: str) -> PreTrainedModel:
    """The model on the meta device: shapes without weights, unquantised."""
    config = read_config(key, path)
    with torch.device("meta"):
        model: Any = CLASSES[config.model_type](config)
    model.group_paths = GROUP_PATHS
    frozen: PreTrainedModel = model.requires_grad_(False).eval()
    return frozen
