"""Which samples stand in which batch, and how a batch looks: packed rows on a GPU, length-grouped padding on a CPU.

In: lengths in tokens, encoded samples with their pixels. Out: lists of sample places an epoch, and model inputs.
Called by the data loaders of training and validation. In a packed row no sample sees another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dataset.loading.encoded_sample import IGNORE_INDEX, EncodedSample


@dataclass(frozen=True, slots=True)
class Example:
    """An encoded sample and its pictures: raw pixels [pictures, 3, height, width] (see dataset.pixels), or features."""

    sample_id: str
    encoded: EncodedSample
    images: torch.Tensor
    image_input_name: str = "pixel_values"
    """The model's name for what `pictures` holds; the same in all examples of a batch."""


@dataclass(frozen=True)
class PaddedCollator:
    """Samples side by side, padded on the right, as `padded_right` says: input_ids, attention_mask, labels [batch, longest]."""

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
    """Samples one behind the other in a row of `capacity` tokens: input_ids, labels, position_ids [1, capacity].

    Positions restart with every sample. cu_seqlens int32 [segments + 1] holds the starts and the end; empty room at the
    end forms segments of its own. max_length is the longest segment that may occur.
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
        # Empty room is cut into segments no longer than a sample can be, so that max_length holds for them too.
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
    """All pictures in order of appearance, and the ids that an error message names."""
    return {
        examples[0].image_input_name: torch.cat([example.images for example in examples]),
        "sample_ids": [example.sample_id for example in examples],
    }
