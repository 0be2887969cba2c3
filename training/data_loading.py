"""The merged data as the trainer takes it.

In: a Store, a split, a Processor. Out: torch data sets of `Example`s and the loaders' batch samplers and collators.
Called by the trainer; decoding, resizing and tokenising happen here, in the loader's workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from dataset.config import AugmentationConfig
from dataset.loading.augmentation import augment
from dataset.loading.collators import Example, PackedCollator, PaddedCollator
from dataset.loading.encoded_sample import EncodingError
from dataset.loading.multi_turn import (
    Conversation,
    MeasuredSample,
    can_share_conversation,
    conversations,
    follow_up_text,
    num_tokens,
    shuffled_questions,
    to_messages,
)
from dataset.loading.sample_store import SampleStore
from dataset.loading.samplers import BatchingStrategy, DistributedBatchSampler, LengthGroupedBatching, PackedBatching
from dataset.sample import Sample
from errors import UsageError
from model.siglip_qwen.image_tokens import PositionCollator
from model.siglip_qwen.processor import Processor
from progress import track
from training.config import TrainConfig
from training.feature_cache.feature_store import FeatureCache


@dataclass(frozen=True)
class SampleLengths:
    """Tokens of what is trained on: samples, or conversations of several short ones about one picture."""

    conversations: list[Conversation]
    dropped: int

    def __len__(self) -> int:
        return len(self.conversations)

    @property
    def samples(self) -> int:
        """Samples in all conversations."""
        return sum(map(len, self.conversations))

    def sampled_lengths(self, seed: int, epoch: int) -> np.ndarray:
        """int64 [n]: tokens of each conversation as drawn in an epoch."""
        return np.array([num_tokens(conversation, seed, epoch) for conversation in self.conversations], dtype=np.int64)


def measure_lengths(store: SampleStore, rows: np.ndarray, processor: Processor, title: str, max_questions: int = 1) -> SampleLengths:
    """Tokenise the samples in `rows` once for their lengths; those with nothing left to supervise are dropped and counted.

    together: most short questions about one picture that are asked in one conversation.
    """
    found: list[tuple[MeasuredSample, int | None]] = []
    for row, sample in zip(rows.tolist(), track(store.samples(rows), title, len(rows), "samples"), strict=True):
        lengths, joinable = _lengths(sample, processor), max_questions > 1 and can_share_conversation(sample)
        if lengths is not None:
            saved_tokens = _saved_tokens(sample, processor) if joinable else 0
            found.append((MeasuredSample(row, sample.sample_id, lengths, saved_tokens), sample.image_ids[0] if joinable else None))
    return SampleLengths(conversations(found, max_questions, processor.max_length), len(rows) - len(found))


def _lengths(sample: Sample, processor: Processor) -> tuple[int, ...] | None:
    """Length with each target; None when one of them would leave nothing to supervise."""
    prompt = len(processor.prompt(sample.messages, len(sample.image_ids)))
    lengths = [prompt + processor.answer_length(target) for target in sample.targets]
    if max(lengths) <= processor.max_length:
        return tuple(lengths)
    encoded = [processor.encode(sample.messages, target, len(sample.image_ids)) for target in sample.targets]
    return tuple(len(one) for one in encoded if one is not None) if None not in encoded else None


def _saved_tokens(sample: Sample, processor: Processor) -> int:
    """Tokens that a question needs less behind another one about the same picture."""
    return len(processor.prompt(sample.messages, len(sample.image_ids))) - processor.follow_up_length(follow_up_text(sample))


@dataclass(frozen=True)
class CachedFeatures:
    """Features of pictures on disk. digests: what each picture (by image_id) is found by."""

    cache: FeatureCache
    digests: dict[int, str]

    def read(self, image_ids: Sequence[int]) -> torch.Tensor:
        """[pictures, patches, width] in bf16."""
        return self.cache.read([self.digests[image_id] for image_id in image_ids])


class TrainingData(Dataset[Example]):
    """Conversations of a split, encoded, with pixels, or with features where they are kept. An item is asked for by
    (place, epoch): the epoch decides on targets and order."""

    def __init__(
        self,
        store: SampleStore,
        lengths: SampleLengths,
        processor: Processor,
        seed: int,
        augmentation: AugmentationConfig | None = None,
        features: CachedFeatures | None = None,
    ):
        self.store, self.lengths, self.processor = store, lengths, processor
        self.seed, self.augmentation, self.features = seed, augmentation, features

    def __len__(self) -> int:
        return len(self.lengths)

    def sample(self, index: int) -> Sample:
        """The first sample at a place, as it was merged."""
        return self.store.sample(self.lengths.conversations[index][0].row)

    def __getitem__(self, key: tuple[int, int]) -> Example:
        """Raises TesseraError naming the sample when its picture cannot be read or it cannot be encoded."""
        index, epoch = key
        samples = [self.store.sample(member.row) for member in shuffled_questions(self.lengths.conversations[index], self.seed, epoch)]
        sample = samples[0]
        messages, target = to_messages(samples, self.seed, epoch)
        encoded = self.processor.encode(messages, target, len(sample.image_ids))
        if encoded is None:
            raise EncodingError(f"sample {sample.sample_id}: nothing to supervise within {self.processor.max_length} tokens")
        if self.features is not None:
            return Example(sample.sample_id, encoded, self.features.read(sample.image_ids), "image_features")
        images = [self.store.load_image(image_id) for image_id in sample.image_ids]
        if self.augmentation is not None:
            images = [augment(image, self.augmentation, f"{self.seed}/{epoch}/{sample.sample_id}/{i}") for i, image in enumerate(images)]
        return Example(sample.sample_id, encoded, self.processor.pixel_reader.read(images))


@dataclass(frozen=True)
class Batching:
    """How batches are formed: packed rows of `tokens_per_row`, or `batch_size` samples padded to the longest."""

    packed: bool
    per_device_train_batch_size: int
    packing_length: int
    reason: str = ""
    """What decided between the two, in words for people."""

    @classmethod
    def of(cls, train: TrainConfig, device: torch.device) -> "Batching":
        """As train.batching says; auto packs on CUDA and pads elsewhere, where attention over a long row is slower."""
        packed = device.type == "cuda" if train.batching == "auto" else train.batching == "packed"
        reason = f"auto on {device.type}" if train.batching == "auto" else f"train.batching={train.batching}"
        return cls(packed, train.per_device_train_batch_size, train.packing_length, reason)

    def __str__(self) -> str:
        form = (
            f"packed rows of {self.packing_length:,} tokens"
            if self.packed
            else f"{self.per_device_train_batch_size} samples of similar length, padded"
        )
        return f"{form} ({self.reason})"

    def plan(self, lengths: SampleLengths, seed: int, epochs: int) -> BatchingStrategy:
        """The plan of `epochs` epochs. Raises UsageError when a packed row is shorter than a sample."""
        sampled_lengths = [lengths.sampled_lengths(seed, epoch) for epoch in range(epochs)]
        if not self.packed:
            return LengthGroupedBatching(sampled_lengths, self.per_device_train_batch_size, seed)
        longest = max((int(one.max()) for one in sampled_lengths if len(one)), default=0)
        if longest > self.packing_length:
            raise UsageError(
                f"train.packing_length: {self.packing_length} is less than the longest sample of {longest} tokens; lower model.max_length"
            )
        return PackedBatching(sampled_lengths, self.packing_length, seed)

    def collator(self, processor: Processor) -> PositionCollator:
        """What turns examples into model inputs, positions found in the loader's workers included."""
        pad_id = int(processor.tokenizer.pad_token_id)
        longest = min(processor.max_length, self.packing_length)
        collate = PackedCollator(pad_id, self.packing_length, longest) if self.packed else PaddedCollator(pad_id)
        return PositionCollator(collate, processor.image_token_id)

    def sampler(self, lengths: SampleLengths, seed: int, epochs: int, rank: int = 0, world_size: int = 1) -> DistributedBatchSampler:
        """The batch sampler of one process."""
        return DistributedBatchSampler(self.plan(lengths, seed, epochs), epochs, rank, world_size)
