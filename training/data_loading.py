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
from dataset.loading.multi_turn import Conversation, Measured, can_join, conversations, length, ordered, question_text, spoken
from dataset.loading.sample_store import Store
from dataset.loading.samplers import BatchPlan, EpochBatches, PackedPlan, PaddedPlan
from dataset.sample import Sample
from errors import UsageError
from model.siglip_qwen.image_tokens import Locating
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

    def drawn(self, seed: int, epoch: int) -> np.ndarray:
        """int64 [n]: tokens of each conversation as drawn in an epoch."""
        return np.array([length(conversation, seed, epoch) for conversation in self.conversations], dtype=np.int64)


def measure(store: Store, rows: np.ndarray, processor: Processor, title: str, together: int = 1) -> SampleLengths:
    """Tokenise the samples in `rows` once for their lengths; those with nothing left to supervise are dropped and counted.

    together: most short questions about one picture that are asked in one conversation.
    """
    found: list[tuple[Measured, int | None]] = []
    for row, sample in zip(rows.tolist(), track(store.samples(rows), title, len(rows), "samples"), strict=True):
        lengths, joins = _lengths(sample, processor), together > 1 and can_join(sample)
        if lengths is not None:
            saved = _saved(sample, processor) if joins else 0
            found.append((Measured(row, sample.sample_id, lengths, saved), sample.image_ids[0] if joins else None))
    return SampleLengths(conversations(found, together, processor.max_tokens), len(rows) - len(found))


def _lengths(sample: Sample, processor: Processor) -> tuple[int, ...] | None:
    """Length with each target; None when one of them would leave nothing to supervise."""
    prompt = len(processor.prompt(sample.messages, len(sample.image_ids)))
    lengths = [prompt + processor.answer_length(target) for target in sample.targets]
    if max(lengths) <= processor.max_tokens:
        return tuple(lengths)
    encoded = [processor.encode(sample.messages, target, len(sample.image_ids)) for target in sample.targets]
    return tuple(len(one) for one in encoded if one is not None) if None not in encoded else None


def _saved(sample: Sample, processor: Processor) -> int:
    """Tokens that a question needs less behind another one about the same picture."""
    return len(processor.prompt(sample.messages, len(sample.image_ids))) - processor.follow_up_length(question_text(sample))


@dataclass(frozen=True)
class KeptFeatures:
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
        store: Store,
        lengths: SampleLengths,
        processor: Processor,
        seed: int,
        augmentation: AugmentationConfig | None = None,
        features: KeptFeatures | None = None,
    ):
        self.store, self.lengths, self.processor = store, lengths, processor
        self.seed, self.augmentation, self.features = seed, augmentation, features

    def __len__(self) -> int:
        return len(self.lengths)

    def sample(self, place: int) -> Sample:
        """The first sample at a place, as it was merged."""
        return self.store.sample(self.lengths.conversations[place][0].row)

    def __getitem__(self, key: tuple[int, int]) -> Example:
        """Raises TesseraError naming the sample when its picture cannot be read or it cannot be encoded."""
        place, epoch = key
        samples = [self.store.sample(member.row) for member in ordered(self.lengths.conversations[place], self.seed, epoch)]
        sample = samples[0]
        messages, target = spoken(samples, self.seed, epoch)
        encoded = self.processor.encode(messages, target, len(sample.image_ids))
        if encoded is None:
            raise EncodingError(f"sample {sample.sample_id}: nothing to supervise within {self.processor.max_tokens} tokens")
        if self.features is not None:
            return Example(sample.sample_id, encoded, self.features.read(sample.image_ids), "image_features")
        pictures = [self.store.picture(image_id) for image_id in sample.image_ids]
        if self.augmentation is not None:
            pictures = [
                augment(picture, self.augmentation, f"{self.seed}/{epoch}/{sample.sample_id}/{i}") for i, picture in enumerate(pictures)
            ]
        return Example(sample.sample_id, encoded, self.processor.pictures.read(pictures))


@dataclass(frozen=True)
class Batching:
    """How batches are formed: packed rows of `tokens_per_row`, or `batch_size` samples padded to the longest."""

    packed: bool
    batch_size: int
    tokens_per_row: int
    why: str = ""
    """What decided between the two, in words for people."""

    @classmethod
    def of(cls, train: TrainConfig, device: torch.device) -> "Batching":
        """As train.batching says; auto packs on CUDA and pads elsewhere, where attention over a long row is slower."""
        packed = device.type == "cuda" if train.batching == "auto" else train.batching == "packed"
        why = f"auto on {device.type}" if train.batching == "auto" else f"train.batching={train.batching}"
        return cls(packed, train.batch_size, train.tokens_per_row, why)

    def __str__(self) -> str:
        form = f"packed rows of {self.tokens_per_row:,} tokens" if self.packed else f"{self.batch_size} samples of similar length, padded"
        return f"{form} ({self.why})"

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

    def collator(self, processor: Processor) -> Locating:
        """What turns examples into model inputs, positions found in the loader's workers included."""
        pad_id = int(processor.tokenizer.pad_token_id)
        longest = min(processor.max_tokens, self.tokens_per_row)
        collate = PackedCollator(pad_id, self.tokens_per_row, longest) if self.packed else PaddedCollator(pad_id)
        return Locating(collate, processor.placeholder_id)

    def sampler(self, lengths: SampleLengths, seed: int, epochs: int, rank: int = 0, processes: int = 1) -> EpochBatches:
        """The batch sampler of one process."""
        return EpochBatches(self.plan(lengths, seed, epochs), epochs, rank, processes)
