"""Attention for packed rows, in which several samples stand one behind the other and none sees another.

On CUDA in half precision, torch's variable-length attention reads the segment borders; its shapes stay static.
Elsewhere transformers' sdpa builds a block-diagonal mask from restarting positions.
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

varlen_attn: Any
try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # a torch built without it
    varlen_attn = None

HAS_WINDOW_SIZE = varlen_attn is not None and "window_size" in inspect.signature(varlen_attn).parameters
"""Newer torch says by a window that attention is causal; older torch has a flag for it and no windows."""

HAS_ENABLE_GQA = varlen_attn is not None and "enable_gqa" in inspect.signature(varlen_attn).parameters
"""Newer torch reads a key head for all query heads that share it; older torch wants it repeated."""

SEGMENT_MULTIPLE = 64
"""Borders are made up to a multiple of this by empty segments at the end, so that compiled layers see one shape of them, or two."""

GROUPED_QUERY_LIMIT = 64
"""New tokens up to which keys are not repeated for the heads that share them: decoding adds a few behind a long cache, which would
be copied in every step."""

ATTENTION_NAME = "tessera_packed"
"""Name under which transformers finds `attend`."""


def packed_attention_kwargs(
    language_model: PreTrainedModel, embeddings: torch.Tensor, cu_seqlens: torch.Tensor, max_length: int | None
) -> dict[str, Any]:
    """What a packed row's call of `language_model` takes besides embeddings and restarting position_ids.

    embeddings: [B, T, width]; cu_seqlens: int32 [segments + 1] over the B * T tokens, from 0 to B * T; max_length: the
    longest segment in tokens (read from cu_seqlens when None, which waits for the device).
    """
    if not can_use_varlen(embeddings):
        # Positions that restart separate the samples only with neither a mask nor a cache.
        return {"attention_mask": None, "use_cache": False}
    use_packed_attention(language_model)
    if max_length is None:
        max_length = int(cu_seqlens.diff().max())
    padded_cu_seqlens = cu_seqlens.to(embeddings.device, torch.int32)
    padded_cu_seqlens = torch.cat([padded_cu_seqlens, padded_cu_seqlens[-1:].expand(-len(padded_cu_seqlens) % SEGMENT_MULTIPLE)])
    masks = dict.fromkeys(("full_attention", "sliding_attention"))
    return {
        "attention_mask": masks,
        "use_cache": False,
        "cu_seqlens": padded_cu_seqlens,
        "max_length": max_length,
    }


def can_use_varlen(embeddings: torch.Tensor) -> bool:
    """True where torch has variable-length attention for this device and the precision that attention will run in."""
    if varlen_attn is None or not embeddings.is_cuda or torch.cuda.get_device_capability(embeddings.device) < (8, 0):
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
    """Causal attention inside each segment; sdpa for a call without segments (generation, padded batches).

    query [B, heads, T, size], key and value [B, key heads, places, size] -> [B, T, heads, size].
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
        raise ValueError("packed rows have no attention dropout; set attention_dropout to 0 in the language model's config")
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
    """The heads that share a key head become further queries of it, so that no key is copied. mask: [B, 1, T, places]."""
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
        raise ValueError("this torch has no sliding window in its variable-length attention; set train.batching=padded")
    return {"is_causal": True}


def use_packed_attention(language_model: PreTrainedModel) -> None:
    """Let the model's layers call `attend` from now on. It stays: a checkpointed layer runs again in the backward pass."""
    config = language_model.config
    if config._attn_implementation != ATTENTION_NAME:
        ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, packed_attention_forward)
        ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, sdpa_mask)
        config._attn_implementation = ATTENTION_NAME
