"""Batches of a stream: samples are tokenised as they come, wait in a shuffle buffer, and leave it in batches.

In: a `SampleReader`. Out: collated batches, each with the state of the stream after it, from which another process goes on alike.
Shapes: n samples of the buffer.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from dataset.config import AugmentationConfig
from dataset.loading.augmentation import augment_conversation, moves_boxes
from dataset.loading.collators import Example, UnreadableImage
from dataset.loading.encoded_sample import EncodedSample, EncodingError
from dataset.loading.image_io import ImageError, open_image, printable_path, read_with_retries
from dataset.sample import Sample
from dataset.streaming.sample_reader import ReadSample, SampleReader, StreamPlan
from dataset.streaming.source_records import Position, Share
from errors import TesseraError
from model.family import Collate
from model.processors.sample_processor import SampleProcessor
from training.data_loading import blank_example, encode_samples

FIRST_SAMPLES = 128
"""Samples in the buffer before the first batch; with every batch it grows by SAMPLES_PER_BATCH, up to data.shuffle_buffer_size, so that
training begins soon."""
SAMPLES_PER_BATCH = 64

ROWS_IN_BUFFER = 2
"""Packed rows that the samples of a buffer fill at least."""

BUFFER_BYTES = 256 << 20
"""Most bytes of images that came inside files and wait in a buffer; larger ones leave room for fewer samples."""


@dataclass(frozen=True)
class StreamSettings:
    """What all streams of a stage have in common.

    Args:
        plan: What is read.
        processor: Tokenizer and image processor.
        collate: Makes a batch of examples.
        packed: Packed rows of `size` tokens, or `size` padded samples.
        size: See packed.
        seed: Of the order, the targets and the augmentation.
        augmentation: Random augmentation of the images.
    """

    plan: StreamPlan
    processor: SampleProcessor
    collate: Collate
    packed: bool
    size: int
    seed: int
    augmentation: AugmentationConfig | None = None


class Waiting(NamedTuple):
    """A sample of the buffer, and which copy it is of those that a source's `repeat` asks for. tokens: for how many there is room, those of
    `encoded`, or where augmentation may change boxes those of the widest."""

    read: ReadSample
    copy: int
    sample: Sample
    encoded: EncodedSample
    tokens: int


class BatchStream:
    """The batches of one stream, without end.

    Args:
        settings: What all streams have in common.
        share: Of this stream.
        state: What `state` returned; None to begin.
    """

    def __init__(self, settings: StreamSettings, share: Share, state: dict[str, Any] | None = None):
        self._settings, self._share = settings, share
        self._reader = SampleReader(settings.plan, share, state["reader"] if state else None)
        self._batches: int = state["batches"] if state else 0
        self._is_emptied: bool = state["is_emptied"] if state else False
        self._left_out: int = state["left_out"] if state else 0
        self._buffer = self._restored(state["buffer"]) if state else []

    def state(self) -> dict[str, Any]:
        """Where the stream is, for JSON; `buffer` has source, pass, file, record and copy of each sample."""
        return {
            "reader": self._reader.state(),
            "batches": self._batches,
            "is_emptied": self._is_emptied,
            "left_out": self._left_out,
            "buffer": [[waiting.read.source, *waiting.read.position, waiting.copy] for waiting in self._buffer],
        }

    def next_batch(self) -> dict[str, Any]:
        """The next batch. Raises TesseraError when the data cannot be read on."""
        self._fill()
        chosen = self._choose()
        self._batches += 1
        members = [self._buffer[i] for i in chosen]
        taken = set(chosen)
        self._buffer = [waiting for i, waiting in enumerate(self._buffer) if i not in taken]
        return self._settings.collate([self._example(waiting) for waiting in members])

    def longest_batch(self) -> dict[str, Any]:
        """The batch of the first samples that needs the most memory: the longest ones, or in a packed row the most images."""
        self._fill()
        waiting = sorted(self._buffer, key=lambda one: one.tokens, reverse=not self._settings.packed)
        chosen = self._row(waiting) if self._settings.packed else waiting[: self._settings.size]
        return self._settings.collate([self._example(one) for one in chosen])

    def first_samples(self) -> list[EncodedSample]:
        """The encoded samples with which the buffer begins."""
        self._fill()
        return [waiting.encoded for waiting in self._buffer]

    def _fill(self) -> None:
        """Read samples until the buffer has as many as the next batch is chosen from. At the end of an epoch it is emptied first."""
        settings = self._settings
        wanted = min(settings.plan.config.shuffle_buffer_size, FIRST_SAMPLES + SAMPLES_PER_BATCH * self._batches)
        wanted = max(wanted, 1 if settings.packed else settings.size)
        # Short samples: more of them, so that rows are full.
        wanted_tokens = ROWS_IN_BUFFER * settings.size if settings.packed else 0
        held = sum(waiting.read.checked.num_bytes for waiting in self._buffer)
        tokens = sum(waiting.tokens for waiting in self._buffer)
        self._is_emptied = self._is_emptied and bool(self._buffer)
        ended_epochs = 0
        while not self._is_emptied and (len(self._buffer) < wanted or tokens < wanted_tokens) and (held < BUFFER_BYTES or not self._buffer):
            read = self._reader.read()
            if read is None:
                self._is_emptied = bool(self._buffer)
                ended_epochs += 1
                if ended_epochs > 1:
                    raise TesseraError("data.sources: of a whole epoch no training sample has a supervised token within model.max_length")
                continue
            repeat = settings.plan.config.sources[read.source].repeat
            added = [waiting for copy in range(repeat) if (waiting := self._encoded(read, copy)) is not None]
            self._buffer += added
            self._left_out += repeat - len(added)
            held += read.checked.num_bytes if added else 0
            tokens += sum(waiting.tokens for waiting in added)

    def _encoded(self, read: ReadSample, copy: int) -> Waiting | None:
        """The sample with the tokens of its epoch; None when the model does not take its images or nothing would be supervised."""
        sample = read.checked.sample
        if copy:
            sample = dataclasses.replace(sample, sample_id=f"{sample.sample_id}#copy{copy + 1}")
        try:
            encoded, room = self._encode([sample], read), None
            if sample.regions and moves_boxes(self._settings.augmentation):
                room = self._encode([sample.with_widest_boxes()], read)
        except EncodingError:
            return None
        return None if encoded is None else Waiting(read, copy, sample, encoded, len(room or encoded))

    def _encode(self, samples: Sequence[Sample], read: ReadSample) -> EncodedSample | None:
        return encode_samples(samples, self._sizes(read), self._settings.processor, self._settings.seed, read.position.epoch)

    def _restored(self, entries: list[list[int]]) -> list[Waiting]:
        keys = [(source, Position(epoch, file, record), copy) for source, epoch, file, record, copy in entries]
        found = self._reader.find({(source, position) for source, position, _ in keys})
        waiting = [self._encoded(found[source, position], copy) for source, position, copy in keys]
        return [one for one in waiting if one is not None]

    def _choose(self) -> list[int]:
        """Which samples of the buffer form the next batch. The number of the batch and the seed decide, beside the buffer itself."""
        rng = np.random.default_rng((self._settings.seed, self._share.index, self._batches))
        if self._settings.packed:
            order = rng.permutation(len(self._buffer)).tolist()
            positions = {id(self._buffer[i]): i for i in order}
            return [positions[id(waiting)] for waiting in self._row([self._buffer[i] for i in order])]
        # Neighbours in length of a random sample.
        order = np.argsort([waiting.tokens for waiting in self._buffer], kind="stable").tolist()
        size = self._settings.size
        start = int(rng.integers(len(order))) - int(rng.integers(size))
        start = min(max(start, 0), max(len(order) - size, 0))
        return list(order[start : start + size])

    def _row(self, waiting: list[Waiting]) -> list[Waiting]:
        """The first samples that fit into a packed row together."""
        row, room = [], self._settings.size
        shortest = min(one.tokens for one in waiting)
        for one in waiting:
            if room < shortest:
                break
            if one.tokens <= room:
                row.append(one)
                room -= one.tokens
        return row

    def _example(self, waiting: Waiting) -> Example:
        """The sample with its pixels; one whose image can no longer be read has a blank one, and no supervised token."""
        read, sample, encoded, settings = waiting.read, waiting.sample, waiting.encoded, self._settings
        images = []
        for image in read.checked.images:
            try:
                # The check has accepted it before.
                images.append(read_with_retries(partial(open_image, image, settings.plan.config.max_pixels)))
            except ImageError as error:
                path = f"{sample.source}, an image inside a file" if isinstance(image, bytes) else printable_path(image)
                unreadable = (UnreadableImage(path, str(error), sample.sample_id, None),)
                blank = blank_example(sample, encoded, self._sizes(read), settings.processor)
                return dataclasses.replace(blank, unreadable_images=unreadable)
        if settings.augmentation is not None:
            key, room = f"{settings.seed}/{read.position.epoch}/{sample.sample_id}", waiting.tokens if settings.packed else None
            encode = partial(self._encode, read=read)
            images, encoded = augment_conversation(images, [sample], settings.augmentation, key, encode, encoded, room)
        return Example(sample.sample_id, encoded, settings.processor.read(images))

    def _sizes(self, read: ReadSample) -> tuple[tuple[int, int], ...]:
        return read.checked.sizes if self._settings.processor.sizes_matter else ()
