"""Writing `images.parquet` and `samples.parquet`."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataset.build.deduplication import Merged
from dataset.build.merge_report import Report
from dataset.build.record_buffer import Spool
from dataset.build.splits import SPLITS
from dataset.config import SourceBase
from dataset.loading.sample_store import IMAGES_DIGEST
from dataset.sample import IMAGES_SCHEMA, SAMPLES_SCHEMA

LANGUAGES = ("en", "zh")


def write_images(file: Path, merged: Merged, names: Sequence[str]) -> str:
    """Write one row a picture. Returns the digest of the file, by which samples.parquet knows it."""
    pictures = merged.pictures
    columns = [
        list(range(len(pictures))),
        [picture.path for picture in pictures],
        [picture.width for picture in pictures],
        [picture.height for picture in pictures],
        [picture.sha256 for picture in pictures],
        [names[source] for source in merged.first_source],
    ]
    pq.write_table(pa.table(columns, schema=IMAGES_SCHEMA), file, compression="zstd")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def write_samples(file: Path, spool: Spool, merged: Merged, sources: Sequence[SourceBase], images_digest: str, report: Report) -> None:
    """Write the samples, training samples as often as their source says, and count them in `report`."""
    by_split, by_language = Counter[str](), Counter[str]()
    source_of = np.asarray(spool.source)[merged.rows]
    schema = SAMPLES_SCHEMA.with_metadata({IMAGES_DIGEST: images_digest})
    begin = row = 0
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in spool.batches():
            end = int(np.searchsorted(merged.rows, row + batch.num_rows))
            kept = np.arange(begin, end)
            table = _rows(pa.table(batch).take(merged.rows[kept] - row), kept, source_of, merged, sources, report)
            writer.write_table(table.cast(schema))
            by_split.update(table["split"].to_pylist())
            by_language.update(table["language"].to_pylist())
            begin, row = end, row + batch.num_rows
    for i, source in enumerate(report.sources):
        source.moved = int(merged.assignment.moved[source_of == i].sum())
    report.images, report.samples = len(merged.pictures), by_split.total()
    report.by_split = {split: by_split[split] for split in SPLITS}
    report.by_language = {language: by_language[language] for language in LANGUAGES}


def _rows(
    table: pa.Table, kept: np.ndarray, source_of: np.ndarray, merged: Merged, sources: Sequence[SourceBase], report: Report
) -> pa.Table:
    """The final rows of some kept samples: repeated, with source, split and image ids."""
    repeats = np.array([source.repeat for source in sources])[source_of[kept]]
    times = np.where(merged.assignment.split[kept] == SPLITS.index("train"), repeats, 1)
    first = np.cumsum(times) - times
    copies = np.arange(times.sum()) - np.repeat(first, times)
    table = table.take(np.repeat(np.arange(len(kept)), times))
    samples = np.repeat(kept, times)
    for i, count in enumerate(np.bincount(source_of[samples], minlength=len(sources))):
        report.sources[i].samples += int(count)
    starts = merged.starts
    pictures = [merged.image_ids[starts[k] : starts[k + 1]] for k in samples]
    columns = {
        **{name: table[name] for name in table.column_names},
        "sample_id": [
            name if not copy else f"{name}#copy{copy + 1}" for name, copy in zip(table["sample_id"].to_pylist(), copies, strict=True)
        ],
        "image_ids": pa.array(pictures, pa.list_(pa.int64())),
        "source": pa.array([report.sources[i].name for i in source_of[samples]]),
        "split": pa.array([SPLITS[i] for i in merged.assignment.split[samples]]),
    }
    return pa.table([columns[name] for name in SAMPLES_SCHEMA.names], schema=SAMPLES_SCHEMA)
