"""Where a batch holds pictures and what of it is supervised, found on the host before the batch goes to a device.

Asked for such places, a CUDA device makes the host wait until it has done all it was given; known beforehand, the host
runs ahead of it. In: a collated batch. Out: the same with `image_positions` and `supervised_positions`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dataset.loading.encoded_sample import IGNORE_INDEX


def find_image_tokens(input_ids: torch.Tensor, image_token_id: int) -> torch.Tensor:
    """Places of the placeholders in the flattened batch: [B, T] -> int64 [N * P], in order of appearance."""
    return (input_ids.flatten() == image_token_id).nonzero().squeeze(1)


def find_supervised_positions(labels: torch.Tensor) -> torch.Tensor:
    """Places in the flattened batch whose next token is supervised: [B, T] -> int64 [S]; the token stands one place on."""
    mask = labels != IGNORE_INDEX
    # The first token of a row follows none; the last place of the row before it has no next token.
    mask[:, 0] = False
    return mask.flatten().nonzero().squeeze(1) - 1


@dataclass(frozen=True)
class PositionCollator:
    """A collator that adds both kinds of places to what `collate` makes."""

    collate: Callable[[Sequence[Any]], dict[str, Any]]
    image_token_id: int

    def __call__(self, examples: Sequence[Any]) -> dict[str, Any]:
        batch = self.collate(examples)
        return {
            **batch,
            "image_positions": find_image_tokens(batch["input_ids"], self.image_token_id),
            "supervised_positions": find_supervised_positions(batch["labels"]),
        }
