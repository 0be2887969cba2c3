"""Training and validation data for the trainer: sample lengths, the torch dataset, batching.

In: a SampleStore, its rows of a split, a processor. Out: a torch dataset of `Example`s, batch samplers and collators.
Images are decoded and resized and text is tokenised in the DataLoader's workers.
Shapes: N images, P patches, D hidden size of the vision encoder.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from dataset.config import AugmentationConfig
from dataset.loading.augmentation import augment_conversation
from dataset.loading.collators import Example, PackedCollator, PaddedCollator, UnreadableImage
from dataset.loading.encoded_sample import EncodedSample, EncodingError
from dataset.loading.image_io import ImageError, read_with_retries
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
from dataset.loading.samplers import BatchingStrategy, DistributedBatchSampler, LengthGroupedBatching, PackedBatching, SampleKey, StepShape
from dataset.loading.source_mix import SourceMix
from dataset.remote_files import FilePath
from dataset.sample import Sample
from errors import TesseraError, UsageError
from model.family import Collate
from model.kernels.autocast import Precision
from model.kernels.device_capability import device_capability
from model.processors.sample_processor import ImageSize, SampleProcessor
from progress import track
from training.config import TrainConfig
from training.feature_cache.feature_store import FeatureCache
from training.unreadable_images import substitutes


@dataclass(frozen=True)
class SampleLengths:
    """Lengths in tokens of the conversations to train on. A conversation is one sample, or several short ones about one image.

    dropped: ids of the samples without a supervised token within model.max_length.
    """

    conversations: list[Conversation]
    dropped: tuple[str, ...]
    mix: SourceMix | None = None
    """Which of them an epoch has; all once without it."""

    def __len__(self) -> int:
        return len(self.conversations)

    @property
    def samples(self) -> int:
        """Number of samples in all conversations."""
        return sum(map(len, self.conversations))

    def sampled_lengths(self, seed: int, epoch: int) -> np.ndarray:
        """int64 [conversations]: tokens of each conversation with the targets and question order sampled for an epoch."""
        return np.array([num_tokens(conversation, seed, epoch) for conversation in self.conversations], dtype=np.int64)

    def epoch_indices(self, seed: int, epoch: int) -> np.ndarray:
        """int64: the conversations of an epoch, in no particular order."""
        return np.arange(len(self)) if self.mix is None else self.mix.indices(seed, epoch)


def evenly_spaced(length: int, count: int) -> np.ndarray:
    """At most `count` of the indices below `length`, evenly spaced, so that every source is represented."""
    return np.linspace(0, length - 1, min(count, length)).astype(np.int64)


def measure_lengths(
    store: SampleStore, rows: np.ndarray, processor: SampleProcessor, title: str, max_questions: int = 1, boxes_move: bool = False
) -> SampleLengths:
    """Tokenise the samples in `rows` (int [samples]) once to measure them; samples without a supervised token are dropped.

    title: of the progress bar; max_questions: at most this many short questions about one image are joined into one conversation;
    boxes_move: whether augmentation may change boxes, so that there must be room for the text of any.
    """
    measured: list[tuple[MeasuredSample, int | None]] = []
    dropped: list[str] = []
    for row, sample in zip(rows.tolist(), track(store.samples(rows), title, len(rows), "samples"), strict=True):
        sizes, sample = image_sizes(store, sample, processor), sample.with_widest_boxes() if boxes_move else sample
        lengths, joinable = _lengths(sample, processor, sizes), max_questions > 1 and can_share_conversation(sample)
        if lengths is None:
            dropped.append(sample.sample_id)
        else:
            saved_tokens = _saved_tokens(sample, processor, sizes) if joinable else 0
            measured.append((MeasuredSample(row, sample.sample_id, lengths, saved_tokens), sample.image_ids[0] if joinable else None))
    return SampleLengths(conversations(measured, max_questions, processor.max_length), tuple(dropped))


def image_sizes(store: SampleStore, sample: Sample, processor: SampleProcessor) -> list[ImageSize]:
    """Width and height of each image of a sample; empty where the processor does not read them."""
    rows = [store.image(image_id) for image_id in sample.image_ids] if processor.sizes_matter else []
    return [(row.width, row.height) for row in rows]


def _lengths(sample: Sample, processor: SampleProcessor, sizes: Sequence[ImageSize]) -> tuple[int, ...] | None:
    """Length in tokens with each target; None when the model cannot take the images, or truncation leaves a target no supervised token."""
    messages, num_images = sample.prompted_messages, len(sample.image_ids)
    try:
        processor.image_tokens(num_images, sizes)
    except EncodingError:
        return None
    prompt = len(processor.prompt(messages, num_images, sizes, sample.task))
    lengths = [prompt + len(processor.answer_ids(target)) for target in sample.targets]
    if max(lengths) <= processor.max_length:
        return tuple(lengths)
    encoded = [processor.encode(messages, target, num_images, sizes=sizes, task=sample.task) for target in sample.targets]
    return tuple(len(truncated) for truncated in encoded if truncated is not None) if None not in encoded else None


def _saved_tokens(sample: Sample, processor: SampleProcessor, sizes: Sequence[ImageSize]) -> int:
    """Tokens saved when a question follows another one about the same image."""
    alone = len(processor.prompt(sample.prompted_messages, len(sample.image_ids), sizes, sample.task))
    return alone - processor.follow_up_length(follow_up_text(sample))


def encode_samples(
    samples: Sequence[Sample], sizes: Sequence[ImageSize], processor: SampleProcessor, seed: int, epoch: int
) -> EncodedSample | None:
    """Samples joined to one conversation, with the targets of an epoch; None where truncation leaves nothing to supervise.

    Raises EncodingError for images that the model cannot take. sizes: of the images of the first, where the processor reads them.
    """
    messages, target = to_messages(samples, seed, epoch)
    return processor.encode(messages, target, len(samples[0].image_ids), sizes=sizes, task=samples[0].task)


def blank_example(sample: Sample, encoded: EncodedSample, sizes: Sequence[ImageSize], processor: SampleProcessor) -> Example:
    """A sample with blank images of these sizes and without supervised tokens, which adds nothing to any loss."""
    images = processor.blank_images(len(sample.image_ids), sizes)
    return Example(sample.sample_id, encoded.unsupervised(), processor.read(images))


@dataclass(frozen=True)
class CachedFeatures:
    """Vision features on disk. digests: the cache key of each image, by image_id."""

    cache: FeatureCache
    digests: dict[int, str]

    def __contains__(self, image_id: int) -> bool:
        """Whether the features of an image were computed; they were not if its file could not be read."""
        return not self.cache.missing([self.digests[image_id]])

    def read(self, image_ids: Sequence[int]) -> torch.Tensor:
        """bf16 [N, P, D]."""
        return self.cache.read([self.digests[image_id] for image_id in image_ids])


@dataclass(frozen=True, eq=False)
class TrainingData(Dataset[Example]):
    """Encoded conversations of a split, with pixels or cached vision features.

    The epoch in the key of an item selects the target of each sample and the order of the questions.
    """

    store: SampleStore
    lengths: SampleLengths
    """What `measure_lengths` returned; one item per conversation."""
    processor: SampleProcessor
    seed: int
    """Seed of targets, question order and augmentation."""
    augmentation: AugmentationConfig | None = None
    features: CachedFeatures | None = None
    """Cached features to use in place of pixels; None loads the images."""
    replace_unreadable: bool = True
    """Whether another sample takes the place of one whose image cannot be read; if not, its place stays empty, as in validation, where
    no sample may count twice."""

    def __len__(self) -> int:
        return len(self.lengths)

    def sample(self, index: int) -> Sample:
        """The first sample of a conversation, as it is stored."""
        return self.store.sample(self.lengths.conversations[index][0].row)

    def __getitem__(self, key: SampleKey) -> Example:
        """The example, or what takes its place when an image cannot be read; then `unreadable_images` names it.

        Raises EncodingError naming the sample when it cannot be encoded.
        """
        failures = []
        for candidate in self._candidates(key):
            try:
                example = self._example(candidate, key.epoch)
            except _UnreadableSampleError as failure:
                failures.append(failure)
                continue
            example = _standing_in(example, failures, example.sample_id)
            return example if key.supervised else dataclasses.replace(example, encoded=example.encoded.unsupervised())
        empty = self._empty_example(key.index, key.epoch)
        # The sample that a filler repeats names its image where it is trained on.
        return _standing_in(empty, failures, None) if key.supervised else empty

    def _candidates(self, key: SampleKey) -> Iterator[int]:
        """The conversation itself, then those that may take its place."""
        yield key.index
        if self.replace_unreadable and key.supervised:
            yield from substitutes(self.lengths.sampled_lengths(self.seed, key.epoch), key.index, self.seed, key.epoch)

    def _empty_example(self, index: int, epoch: int) -> Example:
        """The conversation with blank images and without supervised tokens, which adds nothing to any loss."""
        sample, encoded = self.encode(index, epoch)
        if self.features is not None:
            inputs = {"image_features": torch.zeros(len(sample.image_ids), *self.features.cache.shape, dtype=torch.bfloat16)}
            return Example(sample.sample_id, encoded.unsupervised(), inputs)
        return blank_example(sample, encoded, image_sizes(self.store, sample, self.processor), self.processor)

    def encode(self, index: int, epoch: int) -> tuple[Sample, EncodedSample]:
        """The first sample of a conversation, and the whole conversation with the targets of an epoch."""
        samples = self._samples(index, epoch)
        sample, encoded = samples[0], self._encode(samples, epoch)
        if encoded is None:
            raise EncodingError(f"sample {sample.sample_id}: nothing to supervise within {self.processor.max_length} tokens")
        return sample, encoded

    def _samples(self, index: int, epoch: int) -> list[Sample]:
        return [self.store.sample(member.row) for member in shuffled_questions(self.lengths.conversations[index], self.seed, epoch)]

    def _encode(self, samples: Sequence[Sample], epoch: int) -> EncodedSample | None:
        return encode_samples(samples, image_sizes(self.store, samples[0], self.processor), self.processor, self.seed, epoch)

    def _example(self, index: int, epoch: int) -> Example:
        """Raises _UnreadableSampleError when an image cannot be read."""
        sample, encoded = self.encode(index, epoch)
        if self.features is not None:
            for image_id in sample.image_ids:
                if image_id not in self.features:
                    path = self.store.image(image_id).path
                    raise _UnreadableSampleError(path, sample.sample_id, f"{path}: could not be read when features were computed")
            return Example(sample.sample_id, encoded, {"image_features": self.features.read(sample.image_ids)})
        images = [self._load_image(image_id, sample.sample_id) for image_id in sample.image_ids]
        self._check_sizes(sample, images)
        if self.augmentation is not None:
            key, room = f"{self.seed}/{epoch}/{sample.sample_id}", num_tokens(self.lengths.conversations[index], self.seed, epoch)
            samples, encode = self._samples(index, epoch), partial(self._encode, epoch=epoch)
            images, encoded = augment_conversation(images, samples, self.augmentation, key, encode, encoded, room)
        return Example(sample.sample_id, encoded, self.processor.read(images))

    def _check_sizes(self, sample: Sample, images: Sequence[Image.Image]) -> None:
        """Raise _UnreadableSampleError for an image that was replaced by one of another size, where that changes its tokens."""
        for image_id, image, size in zip(sample.image_ids, images, image_sizes(self.store, sample, self.processor), strict=False):
            if image.size != size:
                path = self.store.image(image_id).path
                found, merged = (f"{width} x {height}" for width, height in (image.size, size))
                raise _UnreadableSampleError(path, sample.sample_id, f"{path}: has {found} pixels, {merged} when the data were merged")

    def _load_image(self, image_id: int, sample_id: str) -> Image.Image:
        try:
            return read_with_retries(partial(self.store.load_image, image_id))
        except ImageError as error:
            raise _UnreadableSampleError(self.store.image(image_id).path, sample_id, str(error)) from error


class _UnreadableSampleError(TesseraError):
    """An image of a sample cannot be read."""

    def __init__(self, path: FilePath, sample_id: str, message: str):
        super().__init__(message)
        self.path, self.sample_id = path, sample_id


def _standing_in(example: Example, failures: Sequence[_UnreadableSampleError], replaced_by: str | None) -> Example:
    """The example with the images of the samples that it stands in for."""
    images = tuple(UnreadableImage(str(failure.path), str(failure), failure.sample_id, replaced_by) for failure in failures)
    return dataclasses.replace(example, unreadable_images=images) if images else example


@dataclass(frozen=True)
class Batching:
    """How optimizer steps are made up of batches, and these of samples. Which samples a step has is the same for any world size."""

    packed: bool
    """Packed rows of `packing_length` tokens, or `per_device_train_batch_size` padded samples."""
    per_device_train_batch_size: int
    """Samples of a planned batch: of a micro-batch where the run began."""
    packing_length: int
    step: StepShape
    world_size: int
    reason: str = ""
    """Why packed or padded was chosen, in words."""

    @classmethod
    def of(cls, train: TrainConfig, device: torch.device, precision: Precision, world_size: int = 1, can_pack: bool = True) -> "Batching":
        """Batching from train.batching; auto packs where attention skips what other samples hold, and pads elsewhere.

        can_pack: whether the model family takes packed rows.
        """
        packed, reason = train.batching == "packed", f"train.batching={train.batching}"
        if train.batching == "auto" and not can_pack:
            packed, reason = False, "auto: the model family takes no packed rows"
        elif train.batching == "auto":
            packed = device_capability(device).varlen_attention and precision != "fp32"
            lacking = device.type == "cuda" and not packed
            reason = f"auto on {device.type}" + (f" without variable-length attention in {precision}" if lacking else "")
        step = StepShape(train.gradient_accumulation_steps * world_size, train.gradient_accumulation_steps)
        return cls(packed, train.per_device_train_batch_size, train.packing_length, step, world_size, reason)

    @property
    def micro_batch_size(self) -> int:
        """Most samples of a padded micro-batch of one rank."""
        return math.ceil(self.per_device_train_batch_size * self.step.batches / (self.step.micro_batches * self.world_size))

    def __str__(self) -> str:
        padded = f"{self.micro_batch_size} samples of similar length, padded"
        return f"{f'packed rows of {self.packing_length:,} tokens' if self.packed else padded} ({self.reason})"

    def plan(self, lengths: SampleLengths, seed: int, epochs: int) -> BatchingStrategy:
        """The batches of `epochs` epochs. Raises UsageError when a sample is longer than a packed row."""
        sampled_lengths = [lengths.sampled_lengths(seed, epoch) for epoch in range(epochs)]
        chosen = None if lengths.mix is None else [lengths.epoch_indices(seed, epoch) for epoch in range(epochs)]
        if not self.packed:
            return LengthGroupedBatching(sampled_lengths, self.per_device_train_batch_size, seed, chosen)
        longest = max((int(epoch_lengths.max()) for epoch_lengths in sampled_lengths if len(epoch_lengths)), default=0)
        if longest > self.packing_length:
            raise UsageError(
                f"train.packing_length: {self.packing_length} is less than the longest sample of {longest} tokens; lower model.max_length"
            )
        return PackedBatching(sampled_lengths, self.packing_length, seed, chosen)

    def collator(self, processor: SampleProcessor) -> Collate:
        """The collator from examples to model inputs."""
        pad_id = int(processor.tokenizer.pad_token_id)
        longest = min(processor.max_length, self.packing_length)
        return PackedCollator(pad_id, self.packing_length, longest) if self.packed else PaddedCollator(pad_id)

    def sampler(self, lengths: SampleLengths, seed: int, epochs: float, rank: int = 0) -> DistributedBatchSampler:
        """The training batch sampler of one rank. seed: of the order and of the targets; epochs: possibly a fraction."""
        return DistributedBatchSampler(self.plan(lengths, seed, math.ceil(epochs)), epochs, self.step, rank, self.world_size)

    def validation_sampler(self, lengths: SampleLengths, seed: int, rank: int = 0) -> DistributedBatchSampler:
        """All samples once, for one rank: one batch each at a time."""
        return DistributedBatchSampler(self.plan(lengths, seed, 1), 1, StepShape(self.world_size, 1), rank, self.world_size)
