"""Loads a pre-trained model in transformers' own class, its language model quantised if wanted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from errors import UsageError, loading
from model.family import LoadOptions
from model.kernels.device_capability import default_dtype
from model.quantization import Quantization, disable_avx512bf16, quantization_config
from visual.hub_name import pretrained


@dataclass(frozen=True)
class StockClass:
    """A class of transformers that is loaded.

    Args:
        model_class: the class.
        not_quantised: modules that stay as they are.
        may_be_missing: whether a weight of this name is not used.
    """

    model_class: Any
    not_quantised: Sequence[str]
    may_be_missing: Callable[[str], bool] = lambda _: False


def load_pretrained(
    key: str,
    path: str,
    stock: StockClass,
    config: PreTrainedConfig,
    quantization: Quantization,
    options: LoadOptions,
    **load_options: Any,
) -> Any:
    """The pre-trained model, frozen and in eval mode.

    Args:
        key: setting that names the model, for messages.
        path: folder or hub name.
        stock: its class.
        config: of the folder.
        quantization: of the modules that are quantised.
        options: dtype and device.
        load_options: arguments of from_pretrained in place of ours, such as a device map.

    Raises:
        UsageError: it cannot be loaded, or lacks weights.
    """
    dtype = options.dtype or default_dtype(options.device)
    arguments: dict[str, Any] = {"device_map": {"": options.device}, **load_options}
    quantized = quantization_config(quantization, dtype, list(stock.not_quantised), options.shardable)
    if quantized is not None:
        quantized.llm_int8_enable_fp32_cpu_offload = "max_memory" in load_options
        arguments["quantization_config"] = quantized
    with loading(key, path):
        arguments |= {"config": config, "dtype": dtype, "output_loading_info": True}
        model, report = stock.model_class.from_pretrained(**pretrained(path), **arguments)
    if missing := {name for name in report["missing_keys"] if not stock.may_be_missing(name)}:
        raise UsageError(f"{key}: {path} lacks weights of the model, such as {min(missing)}")
    disable_avx512bf16(model)
    return model.requires_grad_(False).eval()
