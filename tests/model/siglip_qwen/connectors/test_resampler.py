"""Connectors with learned queries."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import IdeficsConfig
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

from model.siglip_qwen.connectors.qformer import QFormerConnector
from model.siglip_qwen.connectors.resampler import ResamplerConnector

Kind = type[ResamplerConnector] | type[QFormerConnector]

STOCK_NAMES = {
    "attn.context_layer_norm": "feature_norm",
    "attn.latents_layer_norm": "query_norm",
    "attn.q_proj": "q_proj",
    "attn.k_proj": "k_proj",
    "attn.v_proj": "v_proj",
    "attn.output_proj": "out_proj",
    "mlp.ln": "mlp_norm",
    "mlp.fc": "fc1",
    "mlp.c_proj": "fc2",
}
"""Names in transformers' class, with `attn` and `mlp` for its numbers, and ours."""


def stock_resampler(ours: ResamplerConnector, width: int, heads: int) -> Any:
    """transformers' Perceiver Resampler with the same weights."""
    vision: Any = {"embed_dim": width}
    config = IdeficsConfig(vision_config=vision, perceiver_config={"qk_layer_norms_perceiver": False})
    stock = IdeficsPerceiverResampler(config, width, len(ours.layers), heads, width // heads, len(ours.queries))
    state = {"latents": ours.queries, **{f"layer_norm.{name}": value for name, value in ours.norm.state_dict().items()}}
    for i, layer in enumerate(ours.layers):
        for theirs, own in STOCK_NAMES.items():
            stock_name = theirs.replace("attn", "0", 1).replace("mlp", "1", 1)
            for name, value in layer.get_submodule(own).state_dict().items():
                state[f"blocks.{i}.{stock_name}.{name}"] = value
    stock.load_state_dict(state)
    return stock


def test_values_and_gradients_equal_those_of_the_stock_resampler() -> None:
    torch.manual_seed(0)
    ours, features = ResamplerConnector(16, 12, num_queries=5, num_layers=2, num_heads=4), torch.randn(3, 9, 16)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)
    stock = stock_resampler(ours, 16, 4)
    inputs = [features.clone().requires_grad_(), features.clone().requires_grad_()]
    outputs = [ours(inputs[0]), ours.linear(stock(inputs[1]))]
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.queries.grad, stock.latents.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [ResamplerConnector, QFormerConnector])
def test_the_number_of_tokens_is_that_of_the_queries_and_every_weight_is_used(
    kind: Kind,
) -> None:
    connector = kind(16, 12, num_queries=5, num_layers=3, num_heads=4)
    connector.initialize("normal", 0.05)
    output = connector(torch.randn(2, 9, 16, dtype=torch.bfloat16))
    assert output.shape == (2, 5, 12) and output.dtype == torch.float32
    output.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in connector.parameters() if parameter.ndim > 1)


@pytest.mark.parametrize("kind", [ResamplerConnector, QFormerConnector])
def test_an_image_is_read_alone(kind: Kind) -> None:
    connector, features = kind(16, 12, num_queries=3, num_layers=2, num_heads=4).eval(), torch.randn(2, 9, 16)
    torch.testing.assert_close(connector(features)[1:], connector(features[1:]))
