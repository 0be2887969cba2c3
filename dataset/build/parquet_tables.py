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
    columns = [np.arange(len(images)), *(images[name] for name in ("path", "width", "height", "sha256")), _named(names, images["source"])]
    with naming_full_disk(file):
        pq.write_table(pa.table(columns, names=IMAGES_SCHEMA.names).cast(IMAGES_SCHEMA), file, compression="zstd")
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
    schema = SAMPLES_SCHEMA.with_metadata({IMAGES_DIGEST_KEY: images_digest})
    # Repeated rows, too, must fit into one Arrow column.
    rows = merged.samples["row"].to_numpy()
    rows_at_once = max(1, ROWS_PER_BATCH // max(source.repeat for source in sources))
    begin = row = 0
    with naming_full_disk(file), pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in buffer.batches():
            end = int(np.searchsorted(rows, row + batch.num_rows))
            for first in range(begin, end, rows_at_once):
                part = merged.samples.slice(first, min(rows_at_once, end - first))
                table = _rows(pa.table(batch).take(pa.array(part["row"].to_numpy() - row)), part, sources, report)
                writer.write_table(table.cast(schema))
                by_split.update(table["split"].to_pylist())
                by_language.update(table["language"].to_pylist())
            begin, row = end, row + batch.num_rows
    moved = merged.samples.filter(merged.samples["moved"])["source"].to_numpy()
    for source, count in zip(report.sources, np.bincount(moved, minlength=len(sources)), strict=True):
        source.moved = int(count)
    report.images, report.samples = len(merged.images), by_split.total()
    report.by_split = {split: by_split[split] for split in SPLITS}
    report.by_language = {language: by_language[language] for language in LANGUAGES}


def _rows(texts: pa.Table, samples: pa.Table, sources: Sequence[SourceBase], report: MergeReport) -> pa.Table:
    """The final rows of some kept samples: repeated, with source, split, image ids and prompt.

    Args:
        texts: Texts of the samples.
        samples: The same samples, as in `MergeResult`.
        sources: Configuration of each source.
        report: Report whose `samples` counts grow.
    """
    repeats = np.array([source.repeat for source in sources])[samples["source"].to_numpy()]
    repeat_counts = np.where(samples["split"].to_numpy() == SPLITS.index("train"), repeats, 1)
    first = np.cumsum(repeat_counts) - repeat_counts
    copy_numbers = np.arange(repeat_counts.sum()) - np.repeat(first, repeat_counts)
    repeated = pa.array(np.repeat(np.arange(len(samples)), repeat_counts))
    texts, samples = texts.take(repeated), samples.take(repeated)
    source_indices = samples["source"].to_numpy()
    for source, count in zip(report.sources, np.bincount(source_indices, minlength=len(sources)), strict=True):
        source.samples += int(count)
    ids = zip(texts["sample_id"].to_pylist(), copy_numbers.tolist(), strict=True)
    languages = zip(source_indices.tolist(), texts["language"].to_pylist(), strict=True)
    columns = {
        **{name: texts[name] for name in texts.column_names},
        "sample_id": [name if not copy else f"{name}#copy{copy + 1}" for name, copy in ids],
        "image_ids": samples["image_ids"],
        "source": _named([source.name for source in report.sources], samples["source"]),
        "split": _named(SPLITS, samples["split"]),
        "prompt": pa.array([sources[i].prompt_in(language) for i, language in languages], pa.string()),
    }
    return pa.table([columns[name] for name in SAMPLES_SCHEMA.names], schema=SAMPLES_SCHEMA)


def _named(names: Sequence[str], indices: pa.ChunkedArray) -> pa.ChunkedArray:
    """The name at each index."""
    return pa.chunked_array([pa.array(names)]).take(indices)
