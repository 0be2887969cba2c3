"""Which samples stand in which batch, and how a batch looks: packed rows on a GPU, length-grouped padding on a CPU.

In: lengths in tokens, encoded samples with their pixels. Out: lists of sample places an epoch, and model inputs.
Called by the data loaders of training and validation. In a packed row no sample sees another.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from dataset.packing import pack
from dataset.processor import IGNORED, Encoded
from errors import UsageError

PACKING_WINDOW = 8192
"""Samples that are packed together: enough for full rows, few enough that an epoch stays shuffled."""
GROUPING_WINDOW = 50
"""Batches that are sorted by length together."""


@dataclass(frozen=True, slots=True)
class Example:
    """An encoded sample and its pictures: raw pixels [pictures, 3, height, width] (see dataset.pixels), or features."""

    sample_id: str
    encoded: Encoded
    pictures: torch.Tensor
    pictures_as: str = "pixel_values"
    """The model's name for what `pictures` holds; the same in all examples of a batch."""


class BatchPlan(Protocol):
    """How an epoch is cut into batches."""

    def batches(self, epoch: int) -> list[list[int]]:
        """Places of the samples of each batch, in the order of the epoch; every sample stands in just one."""
        ...


@dataclass(frozen=True)
class PackedPlan:
    """Rows of at most `capacity` tokens. lengths[epoch]: int [n] tokens of each sample as drawn in that epoch."""

    lengths: Sequence[np.ndarray]
    capacity: int
    seed: int

    def batches(self, epoch: int) -> list[list[int]]:
        lengths = self.lengths[epoch]
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(lengths))
        rows: list[list[int]] = []
        for start in range(0, len(order), PACKING_WINDOW):
            window = order[start : start + PACKING_WINDOW]
            rows += [window[row].tolist() for row in pack(lengths[window], self.capacity)]
        return [rows[i] for i in rng.permutation(len(rows))]


@dataclass(frozen=True)
class PaddedPlan:
    """Batches of `batch_size` samples of similar length, in random order."""

    lengths: Sequence[np.ndarray]
    batch_size: int
    seed: int

    def batches(self, epoch: int) -> list[list[int]]:
        lengths = self.lengths[epoch]
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(lengths))
        window = self.batch_size * GROUPING_WINDOW
        groups = [order[i : i + window] for i in range(0, len(order), window)]
        order = np.concatenate([group[np.argsort(-lengths[group], kind="stable")] for group in groups])
        batches = [order[i : i + self.batch_size].tolist() for i in range(0, len(order), self.batch_size)]
        return [batches[i] for i in rng.permutation(len(batches))]


class EpochBatches:
    """A batch sampler: this process's batches of an epoch, as lists of (place, epoch).

    Every epoch has the same number of batches and every process the same share: where rows do not come out even, full
    ones are divided. So no sample is left out or seen twice. Raises UsageError when there are fewer samples than processes.
    """

    def __init__(self, plan: BatchPlan, epochs: int, rank: int = 0, processes: int = 1):
        self._plan, self._rank, self._processes = plan, rank, processes
        self.epoch = 0
        most = max(len(plan.batches(epoch)) for epoch in range(epochs))
        self._total = -(-most // processes) * processes

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is about."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._total // self._processes

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batches = divide(self._plan.batches(self.epoch), self._total)
        for batch in batches[self._rank :: self._processes]:
            yield [(place, self.epoch) for place in batch]


def divide(batches: list[list[int]], wanted: int) -> list[list[int]]:
    """Cut the largest batches in two until there are `wanted` of them. Raises UsageError when there are too few samples."""
    batches = list(batches)
    while len(batches) < wanted:
        largest = max(range(len(batches)), key=lambda i: len(batches[i]), default=None)
        if largest is None or len(batches[largest]) < 2:
            raise UsageError(f"{sum(map(len, batches))} training samples are too few for {wanted} batches; use fewer processes")
        batch = batches[largest]
        half = len(batch) // 2
        batches[largest : largest + 1] = [batch[:half], batch[half:]]
    return batches


@dataclass(frozen=True)
class PaddedCollator:
    """Samples side by side, padded on the right, as `padded_right` says: input_ids, attention_mask, labels [batch, longest]."""

    pad_id: int

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        shape = (len(examples), max(len(example.encoded) for example in examples))
        input_ids = torch.full(shape, self.pad_id)
        labels = torch.full(shape, IGNORED)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        for row, example in enumerate(examples):
            n = len(example.encoded)
            input_ids[row, :n] = torch.tensor(example.encoded.input_ids)
            labels[row, :n] = torch.tensor(example.encoded.labels)
            attention_mask[row, :n] = 1
        padded = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, "padded_right": True}
        return {**padded, **_pictures(examples)}


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
        labels = torch.full((1, self.capacity), IGNORED)
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
            **_pictures(examples),
        }


def _pictures(examples: Sequence[Example]) -> dict[str, Any]:
    """All pictures in order of appearance, and the ids that an error message names."""
    return {
        examples[0].pictures_as: torch.cat([example.pictures for example in examples]),
        "sample_ids": [example.sample_id for example in examples],
    }
