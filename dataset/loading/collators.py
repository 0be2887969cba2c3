"""Collators: encoded samples to model inputs, as right-padded batches (CPU) or packed sequences (GPU).

Shapes: B samples, T tokens of the longest sample, C capacity of a packed row, S segments of a packed row,
N images of all samples, H height and W width in pixels. Samples in a packed row do not attend to each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dataset.loading.encoded_sample import IGNORE_INDEX, EncodedSample

UNREADABLE_IMAGES = "unreadable_images"
"""Key of a batch with its unreadable images, for the trainer to count; no input of the model."""


@dataclass(frozen=True, slots=True)
class UnreadableImage:
    """An image that can no longer be read, and what became of the sample that has it.

    Args:
        path: Image file.
        error: One sentence that names the file.
        sample_id: Sample that has the image.
        replaced_by: Sample that takes its place; None when the place stays empty: a blank image and no supervised token.
    """

    path: str
    error: str
    sample_id: str
    replaced_by: str | None


@dataclass(frozen=True, slots=True)
class Example:
    """An encoded sample with its images.

    Args:
        sample_id: Id that error messages name.
        encoded: Token ids and labels.
        images: Model inputs of the images, such as raw pixels [N, 3, H, W] or cached vision features; concatenated over examples along
            the first dimension. All examples of a batch have the same keys.
        unreadable_images: Images of other samples that this one stands in for.
    """

    sample_id: str
    encoded: EncodedSample
    images: dict[str, torch.Tensor]
    unreadable_images: tuple[UnreadableImage, ...] = ()


@dataclass(frozen=True)
class PaddedCollator:
    """One row per sample, padded on the right: input_ids, attention_mask, labels [B, T] and the flag `padded_right`."""

    pad_id: int

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        shape = (len(examples), max(len(example.encoded) for example in examples))
        input_ids = torch.full(shape, self.pad_id)
        labels = torch.full(shape, IGNORE_INDEX)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        for row, example in enumerate(examples):
            n = len(example.encoded)
            input_ids[row, :n] = torch.tensor(example.encoded.input_ids)
            labels[row, :n] = torch.tensor(example.encoded.labels)
            attention_mask[row, :n] = 1
        padded = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, "padded_right": True}
        return {**padded, **_images(examples)}


@dataclass(frozen=True)
class PackedCollator:
    """A packed sequence: samples concatenated to one row, input_ids, labels, position_ids [1, C].

    Positions restart at 0 with every sample. cu_seqlens int32 [S + 1] holds the segment boundaries, as for variable-length
    attention; padding at the end of the row forms segments of its own.

    Args:
        pad_id: Token id of padding.
        capacity: Tokens of a row (C).
        max_length: Length of the longest segment that can occur.
    """

    pad_id: int
    capacity: int
    max_length: int

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        input_ids = torch.full((1, self.capacity), self.pad_id)
        labels = torch.full((1, self.capacity), IGNORE_INDEX)
        position_ids = torch.zeros((1, self.capacity), dtype=torch.long)
        ends = [0]
        for example in examples:
            start, end = ends[-1], ends[-1] + len(example.encoded)
            input_ids[0, start:end] = torch.tensor(example.encoded.input_ids)
            labels[0, start:end] = torch.tensor(example.encoded.labels)
            position_ids[0, start:end] = torch.arange(end - start)
            ends.append(end)
        # Padding is cut into segments of at most max_length, so that the bound holds for them too.
        while ends[-1] < self.capacity:
            start, end = ends[-1], min(ends[-1] + self.max_length, self.capacity)
            position_ids[0, start:end] = torch.arange(end - start)
            ends.append(end)
        return {
            "input_ids": input_ids,
            "labels": labels,
            "position_ids": position_ids,
            "cu_seqlens": torch.tensor(ends, dtype=torch.int32),
            "max_length": self.max_length,
            **_images(examples),
        }


def _images(examples: Sequence[Example]) -> dict[str, Any]:
    """Images of all examples in order, [N, ...], the sample ids for error messages, and the unreadable images if there are any."""
    unreadable = [image for example in examples for image in example.unreadable_images]
    return {
        **{name: torch.cat([example.images[name] for example in examples]) for name in examples[0].images},
        "sample_ids": [example.sample_id for example in examples],
        **({UNREADABLE_IMAGES: unreadable} if unreadable else {}),
    }
