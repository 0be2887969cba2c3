"""Where samples, image tokens and supervised tokens are in a batch, computed on the host before the batch is moved to the device.

`nonzero` on a CUDA tensor synchronises host and device; with indices from the host, kernels are queued without waiting. Expected of it
on a GPU: no gap between the kernels of two layers. Not measured there.

Shapes: B batch (rows), T tokens per row, N images in the batch, Q image tokens per image, S supervised positions.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
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
class ImageEmbeddings:
    """Embeddings of the images of a batch.

    Args:
        tokens: [sum of Q, D], of all images in order.
        counts: Q of each image.
    """

    tokens: torch.Tensor
    counts: list[int]


def images_of_rows(tokens: Sequence[int], counts: Sequence[int]) -> list[list[int]] | None:
    """The images of each row, by index; None where the tokens do not fit.

    Args:
        tokens: image tokens of each row.
        counts: tokens of each image.
    """
    rows: list[list[int]] = []
    first = 0
    for expected in tokens:
        last, found = first, 0
        while found < expected and last < len(counts):
            found, last = found + counts[last], last + 1
        if found != expected:
            return None
        rows.append(list(range(first, last)))
        first = last
    return rows if first == len(counts) else None


@dataclass(frozen=True)
class BatchLayout:
    """What the collator knows of a batch.

    Args:
        sample_ids: names for error messages, one per row, or one per segment of packed rows.
        cu_seqlens: int32 [segments + 1], borders of the packed samples (see kernels.varlen_attention); None: no packed rows.
        max_length: tokens in the longest packed sample; None reads it from cu_seqlens, which waits for the device.
        padded_right: all padding is on the right, where causal attention never reads it: the loss needs no mask.
        image_positions: int64 [N * Q], image tokens in the flattened batch; None: they are looked for, which waits for the device.
        image_sizes: height and width of each image in pixels, where they are cut into tiles.
        supervised_positions: int64 [S], positions in the flattened batch whose next token is supervised; None: the same.
    """

    sample_ids: Sequence[str] = ()
    cu_seqlens: torch.Tensor | None = None
    max_length: int | None = None
    padded_right: bool = False
    image_positions: torch.Tensor | None = None
    image_sizes: Sequence[tuple[int, int]] = ()
    supervised_positions: torch.Tensor | None = None

    def describe_mismatch(self, image_token_mask: torch.Tensor, image_counts: Sequence[int]) -> str:
        """Error message naming the first sample whose image tokens (mask [B, T]) do not match its images, which have these tokens."""
        if self.cu_seqlens is None:
            counts = image_token_mask.sum(-1).tolist()
        else:
            segments = self.cu_seqlens.tolist()
            counts = [int(image_token_mask.flatten()[start:end].sum()) for start, end in pairwise(segments)]
        names = [*self.sample_ids, *(f"in row {i}" for i in range(len(self.sample_ids), len(counts)))]
        sizes = sorted(set(image_counts)) or [1]
        size = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        total = f"{sum(counts)} image tokens in the batch for {len(image_counts)} images of {size} tokens"
        first = 0
        for name, count in zip(names, counts, strict=True):
            found = 0
            while found < count and first < len(image_counts):
                found, first = found + image_counts[first], first + 1
            if found != count:
                return f"sample {name}: {count} image tokens do not match its images ({total})"
        return f"sample {names[-1]} or an earlier one: {sum(image_counts[first:])} image embeddings have no image token ({total})"

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "BatchLayout":
        """The same with its tensors on a device, as the Trainer and accelerate move a batch."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "BatchLayout":
        """The same with its tensors in pinned memory, as a DataLoader does it."""
        return self._with_tensors(torch.Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "BatchLayout":
        tensors: dict[str, Any] = {name: change(value) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return dataclasses.replace(self, **tensors)


UNKNOWN_LAYOUT = BatchLayout()
"""The layout of rows that are not packed, when nothing was computed on the host."""


LAYOUT_KEYS = ("sample_ids", "cu_seqlens", "max_length", "padded_right")
"""What the collators of dataset.loading put into a batch and a layout takes over."""


def with_layout(batch: dict[str, Any], **positions: Any) -> dict[str, Any]:
    """A batch of a collator, with what it says of its rows, and positions that are known, in `layout`."""
    layout: dict[str, Any] = {key: batch[key] for key in LAYOUT_KEYS if key in batch} | positions
    return {**{key: value for key, value in batch.items() if key not in layout}, "layout": BatchLayout(**layout)}


@dataclass(frozen=True)
class LayoutCollator:
    """Adds to the batches of `collate` their layout, with the positions of image tokens and supervised tokens."""

    collate: Callable[[Sequence[Any]], dict[str, Any]]
    image_token_id: int

    def __call__(self, examples: Sequence[Any]) -> dict[str, Any]:
        batch = self.collate(examples)
        known: dict[str, Any] = {
            "image_positions": find_image_tokens(batch["input_ids"], self.image_token_id),
            "supervised_positions": find_supervised_positions(batch["labels"]),
        }
        if "image_sizes" in batch:
            known["image_sizes"] = [(height, width) for height, width in batch.pop("image_sizes").tolist()]
        return with_layout(batch, **known)
