"""What all connectors have in common: features of patches in, word embeddings out, the number of image tokens known before.

Shapes: N images, P patches per image (side * side, row-major), C hidden size of the vision encoder, Q image tokens per image, D hidden
size of the language model.
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import nn


class Connector(nn.Module, ABC):
    """Maps the patch features of images to word embeddings."""

    @abstractmethod
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Patch features [N, P, C] -> image embeddings [N, Q, D], in the dtype of the connector's weights."""

    def initialize(self, init: Literal["default", "normal"], std: float) -> None:
        """Reset the weights: each module's own initialisation for `default`; linear layers by normal(0, std) with zero bias for
        `normal`."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.LayerNorm):
                module.reset_parameters()
            if init == "normal" and isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def rows_per_image(self, layer: str, patches: int, tokens: int) -> float:
        """Rows that one of its linear layers maps for an image, to count operations.

        Args:
            layer: Name of the layer in the connector.
            patches: P.
            tokens: Q.
        """
        del layer, patches
        return tokens
