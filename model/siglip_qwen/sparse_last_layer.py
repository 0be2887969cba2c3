"""The last layer of the language model, beyond its attention, at those positions alone whose output is read.

A loss reads the last hidden states at supervised positions only. What is computed at the others behind the last attention is
for nothing: most of a layer, at nine positions of ten. In: a causal Qwen. Out: the same model and weights.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer


class _SparseLastLayerMixin(nn.Module):
    """Mixed into a decoder layer; without `read_positions` the layer is as it was."""

    self_attn: nn.Module
    mlp: nn.Module
    input_layernorm: nn.Module
    post_attention_layernorm: nn.Module

    def forward(self, hidden_states: torch.Tensor, *args: Any, output_positions: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        """hidden_states [B, T, D]; read_positions: places [S] int64 in the flattened batch -> [S, D]."""
        if output_positions is None:
            full_output: torch.Tensor = super().forward(hidden_states, *args, **kwargs)
            return full_output
        attention_output, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        states = (hidden_states + attention_output).flatten(0, 1).index_select(0, output_positions)
        sparse_output: torch.Tensor = states + self.mlp(self.post_attention_layernorm(states))
        return sparse_output


class _Qwen2LastLayer(_SparseLastLayerMixin, Qwen2DecoderLayer):
    pass


class _Qwen3LastLayer(_SparseLastLayerMixin, Qwen3DecoderLayer):
    pass


_SPARSE_LAYER_CLASSES: dict[type[nn.Module], type[nn.Module]] = {Qwen2DecoderLayer: _Qwen2LastLayer, Qwen3DecoderLayer: _Qwen3LastLayer}


def enable_sparse_last_layer(language_model: PreTrainedModel) -> bool:
    """Let the last layer take `read_positions`, which `read_arguments` makes; False for a layer of another kind."""
    last = language_model.layers[-1]
    if type(last) in _SPARSE_LAYER_CLASSES:
        last.__class__ = _SPARSE_LAYER_CLASSES[type(last)]
    return isinstance(last, _SparseLastLayerMixin)


def sparse_last_layer_kwargs(language_model: PreTrainedModel, positions: torch.Tensor) -> dict[str, Any]:
    """What a call of `language_model` takes for its last hidden states to be [S, D], at `positions` [S] of the flattened batch;
    nothing where its last layer cannot do that."""
    last = language_model.layers[-1]
    if not isinstance(last, _SparseLastLayerMixin):
        return {}
    if last._compiled_call_impl is not None:
        # Their number differs from batch to batch.
        torch._dynamo.maybe_mark_dynamic(positions, 0)
    return {"output_positions": positions}
