"""bf16 autocast for pre-training on devices with bf16 matrix units: NVIDIA GPUs from Ampere on, and CPUs with AMX.

Shapes: B batch, T tokens.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from model.kernels.device_capability import device_capability

_ATTENTION = "tessera_fp32"
"""Name under which the fp32 attention is registered with transformers."""


def has_bf16_matmul(device: torch.device) -> bool:
    """Whether the device multiplies matrices much faster in bf16 than in fp32."""
    if device.type == "cuda":
        return device_capability(device).bf16
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16"))


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """bf16 autocast on devices with fast bf16 matrix products, else fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if has_bf16_matmul(device) else nullcontext()


@contextmanager
def mixed_precision(model: PreTrainedModel, compiled: bool) -> Iterator[None]:
    """Prepare `model` in place for training under `autocast`; undone at exit.

    `compiled` compiles each layer, which needs a C++ compiler on a CPU. On a CPU, compiled layers use eager attention, which the
    compiler fuses: a step takes a quarter less time than with sdpa (Qwen3, 64 conversations of 160 tokens, one thread).
    """
    layers = [module for name, module in model.named_modules() if name.rpartition(".")[0].endswith((".layers", ".blocks"))]
    has_attention = bool(model._supports_sdpa)
    if has_attention and compiled and model.device.type == "cpu":
        model.set_attn_implementation("eager")
    elif has_attention and model.device.type == "cpu" and has_bf16_matmul(model.device):
        ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, fp32_sdpa_attention_forward)
        ALL_MASK_ATTENTION_FUNCTIONS.register(_ATTENTION, sdpa_mask)
        model.set_attn_implementation(_ATTENTION)
    if compiled:
        for layer in layers:
            layer.compile(dynamic=True)
    try:
        yield
    finally:
        if has_attention:
            model.set_attn_implementation("sdpa")
        for layer in layers:
            layer._compiled_call_impl = None


def fp32_sdpa_attention_forward(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """sdpa in fp32: torch's bf16 kernel for CPUs takes five times as long in the backward pass (torch 2.13, 36 tokens).

    Args:
        module: the attention module.
        query: [B, heads, T, head size].
        key: [B, key-value heads, T, head size].
        value: as `key`.
        attention_mask: mask as transformers makes it for sdpa; None for none.

    Returns: [B, T, heads, head size]; None in place of the attention weights.
    """
    with torch.autocast("cpu", enabled=False):
        output, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **kwargs)
    return output, None
