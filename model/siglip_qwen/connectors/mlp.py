"""Connectors that map each patch, or each neighbourhood of patches, by itself. Shapes: see `connector`."""

import torch
from torch import nn
from torch.nn import functional

from model.siglip_qwen.connectors.connector import Connector
from model.siglip_qwen.connectors.token_merging import merge_tokens, num_kept


class LinearConnector(Connector):
    """One linear layer, as in LLaVA (arXiv:2304.08485). keep_ratio: share of patches that is left after `merge_tokens`."""

    def __init__(self, vision_width: int, language_width: int, keep_ratio: float = 1.0):
        super().__init__()
        self.keep_ratio = keep_ratio
        self.linear = nn.Linear(vision_width, language_width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = merge_tokens(features, num_kept(features.shape[1], self.keep_ratio))
        projected: torch.Tensor = self.linear(features.to(self.linear.weight.dtype))
        return projected


class MlpConnector(Connector):
    """linear_1, GELU, linear_2, as in LLaVA-1.5 (arXiv:2310.03744). With `pool` n, the features of each n x n neighbourhood of patches are
    first concatenated, as in MiniGPT-v2 (arXiv:2310.09478). keep_ratio: share of patches that is left after `merge_tokens`."""

    def __init__(self, vision_width: int, language_width: int, pool: int = 1, keep_ratio: float = 1.0):
        super().__init__()
        self.pool, self.keep_ratio = pool, keep_ratio
        self.linear_1 = nn.Linear(vision_width * pool * pool, language_width)
        self.linear_2 = nn.Linear(language_width, language_width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = merge_tokens(features, num_kept(features.shape[1], self.keep_ratio)).to(self.linear_1.weight.dtype)
        if self.pool > 1:
            features = space_to_depth(features, self.pool)
        projected: torch.Tensor = self.linear_2(functional.gelu(self.linear_1(features)))
        return projected


class AveragePoolConnector(Connector):
    """The mean of each pool x pool neighbourhood of patches, then linear_1, GELU, linear_2, as in DeCo (arXiv:2405.20985)."""

    def __init__(self, vision_width: int, language_width: int, pool: int):
        super().__init__()
        self.pool = pool
        self.linear_1 = nn.Linear(vision_width, language_width)
        self.linear_2 = nn.Linear(language_width, language_width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        num_images, patches, width = features.shape
        side = round(patches**0.5)
        grid = features.to(self.linear_1.weight.dtype).transpose(1, 2).reshape(num_images, width, side, side)
        pooled = functional.avg_pool2d(grid, self.pool).flatten(2).transpose(1, 2)
        projected: torch.Tensor = self.linear_2(functional.gelu(self.linear_1(pooled)))
        return projected


def space_to_depth(features: torch.Tensor, pool: int) -> torch.Tensor:
    """Concatenate pool x pool neighbourhoods: [N, P, C] -> [N, P / pool^2, C * pool^2], row-major inside each neighbourhood."""
    num_images, patches, width = features.shape
    side = round(patches**0.5)
    pooled_side = side // pool
    grid = features.view(num_images, pooled_side, pool, pooled_side, pool, width)
    return grid.transpose(2, 3).reshape(num_images, pooled_side * pooled_side, pool * pool * width)
