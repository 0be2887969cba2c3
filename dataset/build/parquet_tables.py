"""Write `images.parquet` and `samples.parquet`.

Shapes: n kept samples of a batch.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from atomic_io import naming_full_disk
from dataset.build.deduplication import MergeResult
from dataset.build.merge_report import MergeReport
from dataset.build.record_buffer import ROWS_PER_BATCH, RecordBuffer
from dataset.build.splits import SPLITS
from dataset.config import SourceBase
from dataset.loading.sample_store import IMAGES_DIGEST_KEY
from dataset.sample import IMAGES_SCHEMA, SAMPLES_SCHEMA

LANGUAGES = ("en", "zh")
"""Order of the languages in the report."""


def write_images(file: Path, merged: MergeResult, names: Sequence[str]) -> str:
    """Write one row per image. Returns the SHA-256 of the file, which is stored in the metadata of samples.parquet."""
    images = merged.images
    columns = [
        list(range(len(images))),
        [image.path for image in images],
        [image.width for image in images],
        [image.height for image in images],
        [image.sha256 for image in images],
        [names[source] for source in merged.first_source],
    ]
    with naming_full_disk(file):
        pq.write_table(pa.table(columns, schema=IMAGES_SCHEMA), file, compression="zstd")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def write_samples(
    file: Path, buffer: RecordBuffer, merged: MergeResult, sources: Sequence[SourceBase], images_digest: str, report: MergeReport
) -> None:
    """Write the kept samples, training samples `repeat` times, and add the counts to `report`.

    Args:
        file: File to write.
        buffer: All records that were read.
        merged: Which of them are kept, with splits and image ids.
        sources: Configuration of each source.
        images_digest: SHA-256 of images.parquet, written to the metadata.
        report: Report whose counts are filled in.
    """
    by_split, by_language = Counter[str](), Counter[str]()
    source_indices = np.asarray(buffer.source)[merged.rows]
    schema = SAMPLES_SCHEMA.with_metadata({IMAGES_DIGEST_KEY: images_digest})
    # Repeated rows, too, must fit into one Arrow column.
    rows_at_once = max(1, ROWS_PER_BATCH // max(source.repeat for source in sources))
    begin = row = 0
    with naming_full_disk(file), pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in buffer.batches():
            end = int(np.searchsorted(merged.rows, row + batch.num_rows))
            for first in range(begin, end, rows_at_once):
                indices = np.arange(first, min(first + rows_at_once, end))
                table = _rows(pa.table(batch).take(merged.rows[indices] - row), indices, source_indices, merged, sources, report)
                writer.write_table(table.cast(schema))
                by_split.update(table["split"].to_pylist())
                by_language.update(table["language"].to_pylist())
            begin, row = end, row + batch.num_rows
    for i, source in enumerate(report.sources):
        source.moved = int(merged.assignment.moved[source_indices == i].sum())
    report.images, report.samples = len(merged.images), by_split.total()
    report.by_split = {split: by_split[split] for split in SPLITS}
    report.by_language = {language: by_language[language] for language in LANGUAGES}


def _rows(
    table: pa.Table,
    indices: np.ndarray,
    source_indices: np.ndarray,
    merged: MergeResult,
    sources: Sequence[SourceBase],
    report: MergeReport,
) -> pa.Table:
    """The final rows of a batch of kept samples: repeated, with source, split, image ids and prompt.

    Args:
        table: Texts of the batch, one row per kept sample.
        indices: Indices of these samples among all kept samples, [n].
        source_indices: Source of each kept sample of the merge.
        merged: Splits and image ids.
        sources: Configuration of each source.
        report: Report whose `samples` counts grow.
    """
    repeats = np.array([source.repeat for source in sources])[source_indices[indices]]
    repeat_counts = np.where(merged.assignment.split[indices] == SPLITS.index("train"), repeats, 1)
    first = np.cumsum(repeat_counts) - repeat_counts
    copy_numbers = np.arange(repeat_counts.sum()) - np.repeat(first, repeat_counts)
    table = table.take(np.repeat(np.arange(len(indices)), repeat_counts))
    samples = np.repeat(indices, repeat_counts)
    for i, count in enumerate(np.bincount(source_indices[samples], minlength=len(sources))):
        report.sources[i].samples += int(count)
    image_offsets = merged.image_offsets
    images = [merged.image_ids[image_offsets[k] : image_offsets[k + 1]] for k in samples]
    columns = {
        **{name: table[name] for name in table.column_names},
        "sample_id": [
            name if not copy else f"{name}#copy{copy + 1}" for name, copy in zip(table["sample_id"].to_pylist(), copy_numbers, strict=True)
        ],
        "image_ids": pa.array(images, pa.list_(pa.int64())),
        "source": pa.array([report.sources[i].name for i in source_indices[samples]]),
        "split": pa.array([SPLITS[i] for i in merged.assignment.split[samples]]),
        "prompt": pa.array(
            [sources[i].prompt_in(language) for i, language in zip(source_indices[samples], table["language"].to_pylist(), strict=True)],
            pa.string(),
        ),
    }
    return pa.table([columns[name] for name in SAMPLES_SCHEMA.names], schema=SAMPLES_SCHEMA)
