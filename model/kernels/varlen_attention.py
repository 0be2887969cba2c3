"""Causal attention for packed rows: several samples are concatenated in one row, and none attends to another.

On CUDA from the Ampere generation on, in fp16 or bf16, torch's variable-length attention (FlashAttention-2, arXiv:2307.08691)
takes the borders of the samples (`cu_seqlens`). Elsewhere transformers' sdpa builds a block-diagonal mask from position_ids that restart.
Expected of it: attention over each sample instead of the whole row, and no mask of T x T. Its time was not measured on a GPU.

Shapes: B batch, T query tokens per row, L key tokens per row (T, or the KV cache and T), H query heads, G key-value heads,
E head size, D hidden size.
"""

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from model.kernels.autocast import matmul_dtype
from model.kernels.device_capability import device_capability

varlen_attn: Any
try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch without varlen_attn
    varlen_attn = None

HAS_WINDOW_SIZE = varlen_attn is not None and "window_size" in inspect.signature(varlen_attn).parameters
"""Newer torch sets causal attention by `window_size`; older torch by `is_causal`, without sliding windows."""

HAS_ENABLE_GQA = varlen_attn is not None and "enable_gqa" in inspect.signature(varlen_attn).parameters
"""Newer torch supports grouped-query attention; for older torch, key and value heads are repeated."""

SEGMENT_MULTIPLE = 64
"""`cu_seqlens` is padded with empty segments to a multiple of this, so that compiled layers see only one or two shapes of it."""

GROUPED_QUERY_LIMIT = 64
"""Up to this many query tokens, keys and values are not repeated for grouped-query attention: a decode step has few query tokens
and a long KV cache, which would be copied in every step."""

ATTENTION_NAME = "tessera_packed"
"""Name under which `packed_attention_forward` is registered with transformers."""


def packed_attention_kwargs(
    language_model: PreTrainedModel, embeddings: torch.Tensor, cu_seqlens: torch.Tensor, max_length: int | None
) -> dict[str, Any]:
    """Keyword arguments for a call of `language_model` with packed rows, besides inputs_embeds and restarting position_ids.

    Args:
        language_model: Qwen; switched to packed attention if the device supports it.
        embeddings: [B, T, D].
        cu_seqlens: int32 [segments + 1], cumulative sample lengths in the flattened batch, from 0 to B * T.
        max_length: tokens in the longest sample; None reads it from cu_seqlens, which synchronises with the device.
    """
    if not can_use_varlen(embeddings):
        # transformers detects packed samples by restarting position_ids only without an attention mask and a KV cache.
        return {"attention_mask": None, "use_cache": False}
    use_packed_attention(language_model)
    if max_length is None:
        max_length = int(cu_seqlens.diff().max())
    padded_cu_seqlens = cu_seqlens.to(embeddings.device, torch.int32)
    padded_cu_seqlens = torch.cat([padded_cu_seqlens, padded_cu_seqlens[-1:].expand(-len(padded_cu_seqlens) % SEGMENT_MULTIPLE)])
    masks = dict.fromkeys(("full_attention", "sliding_attention"))
    return {"attention_mask": masks, "use_cache": False, "cu_seqlens": padded_cu_seqlens, "max_length": max_length}


def can_use_varlen(embeddings: torch.Tensor) -> bool:
    """True if torch has variable-length attention for the device of `embeddings` and for attention's dtype."""
    if varlen_attn is None or not device_capability(embeddings.device).varlen_attention:
        return False
    return matmul_dtype(embeddings) in (torch.float16, torch.bfloat16)


def packed_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seqlens: torch.Tensor | None = None,
    max_length: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each packed sample; sdpa for calls without cu_seqlens (generation, padded batches).

    Args:
        module: attention layer that calls this.
        query: [B, H, T, E].
        key: [B, G, L, E].
        value: [B, G, L, E].
        attention_mask: [B, 1, T, L] or None; not used with cu_seqlens.
        dropout: attention dropout probability; must be 0 with cu_seqlens.
        scaling: factor of the attention logits; None for 1 / sqrt(E).
        sliding_window: tokens that a query attends to, itself included; None for all before it.
        cu_seqlens: int32 [segments + 1], from packed_attention_kwargs.
        max_length: tokens in the longest sample.
        kwargs: passed to transformers' sdpa.

    Returns the output [B, T, H, E] and None for the attention weights. Raises ValueError for dropout, or a sliding window that this version
    of torch lacks, with packed rows.
    """
    if cu_seqlens is None:
        if (
            attention_mask is not None
            and attention_mask.shape[1] == 1
            and query.shape[2] <= GROUPED_QUERY_LIMIT
            and query.shape[1] > key.shape[1]
        ):
            return _grouped_query_sdpa(query, key, value, attention_mask, dropout, scaling), None
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
        return output, None
    if dropout:
        raise ValueError("attention dropout is not supported for packed rows; set attention_dropout to 0 in the language model's config")
    batch, heads, tokens, head_dim = query.shape
    dtype = matmul_dtype(query)
    query, key, value = (x.transpose(1, 2).reshape(batch * tokens, -1, head_dim).to(dtype) for x in (query, key, value))
    options = _causal_options(sliding_window)
    if HAS_ENABLE_GQA:
        options["enable_gqa"] = True
    else:
        key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    output = varlen_attn(query, key, value, cu_seqlens, cu_seqlens, max_length, max_length, scale=scaling, **options)
    return output.view(batch, tokens, heads, head_dim), None


def _grouped_query_sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, dropout: float, scaling: float | None
) -> torch.Tensor:
    """Grouped-query attention without repeating keys: query heads that share a key head become additional query tokens of it.

    query [B, H, T, E], key and value [B, G, L, E], mask [B, 1, T, L] -> [B, T, H, E].
    """
    batch, heads, tokens, head_dim = query.shape
    num_key_value_heads = key.shape[1]
    grouped = query.reshape(batch, num_key_value_heads, heads // num_key_value_heads * tokens, head_dim)
    attention_mask_per_head = mask.repeat(1, 1, heads // num_key_value_heads, 1)
    output = functional.scaled_dot_product_attention(
        grouped, key, value, attn_mask=attention_mask_per_head, dropout_p=dropout, scale=scaling
    )
    return output.reshape(batch, heads, tokens, -1).transpose(1, 2)


def _causal_options(sliding_window: int | None) -> dict[str, Any]:
    if HAS_WINDOW_SIZE:
        return {"window_size": (-1 if sliding_window is None else sliding_window - 1, 0)}
    if sliding_window is not None:
        raise ValueError("the variable-length attention of this torch version has no sliding window; set train.batching=padded")
    return {"is_causal": True}


def use_packed_attention(language_model: PreTrainedModel) -> None:
    """Make all attention layers of a model call `packed_attention_forward`.

    It stays registered, because activation checkpointing runs the layers once more in the backward pass.
    """
    config = language_model.config
    if config._attn_implementation != ATTENTION_NAME:
        ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, packed_attention_forward)
        ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, sdpa_mask)
        config._attn_implementation = ATTENTION_NAME
