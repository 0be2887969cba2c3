"""Collators: encoded samples to model inputs, as right-padded batches (CPU) or packed sequences (GPU).

Shapes: B samples, T tokens of the longest sample, C capacity of a packed row, S segments of a packed row,
N images of all samples, H height and W width in pixels. Samples in a packed row do not attend to each other.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

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
        encoded = [example.encoded for example in examples]
        return {
            "input_ids": pad_sequence([torch.tensor(one.input_ids) for one in encoded], batch_first=True, padding_value=self.pad_id),
            "attention_mask": pad_sequence([torch.ones(len(one), dtype=torch.long) for one in encoded], batch_first=True),
            "labels": pad_sequence([torch.tensor(one.labels) for one in encoded], batch_first=True, padding_value=IGNORE_INDEX),
            "padded_right": True,
            **_images(examples),
        }


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
        segments = [len(example.encoded) for example in examples]
        used = sum(segments)
        input_ids[0, :used] = torch.tensor([token for example in examples for token in example.encoded.input_ids])
        labels[0, :used] = torch.tensor([label for example in examples for label in example.encoded.labels])
        # Padding is cut into segments of at most max_length, so that the bound holds for them too.
        segments += [min(self.max_length, self.capacity - start) for start in range(used, self.capacity, self.max_length)]
        return {
            "input_ids": input_ids,
            "labels": labels,
            "position_ids": torch.cat([torch.arange(length) for length in segments])[None],
            "cu_seqlens": torch.tensor([0, *itertools.accumulate(segments)], dtype=torch.int32),
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
