"""The Q-Former of BLIP-2 (arXiv:2301.12597), transformers' own class: learned queries read the patches. Shapes: see `connector`."""

from typing import Literal

import torch
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from model.siglip_qwen.connectors.connector import Connector
from model.siglip_qwen.connectors.resampler import QUERY_STD


class QFormerConnector(Connector):
    """`num_layers` layers of self-attention of the queries, every second one with attention to the patches, then a linear layer."""

    def __init__(self, vision_width: int, language_width: int, num_queries: int, num_layers: int, num_heads: int):
        super().__init__()
        config = Blip2QFormerConfig(
            hidden_size=vision_width,
            encoder_hidden_size=vision_width,
            intermediate_size=4 * vision_width,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.queries = nn.Parameter(torch.randn(1, num_queries, vision_width) * QUERY_STD)
        self.qformer = Blip2QFormerModel(config)
        self.linear = nn.Linear(vision_width, language_width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = features.to(self.linear.weight.dtype)
        queries = self.queries.expand(len(features), -1, -1)
        projected: torch.Tensor = self.linear(self.qformer(query_embeds=queries, encoder_hidden_states=features).last_hidden_state)
        return projected

    def initialize(self, init: Literal["default", "normal"], std: float) -> None:
        super().initialize(init, std)
        nn.init.normal_(self.queries, std=QUERY_STD)

    def rows_per_image(self, layer: str, patches: int, tokens: int) -> float:
        return patches if layer.endswith(("crossattention.attention.key", "crossattention.attention.value")) else tokens
