"""The records of a merge: their texts in a temporary Arrow file, a few numbers of each in a table."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Self

import pyarrow as pa

from atomic_io import naming_full_disk
from dataset.build.splits import SPLITS, text_digest
from dataset.sample import SAMPLES_SCHEMA
from dataset.source_base import Split
from dataset.sources.record import RawSample

ROWS_PER_BATCH = 4096
"""Samples that are collected in memory before they are written."""

CHARACTERS_PER_BATCH = 1 << 26
"""Characters of text after which they are written earlier: an Arrow column of text holds 2 GiB."""

TEXTS_SCHEMA = pa.schema(
    [SAMPLES_SCHEMA.field(name) for name in ("sample_id", "task", "language", "messages", "targets", "answers", "category")]
)
"""Columns of the temporary file; the merge adds source, split, image ids and prompt later."""

BOX_TYPE = pa.struct([("image", pa.int32()), ("corners", pa.list_(pa.float64())), ("in_pixels", pa.bool_()), ("is_stored", pa.bool_())])
"""A `dataset.bounding_box.RawBox`."""

RECORDS_SCHEMA = pa.schema(
    [
        ("source", pa.int16()),  # index of the source
        ("source_split", pa.int8()),  # split of its own, an index into SPLITS, or -1
        ("files", pa.list_(pa.int64())),  # indices of its image files
        ("location_kind", pa.dictionary(pa.int32(), pa.string())),  # location in the annotation file
        ("location_number", pa.int64()),
        ("location_file", pa.dictionary(pa.int32(), pa.string())),
        ("text_digest", pa.string()),  # SHA-256 of the texts, of a record without images only
        ("boxes", pa.list_(BOX_TYPE)),  # its boxes as the annotation file states them; null without any
    ]
)
"""Columns that stay in memory."""


class RecordBuffer:
    """Writes the texts of samples to disk, reads them back as Arrow batches in the same order, and keeps the rest as a table. A context
    manager: add samples inside."""

    def __init__(self, file: Path):
        self.file = file
        self._records: list[pa.RecordBatch] = []
        self._id_counts: dict[str, int] = {}
        self._rows: list[tuple[tuple[object, ...], tuple[object, ...]]] = []
        self._characters = 0
        self._stream = pa.OSFile(str(file), "wb")
        self._writer = pa.ipc.new_stream(self._stream, TEXTS_SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            # The file is of no use, and closing it may fail for the same reason again.
            with contextlib.suppress(OSError):
                self._stream.close()
            return
        self._flush()
        with naming_full_disk(self.file):
            self._writer.close()
            self._stream.close()

    def records(self) -> pa.Table:
        """One row per sample in the order of `add` (RECORDS_SCHEMA). Only once, after the `with` block has ended."""
        batches, self._records = self._records, []
        return pa.Table.from_batches(batches, RECORDS_SCHEMA)

    def add(self, sample: RawSample, source: int, source_name: str, split: Split | None, files: list[int]) -> None:
        """Append one sample.

        Args:
            sample: The validated sample.
            source: Index of its source.
            source_name: Name of its source, the first part of the sample id.
            split: Split of its own, if any.
            files: Indices of its image files.
        """
        contents = [message.content for message in sample.messages]
        record = (
            source,
            -1 if split is None else SPLITS.index(split),
            files,
            sample.location.kind,
            sample.location.number,
            sample.location.file,
            None if files else text_digest(contents, sample.targets),
            [asdict(box) for box in sample.boxes] or None,
        )
        texts = (
            self._unique_id(f"{source_name}/{sample.key}"),
            sample.task,
            sample.language,
            [(message.role, message.content) for message in sample.messages],
            sample.targets,
            sample.answers,
            sample.category,
        )
        self._rows.append((record, texts))
        self._characters += sum(map(len, (*contents, *sample.targets, *sample.answers)))
        if len(self._rows) == ROWS_PER_BATCH or self._characters >= CHARACTERS_PER_BATCH:
            self._flush()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All samples in the order of `add`. Only after the `with` block has ended."""
        with pa.OSFile(str(self.file)) as file:
            yield from pa.ipc.open_stream(file)

    def _flush(self) -> None:
        records, texts = zip(*self._rows, strict=True) if self._rows else ((), ())
        with naming_full_disk(self.file):
            self._writer.write_batch(_record_batch(texts, TEXTS_SCHEMA))
        self._records.append(_record_batch(records, RECORDS_SCHEMA))
        self._rows, self._characters = [], 0

    def _unique_id(self, sample_id: str) -> str:
        """The id, numbered if it is taken. `#` separates the number, so it is replaced in ids from files."""
        sample_id = sample_id.replace("#", "_")
        count = self._id_counts[sample_id] = self._id_counts.get(sample_id, 0) + 1
        return sample_id if count == 1 else f"{sample_id}#{count}"


def _record_batch(rows: Sequence[tuple[object, ...]], schema: pa.Schema) -> pa.RecordBatch:
    """Rows, whose values are in the order of the schema, as columns."""
    columns = zip(*rows, strict=True) if rows else ((),) * len(schema)
    return pa.record_batch([list(column) for column in columns], schema=schema)
