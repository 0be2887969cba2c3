"""Loading language models in 4 or 8 bits with bitsandbytes."""

from typing import Literal

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

Quantization = Literal["none", "int8", "nf4"]


def quantization_config(quantization: Quantization, dtype: torch.dtype, skip_modules: list[str]) -> BitsAndBytesConfig | None:
    """How bitsandbytes loads a model. `keep` names the modules that stay as they are, by full path."""
    if quantization == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=skip_modules,
        )
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip_modules)
    return None


def disable_avx512bf16(model: PreTrainedModel) -> None:
    """Turn off bitsandbytes' AVX512-BF16 path: an evaluation pass there repacks the weights, after which gradients are wrong."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
