"""Indices of image tokens and supervised positions, computed on the host before the batch is moved to the device.

`nonzero` on a CUDA tensor synchronises host and device; with indices from the host, kernels are queued without waiting.

Shapes: B batch (rows), T tokens per row, N images in the batch, Q image tokens per image, S supervised positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dataset.loading.encoded_sample import IGNORE_INDEX


def find_image_tokens(input_ids: torch.Tensor, image_token_id: int) -> torch.Tensor:
    """Indices of the image tokens in the flattened batch: [B, T] -> int64 [N * Q], ascending."""
    return (input_ids.flatten() == image_token_id).nonzero().squeeze(1)


def find_supervised_positions(labels: torch.Tensor) -> torch.Tensor:
    """Indices in the flattened batch whose next token is supervised: labels [B, T] -> int64 [S]; the target is at index + 1."""
    mask = labels != IGNORE_INDEX
    # No position predicts the first token of a row: the position before it in the flattened batch ends another row.
    mask[:, 0] = False
    return mask.flatten().nonzero().squeeze(1) - 1


@dataclass(frozen=True)
class PositionCollator:
    """Add `image_positions` and `supervised_positions` to the batch that `collate` returns."""

    collate: Callable[[Sequence[Any]], dict[str, Any]]
    image_token_id: int

    def __call__(self, examples: Sequence[Any]) -> dict[str, Any]:
        batch = self.collate(examples)
        return {
            **batch,
            "image_positions": find_image_tokens(batch["input_ids"], self.image_token_id),
            "supervised_positions": find_supervised_positions(batch["labels"]),
        }
