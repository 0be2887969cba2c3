"""Batch samplers: which samples form the batches of an epoch, as packed rows or as padded batches of similar length."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dataset.loading.packing import pack

PACKING_WINDOW = 8192
"""Number of samples packed at a time: enough for full rows, few enough that an epoch stays shuffled."""

GROUPING_WINDOW = 50
"""Number of batches whose samples are sorted by length at a time."""


@dataclass(frozen=True)
class BatchingStrategy(ABC):
    """Divides an epoch into batches.

    Args:
        lengths: For each epoch, int [n]: tokens of each sample with the target of that epoch.
        size: Most tokens of a packed row, or samples of a padded batch.
        seed: Seed of the order.
        chosen: For each epoch, int [m]: the samples that it has; all once by default.
    """

    lengths: Sequence[np.ndarray]
    size: int
    seed: int
    chosen: Sequence[np.ndarray] | None = None

    def batches(self, epoch: int) -> list[list[int]]:
        """Sample indices of each batch, in the order of the epoch; every sample of the epoch is in exactly one batch."""
        lengths = self.lengths[epoch]
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(lengths)) if self.chosen is None else rng.permutation(self.chosen[epoch])
        batches = self._batches(lengths, order)
        return [batches[i] for i in rng.permutation(len(batches))]

    @abstractmethod
    def _batches(self, lengths: np.ndarray, order: np.ndarray) -> list[list[int]]:
        """Batches of samples in random order."""

    @abstractmethod
    def divide(self, batches: list[list["SampleKey"]], count: int) -> list[list["SampleKey"]]:
        """The samples of some batches in `count` batches, of which some are empty when there are too few samples."""


class PackedBatching(BatchingStrategy):
    """Packed rows, one row per batch."""

    def _batches(self, lengths: np.ndarray, order: np.ndarray) -> list[list[int]]:
        windows = [order[start : start + PACKING_WINDOW] for start in range(0, len(order), PACKING_WINDOW)]
        return [window[row].tolist() for window in windows for row in pack(lengths[window], self.size)]

    def divide(self, batches: list[list["SampleKey"]], count: int) -> list[list["SampleKey"]]:
        """Split rows; they are never joined, since a row has no room for another one."""
        return split_largest_batches(batches, count)


class LengthGroupedBatching(BatchingStrategy):
    """Batches of samples of similar length, in random order."""

    def _batches(self, lengths: np.ndarray, order: np.ndarray) -> list[list[int]]:
        window = self.size * GROUPING_WINDOW
        groups = [order[i : i + window] for i in range(0, len(order), window)]
        order = np.concatenate([group[np.argsort(-lengths[group], kind="stable")] for group in groups])
        return [order[i : i + self.size].tolist() for i in range(0, len(order), self.size)]

    def divide(self, batches: list[list["SampleKey"]], count: int) -> list[list["SampleKey"]]:
        """Batches of equal size, give or take one, of samples of similar length."""
        keys = sorted((key for batch in batches for key in batch), key=lambda key: -int(self.lengths[key.epoch][key.index]))
        return [[keys[i] for i in part] for part in np.array_split(np.arange(len(keys)), count)]


@dataclass(frozen=True, slots=True)
class SampleKey:
    """Key of an item in a batch."""

    index: int
    """Index of the sample."""
    epoch: int
    """Epoch that selects the sample's target and augmentation."""
    supervised: bool = True
    """False: the sample only fills the micro-batch of a rank that has no sample of its own; none of its tokens is supervised."""


@dataclass(frozen=True)
class StepShape:
    """How an optimizer step is made up: `batches` of the strategy, on all ranks together, in `micro_batches` on each rank.

    The first number is a property of the run, the second of a launch: a step has the same samples with any number of processes.
    """

    batches: int = 1
    micro_batches: int = 1


class DistributedBatchSampler:
    """The micro-batches of one rank over all epochs, as lists of `SampleKey`.

    Optimizer steps follow one another over the borders of epochs; the last one may be smaller. All ranks have equally many
    micro-batches in every step, and no sample is skipped or repeated.

    Args:
        batching: Divides an epoch into batches.
        epochs: Number of epochs; of a last fraction, the first batches of that epoch are used.
        shape: Batches and micro-batches of an optimizer step.
        rank: This process's index among the data-parallel processes.
        world_size: Number of data-parallel processes.
    """

    def __init__(self, batching: BatchingStrategy, epochs: float, shape: StepShape, rank: int = 0, world_size: int = 1):
        self._batching, self._epochs, self._shape = batching, epochs, shape
        self._rank, self._world_size = rank, world_size
        counts = [len(batching.batches(epoch)) for epoch in range(math.ceil(epochs))]
        fraction = epochs - (len(counts) - 1)
        self._num_batches = sum(counts[:-1]) + math.ceil(fraction * counts[-1])

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""
        return math.ceil(self._num_batches / self._shape.batches)

    def __len__(self) -> int:
        """Number of micro-batches of this rank."""
        full_steps, rest = divmod(self._num_batches, self._shape.batches)
        return full_steps * self._shape.micro_batches + self._micro_batches(rest)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        batches = itertools.islice(self._batches(), self._num_batches)
        while step := list(itertools.islice(batches, self._shape.batches)):
            micro_batches = self._micro_batches(len(step)) * self._world_size
            divided = step if len(step) == micro_batches else self._batching.divide(step, micro_batches)
            filler = [replace(step[0][0], supervised=False)]
            for batch in divided[self._rank :: self._world_size]:
                yield batch or filler

    def _batches(self) -> Iterator[list[SampleKey]]:
        for epoch in range(math.ceil(self._epochs)):
            for batch in self._batching.batches(epoch):
                yield [SampleKey(index, epoch) for index in batch]

    def _micro_batches(self, batches: int) -> int:
        """Micro-batches of each rank in a step of `batches` batches: fewer in a last step that is not full."""
        return math.ceil(batches * self._shape.micro_batches / self._shape.batches)


def split_largest_batches(batches: list[list[SampleKey]], num_batches: int) -> list[list[SampleKey]]:
    """Halve the largest batches until there are `num_batches`; batches of one sample leave empty ones."""
    batches = list(batches)
    while len(batches) < num_batches:
        largest = max(range(len(batches)), key=lambda i: len(batches[i]))
        batch = batches[largest]
        half = (len(batch) + 1) // 2
        batches[largest : largest + 1] = [batch[:half], batch[half:]]
    return batches
