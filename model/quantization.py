"""Quantisation of language models with bitsandbytes: int8 (LLM.int8(), arXiv:2208.07339) and nf4 (QLoRA, arXiv:2305.14314)."""

from typing import Literal

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

Quantization = Literal["none", "int8", "nf4"]
"""Quantisation of the frozen weights of a language model."""


def quantization_config(
    quantization: Quantization, dtype: torch.dtype, skip_modules: list[str], shardable: bool = False
) -> BitsAndBytesConfig | None:
    """Config for from_pretrained; None without quantisation.

    Args:
        quantization: none, int8 or nf4 with double quantisation.
        dtype: of matrix products with nf4 weights.
        skip_modules: paths of modules that are not quantised.
        shardable: store nf4 weights in tensors of `dtype`, which FSDP2 can shard, rather than of uint8, which it cannot. It must be
            the dtype that FSDP2 computes in: a cast would destroy the packed bits.
    """
    if quantization == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=dtype if shardable else torch.uint8,
            llm_int8_skip_modules=skip_modules,
        )
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip_modules)
    return None


def disable_avx512bf16(model: PreTrainedModel) -> None:
    """Disable bitsandbytes' AVX512-BF16 path on CPUs: inference repacks the weights for it, which makes later gradients wrong."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
