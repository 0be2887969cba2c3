"""The last decoder layer, computed after its attention only at the positions whose output is read.

The loss reads the last hidden states at supervised positions only, typically one in ten. No later layer attends to the other
positions, so norm and MLP of the last layer skip them. Weights and results do not change.

Shapes: B batch, T tokens, D hidden size, S positions that are read.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from model.kernels.module_replacement import with_forward_of


class _SparseLastLayerMixin(nn.Module):
    """Adds `output_positions` to a decoder layer; without them the layer is unchanged."""

    self_attn: nn.Module
    mlp: nn.Module
    input_layernorm: nn.Module
    post_attention_layernorm: nn.Module

    def forward(self, hidden_states: torch.Tensor, *args: Any, output_positions: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        """Hidden states [B, T, D] -> [B, T, D], or [S, D] with output_positions: int64 [S] indices in the flattened batch."""
        if output_positions is None:
            full_output: torch.Tensor = super().forward(hidden_states, *args, **kwargs)
            return full_output
        attention_output, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        states = (hidden_states + attention_output).flatten(0, 1).index_select(0, output_positions)
        sparse_output: torch.Tensor = states + self.mlp(self.post_attention_layernorm(states))
        return sparse_output


class _Qwen2LastLayer(_SparseLastLayerMixin, Qwen2DecoderLayer):
    """The last layer of a Qwen2."""


class _Qwen3LastLayer(_SparseLastLayerMixin, Qwen3DecoderLayer):
    """The last layer of a Qwen3."""


_SPARSE_LAYER_CLASSES: dict[type[nn.Module], type[nn.Module]] = {Qwen2DecoderLayer: _Qwen2LastLayer, Qwen3DecoderLayer: _Qwen3LastLayer}


def enable_sparse_last_layer(language_model: PreTrainedModel) -> bool:
    """Replace the last layer by one that accepts `output_positions`. Returns False when it is not a Qwen2 or Qwen3 decoder layer."""
    last = language_model.layers[-1]
    if type(last) in _SPARSE_LAYER_CLASSES:
        language_model.layers[-1] = with_forward_of(last, _SPARSE_LAYER_CLASSES[type(last)])
    return isinstance(language_model.layers[-1], _SparseLastLayerMixin)


def sparse_last_layer_kwargs(language_model: PreTrainedModel, positions: torch.Tensor) -> dict[str, Any]:
    """Keyword arguments with which `language_model` returns its last hidden states as [S, D], at positions int64 [S] of the
    flattened batch; empty when the sparse last layer is not enabled."""
    last = language_model.layers[-1]
    if not isinstance(last, _SparseLastLayerMixin):
        return {}
    if last._compiled_call_impl is not None:
        # S differs from batch to batch.
        torch._dynamo.maybe_mark_dynamic(positions, 0)
    return {"output_positions": positions}
