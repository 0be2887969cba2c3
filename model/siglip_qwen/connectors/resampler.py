"""The Perceiver Resampler of Flamingo (arXiv:2204.14198), with the layers of Idefics' published weights: learned queries read the patches.

Shapes: see `connector`; here Q is the number of queries.
"""

from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from model.siglip_qwen.connectors.connector import Connector

QUERY_STD = 0.02
"""Standard deviation of new queries."""


class ResamplerConnector(Connector):
    """`num_layers` layers in which the queries attend to the patches and to each other, then a linear layer to word embeddings."""

    def __init__(self, vision_width: int, language_width: int, num_queries: int, num_layers: int, num_heads: int):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, vision_width) * QUERY_STD)
        self.layers = nn.ModuleList(ResamplerLayer(vision_width, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(vision_width)
        self.linear = nn.Linear(vision_width, language_width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = features.to(self.linear.weight.dtype)
        hidden = self.queries.expand(len(features), -1, -1)
        for layer in self.layers:
            hidden = layer(hidden, features)
        projected: torch.Tensor = self.linear(self.norm(hidden))
        return projected

    def initialize(self, init: Literal["default", "normal"], std: float) -> None:
        super().initialize(init, std)
        nn.init.normal_(self.queries, std=QUERY_STD)

    def rows_per_image(self, layer: str, patches: int, tokens: int) -> float:
        return patches + tokens if layer.endswith(("k_proj", "v_proj")) else tokens


class ResamplerLayer(nn.Module):
    """Attention of the queries to patches and queries, and a feed-forward network, each with a layer norm before it and a residual."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.feature_norm, self.query_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, queries: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Queries [N, Q, C] and patch features [N, P, C] -> queries [N, Q, C]."""
        normed = self.query_norm(queries)
        read = torch.cat([self.feature_norm(features), normed], dim=1)
        heads = [
            states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for states in (self.q_proj(normed), self.k_proj(read), self.v_proj(read))
        ]
        attended = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        queries = queries + self.out_proj(attended)
        updated: torch.Tensor = queries + self.fc2(functional.relu(self.fc1(self.mlp_norm(queries))))
        return updated
