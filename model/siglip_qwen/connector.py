"""The connector: a two-layer MLP from patch features to word embeddings (LLaVA-1.5, arXiv:2310.03744).

Shapes: N images, P patches per image (side * side, row-major), C hidden size of the vision encoder, Q image tokens per image
(P / pool^2), D hidden size of the language model.
"""

from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from errors import UsageError


class Connector(nn.Module):
    """linear_1, GELU, linear_2. With `pool` n, the features of each n x n neighbourhood of patches are first concatenated."""

    def __init__(self, vision_width: int, language_width: int, pool: int = 1):
        super().__init__()
        self.pool = pool
        self.linear_1 = nn.Linear(vision_width * pool * pool, language_width)
        self.linear_2 = nn.Linear(language_width, language_width)

    def initialize(self, init: Literal["default", "normal"], std: float) -> None:
        """Reset the weights: nn.Linear's initialisation for `default`; normal(0, std) with zero bias for `normal`."""
        for linear in (self.linear_1, self.linear_2):
            linear.reset_parameters()
            if init == "normal":
                nn.init.normal_(linear.weight, std=std)
                nn.init.zeros_(linear.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Patch features [N, P, C] -> image embeddings [N, Q, D], in the dtype of the connector's weights."""
        features = features.to(self.linear_1.weight.dtype)
        if self.pool > 1:
            features = space_to_depth(features, self.pool)
        projected: torch.Tensor = self.linear_2(functional.gelu(self.linear_1(features)))
        return projected


def space_to_depth(features: torch.Tensor, pool: int) -> torch.Tensor:
    """Concatenate pool x pool neighbourhoods: [N, P, C] -> [N, P / pool^2, C * pool^2], row-major inside each neighbourhood."""
    num_images, patches, width = features.shape
    side = round(patches**0.5)
    pooled_side = side // pool
    grid = features.view(num_images, pooled_side, pool, pooled_side, pool, width)
    return grid.transpose(2, 3).reshape(num_images, pooled_side * pooled_side, pool * pool * width)


def num_image_tokens(side: int, pool: int, drop_first_patch: bool) -> int:
    """Image tokens of an image with side x side patches. Raises UsageError when `pool` does not divide side, or is combined with
    drop_first_patch."""
    if side % pool:
        raise UsageError(f"model.connector.pool: {side} x {side} patches cannot be divided into neighbourhoods of {pool} x {pool}")
    if drop_first_patch and pool > 1:
        raise UsageError("model.connector.pool: must be 1 with model.drop_first_patch, which leaves an incomplete grid")
    return (side // pool) ** 2 - drop_first_patch
