"""The merged data as the trainer takes it.

In: a Store, a split, a Processor. Out: torch data sets of `Example`s and the loaders' batch samplers and collators.
Called by the trainer; decoding, resizing and tokenising happen here, in the loader's workers.
"""

from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from dataset.augmentation import augment
from dataset.batching import BatchPlan, EpochBatches, Example, PackedCollator, PackedPlan, PaddedCollator, PaddedPlan
from dataset.config import AugmentationConfig
from dataset.processor import EncodingError, Processor
from dataset.sample import Sample, uniform
from dataset.store import Store
from errors import UsageError
from progress import track


@dataclass(frozen=True)
class SampleLengths:
    """Tokens of the usable samples. rows: int64 [n] places in the store; by_target[i]: length with each of its targets."""

    rows: np.ndarray
    sample_ids: list[str]
    by_target: list[tuple[int, ...]]
    dropped: int

    def drawn(self, seed: int, epoch: int) -> np.ndarray:
        """int64 [n]: lengths with the targets of an epoch."""
        return np.array(
            [
                lengths[uniform(sample_id, seed, epoch, len(lengths))]
                for sample_id, lengths in zip(self.sample_ids, self.by_target, strict=True)
            ],
            dtype=np.int64,
        )


def measure(store: Store, rows: np.ndarray, processor: Processor, title: str) -> SampleLengths:
    """Tokenise the samples in `rows` once for their lengths; those with nothing left to supervise are dropped and counted."""
    kept: list[int] = []
    sample_ids: list[str] = []
    by_target: list[tuple[int, ...]] = []
    for row, sample in zip(rows.tolist(), track(store.samples(rows), title, len(rows), "samples"), strict=True):
        lengths = _lengths(sample, processor)
        if lengths is not None:
            kept.append(row)
            sample_ids.append(sample.sample_id)
            by_target.append(lengths)
    return SampleLengths(np.array(kept, dtype=np.int64), sample_ids, by_target, len(rows) - len(kept))


def _lengths(sample: Sample, processor: Processor) -> tuple[int, ...] | None:
    """Length with each target; None when one of them would leave nothing to supervise."""
    prompt = len(processor.prompt(sample.messages, len(sample.image_ids)))
    lengths = [prompt + processor.answer_length(target) for target in sample.targets]
    if max(lengths) <= processor.max_tokens:
        return tuple(lengths)
    encoded = [processor.encode(sample.messages, target, len(sample.image_ids)) for target in sample.targets]
    return tuple(len(one) for one in encoded if one is not None) if None not in encoded else None


class TrainingData(Dataset[Example]):
    """Samples of a split, encoded, with pixels. An item is asked for by (place, epoch): the epoch decides on the target."""

    def __init__(
        self, store: Store, lengths: SampleLengths, processor: Processor, seed: int, augmentation: AugmentationConfig | None = None
    ):
        self.store, self.lengths, self.processor = store, lengths, processor
        self.seed, self.augmentation = seed, augmentation

    def __len__(self) -> int:
        return len(self.lengths.rows)

    def sample(self, place: int) -> Sample:
        """The sample at a place, as it was merged."""
        return self.store.sample(int(self.lengths.rows[place]))

    def __getitem__(self, key: tuple[int, int]) -> Example:
        """Raises TesseraError naming the sample when its picture cannot be read or it cannot be encoded."""
        place, epoch = key
        sample = self.sample(place)
        target = sample.target(self.seed, epoch)
        encoded = self.processor.encode(sample.messages, target, len(sample.image_ids))
        if encoded is None:
            raise EncodingError(f"sample {sample.sample_id}: nothing to supervise within {self.processor.max_tokens} tokens")
        pictures = [self.store.picture(image_id) for image_id in sample.image_ids]
        if self.augmentation is not None:
            pictures = [
                augment(picture, self.augmentation, f"{self.seed}/{epoch}/{sample.sample_id}/{i}") for i, picture in enumerate(pictures)
            ]
        return Example(sample.sample_id, encoded, self.processor.pixels(pictures))


@dataclass(frozen=True)
class Batching:
    """How batches are formed: packed rows of `tokens_per_row`, or `batch_size` samples padded to the longest."""

    packed: bool
    batch_size: int
    tokens_per_row: int

    def plan(self, lengths: SampleLengths, seed: int, epochs: int) -> BatchPlan:
        """The plan of `epochs` epochs. Raises UsageError when a packed row is shorter than a sample."""
        drawn = [lengths.drawn(seed, epoch) for epoch in range(epochs)]
        if not self.packed:
            return PaddedPlan(drawn, self.batch_size, seed)
        longest = max((int(one.max()) for one in drawn if len(one)), default=0)
        if longest > self.tokens_per_row:
            raise UsageError(
                f"train.tokens_per_row: {self.tokens_per_row} is less than the longest sample of {longest} tokens; lower model.max_tokens"
            )
        return PackedPlan(drawn, self.tokens_per_row, seed)

    def collator(self, processor: Processor) -> PackedCollator | PaddedCollator:
        """What turns examples into model inputs."""
        pad_id = int(processor.tokenizer.pad_token_id)
        if not self.packed:
            return PaddedCollator(pad_id)
        return PackedCollator(pad_id, self.tokens_per_row, min(processor.max_tokens, self.tokens_per_row))

    def sampler(self, lengths: SampleLengths, seed: int, epochs: int, rank: int = 0, processes: int = 1) -> EpochBatches:
        """The batch sampler of one process."""
        return EpochBatches(self.plan(lengths, seed, epochs), epochs, rank, processes)
