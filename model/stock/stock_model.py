"""Loads a pre-trained model in transformers' own class, its language model quantised if wanted."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig

from model.family import LoadOptions
from model.param_groups import GroupPaths
from model.quantization import Quantization, disable_avx512bf16, quantization_config
from visual.pretrained_model import load_model, read_config


@dataclass(frozen=True)
class StockModel:
    """A kind of models of transformers.

    Args:
        model_class: the class for a config.
        model_types: `model_type` of their configs.
        expected: what they are called, for messages.
        group_paths: their parameter groups.
        not_quantised: modules that stay as they are.
        may_be_missing: whether a weight of this name is not used.
    """

    model_class: Callable[[PreTrainedConfig], Any]
    model_types: Collection[str]
    expected: str
    group_paths: GroupPaths
    not_quantised: Sequence[str]
    may_be_missing: Callable[[str], bool] = lambda _: False

    def read_config(self, key: str, path: str) -> PreTrainedConfig:
        """The config of such a model. key: setting that names it. Raises UsageError when it is none."""
        return read_config(key, path, self.model_types, self.expected)

    def load(self, key: str, path: str, quantization: Quantization, options: LoadOptions, **load_options: Any) -> Any:
        """The pre-trained model, frozen and in eval mode, with `group_paths`.

        Args:
            key: setting that names the model, for messages.
            path: folder or hub name.
            quantization: of the modules that are quantised.
            options: dtype and device.
            load_options: arguments of from_pretrained in place of ours, such as a device map.

        Raises UsageError when it cannot be loaded, is of another kind, or lacks weights.
        """
        config, dtype = self.read_config(key, path), options.weight_dtype
        arguments: dict[str, Any] = {"device_map": {"": options.device}, "config": config, "dtype": dtype, **load_options}
        quantized = quantization_config(quantization, dtype, list(self.not_quantised), options.shardable)
        if quantized is not None:
            quantized.llm_int8_enable_fp32_cpu_offload = "max_memory" in load_options
            arguments["quantization_config"] = quantized
        model = load_model(key, path, self.model_class(config), may_be_missing=self.may_be_missing, **arguments)
        disable_avx512bf16(model)
        model.group_paths = self.group_paths
        return model.requires_grad_(False).eval()

    def shape(self, key: str, path: str) -> Any:
        """The model on the meta device: shapes without weights, unquantised. Raises UsageError as `read_config`."""
        config = self.read_config(key, path)
        with torch.device("meta"):
            model = self.model_class(config)(config)
        model.group_paths = self.group_paths
        return model.requires_grad_(False).eval()
