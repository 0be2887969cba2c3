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
from model.kernels.device_capability import default_dtype
from model.param_groups import GroupPaths
from model.quantization import Quantization, disable_avx512bf16, quantization_config
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
    dtype = options.dtype or default_dtype(options.device)
    arguments: dict[str, Any] = {"device_map": {"": options.device}, **load_options}
    quantized = quantization_config(quantization, dtype, NOT_QUANTISED, options.shardable)
    if quantized is not None:
        quantized.llm_int8_enable_fp32_cpu_offload = "max_memory" in load_options
        arguments["quantization_config"] = quantized
    with loading(key, path):
        model, report = CLASSES[config.model_type].from_pretrained(
            **pretrained(path), config=config, dtype=dtype, output_loading_info=True, **arguments
        )
    if report["missing_keys"]:
        raise UsageError(f"{key}: {path} lacks weights of the model, such as {min(report['missing_keys'])}")
    disable_avx512bf16(model)
    model.group_paths = GROUP_PATHS
    frozen: PreTrainedModel = model.requires_grad_(False).eval()
    return frozen


def build_without_weights(key: str, path: str) -> PreTrainedModel:
    """The model on the meta device: shapes without weights, unquantised."""
    config = read_config(key, path)
    with torch.device("meta"):
        model: Any = CLASSES[config.model_type](config)
    model.group_paths = GROUP_PATHS
    frozen: PreTrainedModel = model.requires_grad_(False).eval()
    return frozen
