"""Batch samplers: which samples form the batches of an epoch, as packed rows or as padded batches of similar length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dataset.loading.packing import pack
from errors import UsageError

PACKING_WINDOW = 8192
"""Number of samples packed at a time: enough for full rows, few enough that an epoch stays shuffled."""

GROUPING_WINDOW = 50
"""Number of batches whose samples are sorted by length at a time."""


class BatchingStrategy(Protocol):
    """Divides an epoch into batches."""

    def batches(self, epoch: int) -> list[list[int]]:
        """Sample indices of each batch, in the order of the epoch; every sample is in exactly one batch."""
        ...


@dataclass(frozen=True)
class PackedBatching:
    """Packed rows, one row per batch.

    Args:
        lengths: For each epoch, int [n]: tokens of each sample with the target of that epoch.
        capacity: Most tokens of a row.
        seed: Seed of the order.
    """

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
class LengthGroupedBatching:
    """Batches of `batch_size` samples of similar length, in random order. lengths: as in `PackedBatching`."""

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


class DistributedBatchSampler:
    """The batches of one rank, as lists of (sample index, epoch).

    All epochs and all ranks have the same number of batches. To make the numbers equal, the largest batches are split, so
    that no sample is skipped or repeated.

    Args:
        batching: Divides an epoch into batches.
        epochs: Number of epochs of the training run.
        rank: This process's index among the data-parallel processes.
        world_size: Number of data-parallel processes.

    Raises:
        UsageError: There are too few samples to give every rank a batch; raised on iteration.
    """

    def __init__(self, batching: BatchingStrategy, epochs: int, rank: int = 0, world_size: int = 1):
        self._batching, self._rank, self._world_size = batching, rank, world_size
        self.epoch = 0
        max_batches = max(len(batching.batches(epoch)) for epoch in range(epochs))
        self._num_batches = -(-max_batches // world_size) * world_size

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._num_batches // self._world_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batches = split_largest_batches(self._batching.batches(self.epoch), self._num_batches)
        for batch in batches[self._rank :: self._world_size]:
            yield [(index, self.epoch) for index in batch]


def split_largest_batches(batches: list[list[int]], num_batches: int) -> list[list[int]]:
    """Halve the largest batches until there are `num_batches`. Raises UsageError when there are too few samples."""
    batches = list(batches)
    while len(batches) < num_batches:
        largest = max(range(len(batches)), key=lambda i: len(batches[i]), default=None)
        if largest is None or len(batches[largest]) < 2:
            raise UsageError(f"{sum(map(len, batches))} training samples are too few for {num_batches} batches; use fewer processes")
        batch = batches[largest]
        half = len(batch) // 2
        batches[largest : largest + 1] = [batch[:half], batch[half:]]
    return batches
