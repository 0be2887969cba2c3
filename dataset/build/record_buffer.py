"""Temporary Arrow file for the records of a merge; only a few numbers per record stay in memory."""

import contextlib
import hashlib
import itertools
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

from atomic_io import naming_full_disk
from dataset.build.splits import SPLITS
from dataset.config import Split
from dataset.sample import SAMPLES_SCHEMA, Language, detect_language
from dataset.sources.record import RawSample, RecordLocation

ROWS_PER_BATCH = 4096
"""Samples that are collected in memory before they are written."""

CHARACTERS_PER_BATCH = 1 << 26
"""Characters of text after which they are written earlier: an Arrow column of text holds 2 GiB."""

SCHEMA = pa.schema([SAMPLES_SCHEMA.field(name) for name in ("sample_id", "task", "language", "messages", "targets", "answers", "category")])
"""Columns of the temporary file; the merge adds source, split, image ids and prompt later."""


class RecordBuffer:
    """Writes samples to disk and reads them back as Arrow batches in the same order. A context manager: add samples inside.

    Attributes:
        source: Source index of each sample.
        source_split: Own split of each sample: an index into SPLITS, or -1.
        images: File indices of all samples' images, concatenated.
        image_offsets: Sample i has the images `images[image_offsets[i]:image_offsets[i + 1]]`.
        locations: Location of each sample in its annotation file.
        text_digests: SHA-256 of the texts, of samples without images only.
    """

    def __init__(self, file: Path):
        self.file = file
        self.source, self.source_split = array("h"), array("b")
        self.image_offsets, self.images = array("q", [0]), array("q")
        self.locations: list[RecordLocation] = []
        self.text_digests: dict[int, str] = {}
        self._id_counts: dict[str, int] = {}
        self._rows: dict[str, list[object]] = {name: [] for name in SCHEMA.names}
        self._characters = 0
        self._stream = pa.OSFile(str(file), "wb")
        self._writer = pa.ipc.new_stream(self._stream, SCHEMA)

    def __len__(self) -> int:
        return len(self.source)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            # The file is of no use, and closing it may fail for the same reason again.
            with contextlib.suppress(OSError):
                self._stream.close()
            return
        self._flush()
        with naming_full_disk(self.file):
            self._writer.close()
            self._stream.close()

    def images_of(self, sample: int) -> "array[int]":
        """File indices of the images of a sample."""
        return self.images[self.image_offsets[sample] : self.image_offsets[sample + 1]]

    def add(self, sample: RawSample, source: int, source_name: str, split: Split | None, images: list[int]) -> None:
        """Append one sample.

        Args:
            sample: The validated sample.
            source: Index of its source.
            source_name: Name of its source, the first part of the sample id.
            split: Split of its own, if any.
            images: File indices of its images.
        """
        self.source.append(source)
        self.source_split.append(-1 if split is None else SPLITS.index(split))
        self.images.extend(images)
        self.image_offsets.append(len(self.images))
        self.locations.append(sample.location)
        if not images:
            self.text_digests[len(self) - 1] = _text_digest(sample)
        rows = self._rows
        rows["sample_id"].append(self._unique_id(f"{source_name}/{sample.key}"))
        rows["task"].append(sample.task)
        rows["language"].append(language(sample))
        rows["messages"].append([(message.role, message.content) for message in sample.messages])
        rows["targets"].append(sample.targets)
        rows["answers"].append(sample.answers)
        rows["category"].append(sample.category)
        texts = itertools.chain((message.content for message in sample.messages), sample.targets, sample.answers)
        self._characters += sum(map(len, texts))
        if len(rows["task"]) == ROWS_PER_BATCH or self._characters >= CHARACTERS_PER_BATCH:
            self._flush()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All samples in the order of `add`. Only after the `with` block has ended."""
        with pa.OSFile(str(self.file)) as file:
            yield from pa.ipc.open_stream(file)

    def _flush(self) -> None:
        with naming_full_disk(self.file):
            self._writer.write_batch(pa.record_batch([self._rows[name] for name in SCHEMA.names], schema=SCHEMA))
        self._rows = {name: [] for name in SCHEMA.names}
        self._characters = 0

    def _unique_id(self, sample_id: str) -> str:
        """The id, numbered if it is taken. `#` separates the number, so it is replaced in ids from files."""
        sample_id = sample_id.replace("#", "_")
        count = self._id_counts[sample_id] = self._id_counts.get(sample_id, 0) + 1
        return sample_id if count == 1 else f"{sample_id}#{count}"


def language(sample: RawSample) -> Language:
    """`zh` when the conversation (of a VQA sample, the question) contains a CJK ideograph, else `en`."""
    texts = [message.content for message in sample.messages]
    if sample.task != "vqa":
        texts += sample.targets
    return detect_language(*texts)


def _text_digest(sample: RawSample) -> str:
    text = "\0".join([*(message.content for message in sample.messages), *sample.targets])
    return hashlib.sha256(text.encode()).hexdigest()
